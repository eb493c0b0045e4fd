"""The gateway: upstream -> intake -> one sender per lane -> Redis, with a lease in front and a sweep behind."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from services.gateway.delivery.sender import Batch, Sender, StreamHead
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.spill.recovery import Inheritance
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.errors import Fenced, RedisError, RedisMisconfigured
from tickbus.protocol.codec import Head
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection
from tickbus.redis.registry import check_meta, read_delay, read_heads, register_feed
from tickbus.units import MILLISECOND, MINUTE, SECOND, Duration, format_duration
from tickbus.writer.entry import StreamWriter
from tickbus.writer.heads import EMPTY_HEAD
from tickbus.writer.lease import Lease
from tickbus.writer.publisher import Publisher
from tickbus.writer.transaction import Transaction

log = logging.getLogger("tickbus.gateway")

_PAUSE_BYTES, _RESUME_BYTES = 16 << 20, 8 << 20
"""With Redis well but slower than the vendor, the socket is left unread between these: TCP holds the vendor back."""
_AHEAD = 5 * MINUTE
_SPILL_SECONDS = 0.05
_TICK_SECONDS = 0.9


class MakeSenders(Protocol):
    def __call__(self, heads: Mapping[StreamWriter, StreamHead]) -> list[Sender]:
        """One sender per lane. `heads`: of all streams, as they are stored."""
        ...


class Gateway:
    """Holds the parts together: `open`, `run`, `close`."""

    def __init__(
        self,
        name: str,
        keys: Keys,
        clock: BusClock,
        lease: Lease,
        publisher: Publisher,
        intake: Intake,
        make_senders: MakeSenders,
    ) -> None:
        """`make_senders` is called when the epoch and the heads are known."""
        self.name = name
        self.clock = clock
        self.publisher = publisher
        self.intake = intake
        self.sequencer = intake.sequencer
        self.backlog = intake.backlog
        self.streams = intake.sequencer.streams
        self.senders: list[Sender] = []
        self._make_senders = make_senders
        self._keys = keys
        self._lease = lease
        self._died = False
        """Whether the gateway before us was replaced without a word from it."""
        self._spilled = False
        """Whether something was left on the disk."""
        self._paused = False
        """Whether the socket is left unread because Redis is slower than the vendor."""

    async def open(self, connect: Callable[[], Awaitable[Connection]], spill_dir: Path) -> None:
        """Become the writer: lease, fences, what an earlier gateway spilled, heads; then put the streams that are new on the register."""
        streams, sequencer, publisher = self.streams, self.sequencer, self.publisher
        link = await connect()
        await check_meta(link, self._keys)
        await register_feed(link, self._keys, self.name)
        link.close()  # a standby may wait for days
        self._died = await self._lease.acquire(publisher.released)
        if self._died:
            log.warning(
                "%s: the gateway before this one no longer renews its lease and gave nothing back; taking over",
                self.name,
            )
        keeping = asyncio.create_task(self._lease.keep())
        try:
            inherited = await asyncio.to_thread(
                Inheritance.find,
                spill_dir,
                self.name,
                self._keys,
                publisher.fences.holder,
                await publisher.look(),
            )
            before = await publisher.take_over()
            link = await connect()
            if written := await inherited.write(publisher, self._keys, link, before):
                log.warning("%s: wrote %d entries that an earlier gateway had spilled", self.name, written)
            heads = await read_heads(link, self._keys, sorted({state.shard for state in streams}))
            delay = await read_delay(link, self._keys, self.name)
            link.close()
            restored = sequencer.restore(heads, publisher.lane, delay)
            self._check_clock()
            builders: dict[StreamWriter, StreamHead] = {
                state: self._head(state, heads.get(state.name)) for state in streams
            }
            self.senders = self._make_senders(builders)
            fresh = Transaction(self.clock.now_ms(), False)
            fresh.heads = {state: head.pack() for state, head in builders.items() if state.name not in heads}
            await publisher.commit(fresh)
        finally:
            keeping.cancel()
        log.info(
            "%s: epoch %d, %d streams, %d of them with a history",
            self.name,
            publisher.epoch,
            len(streams),
            restored,
        )

    def _head(self, state: StreamState, stored: Head | None) -> StreamHead:
        head = StreamHead(state, stored or EMPTY_HEAD)
        head.begin(self.publisher.fences.held[state.shard])
        if stored is None:
            head.ts_recv = self.clock.now_ns()
        return head

    def _check_clock(self) -> None:
        ahead = self.sequencer.floor_ms * MILLISECOND - self.clock.now_ns()
        if ahead > _AHEAD:
            raise RedisMisconfigured(
                f"streams of {self.name!r} hold entries {format_duration(ahead // SECOND * SECOND)} ahead of the server's clock; "
                "set the clock of the Redis machine, or use another --name or --prefix"
            )
        self.clock.not_before(self.sequencer.floor_ms * MILLISECOND)

    async def run(
        self,
        upstream: Upstream,
        stopping: asyncio.Event,
        deadline: Duration,
        takeover_delay: Duration,
        register: Callable[[], Awaitable[None]],
    ) -> None:
        """Until `stopping`, then write what is held, for `deadline` at most, and spill the rest. VendorRefused and Fenced end it too.

        `register` says what stands in `tickbus:meta`; again after Redis lost its data.
        """
        delay = takeover_delay if self._died else Duration(0)
        try:
            async with asyncio.TaskGroup() as group:
                delivering = asyncio.create_task(self._deliver(upstream, delay), name="upstream")
                works = (
                    *(self._publish(sender, upstream) for sender in self.senders),
                    self._tick(upstream, register),
                    self._spill_when_full(),
                    self._lease.keep(),
                )
                others = [group.create_task(work) for work in works]
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
        except ExceptionGroup as group:
            if group.subgroup(Fenced):
                self._report_held()
            else:  # refused by the vendor, or a bug: what is held is no less worth for that
                await self._spill_the_rest()
            raise
        await self._spill_the_rest()

    async def _deliver(self, upstream: Upstream, delay: Duration) -> None:
        if delay:
            log.warning(
                "%s: took over; connecting upstream in %s, when the vendor has let go (--takeover-delay)",
                self.name,
                format_duration(delay),
            )
            await asyncio.sleep(delay / SECOND)
        await upstream.run()

    async def _drain(self, deadline: Duration) -> None:
        """Wait until everything held is stored, and that the feed is down is said."""
        for sender in self.senders:
            sender.tick()
        try:
            async with asyncio.timeout(deadline / SECOND):
                while not all(sender.idle for sender in self.senders):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning("%s: Redis did not take %d held ticks in time", self.name, self.buffered)

    async def _spill_the_rest(self) -> None:
        """What Redis did not take goes to the disk: the next start writes it."""
        spilled = 0
        for sender in self.senders:
            while not sender.idle and await sender.spill_oldest():
                pass
            spilled += len(sender.spill)
            if lost := sender.at_risk:
                log.error(
                    "%s: %d held ticks find no room on the disk (%s); the next start tells them as missing",
                    self.name,
                    lost,
                    sender.spill.trouble,
                )
            sender.spill.close()
        self._spilled = spilled > 0
        if spilled:
            log.warning(
                "%s: %d entries lie in %s; the next start writes them",
                self.name,
                spilled,
                self.senders[0].spill.folder.parent,
            )

    def _report_held(self) -> None:
        """Somebody else writes now."""
        memory, disk = len(self.backlog), sum(len(sender.spill) for sender in self.senders)
        log.error(
            "%s: replaced by another gateway; %d ticks that were held in memory are dropped, %d on the disk stay there",
            self.name,
            memory,
            disk,
        )
        for sender in self.senders:
            sender.spill.close()

    async def close(self) -> None:
        if (
            not self._spilled
        ):  # else the fences must name us: the next start sees by them that nobody wrote after our spill
            await self.publisher.release()
        await self._lease.release()
        self.publisher.close()

    @property
    def buffered(self) -> int:
        """Entries that Redis has not acknowledged."""
        return sum(len(sender) for sender in self.senders)

    @property
    def published(self) -> Counter[str]:
        """Ticks that it has, by kind."""
        return sum((sender.published for sender in self.senders), Counter())

    def take_batches(self) -> list[Batch]:
        """Those acknowledged since the last call."""
        batches = [batch for sender in self.senders for batch in sender.batches]
        for sender in self.senders:
            sender.batches = []
        return batches

    async def _publish(self, sender: Sender, upstream: Upstream) -> None:
        while True:
            await sender.commit(upstream.up)
            if self.backlog.bytes > _PAUSE_BYTES and not self._held_up:
                self._paused = True
                upstream.pause()
            elif self._paused and self.backlog.bytes < _RESUME_BYTES:
                self._resume(upstream)

    async def _tick(self, upstream: Upstream, register: Callable[[], Awaitable[None]]) -> None:
        """Each second: the bus clock is due; a Redis that went away lets the socket be read again, one that was flushed learns who we are,
        and what the next gateway should know of the vendor's delay."""
        said: tuple[int, int | None] | None = None
        while True:
            if self.sequencer.latency.observed is None:
                # vendors whose quotes bear no time: a read from the socket may never end in a trade
                self.sequencer.measure_delays()
            delay = self.sequencer.latency.observed
            news = self.publisher.histories_lost, None if delay is None else delay // MILLISECOND
            if news != said and self.publisher.up:
                with suppress(RedisError):
                    await register()
                    said = news
            await asyncio.sleep(_TICK_SECONDS)
            for sender in self.senders:
                sender.tick()
            if self._paused and self._held_up:
                self._resume(upstream)

    @property
    def _held_up(self) -> bool:
        """Whether some lane takes nothing, or has still to catch up: the disk is for that, and the vendor's socket feeds the others too."""
        return any(sender.stuck or len(sender.spill) for sender in self.senders)

    def _resume(self, upstream: Upstream) -> None:
        self._paused = False
        upstream.resume()

    async def _spill_when_full(self) -> None:
        """With Redis away, the older half of what memory may hold goes to the disk."""
        said = ""
        while True:
            await asyncio.sleep(_SPILL_SECONDS)
            while self.backlog.bytes > self.backlog.bound // 2:
                waiting = [sender for sender in self.senders if sender.stuck or len(sender.spill)]
                fullest = max(waiting, key=lambda sender: sender.backlog.bytes, default=None)
                if fullest is None or not await fullest.spill_oldest():
                    if fullest is not None and (trouble := fullest.spill.trouble) and trouble != said:
                        said = trouble
                        log.error(
                            "%s: no more ticks go to the disk: %s; what comes stays in memory",
                            self.name,
                            trouble,
                        )
                    break
                said = ""
