"""The bus as docs/wire-format.md describes it, read with independent software, without importing tickbus.

It is read with redis-py, redis-cli and an independent MessagePack library.
"""

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from support.client import Client, connect
from support.processes import Process, read_ledger
from support.redis_server import RedisServer, require_program
from support.waiting import until
from wire import page

SYMBOLS = {"BTC-USDT": "BTCUSDT", "ETH-USDT": "ETHUSDT"}
TICKS = 4_000
DROPPED = 3
Row = tuple[str, str, str, list[Any], int]
"""Stream name, ID, field, array, entries lost before it."""


@pytest.fixture
def running(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path
) -> tuple[RedisServer, list[dict[str, Any]], Process]:
    """Return a server with trades, quotes, a hole and bars, the simulator's ledger, and the bar service."""
    ledger = tmp_path / "sent.jsonl"
    simulator = start(
        "simulate", "--symbols", ",".join(SYMBOLS.values()), "--speed", "max", "--limit", str(TICKS),
        "--settle", "1s", "--faults", f"after=1000 drop={DROPPED} kind=trade symbol=BTCUSDT",
        "--ledger", str(ledger),
    )  # fmt: skip
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway",
        "--feed",
        "binance",
        "--url",
        url,
        "--symbols",
        ",".join(SYMBOLS),
        "--kinds",
        "trade,quote",
        "--redis",
        redis_server.url,
    )
    bars = start("bars", "--specs", "tick:100", "--redis", redis_server.url)
    until(
        lambda: gateway.metric("tickbus_ticks_published_total") == TICKS - DROPPED,
        40,
        "all ticks to be published",
    )
    until(
        lambda: (
            bars.metric("tickbus_consumer_read_total") > 0 and bars.metric("tickbus_consumer_lag_ticks") == 0
        ),
        20,
        "the bars to be built",
    )
    assert simulator.stop() == 0
    return redis_server, read_ledger(ledger), bars


def whole_page_reader(client: Client, wanted: Callable[[str], bool], **start: str) -> Iterator[Row | None]:
    """Return the reader printed on the page, exactly as printed."""
    space: dict[str, Any] = {}
    exec(compile(page.code("python", "A whole reader"), "docs/wire-format.md", "exec"), space)
    reader: Iterator[Row | None] = space["follow"](client, wanted, **start)
    return reader


def until_idle(reader: Iterator[Row | None]) -> Iterator[Row]:
    """Yield rows until nothing is left to read; the next bell, within a second, wakes the reader again."""
    while (row := next(reader)) is not None:
        yield row


def sent_lines(ledger: list[dict[str, Any]], kind: str, spelling: str) -> list[dict[str, Any]]:
    return [
        line for line in ledger if line.get("kind") == kind and line["symbol"] == spelling and line["sent"]
    ]


def array(name: str) -> Callable[[list[Any]], dict[str, Any]]:
    """Return a function that maps an array to the field names of the page's table."""
    names = [row[1] for row in page.table(name)]
    return lambda values: dict(zip(names, values, strict=True))


def test_streams_contain_what_the_simulator_sent(
    running: tuple[RedisServer, list[dict[str, Any]], Process],
) -> None:
    server, ledger, bars = running
    assert bars.stop() == 0
    rows = entries_of(server.client)
    trade, quote, gap = array("Trade"), array("Quote"), array("Gap")
    for symbol, spelling in SYMBOLS.items():
        entries = [row for row in rows if row[0] == f"trade:binance:{symbol}"]
        assert [int(id.split("-")[1]) for _, id, *_ in entries] == list(range(1, len(entries) + 1))
        sent = sent_lines(ledger, "trade", spelling)
        got = [trade(values) for _, _, field, values, _ in entries if field == "t"]
        assert [
            (
                row["symbol"],
                row["price"],
                row["size"],
                {1: "buy", 2: "sell"}[row["side"]],
                row["trade_id"],
                row["ts_event"],
                row["flags"],
            )
            for row in got
        ] == [
            (
                symbol,
                line["price"],
                line["size"],
                line["side"],
                line["id"],
                line["ts_event"] // 10**6 * 10**6,
                0,
            )
            for line in sent
        ]
        assert [row["ts_recv"] for row in got] == sorted({row["ts_recv"] for row in got})
        gaps = [gap(values) for _, _, field, values, _ in entries if field == "g"]
        dropped = [
            line["id"] for line in ledger if line.get("fault") == "drop" and line["symbol"] == spelling
        ]
        reported = [
            (row["stream"], row["kind"], row["from_id"], row["to_id"], row["count"], row["repaired"])
            for row in gaps
        ]
        assert reported == ([(0, 1, dropped[0], dropped[-1], DROPPED, False)] if dropped else [])
        entries = [row for row in rows if row[0] == f"quote:binance:{symbol}"]
        assert [
            tuple(quote(values)[name] for name in ("bid", "bid_size", "ask", "ask_size"))
            for *_, values, _ in entries
        ] == [
            (line["bid"], line["bid_size"], line["ask"], line["ask_size"])
            for line in sent_lines(ledger, "quote", spelling)
        ]


