"""`tickbus tail` as scripts and people use it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.processes import tickbus
from support.redis_server import RedisServer
from tools.venue import SYMBOLS, Start, Venue

from services.cli import main
from tickbus.units import MILLISECOND


def lines_of(redis: RedisServer, *args: str) -> list[dict[str, Any]]:
    done = tickbus("tail", "--redis", redis.url, "--from", "start", "--json", *args)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_from_the_start_it_is_the_ledger(start: Start, redis_server: RedisServer, tmp_path: Path) -> None:
    venue = Venue(start, redis_server, tmp_path, 400, "after=150 drop=3 kind=trade").until_published()
    trades = {symbol: venue.sent("trade", symbol) for symbol in SYMBOLS}
    lost = {symbol: [tick["id"] for tick in venue.sent("trade", symbol, False)] for symbol in SYMBOLS}
    holes = sum(map(bool, lost.values()))
    assert sum(map(len, lost.values())) == 3

    found = lines_of(redis_server, "--count", str(sum(map(len, trades.values())) + holes))
    for symbol, sent in trades.items():
        mine = [line for line in found if line["symbol"] == symbol]
        ticks = [
            [line[field] for field in ("trade_id", "price", "size", "side", "ts_event")]
            for line in mine
            if line["type"] == "trade"
        ]
        # this vendor's times are in whole ms
        times = [tick["ts_event"] // MILLISECOND * MILLISECOND for tick in sent]
        assert ticks == [
            [tick["id"], tick["price"], tick["size"], tick["side"], time]
            for tick, time in zip(sent, times, strict=True)
        ]
        assert {line["stream"] for line in mine} == {f"trade:binance:{symbol}"}
        assert [int(line["id"].partition("-")[2]) for line in mine] == list(range(1, len(mine) + 1))
        told = [
            str(id)
            for line in mine
            if line["type"] == "gap"
            for id in range(int(line["from_id"]), int(line["to_id"]) + 1)
        ]
        assert told == lost[symbol]

    gaps = lines_of(redis_server, "--kind", "gap", "--count", str(holes))
    assert sorted(json.dumps(line) for line in gaps) == sorted(
        json.dumps(line) for line in found if line["type"] == "gap"
    )

    sent = venue.sent("quote", "ETH-USDT")
    quotes = lines_of(
        redis_server, "ETH-USDT", "--kind", "quote", "--feed", "binance", "--count", str(len(sent))
    )
    fields = ("bid", "bid_size", "ask", "ask_size")
    assert [tuple(line[field] for field in fields) for line in quotes] == [
        tuple(tick[field] for field in fields) for tick in sent
    ]

    human = tickbus(
        "tail", "BTC-USDT", "NEVER-SEEN", "--redis", redis_server.url, "--from", "start", "--count", "5"
    )
    assert [line.split()[5:7] for line in human.stdout.splitlines()] == [
        [tick["price"], tick["size"]] for tick in trades["BTC-USDT"][:5]
    ]
    assert "\x1b" not in human.stdout
    assert "no trade stream of symbol NEVER-SEEN" in human.stderr


def test_it_follows_what_comes_and_ends_cleanly(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    tail = start("tail", "--redis", redis_server.url, "--json")
    tail.wait_for("nobody has written to the bus")
    Venue(start, redis_server, tmp_path, 60)
    tail.wait_for(r'"type":"trade"')
    tail.signal(signal.SIGINT)
    assert tail.wait() == 0
    # a reader that has seen enough
    command = f"set -o pipefail; {sys.executable} -m services.cli tail --from start --redis {redis_server.url} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["btc-usdt"], "symbol 'btc-usdt': use A-Z"),
        (["--feed", "A B"], "name 'A B': use a-z"),
        (["--from", "yesterday"], "'yesterday' is no time; write it like 2024-08-09T13:30:00Z"),
        (["--kind", "trades"], "'trades' is none of trade, quote, bar, signal, gap"),
        (["--spec", "time:1s"], "use it with --kind bar or gap"),
        (["--kind", "bar", "--spec", "1m"], "bar spec '1m': write time:<n>s|m|h|d"),
        (["--from", "noon"], "--from: 'noon' is no time"),
        (["--count", "0"], "--count: 0 is out of range"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], why: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", *arguments]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.fullmatch(rf"tickbus: .*{re.escape(why)}.*\n", shown.err)


def test_without_redis_it_ends_at_once() -> None:
    done = tickbus("tail", "--redis", "redis://127.0.0.1:1/0")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
    assert "no Redis at redis://127.0.0.1:1/0" in done.stderr
