"""Delivery on one lane: first the disk (oldest entries), then memory (newest), sent to Redis as transactions.

First in, first out: while there are entries on disk, the next ones come from there. So a killed gateway
loses only a tail, which the next start reports.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.spill.spill import Spill
from tickbus.clock import BusClock
from tickbus.protocol.codec import Head, decode
from tickbus.protocol.messages import Gap
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import HeadBuilder
from tickbus.writer.lane import Lane
from tickbus.writer.transaction import Field, Transaction

log = logging.getLogger("tickbus.gateway")

Result = TypeVar("Result")

_BATCH = 5_000
"""Maximum entries per transaction: about 10 ms of server time."""
_STUCK_SECONDS = 1.0
_MAX_UNREPORTED = 100_000


class Batch(NamedTuple):
    """One acknowledged transaction, for the metrics."""

    entries: int
    seconds: float
    """From sent to acknowledged."""
    oldest: int
    """ns from received to acknowledged, of the oldest entry and of the newest."""
    newest: int


class StreamHead(HeadBuilder):
    """The head of one of the gateway's streams, as of the newest entry sent."""

    __slots__ = ("_state",)

    def __init__(self, state: StreamState, head: Head) -> None:
        super().__init__(head)
        self._state = state

    def note(self, entry: Entry) -> None:
        """Note an entry of a batch in which not every stream ends with its newest tick."""
        if entry.field == b"g":
            gap = decode(entry.field, entry.payload)
            assert isinstance(gap, Gap)
            self.add_gap(gap)
        elif entry.newest:
            self.tick = entry.payload

    def pack_after(self, entry: Entry) -> bytes:
        """Return the packed head after `entry`, the last of a batch, once its tick and Gaps are noted.

        Its ts_event is the newest received, including ticks still waiting behind the batch.
        """
        self.advance(entry)
        state = self._state
        self.ts_event = state.last_event
        if state.peak != self.peak or state.subscribed != self.subscribed:
            self.set_origin(state.subscribed, state.peak, self.forgotten)
        return self.pack()

    def note_subscribed(self) -> bool:
        """Take over when the subscription was acknowledged. Return whether that is new."""
        if self._state.subscribed == self.subscribed:
            return False
        self.set_origin(self._state.subscribed, self.peak, self.forgotten)
        return True


def pack_heads(
    heads: Mapping[StreamWriter, StreamHead], entries: Sequence[Entry], fields: Sequence[bytes], spilled: bool
) -> dict[StreamWriter, bytes]:
    """Advance the heads over a batch and return those of its streams, packed.

    `fields`: of the entries. `spilled`: whether they were read from disk, where `Entry.newest` is not stored.
    """
    last = {entry.stream: entry for entry in entries}
    if spilled:
        for entry in entries:
            heads[entry.stream].add(entry, decode(entry.field, entry.payload))
    elif b"g" in fields or False in [entry.newest for entry in last.values()]:
        for entry in entries:
            heads[entry.stream].note(entry)
    else:
        for stream, entry in last.items():
            heads[stream].tick = entry.payload
    return {stream: heads[stream].pack_after(entry) for stream, entry in last.items()}


