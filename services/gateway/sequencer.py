"""Which ticks go onto the bus, in which order, under which IDs, and where the holes are. Pure.

Rules, per stream:

* IDs: ms of the receive time, never falling; a dense counter over ticks and Gaps, which goes on over restarts.
* With contiguous vendor ids (sequenced trades): an id that jumps leaves a Gap for the range, also when the jump lies over an
  outage or a restart; an outage that missed nothing leaves none. An id that was seen is a duplicate and dropped; a lower one
  inside a told hole is a late tick, flagged, and its range is told again as repaired; a large fall is a reset.
* Without: one Gap per outage for every subscribed stream, count unknown; none at the first start ever.
* A tick is never dropped for its value.

Gap times are event time, as near as can be told: in a sequenced hole the ts_event of its two neighbours, else the receive time
on the vendor's clock (services.gateway.delays).
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import itemgetter

import msgspec

from services.gateway.delays import Delays
from services.gateway.feeds.base import NO_ID, Mapped, Rejected
from tickbus.messages import Flag, Gap, GapKind, Quote, StreamKind, Trade
from tickbus.names import Keys, Stream, StreamId
from tickbus.streams import Entry, StreamWriter
from tickbus.units import MILLISECOND
from tickbus.wire import NIL, Head, Hole, decode, encode, pack_epochs, pack_head, pack_holes

_WINDOW = 100_000
"""A fall of the vendor id by more than this is a reset, not a repeat."""
_REPEATS = 64
"""A fall of at most this is a repeat, whatever its time says: vendors send the last ticks again after a reconnect."""
HOLES = 64
"""Told holes that are remembered per stream, the newest."""
EPOCHS = 16
"""Writers that a head remembers, the newest."""

SOURCE = "gateway"


class StreamState(StreamWriter):
    """One stream's side of the sequencer."""

    __slots__ = (
        "acked", "ahead", "dropped", "early", "epochs", "field", "first_seen", "gaps", "history", "holes", "kind", "last_event", "missing", "next_id",
        "outage", "outage_at", "outage_since", "recv_of_last_event", "repaired", "seq", "sequenced", "symbol", "tick", "told", "wrote",
    )  # fmt: skip

    def __init__(self, keys: Keys, stream: Stream, sequenced: bool) -> None:
        super().__init__(keys, stream)
        self.symbol = stream.symbol
        self.kind = StreamKind.TRADE if stream.kind == "trade" else StreamKind.QUOTE
        self.field = b"t" if self.kind is StreamKind.TRADE else b"q"
        self.sequenced = sequenced
        self.seq = 0
        self.next_id = 0
        """The contiguous vendor id that is to come next; 0 before the first."""
        self.first_seen = NO_ID
        """Lowest id since the start or the last reset: below it nothing is known to have been seen."""
        self.early: set[int] = set()
        """Ids below it that were stored all the same: the vendor's repeat of its last ticks begins before our first."""
        self.last_event = 0
        self.recv_of_last_event = 0
        """Receive time of the tick that brought the newest ts_event; 0 if that was before the start."""
        self.ahead = (0, 0, NO_ID)
        """ts_event of the two newest flagged ticks, and `next_id` after them: a vendor's clock may be ahead of ours for good."""
        self.holes: list[Hole] = []
        self.gaps: dict[str, int] = {}
        self.repaired = 0
        self.missing = 0
        self.told = b""
        """What the head says of holes, packed, and of writers."""
        self.wrote = pack_epochs(())
        self.history: list[tuple[int, bytes]] = []
        """(counter, `told`) after each entry that changed it and is in no head yet."""
        self.outage: GapKind | None = None
        """The last outage: the kind of the hole over it, should there be one."""
        self.outage_at = 0
        """next_id when it began: once that has moved, a hole has nothing to do with it."""
        self.outage_since = 0
        self.dropped: tuple[int, int, int] | None = None
        """Ticks that found no room and are not told yet: count, first and last ts_event."""
        self.epochs: list[tuple[int, int]] = []
        self.acked = 0
        """Counter of the newest entry that Redis has acknowledged."""
        self.tick: bytes = bytes(NIL)
        """The newest tick that is in a head, or about to be."""
        self.told = self._pack_holes()

    def restore(self, head: Head) -> StreamId:
        """Go on where the head says; -> its ID."""
        last = StreamId.parse(head.id)
        newest = self.newest_tick(head)
        self.seq = self.acked = last.seq
        self.next_id = 0 if head.vendor_id is None else head.vendor_id + 1
        self.first_seen = max(0, self.next_id - 1 - _WINDOW)
        # the head's ts_event may be that of a tick which came after the newest stored one, and died with its gateway
        self.last_event = head.ts_event if newest is None or newest.flags else newest.ts_event
        if newest is not None and newest.flags:
            self.ahead = (newest.ts_event, newest.ts_event, self.next_id)
        self.holes, self.gaps, self.repaired, self.missing = list(head.holes), dict(head.gaps), head.repaired, head.missing
        self.epochs = list(head.epochs)
        self.told, self.wrote = self._pack_holes(), pack_epochs(self.epochs)
        self.tick = bytes(head.tick)
        self.outage, self.outage_at, self.outage_since = GapKind.DISCONNECT, self.next_id, head.ts_recv
        return last

    def newest_tick(self, head: Head) -> Trade | Quote | None:
        if bytes(head.tick) == bytes(NIL):
            return None
        tick = decode(self.field, bytes(head.tick))
        assert isinstance(tick, Trade | Quote)
        return tick

    @property
    def newest_event(self) -> int:
        """ts_event of the newest tick, as near as can be told; 0 if none is known. Of flagged ticks it takes two to be believed."""
        before, last, next_id = self.ahead
        return max(self.last_event, min(before, last)) if next_id == self.next_id else self.last_event

    def event_before(self, ts_event: int) -> int:
        """ts_event of the newest tick, where a Gap in front of one of `ts_event` begins; that itself if none is known."""
        _, last, next_id = self.ahead
        newest = self.newest_event
        return last if next_id == self.next_id and newest < last <= ts_event else newest or ts_event

    def changed(self) -> None:
        """The newest entry changed what is told of holes."""
        self.history.append((self.seq, self._pack_holes()))

    def _pack_holes(self) -> bytes:
        return pack_holes(self.holes, self.gaps, self.repaired, self.missing)

    def head(self, entry: Entry) -> bytes:
        """The head after `entry`, packed. `tick` must be up to date if this is a Gap."""
        seq, vendor_id = entry.seq, entry.vendor_id
        if entry.field != b"g":
            self.tick = entry.payload
        # as of this entry: what later ones tell of holes may die with this process before it is stored
        if self.history and (passed := bisect_right(self.history, seq, key=itemgetter(0))):
            self.told = self.history[passed - 1][1]
            del self.history[:passed]
        return pack_head(f"{entry.ms}-{seq}", None if vendor_id < 0 else vendor_id, entry.recv, self.tick, self.last_event, self.told, self.wrote)

    def begin(self, epoch: int) -> None:
        """From here on `epoch` writes, unless it did already."""
        if not self.epochs or self.epochs[-1][0] != epoch:
            self.epochs = [*self.epochs, (epoch, self.seq + 1)][-EPOCHS:]
            self.wrote = pack_epochs(self.epochs)

    def first_head(self, recv: int) -> bytes:
        """The head of a stream that is subscribed and has no entry yet, packed."""
        return encode(Head("0-0", None, recv, NIL, epochs=self.epochs))


