"""Reading from a real cluster: every entry once, in order per stream, whatever happens to a master."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from support.cluster import RedisCluster
from support.redis_server import RedisServer
from support.shard_writing import ShardWriter
from support.waiting import until_async

import tickbus
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.reader.cluster_reader import MergedReader, open_reader
from tickbus.reader.reader import PER_READ, Reader
from tickbus.reader.reads import FROM_START, Poll
from tickbus.redis.registry import check_meta
from tickbus.redis.slots import key_slot
from tickbus.redis.topology import Redis, locate

KEYS = Keys(shards=8)


def symbols_on_all_masters() -> list[str]:
    """Return one symbol of every shard."""
    found: dict[int, str] = {}
    for number in range(100):
        found.setdefault(KEYS.shard(f"S{number}"), f"S{number}")
    assert len({key_slot(KEYS.bell(shard)) * 3 // 16384 for shard in found}) == 3
    return list(found.values())


def all_trades(stream: Stream) -> bool:
    return stream.kind == "trade"


@asynccontextmanager
async def bench(cluster: RedisCluster) -> AsyncIterator[tuple[Redis, list[ShardWriter]]]:
    redis = locate(cluster.url)
    connection = await redis.open_checked()
    await check_meta(connection, KEYS)
    connection.close()
    writers = [ShardWriter(redis, KEYS, symbol) for symbol in symbols_on_all_masters()]
    yield redis, writers
    for writer in writers:
        writer.close()


class Delivered:
    """What was delivered: the numbers of the trades by symbol."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[int]] = {}
        self.clocks: dict[tuple[int, str], int] = {}
        self.lost: list[object] = []

    def add(self, poll: Poll) -> None:
        self.clocks |= poll.clocks
        for read in poll.reads:
            self.lost += [read.lost] if read.lost is not None else []
            messages = [decode(field, payload) for _, (field, payload) in read.entries]
            self.numbers.setdefault(read.stream.symbol, []).extend(
                int(message.price_text) for message in messages if isinstance(message, Trade)
            )


class LiveReader(Delivered):
    """A reader that runs in the background."""

    def __init__(self, reader: Reader | MergedReader) -> None:
        super().__init__()
        self.reader = reader
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for poll in self.reader.polls():
            self.add(poll)

    async def expect(self, wanted: dict[str, int]) -> None:
        """Wait for exactly this many trades of each symbol, numbered 1, 2, 3, ..."""

        def complete() -> bool:
            if self._task.done():
                self._task.result()
            return all(len(self.numbers.get(symbol, ())) >= count for symbol, count in wanted.items())

        await until_async(complete, 30)
        assert self.numbers == {symbol: list(range(1, count + 1)) for symbol, count in wanted.items()}
        assert not self.lost

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.reader.close()


async def test_single_server_gets_one_reader_and_cluster_one_per_shard(redis_server: RedisServer) -> None:
    assert isinstance(open_reader(locate(redis_server.url), KEYS, all_trades), Reader)
    assert isinstance(open_reader(locate("redis+cluster://h:1"), KEYS, all_trades), MergedReader)


async def test_cluster_reader_delivers_in_order_with_positions_heads_and_clocks(
    redis_cluster: RedisCluster,
) -> None:
    async with bench(redis_cluster) as (redis, writers):
        for writer in writers:
            await writer.write(5)
        first = LiveReader(open_reader(redis, KEYS, all_trades, FROM_START))
        await first.expect({writer.symbol: 5 for writer in writers})
        await first.stop()
        positions = first.reader.positions
        assert {name: position.seq for name, position in positions.items()} == {
            writer.stream.name: 5 for writer in writers
        }
        assert {name: StreamId.parse(head.id) for name, head in first.reader.heads.items()} == positions
        for writer in writers:
            await writer.write(3)
        half = [writer for writer in writers if writer.shard % 2]
        second = LiveReader(
            open_reader(
                redis, KEYS, all_trades, positions=positions, shards={writer.shard for writer in half}
            )
        )
        second.numbers = {writer.symbol: [1, 2, 3, 4, 5] for writer in half}
        await second.expect({writer.symbol: 8 for writer in half})
        for writer in writers:
            await writer.write(1)
        await second.expect({writer.symbol: 9 for writer in half})
        await until_async(lambda: set(second.clocks) == {(writer.shard, "test") for writer in half})
        await second.stop()


