"""What the sequencer keeps of one stream. Pure."""

from collections.abc import Sequence

from services.vendors.feed import NO_ID
from tickbus.protocol.codec import Head, Hole
from tickbus.protocol.messages import GapKind, StreamKind
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.writer.entry import StreamWriter
from tickbus.writer.heads import GapCounts, newest_tick, stored_event

REMEMBERED_IDS = 100_000
"""A fall of the vendor id by more than this is a reset, not a repeat."""


class StreamState(StreamWriter):
    """One stream's side of the sequencer."""

    __slots__ = (
        "ahead", "counts", "dropped", "early", "field", "first_seen", "holes", "kind", "last_event", "next_id", "outage", "outage_at", "outage_since",
        "recv_of_last_event", "seq", "sequenced", "symbol",
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
        self.holes: Sequence[Hole] = ()
        self.counts = GapCounts()
        """Of all Gaps so far, stored or not."""
        self.outage: GapKind | None = None
        """The last outage: the kind of the hole over it, should there be one."""
        self.outage_at = 0
        """next_id when it began: once that has moved, a hole has nothing to do with it."""
        self.outage_since = 0
        self.dropped: tuple[int, int, int] | None = None
        """Ticks that found no room and are not told yet: count, first and last ts_event."""

    def restore(self, head: Head) -> StreamId:
        """Go on where the head says; -> its ID."""
        last = StreamId.parse(head.id)
        newest = newest_tick(head, self.stream.kind)
        self.seq = last.seq
        self.next_id = 0 if head.vendor_id is None else head.vendor_id + 1
        self.first_seen = max(0, self.next_id - 1 - REMEMBERED_IDS)
        self.last_event = stored_event(head, self.stream.kind)
        if newest is not None and newest.flags:
            self.ahead = (newest.ts_event, newest.ts_event, self.next_id)
        self.holes, self.counts = head.holes, GapCounts(head)
        self.outage, self.outage_at, self.outage_since = GapKind.DISCONNECT, self.next_id, head.ts_recv
        return last

    @property
    def ticked(self) -> bool:
        """Whether it ever had a tick."""
        return bool(self.last_event or self.ahead[1])

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