class Sequencer:
    """Ticks of one feed in, entries for its streams out (by `emit`, in order)."""

    def __init__(self, streams: Iterable[StreamState], emit: Callable[[Entry], None], repairable: bool = False) -> None:
        self.streams = list(streams)
        self._trades = {state.symbol: state for state in self.streams if state.kind is StreamKind.TRADE}
        self._quotes = {state.symbol: state for state in self.streams if state.kind is StreamKind.QUOTE}
        self._emit = emit
        self._repairable = repairable
        self.floor_ms = 0
        """No ID is older than this: the newest entry found at the start."""
        self.duplicates = 0
        self.unwanted = 0
        """Ticks of a kind that was not asked for: some vendors send trades and quotes alike."""
        self.delays = Delays()
        """As of the last outage."""
        self._unreadable_since = 0

    # ticks

    def accept(self, ticks: Sequence[Mapped]) -> None:
        """The ticks of one frame, in order. The hot path: nothing is in it that could stand elsewhere."""
        if self._unreadable_since:
            self._tell_unreadable(ticks[0][0].ts_recv)
        for tick, vendor_id in ticks:
            try:
                state = (self._trades if type(tick) is Trade else self._quotes)[tick.symbol]
            except KeyError:
                self.unwanted += 1
                continue
            if state.sequenced:
                if vendor_id == state.next_id:
                    state.next_id = vendor_id + 1
                elif not self._out_of_step(state, tick, vendor_id):
                    continue
            elif state.outage is not None:  # a tick before the vendor acknowledged the subscription
                self._tell_outage(state, tick.ts_recv)
            ts_event, recv = tick.ts_event, tick.ts_recv
            if tick.flags:
                state.ahead = (state.ahead[1], ts_event, state.next_id)
            elif ts_event > state.last_event:
                state.last_event = ts_event
                state.recv_of_last_event = recv
            state.seq = seq = state.seq + 1
            ms = recv // MILLISECOND
            if ms < self.floor_ms:
                ms = self.floor_ms
            self._emit(Entry(state, ms, seq, state.field, encode(tick), state.next_id - 1, recv))

    def _out_of_step(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> bool:
        """A vendor id that is not the next one. -> whether the tick is still to be stored in the ordinary way."""
        last = state.next_id - 1
        if vendor_id < 0:
            return True
        if last < 0:
            state.first_seen = vendor_id
            if state.outage is not None:  # subscribed before, and nobody can know what came meanwhile
                self._gap(state, state.outage, self.delays.missing_from(state.outage_since), tick.ts_event, tick.ts_recv)
        elif vendor_id > last:
            kind = state.outage if state.outage is not None and state.outage_at == state.next_id else GapKind.SEQUENCE
            self._hole(state, last + 1, vendor_id - 1, kind, state.event_before(tick.ts_event), tick)
        elif (hole := _find(state.holes, vendor_id)) is not None:
            self._late(state, hole, tick, vendor_id)
            return False
        elif self._is_early(state, tick, vendor_id):
            state.early.add(vendor_id)
            self._store_late(state, tick)
            return False
        elif self._is_reset(state, tick, vendor_id):
            state.holes, state.early = [], set()
            state.first_seen = vendor_id
            self._gap(state, GapKind.RESET, state.event_before(tick.ts_event), tick.ts_event, tick.ts_recv)
        else:
            self.duplicates += 1
            return False
        state.next_id = vendor_id + 1
        state.outage = None
        return True

    def _is_early(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> bool:
        """An unseen tick from just before our first: vendors send their last ticks again after a reconnect."""
        near = state.next_id - 1 - vendor_id <= _REPEATS and vendor_id < state.first_seen
        return near and tick.ts_event <= state.newest_event and vendor_id not in state.early

    def _is_reset(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> bool:
        fall = state.next_id - 1 - vendor_id
        if fall > _WINDOW or (vendor_id < state.first_seen and vendor_id not in state.early):
            return True
        # a repeat is as old as it was the first time; a fallen sequence that goes on is newer than all before
        return fall > _REPEATS and tick.ts_event > state.newest_event

    def _late(self, state: StreamState, hole: Hole, tick: Trade | Quote, vendor_id: int) -> None:
        at = state.holes.index(hole)
        parts = [part for part in (Hole(hole.first, vendor_id - 1), Hole(vendor_id + 1, hole.last)) if part.first <= part.last]
        state.holes = [*state.holes[:at], *parts, *state.holes[at + 1 :]]
        self._store_late(state, tick)
        self._gap(state, GapKind.SEQUENCE, tick.ts_event, tick.ts_event, tick.ts_recv, vendor_id, vendor_id, repaired=True)

    def _store_late(self, state: StreamState, tick: Trade | Quote) -> None:
        late = msgspec.structs.replace(tick, flags=tick.flags | Flag.LATE)
        state.seq += 1
        state.changed()
        ms = max(tick.ts_recv // MILLISECOND, self.floor_ms)
        self._emit(Entry(state, ms, state.seq, state.field, encode(late), state.next_id - 1, tick.ts_recv))

    # holes

    def outage(self, kind: GapKind, since: int) -> None:
        """The connection ended, or is mute: ticks after the receive time `since` may be missing. Of several in a row the first counts."""
        self.measure_delays()
        for state in self.streams:
            if state.outage is None:
                state.outage, state.outage_at, state.outage_since = kind, state.next_id, since

    def resumed(self, recv: int, kind: str | None = None) -> None:
        """Ticks (of one kind) can arrive again: tell the streams without contiguous ids what they may have missed."""
        for state in self.streams:
            if not state.sequenced and state.outage is not None and kind in (None, state.stream.kind):
                self._tell_outage(state, recv)

    def _tell_outage(self, state: StreamState, recv: int) -> None:
        assert state.outage is not None
        self._gap(state, state.outage, self.delays.missing_from(state.outage_since), self.delays.missing_to(recv), recv)
        state.outage = None

    def rejected(self, notice: Rejected, recv: int) -> None:
        """A tick, or a whole frame, that could not be read."""
        if not notice.lost:
            return
        if notice.symbol is None or notice.kind is None:
            if not self._unreadable_since:
                self._unreadable_since = recv
                self.measure_delays()
            return
        state = (self._trades if notice.kind == "trade" else self._quotes).get(notice.symbol)
        if state is None:
            return
        self.measure_delays()
        if not state.sequenced:
            self._gap(state, GapKind.REJECTED, self.delays.missing_from(recv), self.delays.missing_to(recv), recv, count=1)
        elif notice.vendor_id == state.next_id and state.next_id > 0:
            at = self.delays.missing_from(recv)
            self._hole(state, notice.vendor_id, notice.vendor_id, GapKind.REJECTED, at, None, recv)
            state.next_id = notice.vendor_id + 1
        # any other id shows itself as a jump at the next tick

    def overflow(self, ticks: Iterable[Mapped]) -> None:
        """Ticks that no buffer has room for: remembered, to be told when there is."""
        for tick, vendor_id in ticks:
            state = (self._trades if type(tick) is Trade else self._quotes).get(tick.symbol)
            if state is None:
                self.unwanted += 1
                continue
            if state.sequenced and vendor_id >= 0 and state.next_id > 0:
                state.outage, state.outage_at = GapKind.OVERFLOW, state.next_id  # the ids will name the hole
            else:
                before = state.dropped
                state.dropped = (before[0] + 1, before[1], tick.ts_event) if before else (1, tick.ts_event, tick.ts_event)

    def tell_overflow(self, recv: int) -> None:
        """There is room again."""
        for state in self.streams:
            if state.dropped is not None:
                (count, first, last), state.dropped = state.dropped, None
                self._gap(state, GapKind.OVERFLOW, first, last, recv, count=count)

    def _tell_unreadable(self, recv: int) -> None:
        """Frames that could not be read at all may have held ticks of any stream; ids tell it where there are ids."""
        since, self._unreadable_since = self._unreadable_since, 0
        for state in self.streams:
            if not state.sequenced:
                self._gap(state, GapKind.REJECTED, self.delays.missing_from(since), self.delays.missing_to(recv), recv)

    def _hole(self, state: StreamState, first: int, last: int, kind: GapKind, from_ts: int, tick: Trade | Quote | None, recv: int = 0) -> None:
        state.holes = [*state.holes, Hole(first, last)][-HOLES:]
        to_ts = tick.ts_event if tick is not None else from_ts
        self._gap(state, kind, from_ts, max(from_ts, to_ts), tick.ts_recv if tick is not None else recv, first, last)

    def _gap(
        self, state: StreamState, kind: GapKind, from_ts: int, to_ts: int, recv: int,
        first: int = NO_ID, last: int = NO_ID, *, count: int | None = None, repaired: bool = False,
    ) -> None:  # fmt: skip
        has_ids = first >= 0
        if has_ids:
            count = last - first + 1
        gap = Gap(
            state.kind, SOURCE, kind, min(from_ts, to_ts), to_ts,
            str(first) if has_ids else None, str(last) if has_ids else None, count, self._repairable and has_ids, repaired, state.symbol,
        )  # fmt: skip
        if repaired:
            state.repaired += 1
            state.missing -= count or 0
        else:
            name = kind.name.lower()
            state.gaps[name] = state.gaps.get(name, 0) + 1
            state.missing += count or 0
        state.seq += 1
        state.changed()
        # the head says which ids were dealt with: those of this hole too
        vendor_id = max(state.next_id - 1, last)
        self._emit(Entry(state, max(recv // MILLISECOND, self.floor_ms), state.seq, b"g", encode(gap), vendor_id, recv))

    def measure_delays(self) -> None:
        self.delays.measure((state.last_event, state.recv_of_last_event) for state in self.streams)

    def restore(self, heads: dict[str, Head], lane_of: Callable[[int], Hashable] = lambda shard: None, delay: int | None = None) -> int:
        """Go on after a restart; -> number of streams that have a history.

        `lane_of`: shard -> what it was written together with. Within a lane entries are stored in the order in which they came.
        `delay`: the least that the gateway before us saw, `Delays.legacy`.
        """
        restored = newest = 0
        ends_in_gap = False
        since: dict[Hashable, int] = {}
        ticks: list[tuple[int, int]] = []
        for state in self.streams:
            head = heads.get(state.name)
            if head is None:
                continue
            restored += 1
            last = state.restore(head)
            self.floor_ms = max(self.floor_ms, last.ms)
            lane = lane_of(state.shard)
            since[lane] = max(since.get(lane, 0), head.ts_recv)
            tick = state.newest_tick(head)
            if tick is not None and not tick.flags:
                ticks.append((tick.ts_event, tick.ts_recv))
            if head.ts_recv >= newest:
                newest, ends_in_gap = head.ts_recv, _is_gap(head, tick)
        self.delays.measure(ticks)
        self.delays.inherit(delay, ends_in_gap=ends_in_gap)
        for state in self.streams:
            # the lane's newest entry: until then the connection delivered, to all its streams, and all of it was stored
            state.outage_since = since.get(lane_of(state.shard), 0)
        return restored


def _is_gap(head: Head, tick: Trade | Quote | None) -> bool:
    """Whether the newest entry of a stream is one, by its head, which holds the newest tick."""
    return head.id != "0-0" and (tick is None or tick.ts_recv != head.ts_recv)


def _find(holes: list[Hole], vendor_id: int) -> Hole | None:
    """The told hole that an id lies in. Holes are disjoint and, but for resets, in order."""
    at = bisect_right(holes, vendor_id, key=lambda hole: hole.first)
    if at and vendor_id <= holes[at - 1].last:
        return holes[at - 1]
    return None