class Sender:
    """Sends the entries of one lane to Redis, and moves the oldest to disk on request."""

    def __init__(
        self,
        lane: Lane,
        backlog: Backlog,
        spill: Spill,
        clock: BusClock,
        heads: Mapping[StreamWriter, StreamHead],
    ) -> None:
        """`heads`: of the streams that this lane writes, as stored."""
        self.lane = lane
        self.backlog = backlog
        self.spill = spill
        self.published: Counter[str] = Counter()
        """Ticks acknowledged, by kind; Gaps are not counted."""
        self.batches: list[Batch] = []
        """Not yet in the metrics."""
        self.ring_due = True
        self.committing = False
        self.heads = heads
        self._clock = clock
        self._unstarted = {
            stream: head for stream, head in heads.items() if not head.seq and stream.shard in lane.owned
        }
        """Streams without entries whose head does not say yet since when they are subscribed."""
        self._attached_heads: dict[StreamWriter, bytes] = {}
        self._attached_fields: dict[tuple[str, str], Field] = {}
        self._attached: list[asyncio.Future[None]] = []
        """Done when the above are stored."""
        self._spill_lock = asyncio.Lock()
        """One task at a time uses the spill."""
        self._acknowledged_at = time.monotonic()
        self._announced_ms = 0
        """The newest bus time sent with the doorbells."""

    def __len__(self) -> int:
        """Number of entries buffered, in memory and on disk."""
        return len(self.backlog) + len(self.spill) + len(self.lane.quarantine)

    @property
    def at_risk(self) -> int:
        """Entries that are in memory only. What was in flight when spilling began is on disk too."""
        if len(self.spill):
            return self.backlog.waiting
        return len(self.backlog) + len(self.lane.quarantine)

    @property
    def idle(self) -> bool:
        """Whether everything is stored and announced."""
        return not (
            len(self.backlog) or len(self.spill) or self.ring_due or self.committing or self._attached
        )

    @property
    def stuck(self) -> bool:
        """Whether Redis is not accepting writes."""
        return not self.lane.up or (
            self.committing and time.monotonic() - self._acknowledged_at > _STUCK_SECONDS
        )

    def follow(self, stream: StreamWriter, head: StreamHead) -> None:
        """Send entries of one more stream."""
        if not head.seq:
            self._unstarted[stream] = head

    def forget(self, stream: StreamWriter) -> None:
        """No more entries of a stream come."""
        self._unstarted.pop(stream, None)

    def attach(self, heads: Mapping[StreamWriter, bytes], fields: Sequence[Field]) -> "asyncio.Future[None]":
        """Store heads of streams without entries, and fields, with the next transaction: fenced like it.

        A later field replaces an earlier one of the same name. The future is done once they are stored.
        """
        self._attached_heads |= heads
        self._attached_fields |= {(field.key, field.name): field for field in fields}
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attached.append(stored)
        self.backlog.wakeup.set()
        return stored

    def tick(self) -> None:
        """Make the bus clock due: all doorbells ring with the next commit."""
        self.ring_due = True
        self.backlog.wakeup.set()

    async def commit(self, feed_up: bool) -> None:
        """Wait for the wake-up event; then commit what is waiting, up to a batch, as one transaction."""
        await self.backlog.wakeup.wait()
        entries, spilled = await self._next()
        transaction = Transaction(self._bus_ms(spilled), feed_up)
        transaction.ring_all, self.ring_due = self.ring_due, False
        # what was acknowledged or in flight when spilling began was spilled first, in case we are killed
        heads = self.heads
        transaction.entries = entries = (
            [entry for entry in entries if entry.seq > heads[entry.stream].seq] if spilled else entries
        )
        fields = [entry.field for entry in entries]
        transaction.heads = pack_heads(heads, entries, fields, bool(spilled))
        if transaction.ring_all and self._unstarted:
            transaction.heads |= self._subscribed()
        attached, self._attached = self._attached, []
        if attached:
            heads_before, self._attached_heads = self._attached_heads, {}
            transaction.heads = heads_before | transaction.heads
            transaction.fields, self._attached_fields = list(self._attached_fields.values()), {}
        started = self._acknowledged_at = time.monotonic()
        self.committing = True
        stored = await self.lane.commit(transaction)
        self.committing = False
        for future in attached:
            if not future.done():
                future.set_result(None)
        if stored:
            if stored is not entries:  # some are held, or were: tickbus.writer.quarantine
                fields = [entry.field for entry in stored]
            self._count(stored, fields, started)
        await self._release(spilled)

    def _subscribed(self) -> dict[StreamWriter, bytes]:
        """Return the heads of streams without entries that were subscribed since the last call."""
        new, waiting = {}, {}
        for stream, head in self._unstarted.items():
            if head.seq:
                continue
            if head.note_subscribed():
                new[stream] = head.pack()
            elif not head.subscribed:
                waiting[stream] = head
        self._unstarted = waiting
        return new

    async def _next(self) -> tuple[list[Entry], list[Entry]]:
        """Return the oldest entries, and the same list again if they are on disk, else an empty one."""
        async with self._spill_lock:
            if len(self.spill):
                found = await _run_to_completion(asyncio.to_thread(self.spill.peek, _BATCH))
                return found, found
            return self.backlog.take(_BATCH), []

    def _bus_ms(self, spilled: list[Entry]) -> int:
        """Return a time that nothing after this batch is older than; the bus clock never goes back."""
        next_ms = spilled[-1].ms if spilled else self.backlog.oldest_waiting_ms
        # spilled entries may be copies of what was acknowledged long ago
        self._announced_ms = max(self._announced_ms, self._clock.now_ms() if next_ms is None else next_ms)
        return self._announced_ms

    async def _release(self, spilled: list[Entry]) -> None:
        self.backlog.release()
        if spilled:
            async with self._spill_lock:
                await _run_to_completion(asyncio.to_thread(self.spill.release, len(spilled)))
                if len(self.spill) or len(self.backlog):
                    self.backlog.wakeup.set()
                else:
                    log.info("all spilled entries are now in Redis")

    def _count(self, entries: Sequence[Entry], fields: list[bytes], started: float) -> None:
        trades, gaps = fields.count(b"t"), fields.count(b"g")
        self.published["trade"] += trades
        self.published["quote"] += len(fields) - trades - gaps
        now = self._clock.now_ns()
        if len(self.batches) < _MAX_UNREPORTED:
            self.batches.append(
                Batch(len(entries), time.monotonic() - started, now - entries[0].recv, now - entries[-1].recv)
            )

    async def spill_oldest(self, limit: int = _BATCH) -> bool:
        """Move the oldest entries in memory to disk. Return whether there was room, and something to move.

        The first time, what precedes them goes along: what Redis acknowledged recently and may have lost,
        and what is in flight. These stay in memory too; but if this process is killed, the disk must have
        everything between Redis and the tail.
        """
        return await _run_to_completion(self._spill_oldest(limit))

    async def _spill_oldest(self, limit: int) -> bool:
        async with self._spill_lock:
            moved = self.backlog.oldest(limit)
            before: list[Entry] = []
            if not len(self.spill):
                before = [*self.lane.replay.entries, *self.lane.held, *self._in_flight]
            if not (before or moved) or not await asyncio.to_thread(self.spill.append, [*before, *moved]):
                return False
            if before:
                log.warning("Redis is not accepting writes; spilling oldest ticks to %s", self.spill.folder)
            self.backlog.drop(moved)
            return True

    @property
    def _in_flight(self) -> list[Entry]:
        return list(self.lane.unfinished.entries) if self.lane.unfinished is not None else []


async def _run_to_completion(work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for `work` even when cancelled: its thread goes on using the disk, which no other may use then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