def test_bars_heads_and_positions_match_the_ledger(
    running: tuple[RedisServer, list[dict[str, Any]], Process],
) -> None:
    server, ledger, _ = running
    rows = entries_of(server.client)
    bar, head = array("Bar"), array("Head")
    heads = {
        name.decode(): head(msgpack.unpackb(value))
        for key in server.client.scan_iter("tickbus:{*}:last")
        for name, value in server.client.hgetall(key).items()
    }
    for symbol, spelling in SYMBOLS.items():
        first = sent_lines(ledger, "trade", spelling)[:100]
        values = bar(next(row[3] for row in rows if row[0] == f"bar:tick:100:binance:{symbol}"))
        assert (values["spec"], values["trades"], values["revision"]) == ("tick:100", 100, 0)
        prices = [Decimal(line["price"]) for line in first]
        assert [Decimal(values[name]) for name in ("open", "high", "low", "close")] == [
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
        ]
        assert Decimal(values["volume"]) == sum(Decimal(line["size"]) for line in first)
        assert Decimal(values["value"]) == sum(
            Decimal(line["size"]) * Decimal(line["price"]) for line in first
        )
        for name in (f"trade:binance:{symbol}", f"quote:binance:{symbol}", f"bar:tick:100:binance:{symbol}"):
            own = [row for row in rows if row[0] == name]
            assert heads[name]["id"] == own[-1][1]
            assert heads[name]["tick"] == next(row[3] for row in reversed(own) if row[2] != "g")
            assert sum(heads[name]["gaps"].values()) == sum(row[2] == "g" for row in own)
        trades = heads[f"trade:binance:{symbol}"]
        assert trades["vendor_id"] == int(sent_lines(ledger, "trade", spelling)[-1]["id"])
        assert trades["missing"] == sum((last - first + 1) for first, last in trades["holes"])
        position = position_of(server.client, symbol)
        end = heads[f"trade:binance:{symbol}"]["id"]
        until(
            partial(at_position, position, f"trade:binance:{symbol}", end),
            10,
            "the position to reach the head",
        )
    assert server.client.hget("tickbus:meta", "schema") == b"1"


def test_reader_of_the_page_follows_the_bus(
    running: tuple[RedisServer, list[dict[str, Any]], Process], start: Callable[..., Process]
) -> None:
    server, ledger, _ = running
    with connect(server.port, socket_timeout=10, protocol=2) as client:
        reader = whole_page_reader(client, lambda name: name.startswith("trade:"))
        rows = list(until_idle(reader))
        assert {row[0] for row in rows} == {f"trade:binance:{symbol}" for symbol in SYMBOLS}
        assert sorted(rows) == sorted(row for row in entries_of(server.client) if row[0].startswith("trade:"))
        assert sum(row[2] == "t" for row in rows) == sum(
            len(sent_lines(ledger, "trade", spelling)) for spelling in SYMBOLS.values()
        )

        # later entries are announced by the bells, and so is a new stream
        simulator = start("simulate", "--speed", "max", "--limit", "500", "--quotes-per-trade", "0")
        url = simulator.wait_for(r"listening on (ws://\S+)")[1]
        start(
            "gateway",
            "--feed",
            "json",
            "--name",
            "second",
            "--url",
            url,
            "--symbols",
            "AAPL",
            "--redis",
            server.url,
        )
        late: list[Row] = []
        deadline = time.monotonic() + 20
        while len(late) < 500 and time.monotonic() < deadline:
            late += until_idle(reader)
        assert late == [row for row in entries_of(server.client) if row[0] == "trade:second:AAPL"]
        assert len(late) == 500


