"""`bus.consume` on a real Redis: whole shards, one owner each; position, state and output are one unit."""

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pytest
from support.cluster import RedisCluster
from support.paths import ROOT
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer, stored, trade

import tickbus
from tickbus.bus import Bus
from tickbus.clock import BusClock
from tickbus.consumer.assignment import assign
from tickbus.consumer.batch import Batch
from tickbus.consumer.outputs import Output
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Gap, GapKind, Quote, Signal, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.redis.slots import key_slot
from tickbus.redis.topology import locate
from tickbus.writer.publisher import Publisher

SYMBOLS = [f"S{number}" for number in range(24)]
TTL = "600ms"
NOON = 1_700_000_000_000


def signal(symbol: str, ms: int, value: int) -> Output:
    return Output(Stream("signal", "app", symbol), ms, Signal("sum", str(value), "0", "", "", symbol))


class App:
    """A small service: it sums the prices per symbol, as state, and emits each sum as a signal.

    `commits`: whether it commits every batch.
    """

    def __init__(self, bus: Bus, name: str = "app", commits: bool = True, **reads: object) -> None:
        self.commits = commits
        self.consumer = bus.consume(name, lease_ttl=TTL, **({"start": "start"} | reads))  # type: ignore[arg-type]
        self.seen: list[tuple[str, int]] = []
        self.sums: dict[Stream, int] = {}
        self.shards: set[int] = set()
        self.gained: list[set[int]] = []
        self.lost: list[set[int]] = []
        self.batches: list[Batch] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for batch in self.consumer:
            self.batches.append(batch)
            if batch.gained:
                self.gained.append(set(batch.gained))
                self.shards |= batch.gained.keys()
            outputs = []
            for stream, id, message in batch:
                if not isinstance(message, Trade):
                    continue
                self.seen.append((stream.symbol, int(message.price_text)))
                self.sums[stream] = self.sums.get(stream) or int(batch.state(stream) or 0)
                self.sums[stream] += int(message.price_text)
                outputs.append(signal(stream.symbol, id.ms, self.sums[stream]))
            if self.commits:
                await batch.commit(
                    outputs, {stream: str(self.sums[stream]).encode() for stream in batch.positions}
                )
            if batch.lost:
                self.lost.append(set(batch.lost))
                self.shards -= batch.lost
                self.sums = {
                    stream: total
                    for stream, total in self.sums.items()
                    if KEYS.shard(stream.symbol) not in batch.lost
                }

    async def wait_owns(self, shards: Iterable[int]) -> "App":
        """Wait until it owns exactly these shards."""
        await until_async(lambda: self.check() and self.shards == set(shards))
        return self

    async def wait_seen(self, count: int) -> None:
        """Wait until it has seen this many trades."""
        await until_async(
            lambda: self.check() and len(self.seen) >= count, what=f"{count} trades, {len(self.seen)} seen"
        )

    def check(self) -> Literal[True]:
        """Raise the error that ended it, if any."""
        if self._task.done():
            self._task.result()
        return True

    async def stop(self) -> None:
        """Stop cleanly."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.consumer.close()

    async def crash(self) -> None:
        """Stop as by kill -9: nothing is released, nothing announced."""
        consumer = self.consumer._shard_consumer
        assert consumer is not None
        self.consumer._shard_consumer = None
        for task in (self._task, *consumer._tasks):
            task.cancel()
        consumer.publisher.close()
        consumer.publisher.drop(list(consumer.epochs))

        async def nothing() -> None:
            consumer.members.close()

        consumer.members.leave = nothing  # type: ignore[method-assign]
        await asyncio.gather(self._task, *consumer._tasks, return_exceptions=True)
        await consumer.close()


@asynccontextmanager
async def writer_and_bus(server: "RedisServer | RedisCluster") -> AsyncIterator[tuple[Writer, Bus]]:
    writer = await Writer(server.url).open()
    async with tickbus.connect(server.url) as bus:
        yield writer, bus
    writer.close()


async def write_all(writer: Writer, *numbers: int) -> None:
    for symbol in SYMBOLS:
        await writer.write(*numbers, symbol=symbol)


def sums(server: "RedisServer | RedisCluster", symbols: Iterable[str] = SYMBOLS) -> dict[str, list[int]]:
    """Return the sums that the app has emitted, after checking that the counters are dense."""
    found, client = {}, server.client
    for symbol in symbols:
        rows = stored(client, KEYS.stream(Stream("signal", "app", symbol)))
        assert [id.seq for id, _ in rows] == list(range(1, len(rows) + 1))
        found[symbol] = [int(message.value) for _, message in rows if isinstance(message, Signal)]
    return found


def in_flight(app: App) -> set[int]:
    """Return the shards whose commits are in flight."""
    assert app.consumer._shard_consumer is not None
    return set(app.consumer._shard_consumer.publisher.in_flight.shards)


def everywhere(expected: list[int]) -> dict[str, list[int]]:
    return dict.fromkeys(SYMBOLS, expected)


async def test_single_replica_owns_all_shards_at_once_and_commits(redis_server: RedisServer) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await write_all(writer, 1, 2, 3)
        app = await App(bus).wait_owns(range(8))
        await app.wait_seen(72)
        await until_async(lambda: sums(redis_server) == everywhere([1, 3, 6]))
        assert redis_server.client.hget(KEYS.state(KEYS.shard("S3"), "app"), "trade:test:S3") == b"6"
        assert redis_server.client.hgetall(KEYS.position(KEYS.shard("S3"), "app"))[b"trade:test:S3"].endswith(
            b"-3"
        )
        await app.stop()
        assert redis_server.client.mget([KEYS.holder(shard, "app") for shard in range(8)]) == [b""] * 8
        again = await App(bus).wait_owns(range(8))
        await write_all(writer, 10)
        await again.wait_seen(24)
        await until_async(lambda: sums(redis_server) == everywhere([1, 3, 6, 16]))
        assert sorted(again.seen) == sorted((symbol, 10) for symbol in SYMBOLS)
        await again.stop()


async def test_uncommitted_entries_are_read_again_after_a_crash(redis_server: RedisServer) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await write_all(writer, 1)
        app = App(bus)
        await until_async(lambda: sums(redis_server) == everywhere([1]))
        app.commits = False
        await write_all(writer, 2)
        await app.wait_seen(48)
        await app.crash()
        again = App(bus)
        await again.wait_seen(24)
        await until_async(lambda: sums(redis_server) == everywhere([1, 3]))
        assert sorted(again.seen) == sorted((symbol, 2) for symbol in SYMBOLS)
        await again.stop()


async def test_every_trade_is_summed_once_while_replicas_join_leave_and_die(
    redis_server: RedisServer,
) -> None:
    """In order, whichever replica does it; joining moves shards only to the replica that joins."""
    async with writer_and_bus(redis_server) as (writer, bus), AsyncExitStack() as stack:
        first = await App(bus).wait_owns(range(8))
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                written += 1
                await write_all(writer, written)

        writing = asyncio.create_task(write())
        stack.callback(writing.cancel)
        second, third = App(bus), App(bus)
        apps = [first, second, third]
        # with eight shards one of three may get none; their random tokens decide which
        await until_async(
            lambda: (
                redis_server.client.hlen(KEYS.members("app")) == 3
                and sum(bool(app.shards) for app in apps) >= 2
                and sorted(chain.from_iterable(app.shards for app in apps)) == list(range(8))
            )
        )
        assert first.gained == [set(range(8))]
        assert set().union(*first.lost) == set(range(8)) - first.shards
        await second.crash()
        await until_async(lambda: first.shards | third.shards == set(range(8)))
        await first.stop()
        await third.wait_owns(range(8))
        goal = written + 20
        await until_async(lambda: written >= goal)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        ends = {symbol: writer.seqs[writer.stream(symbol)] for symbol in SYMBOLS}
        expected = {symbol: [n * (n + 1) // 2 for n in range(1, end + 1)] for symbol, end in ends.items()}
        await until_async(lambda: {symbol: len(of) for symbol, of in sums(redis_server).items()} == ends)
        assert sums(redis_server) == expected
        await third.stop()


async def test_stalled_replica_drops_shards_taken_over_and_continues(redis_server: RedisServer) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await write_all(writer, 1)
        app = App(bus)
        await until_async(lambda: sums(redis_server) == everywhere([1]))
        # another process raises two fences, as a successor would, and is gone again
        taken = {0, 3}
        for shard in taken:
            redis_server.client.mset({KEYS.fence(shard, "app"): 7, KEYS.holder(shard, "app"): "other:1:x"})
        await write_all(writer, 2)
        await until_async(lambda: app.lost and app.lost[0] == taken)
        untouched = [symbol for symbol in SYMBOLS if KEYS.shard(symbol) not in taken]
        await until_async(lambda: all(sums(redis_server)[symbol] == [1, 3] for symbol in untouched))
        # that holder sends no heartbeat: after a while these shards are free
        await app.wait_owns(range(8))
        await until_async(lambda: sums(redis_server) == everywhere([1, 3]))
        assert redis_server.client.get(KEYS.fence(0, "app")) == b"8"
        await app.stop()


async def test_batch_from_before_a_loss_does_not_commit_into_a_regained_shard(
    redis_server: RedisServer,
) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await writer.write(1, 2)
        app = App(bus, commits=False)
        await app.wait_seen(2)
        old = next(batch for batch in app.batches if batch.positions)
        shard = KEYS.shard("A")
        redis_server.client.mset({KEYS.fence(shard, "app"): 7, KEYS.holder(shard, "app"): ""})
        await app.wait_seen(4)  # lost, gained again, read again
        await old.commit((), {writer.stream(): b"old"})
        assert not redis_server.client.exists(KEYS.position(shard, "app"), KEYS.state(shard, "app"))
        await next(batch for batch in reversed(app.batches) if batch.positions).commit(
            (), {writer.stream(): b"new"}
        )
        assert redis_server.client.hgetall(KEYS.state(shard, "app")) == {b"trade:test:A": b"new"}
        await app.stop()


async def test_commit_covers_all_batches_before_it_and_refuses_outputs_of_foreign_shards(
    redis_server: RedisServer,
) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        app = App(bus, commits=False)
        await write_all(writer, 1)
        await app.wait_seen(24)
        with pytest.raises(ValueError, match="its shard is not owned by this process"):
            batch = app.batches[-1]
            batch._epochs.clear()
            await batch.commit([signal("S1", NOON, 1)])
        await write_all(writer, 2)
        await app.wait_seen(48)
        await app.batches[-1].commit()
        positions = {
            name: id
            for shard in range(8)
            for name, id in redis_server.client.hgetall(KEYS.position(shard, "app")).items()
        }
        assert {name: id.rpartition(b"-")[2] for name, id in positions.items()} == {
            f"trade:test:{s}".encode(): b"2" for s in SYMBOLS
        }
        await app.stop()


async def test_start_now_keeps_its_moment_for_the_next_owner_of_the_shard(redis_server: RedisServer) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await write_all(writer, 1)
        app = await App(bus, start="now", commits=False).wait_owns(range(8))
        await write_all(writer, 2)
        await app.wait_seen(24)
        await app.crash()
        await writer.write(7, symbol="LATER")
        again = App(bus, start="now")
        await again.wait_seen(25)
        assert sorted(again.seen) == sorted([("LATER", 7)] + [(symbol, 2) for symbol in SYMBOLS])
        await again.stop()


async def test_trimmed_entries_are_a_gap_in_the_batch(redis_server: RedisServer) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await writer.write(1, 2)
        app = App(bus, kind=("trade", "quote"))
        await app.wait_seen(2)
        await until_async(
            lambda: redis_server.client.hget(KEYS.position(KEYS.shard("A"), "app"), "trade:test:A")
        )
        await app.stop()
        await writer.write(3, 4, 5)
        redis_server.client.xtrim(writer.key(), maxlen=1, approximate=False)
        async for batch in bus.consume("app", kind=("trade", "quote"), lease_ttl=TTL):
            if batch.reads:
                (_, after, gap), (stream, id, last) = list(batch)
                assert isinstance(gap, Gap)
                assert (gap.kind, gap.count, gap.source, after.seq) == (GapKind.TRIMMED, 2, "app", 2)
                assert (stream, id.seq, last) == (writer.stream(), 5, trade(5))
                break


@pytest.mark.parametrize("idle", [False, True])
async def test_consumer_survives_a_flush(idle: bool, redis_server: RedisServer) -> None:
    """The gateway resends its newest entries, and so does the consumer: positions, states and outputs."""
    async with writer_and_bus(redis_server) as (writer, bus):
        app = App(bus)
        await write_all(writer, 1, 2)
        await until_async(lambda: sums(redis_server) == everywhere([1, 3]))
        if idle:
            redis_server.client.flushall()
        else:
            redis_server.client.flushall()
            await write_all(writer, 3)
            await app.wait_seen(72)
        await write_all(writer, 4)
        expected = [1, 3, 7] if idle else [1, 3, 6, 10]
        await until_async(lambda: sums(redis_server) == everywhere(expected), what="all sums")
        assert len(app.seen) == 24 * len(expected)
        await until_async(lambda: redis_server.client.hget(KEYS.meta, "service:app"))
        await app.stop()


@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("flushed", [False, True])
async def test_successor_resends_what_its_predecessor_wrote(
    crashed: bool, flushed: bool, redis_server: RedisServer
) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await write_all(writer, 1)
        first = await App(bus).wait_owns(range(8))
        await until_async(lambda: sums(redis_server) == everywhere([1]))
        size = redis_server.log_size()
        await write_all(writer, 2, 3)
        await until_async(lambda: sums(redis_server) == everywhere([1, 3, 6]))
        await (first.crash() if crashed else first.stop())
        second = await App(bus).wait_owns(range(8))
        if flushed:
            redis_server.client.flushall()
        else:
            redis_server.kill()
            redis_server.truncate_log(size)
            redis_server.start()
        await write_all(writer, 4)
        await until_async(
            lambda: second.check() and sums(redis_server) == everywhere([1, 3, 6, 10]), what="all sums"
        )
        await second.stop()


async def test_mirrored_consumer_groups_show_the_lag(redis_server: RedisServer) -> None:
    async with writer_and_bus(redis_server) as (writer, bus):
        await writer.write(*range(1, 301))
        app = App(bus, mirror_groups=True)
        await app.wait_seen(300)

        def group() -> tuple[int | None, int | None, bytes] | None:
            found = redis_server.client.xinfo_groups(writer.key())
            return (
                (found[0]["entries-read"], found[0]["lag"], found[0]["last-delivered-id"]) if found else None
            )

        await until_async(lambda: (group() or (0,))[0] == 300)
        assert group() == (
            300,
            0,
            redis_server.client.hget(KEYS.position(KEYS.shard("A"), "app"), "trade:test:A"),
        )
        app.commits = False
        await writer.write(*range(301, 321))
        redis_server.client.xtrim(writer.key(), maxlen=10, approximate=False)
        assert group()[:2] == (300, 20)  # type: ignore[index]
        app.commits = True
        redis_server.client.delete(writer.key())  # and its groups with it
        writer.seqs[writer.stream()] = 400
        await writer.write(401, 402)
        await until_async(
            lambda: (shown := group()) is not None and shown[1] == 0 and shown[2].endswith(b"-402")
        )
        await app.stop()


@pytest.mark.parametrize("left", ["break", "an error", "a cancelled task"])
async def test_short_job_leaves_what_it_committed_and_nothing_else(
    redis_server: RedisServer, left: str
) -> None:
    """It ends long before the next round of the mirror; what it read and did not commit is read again."""
    async with writer_and_bus(redis_server) as (writer, bus):
        await writer.write(*range(1, 11))

        async def job() -> None:
            committed = False
            async for batch in bus.consume("job", mirror_groups=True):
                if not batch.reads:
                    continue
                if committed:
                    if left == "an error":
                        raise ZeroDivisionError
                    if left == "a cancelled task":
                        raise asyncio.CancelledError
                    break
                await batch.commit(state={read.stream: b"0" for read in batch.reads})
                committed = True
                await writer.write(11)

        await asyncio.gather(asyncio.create_task(job()), return_exceptions=True)
        shard = KEYS.shard("A")
        position = redis_server.client.hget(KEYS.position(shard, "job"), "trade:test:A")
        assert position is not None and position.endswith(b"-10")
        await until_async(lambda: len(redis_server.client.xinfo_groups(writer.key())) == 1)
        (group,) = redis_server.client.xinfo_groups(writer.key())
        assert (group["last-delivered-id"], group["entries-read"], group["lag"]) == (position, 10, 1)
        assert redis_server.client.hget(KEYS.state(shard, "job"), "trade:test:A") == b"0"
        again = App(bus, "job")
        await again.wait_seen(1)
        assert again.seen == [("A", 11)]
        await again.stop()


async def test_consume_refuses_invalid_arguments_and_waits_for_the_first_writer(
    redis_server: RedisServer,
) -> None:
    invalid_arguments: list[dict[str, Any]] = [
        {"service": "No Name"},
        {"service": "x", "kind": "ticks"},
        {"service": "x", "symbols": []},
        {"service": "x", "lease_ttl": "soon"},
    ]
    async with tickbus.connect(redis_server.url) as bus:
        for invalid in invalid_arguments:
            with pytest.raises(ConfigError):
                bus.consume(**invalid)
        app = App(bus)
        await until_async(lambda: len(redis_server.client.client_list()) > 1)
        writer = await Writer(redis_server.url).open()
        await writer.write(1)
        await app.wait_seen(1)
        assert app.seen == [("A", 1)]
        await app.stop()
        writer.close()


async def test_commit_cancelled_while_redis_is_stalled_is_stored_once(redis_server: RedisServer) -> None:
    """The commit continues in the background: its outputs are stored once, and the next commit follows it."""
    async with writer_and_bus(redis_server) as (writer, bus):
        app = App(bus, commits=False)
        await writer.write(1)
        await app.wait_seen(1)
        batch = next(batch for batch in app.batches if batch.positions)
        output = signal("A", NOON, 1)
        redis_server.pause()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batch.commit([output]), 0.05)
        redis_server.resume()
        await batch.commit([signal("A", NOON, 2)])
        rows = stored(redis_server.client, KEYS.stream(output.stream))
        assert [(id, int(message.value)) for id, message in rows if isinstance(message, Signal)] == [
            (StreamId(NOON, 1), 1),
            (StreamId(NOON, 2), 2),
        ]
        await app.stop()


async def test_spread_example_reports_each_record_once_despite_a_kill(redis_server: RedisServer) -> None:
    """Two processes run; one is killed."""
    script = ROOT / "examples" / "spread_app.py"
    widths = [1, 2, 2, 5, 3, 7]

    def both_own_theirs() -> bool:
        """One time in 128 the shards of both are all of one."""
        members = [token.decode() for token in redis_server.client.hgetall(KEYS.members("widest"))]
        holders = redis_server.client.mget([KEYS.holder(shard, "widest") for shard in range(8)])
        assigned = assign(members, range(8))
        return len(members) == 2 and holders == [assigned[shard].encode() for shard in range(8)]

    async with writer_and_bus(redis_server) as (writer, _):
        apps = [
            await asyncio.create_subprocess_exec(sys.executable, str(script), redis_server.url)
            for _ in range(2)
        ]
        try:
            for index, width in enumerate(widths):
                for symbol in SYMBOLS:
                    quote = Quote(symbol, "100", "1", str(100 + width), "1", 7, 8)
                    await writer.publisher.commit(
                        writer.transaction([writer.entry(Stream("quote", "test", symbol), quote)])
                    )
                if index == 2:
                    await until_async(both_own_theirs)
                    apps[0].kill()
            signals = [KEYS.stream(Stream("signal", "test", symbol)) for symbol in SYMBOLS]
            await until_async(lambda: all(redis_server.client.xlen(key) >= 4 for key in signals))
            for key in signals:
                assert [
                    message.value
                    for _, message in stored(redis_server.client, key)
                    if isinstance(message, Signal)
                ] == [1, 2, 5, 7]
        finally:
            for app in apps:
                if app.returncode is None:
                    app.kill()
                await app.wait()


async def test_sqlite_example_counts_each_trade_once_despite_kills(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Two processes share one file; they are killed in turn, at any point."""
    script = ROOT / "examples" / "sqlite_app.py"
    file = tmp_path / "volume.db"

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, str(script), redis_server.url, str(file))

    def sums() -> set[tuple[str, str, int]]:
        with (
            closing(sqlite3.connect(file, timeout=30)) as database,
            suppress(sqlite3.OperationalError),
        ):  # no table yet
            return {
                (Stream.parse(name).symbol, *row)
                for name, *row in database.execute("SELECT stream, traded, trades FROM volume")
            }
        return set()

    async with writer_and_bus(redis_server) as (writer, _):
        apps = [await start() for _ in range(2)]
        try:
            for value in range(1, 41):
                await write_all(writer, value)
                if value % 10 == 0:
                    index = value // 10 % 2
                    apps[index].kill()
                    await apps[index].wait()
                    apps[index] = await start()
            await until_async(lambda: sums() == {(symbol, "40", 40) for symbol in SYMBOLS}, 40)
        finally:
            for app in apps:
                if app.returncode is None:
                    app.kill()
                await app.wait()


