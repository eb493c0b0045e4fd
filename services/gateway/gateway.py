"""The gateway: upstream -> intake -> a sender per lane -> Redis, with a lease in front and a sweep behind."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from services.gateway.delivery.sender import Batch, Sender, StreamHead
from services.gateway.sequencing.sequencer import SOURCE
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.spill.recovery import SpillRecovery
from services.gateway.spill.segment import Bus
from services.gateway.subscriptions.streams import Streams
from services.gateway.subscriptions.table import SubscriptionTable
from services.gateway.subscriptions.unsubscribed import end, find_dropped, find_returning
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.errors import ConfigError, Fenced, RedisError, RedisMisconfigured, WireError
from tickbus.protocol.codec import Head, decode
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Keys
from tickbus.protocol.wants import SubscriptionState, Topic
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.registry import (
    check_meta,
    read_bus,
    read_delay,
    read_heads,
    read_subscriptions,
    register_feed,
)
from tickbus.units import MILLISECOND, MINUTE, SECOND, Duration, format_duration
from tickbus.writer.entry import StreamWriter
from tickbus.writer.head_repair import find_repairs
from tickbus.writer.lease import Lease
from tickbus.writer.publisher import Publisher
from tickbus.writer.transaction import Transaction

log = logging.getLogger("tickbus.gateway")

_PAUSE_BYTES, _RESUME_BYTES = 16 << 20, 8 << 20
"""While Redis is up but slower than the vendor, the socket is left unread between these limits.

