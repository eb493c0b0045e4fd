"""What a trade is whose vendor id is not the next one, and what the trades after a suspect make of it. Pure.

No single id is believed against all others: one that falls, with a time newer than all before, or that jumps
further than the stream can have moved, is a suspect until the next trade shows where the ids go on.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import Enum, auto

from services.gateway.sequencing.memory import agrees, has_time
from services.gateway.sequencing.stream_state import StreamState, Suspect
from services.vendors.feed import NO_ID
from tickbus.protocol.codec import Hole
from tickbus.protocol.messages import Flag, Trade
from tickbus.writer.heads import MAX_HOLES

_NEWER_IDS = 2 * MAX_HOLES
"""A hole is forgotten for newer ones, each of which has an id, and another one before it."""


class Verdict(Enum):
    """What a trade is."""

    NEXT = auto()
    """It goes on where the stream stands."""
    FIRST = auto()
    """The first one with an id."""
    AHEAD = auto()
    """Ids are missing before it."""
    FAR_AHEAD = auto()
    """More than can have been made since the last trade: a suspect."""
    FELL = auto()
    """An id of old with a newer time than all before: a suspect."""
    FELL_AGAIN = auto()
    """The same, with an id that was doubtful before: it probably stands still, and is not held."""
    LATE = auto()
    """Inside a reported hole."""
    FORGOTTEN = auto()
    """Not stored: inside a reported hole that is no longer known by its ids."""
    EARLY = auto()
    """Not stored, and never reported missing: from before the first one."""
    DUPLICATE = auto()
    """Stored already."""
    DOUBTFUL = auto()
    """Its id is that of another trade."""


class Decision(Enum):
    """What a trade shows about the suspect before it."""

    NEW_PLACE = auto()
    """The ids go on where the suspect is."""
    OLD_PLACE = auto()
    """They go on where they were: the suspect's id is wrong."""
    SAME_ID = auto()
    """The id of the suspect once more, which is another trade: the ids stand still."""
    NOTHING = auto()
    """It is stored already, or held."""


def judge(state: StreamState, tick: Trade, vendor_id: int) -> Verdict:
    """Return what a trade is. No suspect may wait for a decision."""
    last = state.next_id - 1
    if vendor_id == state.next_id and last >= 0:
        return Verdict.NEXT
    if last < 0:
        return Verdict.FIRST
    if vendor_id <= last and is_missing(state.holes, vendor_id):
        return Verdict.LATE
    if state.memory.repeats(tick, vendor_id):
        return Verdict.DUPLICATE
    if vendor_id <= last:
        return _judge_seen(state, tick, vendor_id)
    if vendor_id - last <= state.id_limit(tick.ts_recv, state.newest_recv):
        return Verdict.AHEAD
    return Verdict.DOUBTFUL if _is_doubted(state.memory.known(vendor_id)) else Verdict.FAR_AHEAD


def _judge_seen(state: StreamState, tick: Trade, vendor_id: int) -> Verdict:
    known = state.memory.known(vendor_id)
    # a repeat has its original time; without one, only its distance speaks
    if tick.ts_event > state.newest_event and (
        known or has_time(tick) or state.next_id - 1 - vendor_id > state.snapshot_size
    ):
        return Verdict.FELL_AGAIN if _is_doubted(known) else Verdict.FELL
    if not all(trade.flags & Flag.DOUBTFUL_ID for trade in known):
        return Verdict.DOUBTFUL
    if vendor_id < state.first_seen:
        return Verdict.DUPLICATE if vendor_id in state.early else Verdict.EARLY
    if state.unknown_holes and state.next_id - vendor_id > _NEWER_IDS and vendor_id < _oldest_hole(state):
        return Verdict.FORGOTTEN
    return Verdict.EARLY if vendor_id >= state.memory.complete_from else Verdict.DUPLICATE


def _oldest_hole(state: StreamState) -> int:
    return state.holes[0].first if state.holes else NO_ID


def _is_doubted(known: Iterable[Trade]) -> bool:
    """Whether an id stands still, or is wrong once more."""
    return any(trade.flags & Flag.DOUBTFUL_ID for trade in known)


def decide(state: StreamState, suspect: Suspect, tick: Trade, vendor_id: int) -> Decision:
    """Return what a trade shows about the suspect before it."""
    at = suspect.vendor_id
    if vendor_id == at and suspect.tick is None:
        return Decision.NEW_PLACE
    if vendor_id != state.next_id and state.memory.repeats(tick, vendor_id):
        return Decision.NOTHING
    if vendor_id == at and suspect.tick is not None:
        return Decision.NOTHING if agrees(tick, suspect.tick) else Decision.SAME_ID
    since = tick.ts_recv if suspect.tick is None else suspect.tick.ts_recv
    if suspect.fell:
        follows = at < vendor_id < state.next_id and tick.ts_event > state.newest_event
        goes_on = follows and vendor_id - at <= state.close_ids(tick.ts_recv - since)
    else:
        close = abs(vendor_id - at) <= state.id_limit(tick.ts_recv, since)
        goes_on = close and at - vendor_id < vendor_id - state.next_id  # the nearer of the two places
    return Decision.NEW_PLACE if goes_on else Decision.OLD_PLACE


def is_missing(holes: Sequence[Hole], vendor_id: int) -> bool:
    """Whether an id is in a reported hole. Holes are disjoint and in order."""
    at = bisect_right(holes, vendor_id, key=lambda hole: hole.first)
    return at > 0 and vendor_id <= holes[at - 1].last