async def test_cluster_consumers_survive_joins_deaths_and_a_failover(
    redis_cluster: RedisCluster,
) -> None:
    async with writer_and_bus(redis_cluster) as (writer, bus):
        await write_all(writer, 1)
        first = await App(bus).wait_owns(range(8))
        second, client = App(bus), redis_cluster.client
        await until_async(
            lambda: client.hlen(KEYS.members("app")) == 2 and first.shards | second.shards == set(range(8))
        )
        await write_all(writer, 2)
        await until_async(lambda: sums(redis_cluster) == everywhere([1, 3]))
        await asyncio.to_thread(redis_cluster.fail_over, KEYS.bell(next(iter(second.shards or first.shards))))
        await write_all(writer, 3)
        await until_async(lambda: sums(redis_cluster) == everywhere([1, 3, 6]))
        await second.crash()
        await write_all(writer, 4)
        await first.wait_owns(range(8))
        await until_async(lambda: sums(redis_cluster) == everywhere([1, 3, 6, 10]))
        await first.stop()


async def app_with_uncommitted_batch(writer: Writer, bus: Bus, cluster: RedisCluster) -> App:
    """Return an app that has committed 1, and read 2, for every symbol."""
    app = App(bus)
    await write_all(writer, 1)
    await until_async(lambda: sums(cluster) == everywhere([1]))
    app.commits = False
    await write_all(writer, 2)
    await app.wait_seen(48)
    return app


