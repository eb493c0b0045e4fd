"""`tickbus tail` as scripts and people use it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorder.recorded import gap
from recorder.recorded import signal as said_signal
from support.processes import tickbus
from support.redis_server import RedisServer
from support.writing import Writer
from tools.venue import SYMBOLS, Start, Venue

from services.cli import main
from tickbus.protocol.messages import Message, StreamKind, as_json
from tickbus.protocol.names import Stream
from tickbus.units import MILLISECOND


def lines_of(redis: RedisServer, *args: str) -> list[dict[str, Any]]:
    result = tickbus("tail", "--redis", redis.url, "--from", "start", "--json", *args)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_tail_from_start_equals_the_ledger(start: Start, redis_server: RedisServer, tmp_path: Path) -> None:
    venue = Venue(start, redis_server, tmp_path, 400, "after=150 drop=3 kind=trade").wait_published()
    trades = {symbol: venue.sent("trade", symbol) for symbol in SYMBOLS}
    lost = {symbol: [tick["id"] for tick in venue.sent("trade", symbol, False)] for symbol in SYMBOLS}
    gap_count = sum(map(bool, lost.values()))
    assert sum(map(len, lost.values())) == 3

    found = lines_of(redis_server, "--count", str(sum(map(len, trades.values())) + gap_count))
    for symbol, sent in trades.items():
        mine = [line for line in found if line["symbol"] == symbol]
        ticks = [
            [line[field] for field in ("trade_id", "price", "size", "side", "ts_event")]
            for line in mine
            if line["type"] == "trade"
        ]
        # this vendor's times are whole ms
        times = [tick["ts_event"] // MILLISECOND * MILLISECOND for tick in sent]
        assert ticks == [
            [tick["id"], tick["price"], tick["size"], tick["side"], time]
            for tick, time in zip(sent, times, strict=True)
        ]
        assert {line["stream"] for line in mine} == {f"trade:binance:{symbol}"}
        assert [int(line["id"].partition("-")[2]) for line in mine] == list(range(1, len(mine) + 1))
        missing = [
            str(id)
            for line in mine
            if line["type"] == "gap"
            for id in range(int(line["from_id"]), int(line["to_id"]) + 1)
        ]
        assert missing == lost[symbol]

    gaps = lines_of(redis_server, "--kind", "gap", "--count", str(gap_count))
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


def test_tail_follows_new_messages_and_ends_cleanly(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    tail = start("tail", "--redis", redis_server.url, "--json")
    tail.wait_for("nothing has been written to bus")
    Venue(start, redis_server, tmp_path, 60)
    tail.wait_for(r'"type":"trade"')
    tail.signal(signal.SIGINT)
    assert tail.wait() == 0
    # a reader that stops after one line
    tail_command = f"{sys.executable} -m services.cli tail --from start --redis {redis_server.url}"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {tail_command} | head -1"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (result.returncode, len(result.stdout.splitlines()), result.stderr) == (0, 1, "")


async def test_tail_prints_signals_and_their_gaps(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    stream = Stream("signal", "app", "BTC-USDT")
    said: list[Message] = [said_signal(1), gap(StreamKind.SIGNAL), said_signal(2), said_signal(3)]
    await writer.publisher.commit(writer.transaction([writer.entry(stream, each) for each in said]))
    await writer.write(1, 2)
    writer.close()
    lines = lines_of(redis_server, "--kind", "signal", "--count", "4")
    assert [line["type"] for line in lines] == ["signal", "gap", "signal", "signal"]
    for line, message in zip(lines, said, strict=True):
        place = {name: line[name] for name in ("type", "stream", "feed", "id")}
        assert line == json.loads(json.dumps(as_json(message))) | place
    assert lines_of(redis_server, "--kind", "gap", "--count", "1") == [lines[1]]
    human = tickbus(
        "tail", "--redis", redis_server.url, "--from", "start", "--kind", "signal", "--count", "4"
    ).stdout.splitlines()
    assert "sigma.price start -4.0000011 sd (threshold 4, window 1000 trades)" in human[0]
    assert "sequence: 3 signals missing" in human[1]
    assert len(human) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["btc-usdt"], "symbol 'btc-usdt': expected A-Z"),
        (["--feed", "A B"], "name 'A B': expected a-z"),
        (["--from", "yesterday"], "invalid time 'yesterday': expected e.g. 2024-08-09T13:30:00Z"),
        (["--kind", "trades"], "invalid value 'trades': expected one of trade, quote, bar, signal, gap"),
        (["--spec", "time:1s"], "use it with --kind bar or gap"),
        (["--kind", "bar", "--spec", "1m"], "bar spec '1m': expected time:<n>s|m|h|d"),
        (["--from", "noon"], "--from: invalid time 'noon'"),
        (["--count", "0"], "--count: 0 is out of range"),
    ],
)
def test_invalid_options_are_one_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["tail", *arguments]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert re.fullmatch(rf"tickbus: .*{re.escape(message)}.*\n", output.err)


def test_tail_without_redis_fails_at_once() -> None:
    result = tickbus("tail", "--redis", "redis://127.0.0.1:1/0")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (3, "", 1)
    assert "no Redis at redis://127.0.0.1:1/0" in result.stderr
