"""The gateway: upstream -> intake -> backlog -> publisher -> Redis, with a lease in front and a sweep behind."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from services.gateway.intake import Intake
from services.gateway.sequencer import StreamState
from services.gateway.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.errors import RedisUnfit
from tickbus.lease import Lease
from tickbus.link import Link
from tickbus.names import Keys
from tickbus.publisher import Publisher
from tickbus.registry import check_meta, read_heads
from tickbus.streams import Entry
from tickbus.transaction import Transaction
from tickbus.units import MILLISECOND, MINUTE, SECOND, Duration, format_duration

log = logging.getLogger("tickbus.gateway")

_BATCH = 5_000
"""Entries in one transaction at most: about 10 ms of the server's time."""
_PAUSE_BYTES, _RESUME_BYTES = 16 << 20, 8 << 20
"""With Redis well but slower than the vendor, the socket is left unread between these: TCP holds the vendor back."""
_WELL_SECONDS = 1.0
_AHEAD = 5 * MINUTE


class Gateway:
    """Holds the parts together: `open`, `run`, `close`."""

    def __init__(self, name: str, keys: Keys, clock: BusClock, lease: Lease, publisher: Publisher, intake: Intake) -> None:
        self.name = name
        self.clock = clock
        self.publisher = publisher
        self.intake = intake
        self.sequencer = intake.sequencer
        self.backlog = intake.backlog
        self.streams = intake.sequencer.streams
        self._keys = keys
        self._lease = lease
        self.published = {"trade": 0, "quote": 0}
        self.batches: list[tuple[int, float, int, int]] = []
        """(entries, seconds to acknowledge, oldest and newest receive time to acknowledged in ns) of batches not yet in the metrics."""
        self._told = 0
        """Gap entries acknowledged."""
        self._ring_due = True
        self._committing = False
        self._paused = False
        """Whether the socket is left unread because Redis is slower than the vendor."""
        self._acknowledged_at = time.monotonic()

    async def open(self, connect: Callable[[], Awaitable[Link]]) -> None:
        """Become the writer: lease, fences, heads; then put the streams that are new on the register."""
        streams, sequencer = self.streams, self.sequencer
        link = await connect()
        await check_meta(link, self._keys)
        link.close()  # a standby may wait for days
        await self._lease.acquire(self.publisher.released)
        await self.publisher.take_over()
        link = await connect()
        heads = await read_heads(link, self._keys, sorted({state.shard for state in streams}))
        link.close()
        restored = sequencer.restore(heads)
        ahead = sequencer.floor_ms * MILLISECOND - self.clock.now_ns()
        if ahead > _AHEAD:
            raise RedisUnfit(
                f"streams of {self.name!r} hold entries {format_duration(ahead // SECOND * SECOND)} ahead of the server's clock; "
                "set the clock of the Redis machine, or use another --name or --prefix"
            )
        self.clock.not_before(sequencer.floor_ms * MILLISECOND)
        for state in streams:
            state.begin(self.publisher.epoch)
        fresh = Transaction(self.clock.now_ms(), False)
        fresh.heads = {state: state.first_head(self.clock.now_ns()) for state in streams if state.name not in heads}
        await self.publisher.commit(fresh)
        log.info("%s: epoch %d, %d streams, %d of them with a history", self.name, self.publisher.epoch, len(streams), restored)

    async def run(self, upstream: Upstream, stopping: asyncio.Event, deadline: Duration) -> None:
        """Until `stopping`, then write what is held, for `deadline` at most. VendorRefused and Fenced end it too."""
        async with asyncio.TaskGroup() as group:
            delivering = asyncio.create_task(upstream.run(), name="upstream")
            others = [group.create_task(work) for work in (self._publish(upstream), self._tick(upstream), self._lease.keep())]
            try:
                stopped = asyncio.create_task(stopping.wait())
                await asyncio.wait((delivering, stopped), return_when=asyncio.FIRST_COMPLETED)
                # the intake is closed first: what it brought is then a fixed amount
                delivering.cancel()
                stopped.cancel()
                refused, _ = await asyncio.gather(delivering, stopped, return_exceptions=True)
                await self._drain(deadline)
                if isinstance(refused, Exception):
                    raise refused
            finally:
                delivering.cancel()
                for task in others:
                    task.cancel()

    async def _drain(self, deadline: Duration) -> None:
        """Wait until everything held is stored, and that the feed is down is said."""
        self._ring_due = True
        self.backlog.news.set()
        try:
            async with asyncio.timeout(deadline / SECOND):
                while len(self.backlog) or self._ring_due or self._committing:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.error("%s: Redis did not take %d held ticks in time; the next start tells them as missing", self.name, len(self.backlog))

    async def close(self) -> None:
        await self.publisher.release()
        await self._lease.release()
        self.publisher.close()

    async def _publish(self, upstream: Upstream) -> None:
        news = self.backlog.news
        while True:
            await news.wait()
            await self._commit(upstream.up)
            current = upstream.current
            if current is not None and self.backlog.bytes > _PAUSE_BYTES:
                self._paused = True
                current.socket.pause()
            elif self._paused and self.backlog.bytes < _RESUME_BYTES:
                self._resume(upstream)

    async def _commit(self, feed_up: bool) -> None:
        """Everything that waits, up to a batch, as one transaction."""
        backlog = self.backlog
        entries = backlog.take(_BATCH)
        waiting_ms = backlog.oldest_waiting_ms
        transaction = Transaction(self.clock.now_ms() if waiting_ms is None else waiting_ms, feed_up)
        transaction.ring_all, self._ring_due = self._ring_due, False
        transaction.entries = entries
        newest: dict[StreamState, Entry] = {entry[0]: entry for entry in entries}  # type: ignore[misc]  # ours are StreamStates
        ticks = {state: entry[4] for state, entry in newest.items() if entry[3] != b"g"}
        if len(ticks) < len(newest):
            ticks |= _ticks_before_gaps(entries, newest.keys() - ticks.keys())
        transaction.heads = {state: state.head(entry, ticks.get(state, state.tick)) for state, entry in newest.items()}
        started = time.monotonic()
        self._committing = True
        await self.publisher.commit(transaction)
        self._committing = False
        backlog.release()
        if entries:
            self._count(entries, newest, ticks, started)
        self._acknowledged_at = time.monotonic()

    def _count(self, entries: list[Entry], newest: dict[StreamState, Entry], ticks: dict[StreamState, bytes], started: float) -> None:
        for state, entry in newest.items():
            self.published[state.stream.kind] += entry[2] - state.acked
            state.acked = entry[2]
        for state, tick in ticks.items():
            state.tick = tick
        if self.sequencer.told > self._told:
            # rare, so that looking for Gaps costs nothing otherwise
            for entry in entries:
                if entry[3] == b"g":
                    self._told += 1
                    self.published[entry[0].stream.kind] -= 1
        now = self.clock.now_ns()
        if len(self.batches) < 100_000:
            self.batches.append((len(entries), time.monotonic() - started, now - entries[0][6], now - entries[-1][6]))

    async def _tick(self, upstream: Upstream) -> None:
        """Each second: the bus clock is due; a Redis that went away lets the socket be read again."""
        while True:
            await asyncio.sleep(0.9)
            self._ring_due = True
            self.backlog.news.set()
            if self._paused and time.monotonic() - self._acknowledged_at > _WELL_SECONDS:
                self._resume(upstream)

    def _resume(self, upstream: Upstream) -> None:
        self._paused = False
        if upstream.current is not None:
            upstream.current.socket.resume()


def _ticks_before_gaps(entries: Iterable[Entry], wanted: "set[StreamState]") -> dict[StreamState, bytes]:
    """The newest tick of those streams whose newest entry is a Gap."""
    return {entry[0]: entry[4] for entry in entries if entry[0] in wanted and entry[3] != b"g"}