async def commit_last_batch(app: App) -> None:
    app.commits = True
    outputs = [signal(symbol, NOON, 3) for symbol in SYMBOLS]
    await app.batches[-1].commit(outputs, {Stream("trade", "test", symbol): b"3" for symbol in SYMBOLS})


async def test_cluster_slot_migration_delays_commits_of_its_own_shard_only(
    redis_cluster: RedisCluster,
) -> None:
    """Only the shard whose keys are on two nodes waits; the others proceed, and it continues where it was."""
    async with writer_and_bus(redis_cluster) as (writer, bus):
        app = await app_with_uncommitted_batch(writer, bus, redis_cluster)
        bell = KEYS.bell(KEYS.shard("S1"))
        here = {symbol for symbol in SYMBOLS if KEYS.shard(symbol) == KEYS.shard("S1")}
        target = next(node for node in redis_cluster.masters() if node is not redis_cluster.master(bell))
        split, joined = threading.Event(), threading.Event()

        def between() -> None:
            split.set()
            joined.wait(60)

        moving = asyncio.create_task(asyncio.to_thread(redis_cluster.move, key_slot(bell), target, between))
        await asyncio.to_thread(split.wait, 60)
        await commit_last_batch(app)
        assert KEYS.shard("S1") in in_flight(app)
        others = [symbol for symbol in SYMBOLS if symbol not in here]
        for symbol in others:
            await writer.write(3, symbol=symbol)
        await until_async(
            lambda: (
                app.check() and all(sums(redis_cluster, others)[symbol] == [1, 3, 6] for symbol in others)
            ),
            what="the others continue",
        )
        assert not moving.done()
        await until_async(
            lambda: app.check() and in_flight(app) == {KEYS.shard("S1")},
            what="even the slowest of the others is stored",
        )
        joined.set()
        await moving
        for symbol in here:
            await writer.write(3, symbol=symbol)
        await until_async(
            lambda: app.check() and sums(redis_cluster) == everywhere([1, 3, 6]),
            what="the delayed one continues",
        )
        assert sorted(app.seen) == sorted((symbol, number) for symbol in SYMBOLS for number in (1, 2, 3))
        await app.stop()


