"""The head of a stream, advanced entry by entry: what `last` stores for it after them. Pure.

One arithmetic for every writer: the gateway's sender, the recovery of its spill, the outputs of services,
replay. What it stores about holes and Gaps follows from the Gap messages alone, so that a head rebuilt from
stored entries equals the one of the live writer.
"""

from collections.abc import Sequence

import msgspec

from tickbus.errors import WireError
from tickbus.protocol.codec import (
    MOST,
    NIL,
    Head,
    Hole,
    decode,
    head_tick,
    pack_epochs,
    pack_head,
    pack_holes,
    pack_origin,
)
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, Quote, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import SECOND
from tickbus.writer.entry import Entry

EMPTY_HEAD = Head("0-0", None, 0, NIL)
"""The head of a stream without entries."""
MAX_HOLES = 256
"""How many reported holes a head retains, the newest."""
MAX_EPOCHS = 16
"""How many writers a head retains, the newest."""
REORDER_WINDOW = 10 * SECOND
"""Without vendor ids: a tick that is older than the newest and comes at most this long after it does not
replace it in the head. One that comes later does: the vendor set its clock back."""

_OUT_OF_ORDER = int(Flag.LATE | Flag.DOUBTFUL_ID)


class GapCounts:
    """The Gap messages of a stream, counted."""

    __slots__ = ("by_kind", "missing", "repaired", "reported")

    def __init__(self, head: Head = EMPTY_HEAD) -> None:
        self.by_kind = dict(head.gaps)
        """Those with repaired = false."""
        self.repaired = head.repaired
        self.missing = head.missing
        """Ticks that these Gaps report missing, minus the repaired and the void ones."""
        self.reported = head.missing + head.repaired
        """Ticks that these Gaps report missing, minus the void ones.

        A head does not count repaired ticks: a Gap of an earlier process is taken for one tick.
        """

    def add(self, gap: Gap) -> None:
        count = gap.count or 0
        if gap.repaired:
            self.repaired = min(MOST, self.repaired + 1)
            self.missing = max(-MOST, self.missing - count)
            if gap.kind is GapKind.VOID:
                self.reported -= count
            return
        kind = gap.kind.name.lower()
        self.by_kind[kind] = min(MOST, self.by_kind.get(kind, 0) + 1)
        if gap.kind is not GapKind.UNSUBSCRIBED:
            self.missing = min(MOST, self.missing + count)
            self.reported += count


