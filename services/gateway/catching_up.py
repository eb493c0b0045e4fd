"""A stream's head after entries that a gateway held and could not store itself any more. Pure.

`advance` over the entries from the stored head on gives what the gateway that made them would have written, and so a
sequencer restored from it goes on as that gateway would have after a restart. Two things are no field of an entry:

* `ts_event` is the newest of the entries stored so far. The live gateway writes the newest of all that it has received, also of
  ticks that wait behind these; once those are stored too, both are equal.
* The vendor id of a late tick is its trade_id, as in every feed with contiguous ids. Should that be no number, the hole around it
  is narrowed by the Gap that follows the tick and tells the repair.
"""

from collections.abc import Sequence

import msgspec

from services.gateway.sequencer import EPOCHS, HOLES
from tickbus.messages import Flag, Gap, GapKind, Quote, Trade
from tickbus.streams import Entry
from tickbus.wire import NIL, TICK_FIELD, Head, Hole, decode


def advance(head: Head, entries: Sequence[Entry], epoch: int) -> Head:
    """The head after `entries`, the next one or more of its stream, which the writer of `epoch` made. WireError if a payload is no
    message. All at once is several times faster than one by one: heads between are not made."""
    first, last = entries[0], entries[-1]
    epochs, ts_event = head.epochs, head.ts_event
    if not epochs or epochs[-1][0] != epoch:
        epochs, ts_event = [*epochs, (epoch, first.seq)][-EPOCHS:], _ts_event_at_restart(head, TICK_FIELD[first.stream.stream.kind])
    tick, holes, gaps, repaired, missing = bytes(head.tick), head.holes, head.gaps, head.repaired, head.missing
    for entry in entries:
        message = decode(entry.field, entry.payload)
        if isinstance(message, Gap):
            holes = _holes_after_gap(holes, message)
            if message.repaired:
                repaired, missing = repaired + 1, missing - (message.count or 0)
            else:
                name = message.kind.name.lower()
                gaps, missing = {**gaps, name: gaps.get(name, 0) + 1}, missing + (message.count or 0)
            continue
        assert isinstance(message, Trade | Quote)  # a gateway writes nothing else
        tick = entry.payload
        if not message.flags:
            ts_event = max(ts_event, message.ts_event)
        elif message.flags & Flag.LATE and isinstance(message, Trade) and message.trade_id is not None and message.trade_id.isdecimal():
            holes = _narrowed(holes, int(message.trade_id))
    vendor_id = None if last.vendor_id < 0 else last.vendor_id
    return Head(
        str(last.id), vendor_id, last.recv, msgspec.Raw(tick), ts_event, holes, gaps, repaired, missing, epochs
    )  # fmt: skip


def _ts_event_at_restart(head: Head, field: bytes) -> int:
    """As StreamState.restore: the head's may be that of a tick that was never stored."""
    if bytes(head.tick) == bytes(NIL):
        return head.ts_event
    tick = decode(field, bytes(head.tick))
    return tick.ts_event if isinstance(tick, Trade | Quote) and not tick.flags else head.ts_event


def _holes_after_gap(holes: list[Hole], gap: Gap) -> list[Hole]:
    if gap.kind is GapKind.RESET:
        return []
    if gap.from_id is None or gap.to_id is None:
        return holes
    if gap.repaired:
        return _narrowed(holes, int(gap.from_id))
    return [*holes, Hole(int(gap.from_id), int(gap.to_id))][-HOLES:]


def _narrowed(holes: list[Hole], vendor_id: int) -> list[Hole]:
    """Without the one id; a hole that holds it becomes what is left on both sides."""
    for at, hole in enumerate(holes):
        if hole.first <= vendor_id <= hole.last:
            parts = [part for part in (Hole(hole.first, vendor_id - 1), Hole(vendor_id + 1, hole.last)) if part.first <= part.last]
            return [*holes[:at], *parts, *holes[at + 1 :]]
    return holes