async def test_cluster_master_killed_between_read_and_commit_loses_nothing(
    redis_cluster: RedisCluster,
) -> None:
    async with writer_and_bus(redis_cluster) as (writer, bus):
        app = await app_with_uncommitted_batch(writer, bus, redis_cluster)
        master = redis_cluster.master(KEYS.bell(KEYS.shard("S1")))
        master.kill()
        await commit_last_batch(app)
        await write_all(writer, 3)
        await until_async(
            lambda: app.check() and sums(redis_cluster) == everywhere([1, 3, 6]), 30, "all sums"
        )
        await until_async(lambda: not in_flight(app))
        await app.stop()
        await asyncio.to_thread(redis_cluster.heal)


async def test_cluster_shard_taken_over_while_its_commit_is_in_flight_is_reported_lost(
    redis_cluster: RedisCluster,
) -> None:
    async with writer_and_bus(redis_cluster) as (writer, bus):
        app = App(bus)
        await write_all(writer, 1)
        await until_async(lambda: sums(redis_cluster) == everywhere([1]))
        shard = KEYS.shard("S1")
        assert app.consumer._shard_consumer is not None
        thief = Publisher(locate(redis_cluster.url), KEYS, "app", BusClock())
        lane = app.consumer._shard_consumer.publisher.lane(shard)
        async with lane._lock:  # as if its master did not reply
            await write_all(writer, 2)
            await until_async(lambda: app.check() and shard in in_flight(app))
            await thief.claim(
                [shard], lambda found: {shard: fence.epoch + 1 for shard, fence in found.items()}
            )
        await until_async(lambda: app.check() and {shard} in app.lost, what="the loss is reported")
        await thief.release()
        thief.close()
        await app.wait_owns(range(8))
        await write_all(writer, 3)
        await until_async(
            lambda: app.check() and sums(redis_cluster) == everywhere([1, 3, 6]), what="all sums"
        )
        await app.stop()