async def test_abandoned_subscription_ends_silently(
    redis_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(redis_cluster) as (_, writers), tickbus.connect(redis_cluster.url) as bus:
        for writer in writers:
            await writer.write(3)
        async for _ in bus.read("trade", start="start"):
            break
    await until_async(lambda: asyncio.all_tasks() == {asyncio.current_task()}, what="all tasks have ended")
    gc.collect()
    logged = [record.getMessage() for record in caplog.records]
    assert not [text for text in logged if "retrying" in text or "never retrieved" in text]


async def test_now_means_the_call_of_prepare_and_new_streams_are_read_from_their_start(
    redis_cluster: RedisCluster,
) -> None:
    async with bench(redis_cluster) as (redis, writers):
        old, *others = writers
        await old.write(4)
        reader = open_reader(redis, KEYS, all_trades)
        await reader.prepare()
        assert {name: position.seq for name, position in reader.positions.items()} == {old.stream.name: 4}
        for writer in (old, *others):
            await writer.write(2)
        live = LiveReader(reader)
        live.numbers = {old.symbol: [1, 2, 3, 4]}
        await live.expect({old.symbol: 6} | {writer.symbol: 2 for writer in others})
        await live.stop()


def is_past(writer: ShardWriter, seq: int) -> bool:
    return writer.seq > seq


async def test_cluster_reader_survives_failovers_under_load(redis_cluster: RedisCluster) -> None:
    async with bench(redis_cluster) as (redis, writers):
        live = LiveReader(open_reader(redis, KEYS, all_trades, FROM_START))
        stop = asyncio.Event()

        async def load(writer: ShardWriter) -> None:
            while not stop.is_set():
                await writer.write(7)

        loads = [asyncio.create_task(load(writer)) for writer in writers]
        for writer in writers[:3]:
            goal = writer.seq + 70
            await asyncio.to_thread(redis_cluster.fail_over, KEYS.bell(writer.shard))
            await until_async(partial(is_past, writer, goal))
        stop.set()
        await asyncio.gather(*loads)
        await live.expect({writer.symbol: writer.seq for writer in writers})
        assert live.reader.reconnects > 0
        await live.stop()


async def test_slot_migration_delays_only_its_own_shard(
    redis_cluster: RedisCluster,
) -> None:
    async with bench(redis_cluster) as (redis, writers):
        live = LiveReader(open_reader(redis, KEYS, all_trades, FROM_START))
        moved, *others = writers
        for writer in writers:
            await writer.write(5)
        await live.expect({writer.symbol: 5 for writer in writers})
        to = next(
            node
            for node in redis_cluster.masters()
            if node is not redis_cluster.master(KEYS.bell(moved.shard))
        )
        loop, halfway, finish = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def between() -> None:
            loop.call_soon_threadsafe(halfway.set)
            asyncio.run_coroutine_threadsafe(finish.wait(), loop).result(20)

        moving = asyncio.create_task(
            asyncio.to_thread(redis_cluster.move, key_slot(KEYS.bell(moved.shard)), to, between)
        )
        await halfway.wait()
        delayed = asyncio.create_task(moved.write(5))
        for writer in others:
            await writer.write(5)
        await live.expect({writer.symbol: 10 for writer in others} | {moved.symbol: 5})
        assert not delayed.done()
        finish.set()
        await moving
        await delayed
        await live.expect({writer.symbol: 10 for writer in writers})
        await live.stop()


async def test_stalled_master_delays_only_its_own_shards(redis_cluster: RedisCluster) -> None:
    async with bench(redis_cluster) as (redis, writers):
        for writer in writers:
            await writer.write(1)
        live = LiveReader(open_reader(redis, KEYS, all_trades, FROM_START))
        await live.expect({writer.symbol: 1 for writer in writers})
        stalled = redis_cluster.master(KEYS.bell(writers[0].shard))
        others = [
            writer for writer in writers if redis_cluster.master(KEYS.bell(writer.shard)) is not stalled
        ]
        stalled.pause()
        try:
            for writer in others:
                await writer.write(1)
            await live.expect({writer.symbol: 1 + (writer in others) for writer in writers})
        finally:
            stalled.resume()
        await live.stop()


async def test_slow_consumer_applies_backpressure_to_the_reader(redis_cluster: RedisCluster) -> None:
    async with bench(redis_cluster) as (redis, writers):
        some = writers[:4]
        for writer in some:
            for _ in range(6):
                await writer.write(1_000)
        reader = open_reader(redis, KEYS, all_trades, FROM_START)
        assert isinstance(reader, MergedReader)
        delivered, polls = Delivered(), reader.polls()

        def incomplete(shard: int) -> bool:
            return any(
                writer.shard == shard and len(delivered.numbers.get(writer.symbol, ())) < 6_000
                for writer in some
            )

        while any(incomplete(writer.shard) for writer in some):
            delivered.add(await anext(polls))
            # one poll of each shard arrives in the meantime, and then no more
            await until_async(
                lambda: all(shard in reader._buffered for shard in reader._readers if incomplete(shard)), 10
            )
            for shard_reader in reader._readers.values():
                for name, position in shard_reader.positions.items():
                    count = len(delivered.numbers.get(Stream.parse(name).symbol, ()))
                    assert position.seq - count <= PER_READ // KEYS.shards
        assert delivered.numbers == {writer.symbol: list(range(1, 6_001)) for writer in some}
        await polls.aclose()
        reader.close()


async def test_bus_on_a_cluster_serves_sync_and_async_programs(redis_cluster: RedisCluster) -> None:
    async with bench(redis_cluster) as (_, writers):
        for writer in writers:
            await writer.write(3)
        found: list[tuple[str, int]] = []

        def program() -> None:
            with tickbus.connect(redis_cluster.url) as bus:
                for tick in bus.read("trade", start="start"):
                    assert isinstance(tick, Trade)
                    found.append((tick.symbol, int(tick.price_text)))
                    if len(found) == 3 * len(writers):
                        break

        thread = threading.Thread(target=program, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, 20)
        assert sorted(found) == sorted((writer.symbol, number) for writer in writers for number in (1, 2, 3))
        async with tickbus.connect(redis_cluster.url) as bus:
            newest = await bus.snapshot("trade")
        assert {stream.symbol: trade.price_text for stream, (_, trade) in newest.items()} == {
            writer.symbol: "3" for writer in writers
        }
