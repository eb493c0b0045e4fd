"""The sequencer's state of one stream. Pure."""

from collections.abc import Sequence

from services.gateway.sequencing.memory import TradeMemory, trade_number
from services.vendors.feed import NO_ID
from tickbus.protocol.codec import Head, Hole
from tickbus.protocol.messages import GapKind, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.units import SECOND
from tickbus.writer.entry import StreamWriter
from tickbus.writer.heads import GapCounts, newest_tick, stored_event

REMEMBERED_IDS = 100_000
"""After a restart: from this many ids below the newest on, none is known to have been seen."""
SNAPSHOT_SIZE = 64
"""How many of its last trades a vendor resends after a subscribe, unless its feed says otherwise."""
_MIN_PEAK = 100
"""ids/s: a young stream's peak says little."""
_JUMP_SECONDS = 1_000
"""A jump is believed at once if the peak rate could have made it in this many times the time passed."""
NEVER = -2
"""No tick has this id."""


class Suspect:
    """A trade whose id does not go on where its stream stands: the trades after it show what it is."""

    __slots__ = ("fell", "from_ts", "stored", "tick", "vendor_id")

    def __init__(self, tick: Trade | None, vendor_id: int, fell: bool, from_ts: int, stored: bool) -> None:
        self.tick = tick
        """None: it was lost with the gateway that had reported the hole before it."""
        self.vendor_id = vendor_id
        self.fell = fell
        """Whether the ids may begin again with it. If not, it is far ahead."""
        self.from_ts = from_ts
        """ts_event of the newest trade before it."""
        self.stored = stored
        """Whether it is stored already, after a second in which no other trade came: one that fell as
        doubtful, one that is ahead behind the Gap for its hole. If not, it is held."""


