"""Replicas of bars and recorder, killed, paused, woken and added under load: the output does not show it."""

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.client import Client
from support.processes import Process
from support.recording import Recording
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import Writer, stored

from services.bars.builder import StreamBars
from tickbus.protocol.bar_specs import parse_all
from tickbus.protocol.messages import Bar, Gap, GapKind, Side, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.units import SECOND
from tickbus.writer.entry import Entry

Start = Callable[..., Process]
KEYS = Keys(shards=40)
"""Enough that hardly ever one of three replicas has none."""
SYMBOLS = [f"S{number}" for number in range(40)]
SPECS = ("time:1s", "tick:20")
GRACE, HORIZON = SECOND // 5, 60 * SECOND


class Market:
    """Trades in many symbols as fast as Redis accepts them, some late, with an occasional Gap.

    The bus clock advances with it.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._random = random.Random(5)
        self.rounds = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._writer.publisher.commit(
                self._writer.transaction(
                    [self._entry(symbol) for symbol in SYMBOLS for _ in range(3)], ring_all=True
                )
            )
            self.rounds += 1
            await asyncio.sleep(0.02)  # a market's pace: bus time passes between the rounds

    def _entry(self, symbol: str) -> Entry:
        now = self._writer.clock.now_ns()
        if self._random.random() < 0.002:
            gap = Gap(StreamKind.TRADE, "test", GapKind.STALE, now - 2 * SECOND, now, symbol=symbol)
            return self._writer.entry(self._writer.stream(symbol), gap)
        late = self._random.choice((0, 0, 0, 0, 0, 0, 0, 0, 0, 2 * SECOND))
        price, size = f"{self._random.randrange(1, 10**6)}.5", str(self._random.randrange(1, 100))
        return self._writer.entry(
            self._writer.stream(symbol), Trade(symbol, price, size, Side.BUY, None, now - late, now)
        )

    async def wait_rounds(self, rounds: int) -> None:
        """Wait for at least this many more rounds."""
        goal = self.rounds + rounds
        await until_async(lambda: self._task.done() or self.rounds >= goal)
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def holders(client: Client, service: str) -> list[str]:
    """Return the process ids of the owners, one per owned shard."""
    return [
        value.decode().rpartition(":")[0].rpartition(":")[2]
        for value in client.mget([KEYS.holder(shard, service) for shard in range(KEYS.shards)])
        if value
    ]


def shared_by(client: Client, service: str, *processes: Process) -> Callable[[], bool]:
    """Return a condition: these own all shards, and each owns some."""
    return lambda: (
        len(found := holders(client, service)) == KEYS.shards
        and set(found) == {str(process.process.pid) for process in processes}
    )


def taken_from(client: Client, service: str, process: Process) -> Callable[[], bool]:
    """Return a condition: others own all shards."""
    return lambda: (
        str(process.process.pid) not in (found := holders(client, service)) and len(found) == KEYS.shards
    )


@pytest.mark.timeout(120)
async def test_replicas_killed_paused_woken_and_added_lose_and_repeat_nothing(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = redis_server.client
    common = ("--redis", redis_server.url, "--shards", str(KEYS.shards), "--lease-ttl", "700ms")
    writer = await Writer(redis_server.url, keys=KEYS).open()
    market = Market(writer)

    def bars() -> Process:
        return start("bars", *common, "--specs", ",".join(SPECS), "--grace", "200ms")

    def recorder() -> Process:
        return start("recorder", *common, "--data-dir", str(tmp_path / "data"), "--flush-interval", "200ms")

    first, second, third = bars(), bars(), bars()
    one, two = recorder(), recorder()
    await until_async(shared_by(client, "bars", first, second, third))
    await until_async(shared_by(client, "recorder", one, two))
    await market.wait_rounds(20)

    first.kill()
    one.kill()
    await until_async(shared_by(client, "bars", second, third))
    await until_async(shared_by(client, "recorder", two))
    await market.wait_rounds(20)

    # the only recorder is paused until another one has taken over: what it has buffered when it wakes is void
    three = recorder()
    await until_async(shared_by(client, "recorder", two, three))
    second.signal(signal.SIGSTOP)
    two.signal(signal.SIGSTOP)
    await until_async(taken_from(client, "bars", second))
    await until_async(taken_from(client, "recorder", two))
    await market.wait_rounds(20)
    second.signal(signal.SIGCONT)
    two.signal(signal.SIGCONT)
    fourth = bars()
    await until_async(shared_by(client, "bars", second, third, fourth))
    await until_async(shared_by(client, "recorder", two, three))
    await market.wait_rounds(60)
    await market.stop()

    expected = {symbol: undisturbed(client, writer, symbol) for symbol in SYMBOLS}

    def built(symbol: str, spec: str) -> list[tuple[int, Bar]]:
        rows = stored(client, KEYS.stream(Stream("bar", "test", symbol, spec)))
        assert [id.seq for id, _ in rows] == list(range(1, len(rows) + 1))
        return [(id.ms, message) for id, message in rows if isinstance(message, Bar)]

    async def complete() -> bool:
        await writer.ring()
        return all(
            client.xlen(KEYS.stream(Stream("bar", "test", symbol, spec))) >= len(expected[symbol][spec])
            for symbol in SYMBOLS
            for spec in SPECS
        )

    await until_async(complete, 20, "all bars are there")
    assert {symbol: {spec: built(symbol, spec) for spec in SPECS} for symbol in SYMBOLS} == expected
    assert sum(bar.revision > 0 for bars_of in expected.values() for _, bar in bars_of["time:1s"]) > 20, (
        "late trades and Gaps cause revisions"
    )
    heads = {name: int(id.rpartition(b"-")[2]) for name, id in newest_ids(client).items()}
    await until_async(lambda: positions(client, "recorder") == heads, 20, "everything is recorded")
    assert [process.stop() for process in (second, third, fourth, two, three)] == [0] * 5
    assert recorded(Recording(tmp_path / "data")) == heads
    writer.close()


def undisturbed(client: Client, writer: Writer, symbol: str) -> dict[str, list[tuple[int, Bar]]]:
    """Return the bars that one undisturbed builder makes of the stream, once all time bars are closed."""
    bars = StreamBars(symbol, parse_all(SPECS), GRACE, HORIZON)
    entries = [
        (id, message)
        for id, message in stored(client, writer.key(symbol))
        if isinstance(message, Trade | Gap)
    ]
    emitted = bars.apply_many(entries) + bars.clock(writer.clock.now_ms() + 10_000)
    return {spec: [(ms, bar) for ms, bar in emitted if bar.spec == spec] for spec in SPECS}


def newest_ids(client: Client) -> dict[bytes, bytes]:
    """Return the newest ID of every stream."""
    found: dict[bytes, bytes] = {}
    for key in client.scan_iter(f"{KEYS.prefix}:*", count=1000, _type="stream"):
        name = key.partition(b"}:")[2]
        if name != b"bell":
            found[name] = client.xinfo_stream(key)["last-generated-id"]
    return found


def positions(client: Client, service: str) -> dict[bytes, int]:
    """Return the counter of the service's position in every stream."""
    found: dict[bytes, int] = {}
    for shard in range(KEYS.shards):
        found |= {
            name: StreamId.parse(id).seq for name, id in client.hgetall(KEYS.position(shard, service)).items()
        }
    return found


def recorded(recording: Recording) -> dict[bytes, int]:
    """Return the rows per stream, after checking that ticks and Gaps together have dense counters."""
    found: dict[bytes, list[int]] = {}
    for kind, name in (
        ("trade", "'trade:test:' || symbol"),
        ("bar", "'bar:' || spec || ':test:' || symbol"),
        ("gap", "'trade:test:' || symbol"),
    ):
        for stream, seq in recording.query(f"select {name}, seq from FILES", kind):
            found.setdefault(stream.encode(), []).append(seq)
    for seqs in found.values():
        assert sorted(seqs) == list(range(1, len(seqs) + 1))
    return {stream: len(seqs) for stream, seqs in found.items()}
