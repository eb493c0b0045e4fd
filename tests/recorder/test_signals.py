"""Signals are recorded beside trades like any other kind: every field, exactly once, through kills."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import duckdb
from recorder.recorded import NOON, gap, rows_of, signal
from support.processes import Process
from support.recording import Recording
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import KEYS, Writer, stored, trade

from services.archive.reader import read_recorded
from tickbus.protocol.messages import StreamKind
from tickbus.protocol.names import Stream
from tickbus.units import SECOND

SIGNALS = Stream("signal", "app", "BTC-USDT")
TRADES = Stream("trade", "test", "BTC-USDT")
KINDS = ("trade", "quote", "bar", "signal")


async def write(writer: Writer, first: int, count: int) -> None:
    """Signals, with a Gap before the tenth, and as many trades."""
    entries = []
    for number in range(first, first + count):
        if number % 10 == 0:
            entries.append(writer.entry(SIGNALS, gap(StreamKind.SIGNAL, NOON + number)))
        entries.append(writer.entry(SIGNALS, signal(number, NOON + number * SECOND)))
        entries.append(writer.entry(TRADES, trade(number, "BTC-USDT")))
    await writer.publisher.commit(writer.transaction(entries))


def rows_in(folder: Path, *kinds: str) -> int:
    return sum(len(rows_of(folder, kind)) for kind in kinds)


def options(redis: RedisServer, folder: Path, *kinds: str) -> tuple[str, ...]:
    which = ("--kinds", ",".join(kinds)) if kinds else ()
    return (
        "recorder", "--redis", redis.url, "--data-dir", str(folder), "--shards", str(KEYS.shards),
        "--flush-interval", "50ms", "--lease-ttl", "500ms", *which,
    )  # fmt: skip


async def test_killed_recorder_has_each_signal_once(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path
) -> None:
    """Killed while it has rows in files and others in memory, and while more is written."""
    folder = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    recorder = start(*options(redis_server, folder, *KINDS))
    for life in range(3):
        await write(writer, 100 * life + 1, 50)
        until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="signal") > 0)
        await write(writer, 100 * life + 51, 50)
        recorder.kill()
        recorder.start()
    until(lambda: rows_in(folder, "signal") >= 300 and rows_in(folder, "trade") >= 300)
    assert recorder.stop() == 0
    writer.close()

    for stream, kinds in ((SIGNALS, ("signal", "gap")), (TRADES, ("trade",))):
        on_bus = [(stream, *entry) for entry in stored(redis_server.client, KEYS.stream(stream))]
        assert on_bus and list(read_recorded(folder, kinds)) == on_bus
    files = Recording(folder)
    assert [files.duplicates(kind) for kind in ("signal", "trade", "gap")] == [[], [], []]
    # with none of our code: one field of each type
    assert files.query(
        "select value, epoch_ns(ts_event), state, direction, quality, details, seq from FILES "
        "where params = 3 or params = 5 order by seq",
        "signal",
    ) == [
        (
            Decimal("-4.0000031"), _seen(NOON + 3 * SECOND + 3), "indicator", -1, ["has_gap", "partial"],
            [
                {"name": "mean", "value": Decimal("60000.25")},
                {"name": "small", "value": Decimal("-1E-18")},
                {"name": "mean", "value": Decimal(0)},
            ],
            3,
        ),
        (
            Decimal("-4.0000051"), _seen(NOON + 5 * SECOND + 5), "end", 1, ["partial"],
            [{"name": "mean", "value": Decimal("60000.25")}], 5,
        ),
    ]  # fmt: skip


def _seen(time: int) -> int:
    """Return a time as DuckDB gives it: version 1 cuts it to microseconds."""
    return time // 1000 * 1000 if duckdb.__version__ < "2" else time


async def test_signals_are_recorded_when_asked_for_from_the_oldest_on(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path
) -> None:
    """A recorder of signals that follows one without them misses none that the bus has."""
    folder = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    await write(writer, 1, 30)
    for kinds, count in (((), 30), (KINDS, 39)):
        recorder = start(*options(redis_server, folder, *kinds))
        until(lambda count=count: rows_in(folder, "trade") == count)  # type: ignore[misc]
        if kinds:
            until(lambda: rows_in(folder, "signal", "gap") == 42)
        assert recorder.stop() == 0
        if not kinds:
            assert rows_in(folder, "signal", "gap") == 0
            await write(writer, 31, 9)
    on_bus = stored(redis_server.client, KEYS.stream(SIGNALS))
    assert [entry[1:] for entry in read_recorded(folder, ("signal", "gap"))] == on_bus
    writer.close()


async def test_foreign_signals_are_set_aside_and_the_rest_recorded(
    redis_server: RedisServer, start: Callable[..., Process], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    writer = await Writer(redis_server.url).open()
    odd = {
        3: signal(3, value_text="NaN"),
        4: signal(4, value_text=""),
        5: signal(5, direction=9),
        6: signal(6, quality=("not a word",)),
        7: signal(7, details=(("mean", "inf"),)),
    }
    said = [odd.get(seq, signal(seq)) for seq in range(1, 11)]
    await writer.publisher.commit(writer.transaction([writer.entry(SIGNALS, each) for each in said]))
    await writer.write(1, 2, 3)
    recorder = start(*options(redis_server, folder, *KINDS))
    aside = "tickbus_recorder_aside_total"
    reasons = {"decimal": 3, "integer": 1, "text": 1}
    until(lambda: {reason: recorder.metric(aside, reason=reason) for reason in reasons} == reasons)
    until(lambda: (rows_in(folder, "signal"), rows_in(folder, "trade")) == (5, 3))
    assert recorder.stop() == 0
    assert recorder.output.count("that do not fit their columns") == 1
    assert [message for _, _, message in read_recorded(folder, ("signal",))] == [
        each for each in said if each not in odd.values()
    ]
    assert [row["seq"] for row in rows_of(folder, "trade")] == [1, 2, 3]
    writer.close()
