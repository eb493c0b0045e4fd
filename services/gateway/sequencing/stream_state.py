"""The sequencer's state of one stream. Pure."""

from collections.abc import Sequence

from services.vendors.feed import NO_ID
from tickbus.protocol.codec import Head, Hole
from tickbus.protocol.messages import GapKind, StreamKind
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.writer.entry import StreamWriter
from tickbus.writer.heads import GapCounts, newest_tick, stored_event

REMEMBERED_IDS = 100_000
"""When the vendor id jumps back by more than this, it is a reset, not a repeat."""


class StreamState(StreamWriter):
    """One stream's side of the sequencer."""

    __slots__ = (
        "ahead", "counts", "dropped", "early", "field", "first_seen", "holes", "kind", "last_event",
        "next_id", "outage", "outage_at", "outage_since", "recv_of_last_event", "reported_to", "resumed_at",
        "seq", "sequenced", "subscribed", "symbol",
    )  # fmt: skip

    def __init__(self, keys: Keys, stream: Stream, sequenced: bool) -> None:
        super().__init__(keys, stream)
        self.symbol = stream.symbol
        self.kind = StreamKind.TRADE if stream.kind == "trade" else StreamKind.QUOTE
        self.field = b"t" if self.kind is StreamKind.TRADE else b"q"
        self.sequenced = sequenced
        self.seq = 0
        self.subscribed = 0
        """When the vendor first acknowledged the subscription, ns; 0 if unknown."""
        self.next_id = 0
        """The contiguous vendor id expected next; 0 before the first."""
        self.first_seen = NO_ID
        """Lowest id since the start or the last reset: below it, no id is known to have been seen."""
        self.early: set[int] = set()
        """Ids below it that were stored anyway: the vendor's repeats may begin before our first tick."""
        self.last_event = 0
        self.recv_of_last_event = 0
        """Receive time of the tick with the newest ts_event; 0 if that was before the start."""
        self.ahead = (0, 0, NO_ID)
        """ts_event of the two newest flagged ticks, and `next_id` after them.

        A vendor's clock may be permanently ahead of ours.
        """
        self.holes: Sequence[Hole] = ()
        self.counts = GapCounts()
        """Counts of all Gaps so far, stored or not."""
        self.outage: GapKind | None = None
        """The last outage: the kind of the hole across it, should there be one."""
        self.outage_at = 0
        """`next_id` when it began: once that has moved, a hole has nothing to do with the outage."""
        self.outage_since = 0
        self.resumed_at = 0
        """Receive time at which the vendor acknowledged the subscription after it; 0: not yet."""
        self.reported_to = 0
        """Where the last Gap of an outage ended: the next one begins there at the earliest."""
        self.dropped: tuple[int, int, int] | None = None
        """Ticks that found no room and are not reported yet: count, first and last ts_event."""

    def restore(self, head: Head) -> StreamId:
        """Continue from the head. Return its ID."""
        last = StreamId.parse(head.id)
        newest = newest_tick(head, self.stream.kind)
        self.seq = last.seq
        self.subscribed = head.subscribed
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
        """ts_event of the newest tick, as close as can be known; 0 if none is known.

        A flagged tick is believed only when a second one confirms it.
        """
        before, last, next_id = self.ahead
        return max(self.last_event, min(before, last)) if next_id == self.next_id else self.last_event

    def event_before(self, ts_event: int) -> int:
        """Return where a Gap before `ts_event` begins: at the newest tick, else at `ts_event` itself."""
        _, last, next_id = self.ahead
        newest = self.newest_event
        return last if next_id == self.next_id and newest < last <= ts_event else newest or ts_event