class HeadBuilder:
    """The head of one stream while its writer adds entries.

    `add` accepts them one by one. A writer with many entries per transaction sets `tick`, calls `add_gap`,
    and packs with the newest entry.
    """

    __slots__ = (
        "_newest", "_packed_epochs", "_packed_holes", "_packed_origin", "counts", "epochs", "forgotten",
        "holes", "ms", "peak", "seq", "subscribed", "tick", "ts_event", "ts_recv", "vendor_id",
    )  # fmt: skip

    def __init__(self, head: Head = EMPTY_HEAD) -> None:
        self.ms, self.seq = StreamId.parse(head.id)
        """ID of the newest entry."""
        self.vendor_id = -1 if head.vendor_id is None else head.vendor_id
        self.ts_recv = head.ts_recv
        self.tick = bytes(head.tick)
        """The newest tick in the vendor's order, packed; NIL before the first."""
        self.ts_event = head.ts_event
        self.holes: Sequence[Hole] = head.holes
        self.counts = GapCounts(head)
        self.epochs: Sequence[tuple[int, int]] = head.epochs
        self.subscribed, self.peak, self.forgotten = head.subscribed, head.peak, head.forgotten
        self._packed_holes = self._pack_holes()
        self._packed_epochs = pack_epochs(self.epochs)
        self._packed_origin = pack_origin(self.subscribed, self.peak, self.forgotten)
        self._newest: tuple[int, int] | None = None
        """ts_event and ts_recv of the tick with the newest ts_event; None: not looked up yet."""

    def begin(self, epoch: int) -> None:
        """Record `epoch` as the writer of the following entries, unless it is already."""
        if not self.epochs or self.epochs[-1][0] != epoch:
            self.epochs = [*self.epochs, (epoch, self.seq + 1)][-MAX_EPOCHS:]
            self._packed_epochs = pack_epochs(self.epochs)

    def add(self, entry: Entry, message: Message) -> None:
        """Add the next entry, with its decoded message."""
        self.advance(entry)
        if isinstance(message, Gap):
            self.add_gap(message)
            return
        if not isinstance(message, Trade | Quote):
            self.tick = entry.payload
            return
        if self._is_newest(entry, message):
            self.tick = entry.payload
        if not message.flags:
            self.ts_event = max(self.ts_event, message.ts_event)

    def _is_newest(self, entry: Entry, tick: Trade | Quote) -> bool:
        """Whether a tick follows all others in the vendor's order: by id, or else by its time."""
        if tick.flags & _OUT_OF_ORDER:
            return False
        if entry.vendor_id >= 0 or tick.flags:
            return True
        event, recv = self._newest or self._newest_of(entry.field)
        if tick.ts_event < event:
            self._newest = event, recv
            return tick.ts_recv - recv > REORDER_WINDOW
        self._newest = tick.ts_event, tick.ts_recv if tick.ts_event > event else recv
        return True

    def _newest_of(self, field: bytes) -> tuple[int, int]:
        """Return the times of the head's own tick; zeros if there is none that has a time."""
        if self.tick == bytes(NIL):
            return 0, 0
        try:
            tick = decode(field, self.tick)
        except WireError:
            return 0, 0
        return (tick.ts_event, tick.ts_recv) if isinstance(tick, Trade | Quote) and not tick.flags else (0, 0)

    def add_gap(self, gap: Gap) -> None:
        self.counts.add(gap)
        holes = holes_after(self.holes, gap)
        if len(holes) > MAX_HOLES:
            self.set_origin(self.subscribed, self.peak, self.forgotten + len(holes) - MAX_HOLES)
            holes = holes[-MAX_HOLES:]
        self.holes = holes
        self._packed_holes = self._pack_holes()

    def set_origin(self, subscribed: int, peak: int, forgotten: int) -> None:
        """Set these fields of the head."""
        if (subscribed, peak, forgotten) != (self.subscribed, self.peak, self.forgotten):
            self.subscribed, self.peak, self.forgotten = subscribed, peak, forgotten
            self._packed_origin = pack_origin(subscribed, peak, forgotten)

    def advance(self, entry: Entry) -> None:
        """Make `entry` the newest one."""
        self.ms, self.seq, self.vendor_id, self.ts_recv = entry.ms, entry.seq, entry.vendor_id, entry.recv

    def pack(self) -> bytes:
        """Return the head packed, as `last` stores it."""
        vendor_id = self.vendor_id
        return pack_head(
            f"{self.ms}-{self.seq}", None if vendor_id < 0 else vendor_id, self.ts_recv, self.tick,
            self.ts_event, self._packed_holes, self._packed_epochs, self._packed_origin,
        )  # fmt: skip

    def build(self) -> Head:
        """Return the head, not packed."""
        return Head(
            f"{self.ms}-{self.seq}",
            None if self.vendor_id < 0 else self.vendor_id,
            self.ts_recv,
            msgspec.Raw(self.tick),
            self.ts_event,
            list(self.holes),
            dict(self.counts.by_kind),
            self.counts.repaired,
            self.counts.missing,
            list(self.epochs),
            self.subscribed,
            self.peak,
            self.forgotten,
        )

    def _pack_holes(self) -> bytes:
        return pack_holes(self.holes, self.counts.by_kind, self.counts.repaired, self.counts.missing)


def newest_tick(head: Head, kind: str) -> Trade | Quote | None:
    """Return the newest tick of a gateway's stream; None before the first. Errors as for `head_tick`."""
    tick = head_tick(head, kind)
    return tick if isinstance(tick, Trade | Quote) else None


def stored_event(head: Head, kind: str) -> int:
    """Return ts_event of the newest stored tick.

    The head's own value may come from a later tick, which was lost with its gateway.
    """
    tick = newest_tick(head, kind)
    return head.ts_event if tick is None or tick.flags else tick.ts_event


def holes_after(holes: Sequence[Hole], gap: Gap) -> Sequence[Hole]:
    """Return the open holes after a Gap: one more, those without a repaired or void range, or none after a
    reset.
    """
    if gap.kind is GapKind.RESET:
        return ()
    if gap.kind is GapKind.UNSUBSCRIBED:
        return holes
    if gap.from_id is None or gap.to_id is None or not (gap.from_id.isdecimal() and gap.to_id.isdecimal()):
        return holes
    first, last = int(gap.from_id), int(gap.to_id)
    if gap.repaired:
        return holes_without(holes, first, last)
    return [*holes, Hole(first, last)]


def holes_without(holes: Sequence[Hole], first: int, last: int) -> Sequence[Hole]:
    """Return the holes without this range of ids: those that it touches shrink, are split in two, or go."""
    if not any(hole.first <= last and first <= hole.last for hole in holes):
        return holes
    parts: list[Hole] = []
    for hole in holes:
        if hole.last < first or last < hole.first:
            parts.append(hole)
            continue
        if hole.first < first:
            parts.append(Hole(hole.first, first - 1))
        if last < hole.last:
            parts.append(Hole(last + 1, hole.last))
    return parts