@pytest.mark.parametrize("deployment", ["redis_server", "redis_cluster"])
async def test_withheld_stream_waits_and_goes_on_where_it_was_left_also_over_a_rebalance(
    deployment: str, request: pytest.FixtureRequest
) -> None:
    """The service takes two trades of A and has no room for more; B goes on."""
    async with writer_and_bus(request.getfixturevalue(deployment)) as (writer, bus):
        app = await App(bus, commits=False).wait_owns(range(8))
        await writer.write(1, 2, symbol="S1")
        await app.wait_seen(2)
        consumer = app.consumer._shard_consumer
        assert consumer is not None
        stream = Stream("trade", "test", "S1")
        position = next(batch.positions[stream] for batch in app.batches if stream in batch.positions)
        consumer.withhold_stream(stream, StreamId(position.ms, position.seq))
        await writer.write(3, 4, symbol="S1")
        await writer.write(1, symbol="S2")
        await app.wait_seen(3)
        second = App(bus, commits=False)
        await until_async(lambda: second.check() and second.shards and app.lost)
        await writer.write(2, symbol="S2")
        owner = app if consumer.owns(Stream("trade", "test", "S2")) else second
        await until_async(lambda: ("S2", 2) in owner.seen)
        if consumer.owns(stream):
            assert ("S1", 3) not in app.seen
            consumer.resume_stream(stream)
            await until_async(lambda: app.seen.count(("S1", 4)))
            assert [number for symbol, number in app.seen if symbol == "S1"] == [1, 2, 3, 4]
        else:  # the other one reads it from what is committed: nothing
            await until_async(lambda: second.seen.count(("S1", 4)))
            assert [number for symbol, number in second.seen if symbol == "S1"] == [1, 2, 3, 4]
            consumer.resume_stream(stream)
        await app.stop()
        await second.stop()
