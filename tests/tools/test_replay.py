"""`tickbus replay`: what was recorded comes onto a bus again as it was."""

from pathlib import Path

import pytest
from recorder.recorded import BTC, add, gap, opened, trade
from support.bus import entries_in
from support.processes import Part, tickbus
from support.recording import Recording
from support.redis_server import RedisServer
from support.waiting import until
from tools.venue import SYMBOLS, Start, Venue

from services.cli import main
from tickbus.protocol.messages import Flag, Gap, Trade
from tickbus.units import MILLISECOND

_TICKS = {
    "trade": "symbol, price, size, side, trade_id, bid, ask, epoch_ns(ts_event), epoch_ns(ts_recv)",
    "quote": "symbol, bid, bid_size, ask, ask_size, epoch_ns(ts_event), epoch_ns(ts_recv)",
    "gap": "symbol, stream, source, kind, epoch_ns(from_ts), epoch_ns(to_ts), from_id, to_id, count, repaired",
}


def recording(start: Start, redis: RedisServer, folder: Path, *more: str) -> tuple[Part, Part]:
    """Bars and a recorder, from the start of a bus on."""
    bars = start("bars", "--redis", redis.url, "--specs", "time:1s,tick:50", "--grace", "200ms", *more)
    recorder = start(
        "recorder", "--redis", redis.url, "--data-dir", str(folder), "--flush-interval", "200ms", *more
    )
    return bars, recorder


def finished(bars: Part, recorder: Part) -> None:
    until(
        lambda: bars.metric("tickbus_consumer_read_total") and bars.metric("tickbus_consumer_lag_ticks") == 0,
        what="bars have read all",
    )
    until(lambda: bars.metric("tickbus_bars_open") <= len(SYMBOLS), what="the time bars are closed")
    read = bars.metric("tickbus_bars_emitted_total")
    until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="bar") >= read, what="and recorded")
    until(lambda: recorder.metric("tickbus_consumer_lag_ticks") == 0, what="and all the rest")
    assert (bars.stop(), recorder.stop()) == (0, 0)


def test_recorded_replayed_and_recorded_again_it_is_the_same(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    parts = recording(start, redis_server, tmp_path / "first")
    # another bus: another prefix
    again = recording(start, redis_server, tmp_path / "again", "--prefix", "again")
    Venue(
        start,
        redis_server,
        tmp_path,
        1500,
        "after=500 drop=2 kind=trade; after=800 drop=1 kind=trade",
        "--rate",
        "1000",
    ).until_published()
    finished(*parts)
    done = tickbus(
        "replay",
        str(tmp_path / "first"),
        "--redis",
        redis_server.url,
        "--prefix",
        "again",
        "--speed",
        "max",
        "--linger",
        "2s",
    )
    assert done.returncode == 0, done.stderr
    finished(*again)
    first, second = Recording(tmp_path / "first"), Recording(tmp_path / "again")
    for kind, columns in _TICKS.items():
        # of each stream in its order: the two buses differ in nothing but the IDs' times
        order = "order by symbol, seq" if kind != "gap" else "order by stream, symbol, seq"
        was, now = (
            found.query(f"select {columns}, seq from FILES {order}", kind) for found in (first, second)
        )
        assert was == now
        assert was
        assert second.query("select distinct feed from FILES", kind) == [("replay-binance",)]
    for kind in ("trade", "quote"):
        flags = [
            found.query("select flags from FILES order by symbol, seq", kind) for found in (first, second)
        ]
        assert flags[1] == [(flag | Flag.REPLAYED,) for (flag,) in flags[0]]
    bars = "select symbol, spec, epoch_ns(start), open, high, low, close, volume, value, vwap, trades, buy_volume, revision, quality from FILES order by symbol, spec, seq"
    assert second.query(bars, "bar") == first.query(bars, "bar")


def test_it_keeps_the_pace_and_the_choice(redis_server: RedisServer, tmp_path: Path) -> None:
    store = opened(tmp_path)
    base = 1_723_100_000_000_000_000
    for number in range(8):
        at = base + number * 200 * MILLISECOND
        add(store, BTC, number + 1, gap(time=at) if number == 5 else trade(number, time=at), time=base)
    store.commit()
    # of 8 entries, 200 ms apart, the last 6 at twice the pace: 1 s in half of one
    since = str(base + 400 * MILLISECOND)
    arguments = ("--redis", redis_server.url, "--linger", "0s", "--name", "x")
    done = tickbus("replay", str(tmp_path), "--from", since, "--speed", "2", *arguments)
    assert done.returncode == 0, done.stderr
    entries = entries_in(redis_server, "trade", "replay-x", "BTC-USDT")
    assert [int(id.partition("-")[2]) for id, _ in entries] == [1, 2, 3, 4, 5, 6]
    assert [type(message) for _, message in entries] == [Trade, Trade, Trade, Gap, Trade, Trade]
    times = [int(id.partition("-")[0]) for id, _ in entries]
    assert 490 <= times[-1] - times[0] < 900
    # a Gap is told with the tick after it
    assert times[3] == times[4]
    assert times[4] - times[2] > 150
    # again under the same name: the stream goes on
    assert tickbus("replay", str(tmp_path), "--speed", "max", *arguments).returncode == 0
    entries = entries_in(redis_server, "trade", "replay-x", "BTC-USDT")
    assert [int(id.partition("-")[2]) for id, _ in entries] == list(range(1, 15))


def test_a_name_that_is_being_replayed_is_refused(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    store = opened(tmp_path)
    for number in range(3):
        add(
            store, BTC, number + 1, trade(number, time=1_723_100_000_000_000_000 + number * 3_600_000_000_000)
        )
    store.commit()
    slow = start("replay", str(tmp_path), "--redis", redis_server.url)
    slow.wait_for("playing 1 ticks")
    done = tickbus("replay", str(tmp_path), "--redis", redis_server.url)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "feed 'replay-binance' has a lease" in done.stderr
    assert slow.stop() == 0
    assert "replayed 1 ticks" in slow.output
    assert redis_server.client.exists("tickbus:lease:replay-binance") == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("/none",), "DATA_DIR /none: there is no such folder"),
        (("EMPTY",), "no trade or quote is recorded there"),
        (("EMPTY", "--name", "x", "--symbols", "B"), "nothing that is recorded there fits what is asked for"),
        (("EMPTY", "--name", "x", "--speed", "fast"), "--speed fast: use a number"),
        (("EMPTY", "--name", "x", "--speed", "nan"), "--speed nan: use a number"),
        (("EMPTY", "--kinds", "bar"), "--kinds bar: trade and quote can be replayed"),
        (("EMPTY", "--from", "noon"), "--from: 'noon' is no time"),
        (("EMPTY", "--name", "A B"), "name 'replay-A B'"),
        ((), "is missing"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *[text.replace("EMPTY", str(tmp_path)) for text in arguments]]) == 2
    shown = capfd.readouterr().err
    assert len(shown.splitlines()) == 1
    assert why in shown