def test_loss_is_visible_in_the_counters(running: tuple[RedisServer, list[dict[str, Any]], Process]) -> None:
    server, _, _ = running
    name, key = "trade:binance:BTC-USDT", "tickbus:{63}:trade:binance:BTC-USDT"
    first, fiftieth = (server.client.xrange(key, count=50)[at][0] for at in (0, 49))
    server.client.xtrim(key, minid=fiftieth, approximate=False)
    with connect(server.port, socket_timeout=10, protocol=2) as client:
        # the reader had read the first entry; 2 to 49 are lost
        row = next(whole_page_reader(client, lambda stream: stream == name, start=first.decode()))
        assert row is not None
        _, id, _, _, lost = row
        assert (id, lost) == (fiftieth.decode(), 48)


def test_loss_of_a_service_is_a_gap_in_its_own_streams(
    redis_server: RedisServer, start: Callable[..., Process]
) -> None:
    simulator = start("simulate", "--symbols", "BTCUSDT", "--rate", "1000", "--quotes-per-trade", "0")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", "binance", "--url", url, "--symbols", "BTC-USDT", "--redis", redis_server.url
    )
    bars = start("bars", "--specs", "tick:100", "--redis", redis_server.url)
    until(lambda: bars.metric("tickbus_bars_emitted_total") > 0, 20, "a bar")
    assert bars.stop() == 0
    name, key = "trade:binance:BTC-USDT", "tickbus:{63}:trade:binance:BTC-USDT"
    position_id = position_of(redis_server.client, "BTC-USDT")(name)
    assert position_id is not None
    position = int(position_id.split("-")[1])
    published = gateway.metric("tickbus_ticks_published_total")
    until(
        lambda: gateway.metric("tickbus_ticks_published_total") > published + 300,
        20,
        "trades that no service reads",
    )
    assert [simulator.stop(), gateway.stop()] == [0, 0]
    oldest = redis_server.client.xrevrange(key, count=1)[0][0]
    redis_server.client.xtrim(key, minid=oldest, approximate=False)
    lost = int(oldest.split(b"-")[1]) - position - 1

    bars.start()
    bar_stream = "bar:tick:100:binance:BTC-USDT"
    until(
        lambda: any(row[0] == bar_stream and row[2] == "g" for row in entries_of(redis_server.client)),
        20,
        "the gap",
    )
    (gap,) = [
        array("Gap")(row[3])
        for row in entries_of(redis_server.client)
        if row[0] == bar_stream and row[2] == "g"
    ]
    assert (gap["stream"], gap["source"], gap["kind"], gap["count"], gap["from_id"]) == (
        2,
        "bars",
        6,
        lost,
        None,
    )
    packed = redis_server.client.hget("tickbus:{63}:last", bar_stream)
    assert packed is not None
    head = array("Head")(msgpack.unpackb(packed))
    assert (head["gaps"], head["missing"]) == ({"trimmed": 1}, lost)
    assert array("Bar")(head["tick"])["spec"] == "tick:100"


def test_redis_cli_commands_of_the_page(running: tuple[RedisServer, list[dict[str, Any]], Process]) -> None:
    server, _, _ = running
    program = require_program("redis-cli")
    answers = []
    for line in page.code("sh", "With redis-cli").splitlines():
        command = [program, "-p", str(server.port), "-e", *shlex.split(line)[1:]]
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
        answers.append(done.stdout)
    assert all(answer.strip() for answer in answers)
    assert b"trade:binance:BTC-USDT" in answers[1]


def position_of(client: Client, symbol: str) -> Callable[[str], str | None]:
    def position(name: str) -> str | None:
        for key in client.scan_iter("tickbus:{*}:position:bars"):
            if value := client.hget(key, name):
                return value.decode()
        return None

    return position


def at_position(position: Callable[[str], str | None], name: str, end: str) -> bool:
    return position(name) == end


def entries_of(client: Client) -> list[Row]:
    """Return all entries of all streams except the bells, by XRANGE."""
    rows: list[Row] = []
    for kind in ("trade", "quote", "bar"):
        for key in client.scan_iter(f"tickbus:{{*}}:{kind}:*"):
            name = key.decode().split("}:")[1]
            for id, fields in client.xrange(key):
                ((field, payload),) = fields.items()
                rows.append((name, id.decode(), field.decode(), msgpack.unpackb(payload), 0))
    return rows
