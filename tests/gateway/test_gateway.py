"""However the gateway ends, ticks that Redis lacks go to disk, once, and the next start writes them."""

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import msgspec
import pytest
from gateway.spill.spilled import entries, opened, seqs
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, numbers, stored, trade

from services.gateway.delivery.backlog import Backlog
from services.gateway.delivery.sender import Sender, StreamHead
from services.gateway.gateway import Gateway
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.spill.recovery import TakeoverRecord, _read_records, _write_records
from services.gateway.spill.segment import Owner
from services.gateway.spill.spill import Budget, Spill
from services.gateway.subscriptions.streams import Streams
from services.gateway.subscriptions.table import SubscriptionTable
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.upstream import Upstream
from services.vendors.feed import MappedTick
from services.vendors.symbols import SymbolMap
from tickbus.clock import BusClock
from tickbus.errors import VendorRefused
from tickbus.protocol.codec import Head, decode_head
from tickbus.protocol.messages import Gap, GapKind, Trade
from tickbus.protocol.names import Stream
from tickbus.protocol.wants import Topic
from tickbus.redis.link import Connection
from tickbus.redis.registry import read_heads
from tickbus.redis.topology import locate
from tickbus.units import MILLISECOND, Duration
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import newest_tick
from tickbus.writer.lane import Lane
from tickbus.writer.lease import Lease
from tickbus.writer.publisher import Publisher
from tickbus.writer.quarantine import Quarantine

NO_TIME = Duration(0)
STREAM = Stream("trade", "x", "A")


class Vendor:
    """An upstream that sends nothing by itself, and ends with the exception set on `error`."""

    up = True
    idle = False

    def __init__(self) -> None:
        self.pause = Mock()
        self.error: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        await self.error


async def _nothing_wanted(link: Connection) -> list[Topic]:
    return []


class Running:
    """A gateway with one stream on a real Redis."""

    def __init__(self, server: RedisServer, spill_dir: Path, fixed: Sequence[str] = ("A",)) -> None:
        redis, clock = locate(server.url), BusClock()
        publisher = Publisher(redis, KEYS, "x", clock, home=0)
        self.backlog = Backlog(1 << 20)
        self.sequencer = Sequencer((), self.backlog.put, reserve=self.backlog.reserve)
        self.streams = streams = Streams(
            "x", KEYS, SymbolMap(fixed, str, {}), True, 64, self.sequencer, publisher, self.backlog, clock
        )
        lease = Lease(
            partial(redis.link, KEYS.lease("x")),
            KEYS,
            "x",
            Duration(600 * MILLISECOND),
            publisher.fences.holder,
        )
        self.clock, self.spill_dir, self.connect, self.vendor = clock, spill_dir, redis.connect, Vendor()

        def senders(heads: Mapping[StreamWriter, StreamHead]) -> list[Sender]:
            spill = Spill(
                spill_dir,
                Owner("x", publisher.epoch, publisher.fences.holder),
                Budget(1 << 30),
                streams.by_name.__getitem__,
            )
            return [Sender(publisher.lanes[0], self.backlog, spill, clock, heads)]

        self.gateway = Gateway(
            "x",
            KEYS,
            clock,
            lease,
            publisher,
            Intake(clock, self.sequencer, self.backlog),
            senders,
            streams,
            SubscriptionTable([Topic("trade", symbol) for symbol in fixed], None, 60_000),
        )
        self.stopping = asyncio.Event()
        self.next = 1

    async def open(self) -> "Running":
        await self.gateway.open(self.connect, self.spill_dir, _nothing_wanted)
        self.next = max((state.next_id for state in self.sequencer.streams), default=0) or 1
        return self

    async def run(self) -> None:
        async def nothing() -> None: ...

        try:
            await self.gateway.run(
                cast(Upstream, self.vendor),
                self.stopping,
                Duration(50 * MILLISECOND),
                NO_TIME,
                nothing,
                nothing,
            )
        finally:
            await self.gateway.close()

    def ticks(self, count: int) -> list[MappedTick]:
        """Return the next ticks of the vendor."""
        recv = self.clock.now_ns()
        numbers = range(self.next, self.next + count)
        self.next += count
        return [(msgspec.structs.replace(trade(one), ts_event=recv, ts_recv=recv), one) for one in numbers]

    def receive(self, count: int) -> None:
        self.sequencer.accept(self.ticks(count))
        self.backlog.settle()

    async def stored(self, count: int) -> None:
        await until_async(lambda: self.gateway.published["trade"] == count and not self.backlog)


