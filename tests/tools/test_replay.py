"""`tickbus replay`: recorded ticks are published again exactly as they were."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from recorder.recorded import BTC, SIGNALS, add, gap, open_store, signal, trade
from support.bus import entries_in
from support.processes import Process, tickbus
from support.recording import Recording
from support.redis_server import RedisServer
from support.waiting import until
from tools.venue import SYMBOLS, Start, Venue

from services.cli import main
from tickbus.protocol.messages import Flag, Gap, StreamKind, Trade
from tickbus.units import MILLISECOND

_TICKS = {
    "trade": "symbol, price, size, side, trade_id, bid, ask, epoch_ns(ts_event), epoch_ns(ts_recv)",
    "quote": "symbol, bid, bid_size, ask, ask_size, epoch_ns(ts_event), epoch_ns(ts_recv)",
    "gap": "symbol, stream, source, kind, epoch_ns(from_ts), epoch_ns(to_ts), from_id, to_id, count, "
    "repaired",
}


def recording(start: Start, redis: RedisServer, folder: Path, *more: str) -> tuple[Process, Process]:
    """Start bars and a recorder on a new bus."""
    bars = start("bars", "--redis", redis.url, "--specs", "time:1s,tick:50", "--grace", "200ms", *more)
    recorder = start(
        "recorder", "--redis", redis.url, "--data-dir", str(folder), "--flush-interval", "200ms", *more
    )
    return bars, recorder


def finish(bars: Process, recorder: Process) -> None:
    """Wait until both have processed everything, then stop them."""
    until(
        lambda: bars.metric("tickbus_consumer_read_total") and bars.metric("tickbus_consumer_lag_ticks") == 0,
        what="bars have read everything",
    )
    until(lambda: bars.metric("tickbus_bars_open") <= len(SYMBOLS), what="the time bars are closed")
    emitted = bars.metric("tickbus_bars_emitted_total")
    until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="bar") >= emitted, what="bars recorded")
    until(lambda: recorder.metric("tickbus_consumer_lag_ticks") == 0, what="everything else recorded")
    assert (bars.stop(), recorder.stop()) == (0, 0)


def test_replay_recorded_again_equals_the_first_recording(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    live = recording(start, redis_server, tmp_path / "first")
    # another prefix is another bus
    again = recording(start, redis_server, tmp_path / "again", "--prefix", "again")
    Venue(
        start,
        redis_server,
        tmp_path,
        1500,
        "after=500 drop=2 kind=trade; after=800 drop=1 kind=trade",
        "--rate",
        "1000",
    ).wait_published()
    finish(*live)
    replay = tickbus(
        "replay", str(tmp_path / "first"), "--redis", redis_server.url, "--prefix", "again",
        "--speed", "max", "--linger", "2s",
    )  # fmt: skip
    assert replay.returncode == 0, replay.stderr
    finish(*again)
    first, second = Recording(tmp_path / "first"), Recording(tmp_path / "again")
    for kind, columns in _TICKS.items():
        # in the order of each stream: the two buses differ only in the times of the IDs
        order = "order by symbol, seq" if kind != "gap" else "order by stream, symbol, seq"
        expected, replayed = (
            files.query(f"select {columns}, seq from FILES {order}", kind) for files in (first, second)
        )
        assert replayed == expected
        assert replayed
        assert second.query("select distinct feed from FILES", kind) == [("replay-binance",)]
    for kind in ("trade", "quote"):
        flags = [
            files.query("select flags from FILES order by symbol, seq", kind) for files in (first, second)
        ]
        assert flags[1] == [(flag | Flag.REPLAYED,) for (flag,) in flags[0]]
    bars = (
        "select symbol, spec, epoch_ns(start), open, high, low, close, volume, value, vwap, trades, "
        "buy_volume, revision, quality from FILES order by symbol, spec, seq"
    )
    # nobody knows when a replayed stream was subscribed: its first bars are partial, unlike the live ones
    live_bars, replayed_bars = (
        [
            (*row, [name for name in quality if name != "partial"])
            for *row, quality in files.query(bars, "bar")
        ]
        for files in (first, second)
    )
    assert replayed_bars == live_bars


def test_replay_keeps_the_pace_and_the_selection(redis_server: RedisServer, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    base = 1_723_100_000_000_000_000
    for number in range(8):
        at = base + number * 200 * MILLISECOND
        add(store, BTC, number + 1, gap(time=at) if number == 5 else trade(number, time=at), time=base)
    store.commit()
    # the last 6 of 8 entries 200 ms apart, at double speed: 1 s in half a second
    since = str(base + 400 * MILLISECOND)
    arguments = ("--redis", redis_server.url, "--linger", "0s", "--name", "x")
    done = tickbus("replay", str(tmp_path), "--from", since, "--speed", "2", *arguments)
    assert done.returncode == 0, done.stderr
    entries = entries_in(redis_server, "trade", "replay-x", "BTC-USDT")
    assert [int(id.partition("-")[2]) for id, _ in entries] == [1, 2, 3, 4, 5, 6]
    assert [type(message) for _, message in entries] == [Trade, Trade, Trade, Gap, Trade, Trade]
    times = [int(id.partition("-")[0]) for id, _ in entries]
    assert 490 <= times[-1] - times[0] < 900
    # a Gap is published with the tick after it
    assert times[3] == times[4]
    assert times[4] - times[2] > 150
    # again under the same name: the stream continues
    assert tickbus("replay", str(tmp_path), "--speed", "max", *arguments).returncode == 0
    entries = entries_in(redis_server, "trade", "replay-x", "BTC-USDT")
    assert [int(id.partition("-")[2]) for id, _ in entries] == list(range(1, 15))


def test_merged_files_are_played_and_others_named(redis_server: RedisServer, tmp_path: Path) -> None:
    """All but the newest commit are merged by somebody, who also leaves something else there."""
    store = open_store(tmp_path)
    for number in range(30):
        add(store, BTC, number + 1, gap() if number == 11 else trade(number))
        if number % 10 == 9:
            store.commit()
    (day,) = (tmp_path / "trade").glob("date=*")
    old = sorted(day.iterdir())[:-1]
    pyarrow.parquet.write_table(
        pyarrow.concat_tables([pyarrow.parquet.ParquetFile(path).read() for path in old]),
        day / "merged.parquet",
    )
    old[0].unlink()
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), day / "mine.parquet")
    done = tickbus(
        "replay", str(tmp_path), "--redis", redis_server.url, "--speed", "max", "--linger", "0s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out: ") == 1
    assert f"left out: trade/{day.name}/mine.parquet: not the columns of a trade: missing" in done.stderr
    entries = entries_in(redis_server, "trade", "replay-binance", "BTC-USDT")
    assert [
        None if isinstance(message, Gap) else int(message.trade_id or 0)
        for _, message in entries
        if isinstance(message, Trade | Gap)
    ] == [None if number == 11 else 1000 + number for number in range(30)]


def test_signals_beside_the_ticks_are_not_played(redis_server: RedisServer, tmp_path: Path) -> None:
    """Neither they nor their Gaps, and the feed is that of the ticks: the service makes them again."""
    store = open_store(tmp_path)
    for number in range(1, 11):
        add(store, BTC, number, gap() if number == 5 else trade(number))
        add(store, SIGNALS, number, gap(StreamKind.SIGNAL) if number == 6 else signal(number))
    store.commit()
    done = tickbus(
        "replay", str(tmp_path), "--redis", redis_server.url, "--speed", "max", "--linger", "0s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "replayed 9 ticks and 1 gaps" in done.stderr
    assert "left out" not in done.stderr
    streams = [key.decode() for key in redis_server.client.scan_iter("*:replay-*:BTC-USDT")]
    assert [name.partition("}:")[2] for name in streams] == ["trade:replay-binance:BTC-USDT"]
    entries = entries_in(redis_server, "trade", "replay-binance", "BTC-USDT")
    assert [type(message) for _, message in entries] == [Trade] * 4 + [Gap] + [Trade] * 5


def test_name_in_use_by_another_replay_is_refused(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    store = open_store(tmp_path)
    for number in range(3):
        add(
            store, BTC, number + 1, trade(number, time=1_723_100_000_000_000_000 + number * 3_600_000_000_000)
        )
    store.commit()
    slow = start("replay", str(tmp_path), "--redis", redis_server.url)
    slow.wait_for("playing 1 ticks")
    done = tickbus("replay", str(tmp_path), "--redis", redis_server.url)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "feed 'replay-binance' is already being replayed" in done.stderr
    assert slow.stop() == 0
    assert "replayed 1 ticks" in slow.output
    assert redis_server.client.exists("tickbus:lease:replay-binance") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/none",), "DATA_DIR /none: no such folder"),
        (("EMPTY",), "no recorded trade or quote"),
        (("EMPTY", "--name", "x", "--symbols", "B"), "no recorded tick matches"),
        (("EMPTY", "--name", "x", "--speed", "fast"), "invalid --speed fast: expected a number"),
        (("EMPTY", "--name", "x", "--speed", "nan"), "invalid --speed nan: expected a number"),
        (("EMPTY", "--kinds", "bar"), "invalid --kinds bar: expected trade or quote"),
        (("EMPTY", "--kinds", "signal"), "invalid --kinds signal: expected trade or quote"),
        (("EMPTY", "--from", "noon"), "--from: invalid time 'noon'"),
        (("EMPTY", "--name", "A B"), "name 'replay-A B'"),
        ((), "is missing"),
    ],
)
def test_invalid_options_are_one_line(
    tmp_path: Path, arguments: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *[text.replace("EMPTY", str(tmp_path)) for text in arguments]]) == 2
    stderr = capfd.readouterr().err
    assert len(stderr.splitlines()) == 1
    assert message in stderr
