"""The way out of the gateway on one lane: memory (newest), in front of it the disk (oldest), then the transactions to Redis.

First in, first out: as long as entries lie on the disk, the next ones come from there. So what a killed gateway loses is only a
tail, which the next start tells.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
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
from tickbus.writer.transaction import Transaction

log = logging.getLogger("tickbus.gateway")

Result = TypeVar("Result")

_BATCH = 5_000
"""Entries in one transaction at most: about 10 ms of the server's time."""
_WELL_SECONDS = 1.0
_MOST_UNMEASURED = 100_000


class Batch(NamedTuple):
    """One acknowledged transaction, for the metrics."""

    entries: int
    seconds: float
    """From sent to acknowledged."""
    oldest: int
    """ns from received to acknowledged, of the oldest entry and of the newest."""
    newest: int


class StreamHead(HeadBuilder):
    """The head of a stream of the gateway, as of the newest entry that was sent."""

    __slots__ = ("_state",)

    def __init__(self, state: StreamState, head: Head) -> None:
        super().__init__(head)
        self._state = state

    def note(self, entry: Entry) -> None:
        """An entry of a batch with Gaps: the head of a stream whose newest entry is a Gap holds the tick before it."""
        if entry.field == b"g":
            gap = decode(entry.field, entry.payload)
            assert isinstance(gap, Gap)
            self.add_gap(gap)
        else:
            self.tick = entry.payload

    def pack_after(self, entry: Entry) -> bytes:
        """The head after `entry`, the newest of a batch. Its ts_event is the newest received, also of ticks that wait behind the batch."""
        self.advance(entry)
        if entry.field != b"g":
            self.tick = entry.payload
        self.ts_event = self._state.last_event
        return self.pack()


class Sender:
    def __init__(
        self,
        lane: Lane,
        backlog: Backlog,
        spill: Spill,
        clock: BusClock,
        heads: Mapping[StreamWriter, StreamHead],
    ) -> None:
        """`heads`: of the streams that this lane writes, as they are stored."""
        self.lane = lane
        self.backlog = backlog
        self.spill = spill
        self.published: Counter[str] = Counter()
        """Ticks acknowledged, by kind; Gaps are not counted."""
        self.batches: list[Batch] = []
        """Not yet in the metrics."""
        self.ring_due = True
        self.committing = False
        self._clock = clock
        self._heads = heads
        self._disk = asyncio.Lock()
        """One at a time is at the spill."""
        self._acknowledged_at = time.monotonic()
        self._said_ms = 0
        """The newest bus time on the doorbells."""

    def __len__(self) -> int:
        """Entries held."""
        return len(self.backlog) + len(self.spill)

    @property
    def at_risk(self) -> int:
        """Entries that are in memory only. What was in flight when the spilling began is on the disk too."""
        return self.backlog.waiting if len(self.spill) else len(self.backlog)

    @property
    def idle(self) -> bool:
        """Whether everything is stored, and said."""
        return not (len(self) or self.ring_due or self.committing)

    @property
    def stuck(self) -> bool:
        """Whether Redis takes nothing."""
        return not self.lane.up or (
            self.committing and time.monotonic() - self._acknowledged_at > _WELL_SECONDS
        )

    def tick(self) -> None:
        """The bus clock is due."""
        self.ring_due = True
        self.backlog.news.set()

    async def commit(self, feed_up: bool) -> None:
        """Wait for news; then everything that waits, up to a batch, as one transaction."""
        await self.backlog.news.wait()
        entries, spilled = await self._next()
        transaction = Transaction(self._bus_ms(spilled), feed_up)
        transaction.ring_all, self.ring_due = self.ring_due, False
        # what was acknowledged, or in flight, when the spilling began was put in front of it, for the case that we are killed
        heads = self._heads
        transaction.entries = entries = (
            [entry for entry in entries if entry.seq > heads[entry.stream].seq] if spilled else entries
        )
        fields = [entry.field for entry in entries]
        if b"g" in fields:
            for entry in entries:
                heads[entry.stream].note(entry)
        transaction.heads = {
            stream: heads[stream].pack_after(entry)
            for stream, entry in {entry.stream: entry for entry in entries}.items()
        }
        started = self._acknowledged_at = time.monotonic()
        self.committing = True
        await self.lane.commit(transaction)
        self.committing = False
        if entries:
            self._count(entries, fields, started)
        await self._release(spilled)

    async def _next(self) -> tuple[list[Entry], list[Entry]]:
        """The oldest entries; then the same once more if they lie on the disk."""
        async with self._disk:
            if len(self.spill):
                found = await _to_its_end(asyncio.to_thread(self.spill.peek, _BATCH))
                return found, found
            return self.backlog.take(_BATCH), []

    def _bus_ms(self, spilled: list[Entry]) -> int:
        """What comes after this batch is not older; and the bus clock never goes back."""
        waiting = spilled[-1].ms if spilled else self.backlog.oldest_waiting_ms
        # spilled entries may be copies of what was acknowledged long ago
        self._said_ms = max(self._said_ms, self._clock.now_ms() if waiting is None else waiting)
        return self._said_ms

    async def _release(self, spilled: list[Entry]) -> None:
        self.backlog.release()
        if spilled:
            async with self._disk:
                await _to_its_end(asyncio.to_thread(self.spill.release, len(spilled)))
                if len(self.spill) or len(self.backlog):
                    self.backlog.news.set()
                else:
                    log.info("what was spilled is in Redis")

    def _count(self, entries: list[Entry], fields: list[bytes], started: float) -> None:
        trades, gaps = fields.count(b"t"), fields.count(b"g")
        self.published["trade"] += trades
        self.published["quote"] += len(fields) - trades - gaps
        now = self._clock.now_ns()
        if len(self.batches) < _MOST_UNMEASURED:
            self.batches.append(
                Batch(len(entries), time.monotonic() - started, now - entries[0].recv, now - entries[-1].recv)
            )

    async def spill_oldest(self, most: int = _BATCH) -> bool:
        """Move the oldest of memory to the disk; -> whether there was room, and something to move.

        What comes before it goes along the first time: what Redis acknowledged lately and may have lost, and what is in flight.
        They stay in memory too; but were this process killed, the disk must hold all that lies between Redis and the tail.
        """
        return await _to_its_end(self._spill_oldest(most))

    async def _spill_oldest(self, most: int) -> bool:
        async with self._disk:
            moved = self.backlog.oldest(most)
            before = [*self.lane.ring.entries, *self._in_flight] if not len(self.spill) else []
            if not (before or moved) or not await asyncio.to_thread(self.spill.append, [*before, *moved]):
                return False
            if before:
                log.warning(
                    "Redis takes nothing, and memory is for what comes: the oldest ticks go to %s",
                    self.spill.folder,
                )
            self.backlog.drop(moved)
            return True

    @property
    def _in_flight(self) -> list[Entry]:
        return list(self.lane.unfinished.entries) if self.lane.unfinished is not None else []


async def _to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Cancelled, it waits all the same: a thread at the disk goes on, and must meet nobody there who comes after."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