async def head_of(one: Running) -> Head:
    link = await one.connect()
    heads = await read_heads(link, KEYS, [KEYS.shard("A")])
    link.close()
    return heads[STREAM.name]


def on_the_bus(server: RedisServer) -> list[int]:
    return numbers(server.client, KEYS.stream(STREAM))


@pytest.mark.parametrize("why", ["stopped", "refused", "a bug"])
async def test_next_start_writes_buffered_ticks_however_gateway_ended(
    why: str, redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = await Running(redis_server, tmp_path / "spill").open()
    running = asyncio.create_task(one.run())
    one.receive(10)
    await one.stored(10)
    redis_server.stop()
    redis_server.client.close()
    one.receive(10)
    await until_async(lambda: one.gateway.senders[0].stuck)
    one.receive(10)
    if why == "stopped":
        one.stopping.set()
        await running
    else:
        one.vendor.error.set_exception(VendorRefused("no") if why == "refused" else KeyError("bug"))
        with pytest.RaisesGroup(VendorRefused if why == "refused" else KeyError):
            await running
    assert "no room" not in caplog.text
    await asyncio.to_thread(redis_server.start)
    two = await asyncio.wait_for(Running(redis_server, tmp_path / "spill").open(), 20)
    assert on_the_bus(redis_server) == list(range(1, 31))
    await two.gateway.close()


async def test_fences_are_not_released_while_spilled_entries_remain(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway ends while it writes its spill.

    If the fences were released, nobody could know whether another gateway wrote after it.
    """
    one = await Running(redis_server, tmp_path / "spill").open()
    sender = one.gateway.senders[0]
    one.receive(10)
    assert await sender.spill_oldest(4)

    async def hangs(lane: Lane, transaction: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Lane, "commit", hangs)
    running = asyncio.create_task(one.run())
    await until_async(lambda: sender.committing)
    one.vendor.error.set_exception(VendorRefused("no"))
    with pytest.RaisesGroup(VendorRefused):
        await running
    monkeypatch.undo()
    two = await asyncio.wait_for(Running(redis_server, tmp_path / "spill").open(), 20)
    assert on_the_bus(redis_server) == list(range(1, 11))
    await two.gateway.close()


async def test_cancelled_spill_finishes_before_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog, spill = Backlog(1 << 20), opened(tmp_path)
    lane = cast(
        Lane,
        SimpleNamespace(
            replay=SimpleNamespace(entries=[]), unfinished=None, quarantine=Quarantine(False), held=[]
        ),
    )
    sender = Sender(lane, backlog, spill, BusClock(), {})
    for entry in entries(1, 10):
        backlog.put(entry)
    backlog.settle()
    append, there, go_on = spill.append, threading.Event(), threading.Event()

    def slow(some: Sequence[Entry]) -> bool:
        there.set()
        assert go_on.wait(10)
        return append(some)

    monkeypatch.setattr(spill, "append", slow)
    spilling = asyncio.create_task(sender.spill_oldest(6))
    assert await asyncio.to_thread(there.wait, 10)
    spilling.cancel()
    rest = asyncio.create_task(sender.spill_oldest(6))
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await spilling
    assert await rest
    assert seqs(spill.peek(100)) == list(range(1, 11))
    assert backlog.waiting == 0


def test_takeover_records_survive_kill_during_rewrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill half-way must leave the existing records.

    A spill is written only if every gateway that raised the fences since is among them.
    """
    lock = tmp_path / "lock"
    lock.touch()
    first, second = TakeoverRecord("host:2:b", "host:1:a"), TakeoverRecord("host:3:c", "host:2:b")
    _write_records(tmp_path, [first])
    before, cuts = lock.read_bytes(), []
    monkeypatch.setattr("os.fsync", lambda fd: None)

    def seen(record: TakeoverRecord) -> bytes:
        cuts.append(lock.read_bytes())
        return msgspec.json.encode(record)

    monkeypatch.setattr("services.gateway.spill.recovery._encode", seen)
    _write_records(tmp_path, [first, second])
    assert cuts == [before, before]
    assert _read_records(tmp_path) == [first, second]
    _write_records(tmp_path, [first])
    assert _read_records(tmp_path) == [first]
    lock.write_bytes(lock.read_bytes() + b'["\xff","x"]\n')  # damaged: never acted upon
    assert _read_records(tmp_path) == [first]


@pytest.mark.parametrize(("blocked", "pauses"), [(False, True), (True, False)])
async def test_blocked_lane_does_not_pause_socket_for_others(
    blocked: bool, pauses: bool, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.gateway._PAUSE_BYTES", 1)
    one = await Running(redis_server, tmp_path / "spill").open()
    (own,) = one.gateway.senders
    one.gateway.senders.append(cast(Sender, Mock(stuck=blocked, spill=[], published=Counter())))
    publishing = asyncio.create_task(one.gateway._publish(own, cast(Upstream, one.vendor)))
    one.receive(10)
    await one.stored(10)
    own.backlog.bytes = 2  # what waits for the other lane
    own.tick()
    await until_async(lambda: not own.ring_due and not own.committing)
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    assert one.vendor.pause.called == pauses
    one.gateway.senders.pop()
    await one.gateway.close()


async def test_acknowledged_subscription_is_stored_before_the_first_tick(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A gateway that ends before the symbol ever ticks leaves it to the next one."""

    def head() -> Head:
        return decode_head(redis_server.client.hget(KEYS.last(KEYS.shard("A")), STREAM.name) or b"")

    acknowledged = []
    for life in range(2):
        running = await Running(redis_server, tmp_path).open()
        task = asyncio.create_task(running.run())
        running.gateway.intake.resumed()
        acknowledged.append(running.gateway.intake.last_recv)
        await until_async(lambda: head().subscribed > 0)
        assert head().id == "0-0"
        if life:
            running.receive(3)
            await running.stored(3)
            # a Gap for the time between the gateways, and three trades
            assert head().id.endswith("-4")
        running.stopping.set()
        await task
        assert head().subscribed == acknowledged[0] < acknowledged[life] + 1


async def test_trade_far_ahead_waits_a_second_for_another_one(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = await Running(redis_server, tmp_path / "spill").open()
    running = asyncio.create_task(one.run())
    one.receive(3)
    one.next = 10**12
    one.receive(1)
    await one.stored(3)
    assert on_the_bus(redis_server) == [1, 2, 3]
    await one.stored(4)
    assert on_the_bus(redis_server) == [1, 2, 3, 10**12]
    head = await head_of(one)
    assert (head.missing, head.vendor_id) == (10**12 - 4, 3)
    one.stopping.set()
    await running
    # the next one goes on at the old place
    two = await Running(redis_server, tmp_path / "spill").open()
    running = asyncio.create_task(two.run())
    two.receive(2)
    await two.stored(2)
    head = await head_of(two)
    assert (head.missing, head.vendor_id, head.holes) == (0, 5, [])
    gaps = [message for _, message in stored(redis_server.client, KEYS.stream(STREAM))]
    assert [gap.kind for gap in gaps if isinstance(gap, Gap)] == [GapKind.SEQUENCE, GapKind.VOID]
    two.stopping.set()
    await running
    assert caplog.text.count("no other trade came since") == caplog.text.count("never existed") == 1


@pytest.mark.parametrize("redis", ["up", "down"])
async def test_clean_stop_stores_what_is_held(redis: str, redis_server: RedisServer, tmp_path: Path) -> None:
    one = await Running(redis_server, tmp_path / "spill").open()
    running = asyncio.create_task(one.run())
    one.receive(3)
    await one.stored(3)
    if redis == "down":
        redis_server.stop()
        redis_server.client.close()
    one.next = 10**12
    one.receive(1)
    one.stopping.set()
    await running
    if redis == "down":
        await asyncio.to_thread(redis_server.start)
    two = await Running(redis_server, tmp_path / "spill").open()
    assert on_the_bus(redis_server) == [1, 2, 3, 10**12]
    assert two.sequencer.streams[0].next_id == 4
    await two.gateway.close()


async def test_late_and_doubtful_ticks_are_not_the_newest_after_the_spill(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The head that a gateway makes of its spill, and the one that its successor makes of it."""
    one = await Running(redis_server, tmp_path / "spill").open()
    (sender,) = one.gateway.senders
    one.receive(3)
    one.next = 6
    one.receive(1)
    one.sequencer.accept([(msgspec.structs.replace(trade(4), ts_event=1), 4)])
    one.sequencer.accept([(msgspec.structs.replace(trade(2), ts_event=1, price_text="77"), 2)])
    one.backlog.settle()
    assert await sender.spill_oldest(2)
    running = asyncio.create_task(one.run())
    await until_async(lambda: not len(sender))
    head = await head_of(one)
    assert sender.heads[one.sequencer.streams[0]].build() == head
    tick = newest_tick(head, "trade")
    assert tick is not None and isinstance(tick, Trade) and tick.trade_id == "6"
    one.stopping.set()
    await running
