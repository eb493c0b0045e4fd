"""`tickbus signals` as processes: exactly once over kills, one set of parameters for all replicas."""

import random
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from support.client import Client
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.waiting import until, until_async
from support.writing import Writer, stored

from services.signals.parameters import parse
from services.signals.quotes import QuoteSignals
from services.signals.trades import TradeSignals
from tickbus.protocol.messages import Gap, GapKind, Quote, Side, Signal, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.writer.entry import Entry

Start = Callable[..., Process]
KEYS = Keys(shards=8)
SYMBOLS = [f"S{number}" for number in range(12)]
PARAMETERS = """
[signals]
sigma.price = { n = 20 }
sigma.return = { n = 20 }
large_trade = { n = 20 }
gap_watch = { always_open = false }
trade_rate = { indicator = true }
volume_profile = { indicator = true, every = "10s" }
"""


class Market:
    """Trades and quotes whose own time runs fast, so that minutes of it pass within seconds."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._random = random.Random(7)
        self._time = count(1_700_000_000_000, 230)
        self._prices = dict.fromkeys(SYMBOLS, 10_000)
        self.rounds = 0

    async def round(self) -> None:
        """Write some entries of each symbol."""
        ms = next(self._time)
        await self._writer.publisher.commit(
            self._writer.transaction(
                [entry for symbol in SYMBOLS for entry in self._entries(symbol, ms)], ring_all=True
            )
        )
        self.rounds += 1

    def _entries(self, symbol: str, ms: int) -> list[Entry]:
        rng, ts = self._random, ms * 10**6
        self._prices[symbol] += rng.choice((-2, -1, 0, 1, 2)) * (30 if rng.random() < 0.01 else 1)
        price = f"{self._prices[symbol] / 100:.2f}"
        size = str(rng.randint(1, 9) * (50 if rng.random() < 0.02 else 1))
        trades, quotes = (self._writer.stream(symbol, kind) for kind in ("trade", "quote"))
        made = [
            self._writer.entry(trades, Trade(symbol, price, size, Side.BUY, None, ts, ts)),
            self._writer.entry(quotes, Quote(symbol, price, "1", f"{float(price) + 0.05:.2f}", "1", ts, ts)),
        ]
        if rng.random() < 0.002:
            gap = Gap(StreamKind.TRADE, "g", GapKind.SEQUENCE, ts - 10**9, ts, symbol=symbol)
            made.append(self._writer.entry(trades, gap))
        return made


def expected(client: Client, symbol: str, number: int) -> dict[str, list[Signal]]:
    """Return by name the signals of the entries on the bus."""
    parameters, found = parse(PARAMETERS, number), dict[str, list[Signal]]()
    for kind, make in (("trade", TradeSignals), ("quote", QuoteSignals)):
        made = make("test", symbol, parameters)
        for id, message in stored(client, KEYS.stream(Stream(kind, "test", symbol))):
            for _, one in made.apply(id, message):  # type: ignore[arg-type]
                found.setdefault(one.name, []).append(one)
    return found


def signals(client: Client, symbol: str) -> dict[str, list[Signal]]:
    rows = stored(client, KEYS.stream(Stream("signal", "test", symbol)))
    assert [id.seq for id, _ in rows] == list(range(1, len(rows) + 1))
    found: dict[str, list[Signal]] = {}
    for _, message in rows:
        assert isinstance(message, Signal)
        found.setdefault(message.name, []).append(message)
    return found


@pytest.mark.timeout(120)
async def test_replicas_killed_paused_and_added_lose_and_repeat_no_signal(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "signals.toml"
    file.write_text(PARAMETERS)
    writer = await Writer(redis_server.url).open()
    market = Market(writer)
    arguments = ("signals", "--redis", redis_server.url, "--shards", "8", "--lease-ttl", "1s")
    replicas = [start(*arguments, "--parameters", str(file)).wait_ready()]
    replicas.append(start(*arguments))
    rng = random.Random(3)
    for step in range(5):
        for _ in range(400):
            await market.round()
        victim = rng.randrange(len(replicas))
        if step % 2:
            replicas[victim].signal(signal.SIGSTOP)
            for _ in range(300):
                await market.round()
            replicas[victim].signal(signal.SIGCONT)
        else:
            replicas[victim].kill()
            replicas[victim] = start(*arguments)
    wanted = {symbol: expected(redis_server.client, symbol, 1) for symbol in SYMBOLS}
    assert {name for found in wanted.values() for name in found} >= {
        "sigma.price", "sigma.return", "large_trade", "trade_rate", "aggressor", "volume_profile",
        "gap_watch",
    }  # fmt: skip

    def complete() -> bool:
        got = {symbol: signals(redis_server.client, symbol) for symbol in SYMBOLS}
        return {s: {n: len(r) for n, r in rows.items()} for s, rows in got.items()} == {
            s: {n: len(r) for n, r in rows.items()} for s, rows in wanted.items()
        }

    with suppress(AssertionError):  # the comparison below says what differs
        await until_async(complete, 40, "all signals")
    for symbol in SYMBOLS:
        got = signals(redis_server.client, symbol)
        assert got.keys() == wanted[symbol].keys()
        for name, rows in wanted[symbol].items():
            assert len(got[name]) == len(rows), (symbol, name)
            for at, (one, other) in enumerate(zip(got[name], rows, strict=True)):
                assert one == other, (symbol, name, at)
    for replica in replicas:
        assert replica.stop() == 0
    writer.close()


async def test_parameters_change_for_all_replicas_and_a_refused_file_changes_nothing(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "signals.toml"
    file.write_text(PARAMETERS)
    writer = await Writer(redis_server.url).open()
    market = Market(writer)
    arguments = ("signals", "--redis", redis_server.url, "--shards", "8")
    first = start(*arguments, "--parameters", str(file)).wait_ready()
    second = start(*arguments)
    both = (first, second)
    until(lambda: all(one.metric("tickbus_signals_parameters") == 1 for one in both))
    file.write_text("[signals.sigma.price]\nstart = 0.1\nend = 7\n")
    first.wait_for("sigma.price: end 7 must be below start 0.1; parameters 1 stay in force")
    file.write_text(PARAMETERS.replace("n = 20", "n = 10"))
    until(lambda: all(one.metric("tickbus_signals_parameters") == 2 for one in both))
    for _ in range(300):
        await market.round()
    await until_async(lambda: any(signals(redis_server.client, symbol) for symbol in SYMBOLS))
    windows = {
        (one.params, one.window)
        for symbol in SYMBOLS
        for one in signals(redis_server.client, symbol).get("sigma.price", [])
    }
    assert windows == {(2, "10 trades")}
    # the bus knows them: a replica without the file has them too, and a bad file does not stop it
    file.write_text("[signals.nothing]\n")
    assert second.stop() == 0
    third = start(*arguments, "--parameters", str(file)).wait_ready()
    assert third.metric("tickbus_signals_parameters") == 2
    third.wait_for("unknown signal 'nothing'")
    for one in (first, third):
        assert one.stop() == 0
    writer.close()


def test_a_file_that_cannot_be_used_is_said_in_one_line(redis_server: RedisServer, tmp_path: Path) -> None:
    for name, text, words in (
        ("toml", "[signals", "no TOML"),
        (
            "value",
            "[signals.sigma.price]\nn = 5000\n",
            "sigma.price: n = 5000: expected a whole number from 2",
        ),
        ("time", '[signals.spread]\ncooldown = "soon"\n', "spread: cooldown"),
        ("match", "[[symbols]]\n", "[[symbols]] number 1: match is missing"),
    ):
        file = tmp_path / name
        file.write_text(text)
        ended = tickbus("signals", "--redis", redis_server.url, "--parameters", str(file))
        lines = [line for line in ended.stderr.splitlines() if " INFO " not in line]
        assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
        assert words in lines[0]