TCP backpressure then slows the vendor down.
"""
_MAX_AHEAD = 5 * MINUTE
_SPILL_SECONDS = 0.05
_TICK_SECONDS = 0.9
_MAX_NAMED = 20
_RELEASE_SECONDS = 0.1
"""How often held trades are looked at."""


class MakeSenders(Protocol):
    def __call__(self, heads: Mapping[StreamWriter, StreamHead]) -> list[Sender]:
        """Return one sender per lane. `heads`: of all streams, as stored."""
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
        streams: Streams,
        table: SubscriptionTable,
    ) -> None:
        """`make_senders` is called once the epoch and the heads are known.

        `table`: what to subscribe to; `streams`: opens what it says.
        """
        self.name = name
        self.clock = clock
        self.publisher = publisher
        self.intake = intake
        self.sequencer = intake.sequencer
        self.backlog = intake.backlog
        self.streams = intake.sequencer.streams
        self.senders: list[Sender] = []
        self.unsubscribed = 0
        """Streams that this gateway ended at its start, because it does not subscribe to them."""
        self.bus = Bus()
        """What this process knows of the bus: whoever makes the gateway sets its address."""
        self.table = table
        self._make_senders = make_senders
        self._registry = streams
        self._keys = keys
        self.lease = lease
        self._predecessor_died = False
        """Whether the previous owner died: it neither renewed nor released its lease."""
        self._spilled = False
        """Whether entries were left on disk."""
        self._paused = False
        """Whether the socket is left unread because Redis is slower than the vendor."""

    async def open(
        self,
        connect: Callable[[], Awaitable[Connection]],
        spill_dir: Path,
        read_wanted: Callable[[Connection], Awaitable[Collection[Topic]]],
    ) -> None:
        """Become the writer: lease, fences, earlier spills, heads; then register the new streams.

        `read_wanted`: reads what is wanted now.
        """
        publisher = self.publisher
        link = await connect()
        await check_meta(link, self._keys)
        await register_feed(link, self._keys, self.name)
        self.bus = self.bus._replace(id=await read_bus(link, self._keys) or "")
        link.close()  # a standby may wait for days
        self._predecessor_died = await self.lease.acquire(publisher.released)
        if self._predecessor_died:
            log.warning(
                "%s: previous owner stopped renewing its lease without releasing it; taking over",
                self.name,
            )
        renewing = asyncio.create_task(self.lease.keep())
        try:
            inherited = await asyncio.to_thread(
                SpillRecovery.find,
                spill_dir,
                self.name,
                self._keys,
                publisher.fences.holder,
                await publisher.read_fences(),
                self.bus,
            )
            before = await publisher.take_over()
            link = await connect()
            opened = self._restore_subscriptions(
                await read_subscriptions(link, self._keys, self.name), await read_wanted(link)
            )
            await self._repair_heads(link)
            if written := await inherited.write(publisher, self._keys, link, before):
                log.warning("%s: wrote %d entries spilled by an earlier gateway", self.name, written)
            restored = await self._restore_streams(link, opened)
            link.close()
        finally:
            renewing.cancel()
        log.info(
            "%s: epoch %d, %d streams, %d with history",
            self.name,
            publisher.epoch,
            len(self.streams),
            restored,
        )

    async def _restore_streams(self, link: Connection, opened: Sequence[Topic]) -> int:
        """Continue all streams from their heads, and end those that are not subscribed to any more.

        Return how many have a history.
        """
        streams, sequencer, publisher = self.streams, self.sequencer, self.publisher
        heads = await read_heads(link, self._keys, range(self._keys.shards))
        names = {state.name for state in streams}
        dropped = await find_dropped(link, self._keys, self.name, heads, names)
        returning = await find_returning(link, self._keys, heads, names)
        delay = await read_delay(link, self._keys, self.name)
        ends_in_gap = await _ends_in_gap(
            link, {state: heads[state.name] for state in streams if state.name in heads}
        )
        heads |= publisher.held_heads()  # of spilled entries that a stream does not take
        restored = sequencer.restore(heads, publisher.lane, delay, ends_in_gap)
        for state in streams:
            if state.name in returning:
                state.end(heads[state.name].ts_recv)
        self._check_clock()
        builders = {state: self._registry.head(state, heads.get(state.name)) for state in streams}
        self.senders = self._registry.senders = self._make_senders(self._registry.heads)
        self.table.open(opened)
        fresh = Transaction(self.clock.now_ms(), False)
        fresh.heads = {state: head.pack() for state, head in builders.items() if state.name not in heads}
        changes = self.table.take_changes()
        fresh.fields = [self._registry.field(topic, state) for topic, state in changes.items()]
        self._end_dropped(dropped, fresh)
        await publisher.commit(fresh)
        return restored

    def _end_dropped(self, dropped: Mapping[str, Head], fresh: Transaction) -> None:
        """Report the streams of earlier gateways that this one does not subscribe to."""
        entries = []
        for name, head in dropped.items():
            entry, builder = end(
                self._keys, name, head, self.clock.now_ns(), self.publisher.fences.held, SOURCE
            )
            entries.append(entry)
            fresh.heads[entry.stream] = builder.pack()
        fresh.entries = entries
        self.unsubscribed = len(entries)
        if entries:
            names = ", ".join(sorted(dropped)[:_MAX_NAMED])
            more = f" and {len(entries) - _MAX_NAMED} more" if len(entries) > _MAX_NAMED else ""
            log.warning(
                "%s: not subscribed any more: %s%s; each ends with a Gap of kind unsubscribed",
                self.name,
                names,
                more,
            )

    async def _repair_heads(self, link: Connection) -> None:
        """Store heads again that some other program overwrote, and leave out streams that take no entries."""
        with_ids = {state for state in self.streams if state.sequenced}
        repairs = await find_repairs(
            link, self._keys, self.streams, with_ids.__contains__, self.clock.now_ms()
        )
        for stream, fault in repairs.faults.items():
            self.publisher.lane(stream.shard).quarantine_stream(stream, fault)
        await self.publisher.write_heads(repairs.heads, self.clock.now_ms())

    def _restore_subscriptions(
        self, stored: Mapping[Topic, SubscriptionState], wanted: Collection[Topic]
    ) -> list[Topic]:
        """Make the streams to begin with: the fixed ones, and those that an earlier gateway subscribed to."""
        self.table.restore(stored, self.clock.now_ms(), wanted)
        opened = []
        for topic in self.table.to_open():
            try:
                state = self._registry.make(topic)
            except ConfigError as error:
                self.table.refuse([topic], str(error))
                continue
            opened.append(topic)
            self.sequencer.add(state)
        return opened

    def _check_clock(self) -> None:
        ahead = self.sequencer.floor_ms * MILLISECOND - self.clock.now_ns()
        if ahead > _MAX_AHEAD:
            raise RedisMisconfigured(
                f"streams of {self.name!r} have entries {format_duration(ahead // SECOND * SECOND)} ahead of "
                "the Redis server's clock: set that clock, or use another --name or --prefix"
            )
        self.clock.not_before(self.sequencer.floor_ms * MILLISECOND)

    async def run(
        self,
        upstream: Upstream,
        stopping: asyncio.Event,
        deadline: Duration,
        takeover_delay: Duration,
        register: Callable[[], Awaitable[None]],
        keep_subscriptions: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """Run until `stopping`, then write what is buffered, for at most `deadline`, and spill the rest.

        VendorRefused and Fenced end it too. `register` writes this feed to `tickbus:meta`, again after
        Redis lost its data. `keep_subscriptions` decides on the table, for ever.
        """
        delay = takeover_delay if self._predecessor_died else Duration(0)
        try:
            async with asyncio.TaskGroup() as group:
                delivering = asyncio.create_task(self._run_upstream(upstream, delay), name="upstream")
                coroutines = (
                    *(self._publish(sender, upstream) for sender in self.senders),
                    self._tick(upstream, register),
                    keep_subscriptions(),
                    self._release_held(),
                    self._spill_when_full(),
                    self.lease.keep(),
                )
                background = [group.create_task(coroutine) for coroutine in coroutines]
                try:
                    stopped = asyncio.create_task(stopping.wait())
                    await asyncio.wait((delivering, stopped), return_when=asyncio.FIRST_COMPLETED)
                    # close the intake first: the amount left to write is then fixed
                    delivering.cancel()
                    stopped.cancel()
                    refused, _ = await asyncio.gather(delivering, stopped, return_exceptions=True)
                    self.intake.release_held(0)
                    await self._drain(deadline)
                    if isinstance(refused, Exception):
                        raise refused
                finally:
                    delivering.cancel()
                    for task in background:
                        task.cancel()
        except ExceptionGroup as group:
            if group.subgroup(Fenced):
                self._report_fenced()
            else:  # refused by the vendor, or a bug: buffered ticks are worth no less
                await self._spill_remaining()
            raise
        await self._spill_remaining()

    async def _run_upstream(self, upstream: Upstream, delay: Duration) -> None:
        if delay:
            log.warning(
                "%s: took over; connecting upstream in %s, to let the vendor drop the old connection "
                "(--takeover-delay)",
                self.name,
                format_duration(delay),
            )
            await asyncio.sleep(delay / SECOND)
        await upstream.run()

    async def _drain(self, deadline: Duration) -> None:
        """Wait until everything buffered is stored, and it is announced that the feed is down."""
        for sender in self.senders:
            sender.tick()
        try:
            async with asyncio.timeout(deadline / SECOND):
                while not all(sender.idle for sender in self.senders):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning("%s: Redis did not accept %d buffered ticks in time", self.name, self.buffered)

    async def _spill_remaining(self) -> None:
        """Spill what Redis did not accept: the next start writes it."""
        self.intake.release_held(0)
        spilled = 0
        for sender in self.senders:
            while (not sender.idle or len(sender.lane.quarantine)) and await sender.spill_oldest():
                pass
            spilled += len(sender.spill)
            if lost := sender.at_risk:
                log.error(
                    "%s: no room on disk for %d buffered ticks (%s); the next start reports them as missing",
                    self.name,
                    lost,
                    sender.spill.last_error,
                )
            sender.spill.close()
        self._spilled = spilled > 0
        if spilled:
            log.warning(
                "%s: %d entries spilled to %s; the next start writes them",
                self.name,
                spilled,
                self.senders[0].spill.folder.parent,
            )

    def _report_fenced(self) -> None:
        """Another gateway owns the feed now."""
        memory, disk = len(self.backlog), sum(len(sender.spill) for sender in self.senders)
        log.error(
            "%s: replaced by another gateway; dropping %d ticks buffered in memory, leaving %d on disk",
            self.name,
            memory,
            disk,
        )
        for sender in self.senders:
            sender.spill.close()

    async def close(self) -> None:
        # after a spill the fences must keep naming us: the next start sees by them that nobody wrote after it
        if not self._spilled:
            await self.publisher.release()
        await self.lease.release()
        self.publisher.close()

    def all_streams(self) -> Collection[StreamState]:
        """Return all streams, those whose subscription ended included."""
        return self._registry.by_name.values()

    @property
    def buffered(self) -> int:
        """Entries that Redis has not acknowledged."""
        return sum(len(sender) for sender in self.senders)

    @property
    def published(self) -> Counter[str]:
        """Ticks that Redis has acknowledged, by kind."""
        return sum((sender.published for sender in self.senders), Counter())

    def take_batches(self) -> list[Batch]:
        """Return the batches acknowledged since the last call."""
        batches = [batch for sender in self.senders for batch in sender.batches]
        for sender in self.senders:
            sender.batches = []
        return batches

    async def _publish(self, sender: Sender, upstream: Upstream) -> None:
        while True:
            await sender.commit(upstream.up or upstream.idle)
            if sender.lane.quarantine or self.intake.held_back:
                self._hold_back()
            if self.backlog.bytes > _PAUSE_BYTES and not self._any_lane_blocked:
                self._paused = True
                upstream.pause()
            elif self._paused and self.backlog.bytes < _RESUME_BYTES:
                self._resume(upstream)

    async def _release_held(self) -> None:
        """Store what was held for a second."""
        while True:
            await asyncio.sleep(_RELEASE_SECONDS)
            if self.sequencer.holds:
                self.intake.release_held()

    async def _tick(self, upstream: Upstream, register: Callable[[], Awaitable[None]]) -> None:
        """Every second: make the bus clock due, and resume reading the socket if Redis became unavailable.

        Register again after a Redis flush, and when the vendor's latency, which the next gateway should
        know, changed.
        """
        registered: tuple[int, int | None] | None = None
        while True:
            if self.sequencer.latency.observed is None:
                # vendors whose quotes carry no time: a read from the socket may never end in a trade
                self.sequencer.measure_latency()
            delay = self.sequencer.latency.observed
            current = self.publisher.histories_lost, None if delay is None else delay // MILLISECOND
            if current != registered and self.publisher.up:
                with suppress(RedisError):
                    await register()
                    registered = current
            await asyncio.sleep(_TICK_SECONDS)
            self.sequencer.measure_rates()
            for sender in self.senders:
                sender.tick()
            if self._paused and self._any_lane_blocked:
                self._resume(upstream)

    def _hold_back(self) -> None:
        """Drop ticks of streams that Redis does not take, once half of the memory is held for them."""
        quarantines = [lane.quarantine for lane in self.publisher.lanes]
        if sum(quarantine.bytes for quarantine in quarantines) * 2 < self.backlog.max_bytes:
            self.intake.hold_back(())
            return
        self.intake.hold_back(
            state
            for state in self.streams
            if any(quarantine.holding(state) is not None for quarantine in quarantines if quarantine)
        )

    @property
    def _any_lane_blocked(self) -> bool:
        """Whether some lane accepts no writes or still has to catch up.

        That is what the disk is for; the vendor's socket feeds the other lanes too.
        """
        return any(sender.stuck or len(sender.spill) for sender in self.senders)

    def _resume(self, upstream: Upstream) -> None:
        self._paused = False
        upstream.resume()

    async def _spill_when_full(self) -> None:
        """While Redis is unavailable, spill the older half of what memory has room for."""
        logged = ""
        while True:
            await asyncio.sleep(_SPILL_SECONDS)
            while self.backlog.bytes > self.backlog.max_bytes // 2:
                blocked = [sender for sender in self.senders if sender.stuck or len(sender.spill)]
                fullest = max(blocked, key=lambda sender: sender.backlog.bytes, default=None)
                if fullest is None or not await fullest.spill_oldest():
                    if fullest is not None and (error := fullest.spill.last_error) and error != logged:
                        logged = error
                        log.error(
                            "%s: spilling stopped: %s; new ticks stay in memory",
                            self.name,
                            error,
                        )
                    break
                logged = ""


async def _ends_in_gap(link: Connection, heads: Mapping[StreamWriter, Head]) -> bool:
    """Whether the newest entry of all streams is a Gap that reports a hole.

    The heads do not say: a late tick, too, is newer than the tick in its head.
    """
    if not heads:
        return False
    stream, head = max(heads.items(), key=lambda pair: pair[1].ts_recv)
    try:
        ((_, (field, payload)),) = await link.ask("XRANGE", stream.key, head.id, head.id)
        message = decode(field, payload)
    except (ReplyError, ValueError, WireError):  # trimmed, or not ours
        return False
    return isinstance(message, Gap) and not message.repaired