class StreamState(StreamWriter):
    """One stream's side of the sequencer."""

    __slots__ = (
        "_next_id", "_suspect", "_window", "ahead", "counts", "dropped", "early", "ended_at", "expected",
        "field", "first_seen", "holes", "kind", "last_event", "memory", "outage", "outage_at", "outage_since",
        "peak", "recent", "recv_of_last_event", "reported_to", "restored_recv", "resumed_at", "seq",
        "sequenced", "snapshot_size", "subscribed", "symbol", "unknown_holes", "warned",
    )  # fmt: skip

    def __init__(
        self, keys: Keys, stream: Stream, sequenced: bool, snapshot_size: int = SNAPSHOT_SIZE
    ) -> None:
        """`snapshot_size`: how many of its last trades the vendor resends after a subscribe."""
        super().__init__(keys, stream)
        self.symbol = stream.symbol
        self.kind = StreamKind.TRADE if stream.kind == "trade" else StreamKind.QUOTE
        self.field = b"t" if self.kind is StreamKind.TRADE else b"q"
        self.sequenced = sequenced
        self.seq = 0
        self.subscribed = 0
        """When the vendor first acknowledged the subscription, ns; 0 if unknown."""
        self.expected = 0
        """The id with which nothing is to be decided: `next_id`, or NEVER while there is a suspect."""
        self._next_id = 0
        self._suspect: Suspect | None = None
        self.snapshot_size = snapshot_size
        self.memory = TradeMemory()
        self.recent = self.memory.trades
        self.peak = 0
        """The highest rate of ids per second so far; 0 if unknown."""
        self._window = (0, 0, 0)
        """From when and where on ids are counted: ts_event and ts_recv of a trade, and the id after it."""
        self.restored_recv = 0
        """Receive time of the newest tick found at startup; 0 if none, or if its time is flagged."""
        self.warned: dict[str, int] = {}
        """Receive time of the last event of each kind that is logged once per episode."""
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
        """Open ones. While a suspect's hole is reported, that one is beyond `next_id`."""
        self.unknown_holes = 0
        """Open ones that were forgotten, before those in `holes`."""
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
        self.ended_at = 0
        """Counter of the Gap with which the subscription last ended; the stream is ended while that is its
        newest entry."""
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
        self.holes, self.counts, self.unknown_holes = head.holes, GapCounts(head), head.forgotten
        self.outage, self.outage_at, self.outage_since = GapKind.DISCONNECT, self.next_id, head.ts_recv
        self.peak = head.peak
        self.restored_recv = 0 if newest is None or newest.flags else newest.ts_recv
        self.memory.begin(self.next_id)
        if self.sequenced and isinstance(newest, Trade):
            self._restore_trade(newest, bytes(head.tick))
        return last

    def _restore_trade(self, newest: Trade, payload: bytes) -> None:
        """Remember the newest trade. If its hole is beyond the head's id, nothing has confirmed it yet."""
        if self.holes and self.holes[-1].first >= self.next_id:
            at = self.holes[-1].last + 1
            tick = newest if trade_number(newest) == at else None
            self.suspect = Suspect(tick, at, False, newest.ts_event, stored=True)
        self.recent.append(payload)

    def end(self, recv: int) -> None:
        """The newest entry is the Gap that ends the subscription."""
        self.ended_at = self.seq
        self.outage, self.outage_at, self.outage_since = GapKind.UNSUBSCRIBED, self.next_id, recv

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

    # vendor ids

    @property
    def next_id(self) -> int:
        """The contiguous vendor id that follows the newest in order; 0 before the first."""
        return self.expected if self._suspect is None else self._next_id

    @next_id.setter
    def next_id(self, vendor_id: int) -> None:
        self._next_id = vendor_id
        if self._suspect is None:
            self.expected = vendor_id

    @property
    def suspect(self) -> Suspect | None:
        """While there is one, every trade is looked at."""
        return self._suspect

    @suspect.setter
    def suspect(self, suspect: Suspect | None) -> None:
        self._next_id = self.next_id
        self._suspect = suspect
        self.expected = self._next_id if suspect is None else NEVER

    def begin_again(self, vendor_id: int) -> None:
        """The vendor's ids begin again, at this one."""
        self.memory.begin_again(vendor_id)
        self.next_id = self.first_seen = vendor_id
        self.early, self.unknown_holes, self._window = set(), 0, (0, 0, 0)

    def measure(self) -> None:
        """Update the peak rate from the ids since an earlier call, if that was a second or longer ago.

        By the slower of two clocks: a gateway that stalled reads many seconds of trades at once.
        """
        event, recv, vendor_id = self.last_event, self.recv_of_last_event, self.next_id
        since_event, since_recv, since_id = self._window
        elapsed = max(event - since_event, recv - since_recv)
        if elapsed >= SECOND:
            if since_recv:
                self.peak = max(self.peak, (vendor_id - since_id) * SECOND // elapsed)
            self._window = event, recv, vendor_id

    def leave_out(self, ids: int) -> None:
        """Do not count these ids, which were skipped, in the rate."""
        since_event, since_recv, since_id = self._window
        self._window = since_event, since_recv, since_id + ids

    def id_limit(self, recv: int, since: int) -> int:
        """Return by how much ids can have risen from one receive time to another."""
        return _JUMP_SECONDS * self._peak_ids(recv - since)

    def close_ids(self, elapsed: int) -> int:
        """Return by how much ids rise in this time (ns) at most when nothing is wrong."""
        return max(self.snapshot_size, self._peak_ids(elapsed))

    def _peak_ids(self, elapsed: int) -> int:
        return max(self.peak, _MIN_PEAK) * max(elapsed, SECOND) // SECOND

    @property
    def newest_recv(self) -> int:
        """Receive time of the newest trade in order, as far as is remembered."""
        newest = next(iter(self.memory.known(self.next_id - 1)), None)
        if newest is not None:
            return newest.ts_recv
        return self.recv_of_last_event or self.restored_recv or self.outage_since
