"""`tickbus tail` as scripts and people use it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.parts import tickbus
from support.redis_server import RedisServer
from tools.venue import SYMBOLS, Start, Venue


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
        fields = ("id", "price", "size", "side", "ts_event")
        ticks = [(line["trade_id"], *(line[field] for field in fields[1:])) for line in mine if line["type"] == "trade"]
        assert ticks == [tuple(tick[field] for field in fields) for tick in sent]
        assert {line["stream"] for line in mine} == {f"trade:binance:{symbol}"}
        assert [int(line["id"].partition("-")[2]) for line in mine] == list(range(1, len(mine) + 1))
        told = [str(id) for line in mine if line["type"] == "gap" for id in range(int(line["from_id"]), int(line["to_id"]) + 1)]
        assert told == lost[symbol]

    gaps = lines_of(redis_server, "--kind", "gap", "--count", str(holes))
    assert sorted(json.dumps(line) for line in gaps) == sorted(json.dumps(line) for line in found if line["type"] == "gap")

    sent = venue.sent("quote", "ETH-USDT")
    quotes = lines_of(redis_server, "ETH-USDT", "--kind", "quote", "--feed", "binance", "--count", str(len(sent)))
    fields = ("bid", "bid_size", "ask", "ask_size")
    assert [tuple(line[field] for field in fields) for line in quotes] == [tuple(tick[field] for field in fields) for tick in sent]

    human = tickbus("tail", "BTC-USDT", "NEVER-SEEN", "--redis", redis_server.url, "--from", "start", "--count", "5")
    assert [line.split()[5:7] for line in human.stdout.splitlines()] == [[tick["price"], tick["size"]] for tick in trades["BTC-USDT"][:5]]
    assert "\x1b" not in human.stdout
    assert "no trade stream of symbol NEVER-SEEN" in human.stderr


def test_it_follows_what_comes_and_ends_cleanly(start: Start, redis_server: RedisServer, tmp_path: Path) -> None:
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
    ("arguments", "code", "why"),
    [
        (("btc-usdt",), 2, "symbol 'btc-usdt': use A-Z"),
        (("--from", "yesterday"), 2, "'yesterday' is no time; write it like 2024-08-09T13:30:00Z"),
        (("--kind", "trades"), 2, "'trades' is none of trade, quote, bar, signal, gap"),
        (("--spec", "time:1s"), 2, "use it with --kind bar or gap"),
        (("--count", "0"), 2, "--count: 0 is out of range"),
        (("--redis", "redis://127.0.0.1:1/0"), 3, "no Redis at redis://127.0.0.1:1/0"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], code: int, why: str) -> None:
    done = tickbus("tail", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.fullmatch(rf"tickbus: .*{re.escape(why)}.*\n", done.stderr)
