"""The gateway: upstream -> intake -> one outlet per lane -> Redis, with a lease in front and a sweep behind."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from services.gateway.inheritance import Inheritance
from services.gateway.intake import Intake
from services.gateway.outlet import Batch, Outlet
from services.gateway.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.errors import Fenced, RedisError, RedisUnfit
from tickbus.lease import Lease
from tickbus.link import Connection
from tickbus.names import Keys
from tickbus.publisher import Publisher
from tickbus.registry import check_meta, read_delay, read_heads, register_feed
from tickbus.transaction import Transaction
from tickbus.units import MILLISECOND, MINUTE, SECOND, Duration, format_duration

log = logging.getLogger("tickbus.gateway")

_PAUSE_BYTES, _RESUME_BYTES = 16 << 20, 8 << 20
"""With Redis well but slower than the vendor, the socket is left unread between these: TCP holds the vendor back."""
_AHEAD = 5 * MINUTE
_SPILL_SECONDS = 0.05
_TICK_SECONDS = 0.9


class Gateway:
    """Holds the parts together: `open`, `run`, `close`."""

    def __init__(
        self, name: str, keys: Keys, clock: BusClock, lease: Lease, publisher: Publisher, intake: Intake, make_outlets: Callable[[], list[Outlet]]
    ) -> None:
        """`make_outlets` is called when the epoch is known."""
        self.name = name
        self.clock = clock
        self.publisher = publisher
        self.intake = intake
        self.sequencer = intake.sequencer
        self.backlog = intake.backlog
        self.streams = intake.sequencer.streams
        self.outlets: list[Outlet] = []
        self._make_outlets = make_outlets
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
            log.warning("%s: the gateway before this one no longer renews its lease and gave nothing back; taking over", self.name)
        keeping = asyncio.create_task(self._lease.keep())
        try:
            inherited = await asyncio.to_thread(Inheritance.find, spill_dir, self.name, self._keys, publisher.fences.holder, await publisher.look())
            before = await publisher.take_over()
            self.outlets = self._make_outlets()
            link = await connect()
            if written := await inherited.write(publisher, self._keys, link, before):
                log.warning("%s: wrote %d entries that an earlier gateway had spilled", self.name, written)
            heads = await read_heads(link, self._keys, sorted({state.shard for state in streams}))
            delay = await read_delay(link, self._keys, self.name)
            link.close()
            restored = sequencer.restore(heads, publisher.lane, delay)
            self._check_clock()
            for state in streams:
                state.begin(publisher.fences.held[state.shard])
            fresh = Transaction(self.clock.now_ms(), False)
            fresh.heads = {state: state.first_head(self.clock.now_ns()) for state in streams if state.name not in heads}
            await publisher.commit(fresh)
        finally:
            keeping.cancel()
        log.info("%s: epoch %d, %d streams, %d of them with a history", self.name, publisher.epoch, len(streams), restored)

    def _check_clock(self) -> None:
        ahead = self.sequencer.floor_ms * MILLISECOND - self.clock.now_ns()
        if ahead > _AHEAD:
            raise RedisUnfit(
                f"streams of {self.name!r} hold entries {format_duration(ahead // SECOND * SECOND)} ahead of the server's clock; "
                "set the clock of the Redis machine, or use another --name or --prefix"
            )
        self.clock.not_before(self.sequencer.floor_ms * MILLISECOND)

    async def run(
        self, upstream: Upstream, stopping: asyncio.Event, deadline: Duration, takeover_delay: Duration, register: Callable[[], Awaitable[None]]
    ) -> None:
        """Until `stopping`, then write what is held, for `deadline` at most, and spill the rest. VendorRefused and Fenced end it too.

        `register` says what stands in `tickbus:meta`; again after Redis lost its data.
        """
        delay = takeover_delay if self._died else Duration(0)
        try:
            async with asyncio.TaskGroup() as group:
                delivering = asyncio.create_task(self._deliver(upstream, delay), name="upstream")
                works = (
                    *(self._publish(outlet, upstream) for outlet in self.outlets),
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
            log.warning("%s: took over; connecting upstream in %s, when the vendor has let go (--takeover-delay)", self.name, format_duration(delay))
            await asyncio.sleep(delay / SECOND)
        await upstream.run()

    async def _drain(self, deadline: Duration) -> None:
        """Wait until everything held is stored, and that the feed is down is said."""
        for outlet in self.outlets:
            outlet.tick()
        try:
            async with asyncio.timeout(deadline / SECOND):
                while not all(outlet.idle for outlet in self.outlets):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning("%s: Redis did not take %d held ticks in time", self.name, self.held)

    async def _spill_the_rest(self) -> None:
        """What Redis did not take goes to the disk: the next start writes it."""
        spilled = 0
        for outlet in self.outlets:
            while not outlet.idle and await outlet.spill_oldest():
                pass
            spilled += len(outlet.spill)
            if lost := outlet.at_risk:
                log.error(
                    "%s: %d held ticks find no room on the disk (%s); the next start tells them as missing", self.name, lost, outlet.spill.trouble
                )
            outlet.spill.close()
        self._spilled = spilled > 0
        if spilled:
            log.warning("%s: %d entries lie in %s; the next start writes them", self.name, spilled, self.outlets[0].spill.folder.parent)

    def _report_held(self) -> None:
        """Somebody else writes now."""
        memory, disk = len(self.backlog), sum(len(outlet.spill) for outlet in self.outlets)
        log.error(
            "%s: replaced by another gateway; %d ticks that were held in memory are dropped, %d on the disk stay there", self.name, memory, disk
        )
        for outlet in self.outlets:
            outlet.spill.close()

    async def close(self) -> None:
        if not self._spilled:  # else the fences must name us: the next start sees by them that nobody wrote after our spill
            await self.publisher.release()
        await self._lease.release()
        self.publisher.close()

    @property
    def held(self) -> int:
        """Entries that Redis has not acknowledged."""
        return sum(len(outlet) for outlet in self.outlets)

    @property
    def published(self) -> Counter[str]:
        """Ticks that it has, by kind."""
        return sum((outlet.published for outlet in self.outlets), Counter())

    def take_batches(self) -> list[Batch]:
        """Those acknowledged since the last call."""
        batches = [batch for outlet in self.outlets for batch in outlet.batches]
        for outlet in self.outlets:
            outlet.batches = []
        return batches

    async def _publish(self, outlet: Outlet, upstream: Upstream) -> None:
        while True:
            await outlet.commit(upstream.up)
            current = upstream.current
            if current is not None and self.backlog.bytes > _PAUSE_BYTES and not self._held_up:
                self._paused = True
                current.socket.pause()
            elif self._paused and self.backlog.bytes < _RESUME_BYTES:
                self._resume(upstream)

    async def _tick(self, upstream: Upstream, register: Callable[[], Awaitable[None]]) -> None:
        """Each second: the bus clock is due; a Redis that went away lets the socket be read again, one that was flushed learns who we are,
        and what the next gateway should know of the vendor's delay."""
        said: tuple[int, int | None] | None = None
        while True:
            if self.sequencer.delays.legacy is None:
                # vendors whose quotes bear no time: a read from the socket may never end in a trade
                self.sequencer.measure_delays()
            delay = self.sequencer.delays.legacy
            news = self.publisher.histories_lost, None if delay is None else delay // MILLISECOND
            if news != said and self.publisher.up:
                with suppress(RedisError):
                    await register()
                    said = news
            await asyncio.sleep(_TICK_SECONDS)
            for outlet in self.outlets:
                outlet.tick()
            if self._paused and self._held_up:
                self._resume(upstream)

    @property
    def _held_up(self) -> bool:
        """Whether some lane takes nothing, or has still to catch up: the disk is for that, and the vendor's socket feeds the others too."""
        return any(outlet.stuck or len(outlet.spill) for outlet in self.outlets)

    def _resume(self, upstream: Upstream) -> None:
        self._paused = False
        if upstream.current is not None:
            upstream.current.socket.resume()

    async def _spill_when_full(self) -> None:
        """With Redis away, the older half of what memory may hold goes to the disk."""
        said = ""
        while True:
            await asyncio.sleep(_SPILL_SECONDS)
            while self.backlog.bytes > self.backlog.bound // 2:
                waiting = [outlet for outlet in self.outlets if outlet.stuck or len(outlet.spill)]
                fullest = max(waiting, key=lambda outlet: outlet.backlog.bytes, default=None)
                if fullest is None or not await fullest.spill_oldest():
                    if fullest is not None and (trouble := fullest.spill.trouble) and trouble != said:
                        said = trouble
                        log.error("%s: no more ticks go to the disk: %s; what comes stays in memory", self.name, trouble)
                    break
                said = ""
