"""Files that others merged, moved or copied: every row is read once, in its place, or the file is named."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder.recorded import (
    BARS,
    BTC,
    ETH,
    MIDNIGHT,
    NOON,
    QUOTES,
    SIGNALS,
    add,
    bar,
    files_of,
    gap,
    open_store,
    quote,
    signal,
    trade,
)

from services.archive.reader import read_recorded, recorded_feeds
from services.archive.schema import TRADE
from services.archive.waiting_gaps import RecordedMessage
from services.recorder.shard_store import ShardStore
from tickbus.protocol.messages import Quote, Signal, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import MILLISECOND, SECOND

ALL = ("trade", "quote", "bar", "signal", "gap")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two shards, two days, all kinds, several commits; Gaps before ticks of their commit and of the next."""
    data_dir = tmp_path / "data"
    stores = {BTC: open_store(data_dir), ETH: ShardStore(data_dir, "31")}
    stores[ETH].recover()
    for seq in range(1, 61):
        time = MIDNIGHT + (seq - 30) * SECOND
        for stream, store in stores.items():
            time += 100
            message = gap(time=time) if seq in (7, 20, 33) else trade(seq, stream.symbol, time=time)
            add(store, stream, seq, message, time=time)
        add(
            stores[BTC],
            QUOTES,
            seq,
            gap(StreamKind.QUOTE, time) if seq == 11 else quote(seq, time),
            time=time,
        )
        add(stores[BTC], BARS, seq, bar(time), time=time)
        said = signal(seq, time, ts_event=0) if seq in (27, 60) else signal(seq, time)
        add(stores[BTC], SIGNALS, seq, gap(StreamKind.SIGNAL, time) if seq == 13 else said, time=time)
        if seq % 20 == 0 or seq == 33:
            for store in stores.values():
                store.commit()
    return data_dir


def read(data_dir: Path, *kinds: str) -> list[RecordedMessage]:
    return list(read_recorded(data_dir, kinds or ALL))


def ticks(rows: list[RecordedMessage]) -> list[RecordedMessage]:
    return [row for row in rows if isinstance(row[2], Trade | Quote)]


def assert_same(after: list[RecordedMessage], before: list[RecordedMessage]) -> None:
    """The ticks, and all of each stream, in the same order; between streams Gaps may change places."""
    for stream in {stream for stream, _, _ in before}:
        assert [row for row in after if row[0] == stream] == [row for row in before if row[0] == stream]
    assert len(after) == len(before)
    assert ticks(after) == ticks(before)


def with_duckdb(files: list[Path], target: Path) -> None:
    names = [str(path) for path in files]
    duckdb.sql(
        f"COPY (FROM read_parquet({names}, hive_partitioning = false) ORDER BY symbol, feed, id_ms, seq) "
        f"TO '{target}' (FORMAT parquet)"
    )


def with_pyarrow(files: list[Path], target: Path) -> None:
    """With the metadata of the first file, and row groups of a few rows."""
    tables = [pq.ParquetFile(path).read() for path in files]
    pq.write_table(pa.concat_tables(tables).unify_dictionaries(), target, row_group_size=7)


def with_polars(files: list[Path], target: Path) -> None:
    frame = pl.read_parquet(files, hive_partitioning=False)
    if "details" in frame.columns and pl.__version__.startswith("1.0."):
        pytest.skip("writes decimals in a struct as files that nobody can read")
    frame.write_parquet(target)


WRITERS = [
    pytest.param(
        with_duckdb, marks=pytest.mark.skipif(duckdb.__version__ < "2", reason="cuts times to microseconds")
    ),
    with_pyarrow,
    with_polars,
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kinds", [("trade",), ("gap",), ALL])
@pytest.mark.parametrize("keep", [False, True], ids=["moved", "copied"])
def test_compacted_recording_is_read_as_before(
    recording: Path, write: Callable[[list[Path], Path], None], kinds: tuple[str, ...], keep: bool
) -> None:
    """Also where only trades, or only Gaps, were: a Gap still precedes the next tick of its stream."""
    before = read(recording)
    for kind in kinds:
        for day in (recording / kind).glob("date=*"):
            files = sorted(day.glob("*.parquet"))
            write(files, day / "compacted.parquet")
            for path in files if not keep else ():
                path.unlink()
    after = read(recording)
    assert_same(after, before)


@pytest.mark.parametrize(
    "place", ["all.parquet", "trade/all.parquet", "trade/date=2024-08-09/sub/a.pq", "merged/2024/trades"]
)
def test_place_and_name_do_not_matter(recording: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    before = read(recording)
    files = files_of(recording, "trade")
    (recording / place).parent.mkdir(parents=True, exist_ok=True)
    with_polars(files, recording / place)
    for path in files:
        path.unlink()
    assert_same(read(recording), before)
    assert recorded_feeds(recording) == {"binance"}
    seconds = [
        message
        for _, _, message in read_recorded(recording, ("trade",), start=MIDNIGHT, end=MIDNIGHT + SECOND)
    ]
    assert len(seconds) == 2
    assert caplog.messages == []


def test_backup_beside_the_files_doubles_nothing(recording: Path) -> None:
    before = read(recording)
    shutil.copytree(recording / "trade", recording / "backup/trade")
    shutil.copytree(recording / "gap", recording / "gap/old")
    (recording / "loop").symlink_to(recording)
    assert read(recording) == before


def test_times_cut_to_microseconds_double_nothing(recording: Path) -> None:
    """As DuckDB 1 writes them."""
    before = read(recording)
    files = files_of(recording, "trade")
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in files]).unify_dictionaries()
    for name in ("ts_event", "ts_recv"):
        column = table[name].cast(pa.timestamp("us", "UTC"), safe=False)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, recording / "trade/short.parquet")
    after = read(recording)
    assert [row[:2] for row in sorted(after, key=str)] == [row[:2] for row in sorted(before, key=str)]
    for path in files:
        path.unlink()
    assert [row[:2] for row in read(recording, "trade")] == [
        row[:2] for row in before if row[0].kind == "trade" and not hasattr(row[2], "from_ts")
    ]


def test_counter_that_began_again_is_another_row(tmp_path: Path) -> None:
    """After a flush the counters start at 1, with later times."""
    store = open_store(tmp_path)
    for round in range(3):
        for seq in range(1, 4):
            add(store, BTC, seq, trade(10 * round + seq), time=NOON + round * SECOND)
        store.commit()
    before = read(tmp_path, "trade")
    assert len(before) == 9
    with_pyarrow(files_of(tmp_path, "trade"), tmp_path / "trade/all.parquet")
    assert read(tmp_path, "trade") == before


@pytest.mark.parametrize("write", WRITERS)
def test_merged_signals_are_selected_by_time_as_before(
    recording: Path, write: Callable[[list[Path], Path], None]
) -> None:
    """Also those without a ts_event, of which the statistics of the merged file say nothing."""

    def selected() -> list[list[int]]:
        bounds = [
            (0, MIDNIGHT), (MIDNIGHT - 3 * SECOND, MIDNIGHT + 7 * SECOND), (MIDNIGHT + 30 * SECOND, 1 << 62),
        ]  # fmt: skip
        return [
            [id.seq for _, id, _ in read_recorded(recording, ("signal",), start=start, end=end)]
            for start, end in bounds
        ]

    before = selected()
    assert before == [
        [seq for seq in range(1, 30) if seq != 13], list(range(27, 37)), [60],
    ]  # fmt: skip
    files = files_of(recording, "signal")
    write(files, recording / "signal/merged.parquet")
    for path in files:
        path.unlink()
    assert selected() == before


def test_signals_without_the_newer_fields_have_their_defaults(tmp_path: Path) -> None:
    """As somebody may have written them to a table of their own: not even a time of the vendor."""
    columns: dict[str, list[Any]] = {
        "feed": ["app"], "symbol": ["A"], "id_ms": [NOON // MILLISECOND], "seq": [1], "name": ["x"],
        "value": [Decimal("1.5")], "threshold": [Decimal(0)], "window": [""], "message": ["said"],
    }  # fmt: skip
    (tmp_path / "x").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "x/a.parquet")
    expected = Signal("x", "1.5", "0", "", "said", "A")
    assert read(tmp_path) == [(Stream("signal", "app", "A"), StreamId(NOON // MILLISECOND, 1), expected)]
    assert list(read_recorded(tmp_path, ("signal",), start=NOON + SECOND)) == []


def test_signal_with_a_null_within_its_lists_is_named(
    recording: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = read(recording)
    table = pq.ParquetFile(files_of(recording, "signal")[0]).read()
    for name, value in (("quality", [None]), ("details", [{"name": "mean", "value": None}])):
        at = table.schema.get_field_index(name)
        column = pa.array([value] * table.num_rows, table.schema.field(name).type)
        pq.write_table(table.set_column(at, name, column), recording / f"signal/{name}.parquet")
    assert read(recording) == before
    assert sorted(message.rpartition("parquet: ")[2] for message in caplog.messages) == [
        f"column {name} has {table.num_rows} nulls within its lists" for name in ("details", "quality")
    ]


def table_of(count: int = 3) -> pa.Table:
    rows = [trade(seq) for seq in range(count)]
    columns: dict[str, list[Any]] = {
        "feed": ["binance"] * count,
        "symbol": ["BTC-USDT"] * count,
        "id_ms": [NOON // MILLISECOND] * count,
        "seq": list(range(1, count + 1)),
        "epoch": [1] * count,
        "flags": [0] * count,
        "price": [row.price for row in rows],
        "size": [row.size for row in rows],
        "bid": [None] * count,
        "ask": [None] * count,
        "side": ["buy"] * count,
        "trade_id": ["1"] * count,
        "ts_event": [row.ts_event for row in rows],
        "ts_recv": [row.ts_recv for row in rows],
    }
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    return table.set_column(6, "price", table["price"].cast(pa.decimal128(38, 18)))


def replaced(name: str, values: list[Any]) -> pa.Table:
    table = table_of()
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


MISFITS = {
    "float.parquet": (replaced("price", [1.5, 2.5, 3.5]), "column price is double, expected decimal128"),
    "text.parquet": (replaced("size", ["1", "2", "3"]), "column size is string, expected decimal128(38, 18)"),
    "no-symbol.parquet": (table_of().drop_columns(["symbol"]), "missing column symbol"),
    "no-id.parquet": (table_of().drop_columns(["trade_id"]), "missing column trade_id"),
    "null.parquet": (replaced("ts_recv", [1, None, 3]), "column ts_recv has 1 nulls"),
    "null-price.parquet": (
        replaced("price", [Decimal(1), None, Decimal(1)]), "column price has 1 nulls",
    ),
    "name.parquet": (replaced("symbol", ["btc usdt", "A", "A"]), "its symbol is 'btc usdt'"),
    "feed.parquet": (replaced("feed", ["a:b", "a", "a"]), "its feed is 'a:b'"),
    "big.parquet": (replaced("price", [Decimal(10**25), Decimal(1), Decimal(1)]), "Decimal"),
    "wide.parquet": (replaced("flags", [1 << 40, 1, 1]), "Integer value 1099511627776 not in range"),
    "other.parquet": (pa.table({"a": [1]}), "not the columns of a trade: missing column symbol"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_file_that_does_not_fit_is_named_and_the_rest_is_read(
    recording: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = read(recording)
    table, reason = MISFITS[name]
    pq.write_table(table, recording / "trade" / name)
    assert read(recording) == before
    (line,) = caplog.messages
    assert line.startswith(f"left out: trade/{name}: ")
    assert reason in line
    assert "\n" not in line


def test_file_of_integers_and_plain_texts_fits(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    pq.write_table(table_of(), tmp_path / "x/a.parquet")
    assert [(stream, id.seq, message.ts_recv) for stream, id, message in read(tmp_path, "trade")] == [  # type: ignore[union-attr]
        (BTC, seq, NOON + seq + 4) for seq in (1, 2, 3)
    ]


def test_what_is_no_parquet_file_is_named_if_it_looks_like_one(
    recording: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = read(recording)
    (recording / "trade/notes.txt").write_text("mine")
    (recording / "trade/.hidden").mkdir()
    (recording / "trade/.hidden/a.parquet").write_text("not looked at")
    (recording / "_aside/b.parquet").write_text("not looked at")
    os.mkfifo(recording / "trade/pipe")
    assert (read(recording), caplog.messages) == (before, [])
    (path, *_) = files_of(recording, "trade")
    (recording / "trade/cut.parquet").write_bytes(path.read_bytes()[:1000])
    (recording / "trade/empty.parquet").touch()
    (recording / "trade/a.parquet.gz").write_bytes(b"\x1f\x8b")
    assert read(recording) == before
    assert sorted(message.split(": ")[1] for message in caplog.messages) == [
        "trade/a.parquet.gz", "trade/cut.parquet", "trade/empty.parquet",
    ]  # fmt: skip
    assert recorded_feeds(recording) == {"binance"}


def test_many_misfits_are_a_few_lines(recording: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        (recording / f"trade/{number}.parquet").touch()
    read(recording, "trade")
    assert len(caplog.messages) == 11
    assert "more files" in caplog.messages[-1]


def test_quotes_in_the_folder_of_trades_are_quotes(recording: Path) -> None:
    before = read(recording, "quote")
    for path in files_of(recording, "quote"):
        path.rename(recording / "trade" / f"{path.parent.name}-{path.name}")
    assert read(recording, "quote") == before


@settings(max_examples=40)
@given(st.data())
def test_any_distribution_over_files_gives_every_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    count = 40
    steps = data.draw(
        st.lists(st.sampled_from([1, 999, SECOND, 90 * SECOND]), min_size=count, max_size=count)
    )
    times = [NOON + sum(steps[: number + 1]) for number in range(count)]
    table = table_of(count)
    for name in ("ts_event", "ts_recv"):
        table = table.set_column(
            table.schema.get_field_index(name), name, pa.array(times, TRADE.schema.field(name).type)
        )
    table = table.set_column(2, "id_ms", pa.array([time // MILLISECOND for time in times]))
    copies = data.draw(
        st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=count, max_size=count),
        label="files of each row",
    )
    folder = tmp_path_factory.mktemp("any")
    for file in range(4):
        rows = [row for row, chosen in enumerate(copies) if file in chosen]
        if rows:
            order = data.draw(st.permutations(rows))
            pq.write_table(table.take(pa.array(order)), folder / f"{file}.parquet", row_group_size=9)
    assert [id.seq for _, id, _ in read(folder, "trade")] == list(range(1, count + 1))


@pytest.mark.parametrize("column", ["symbol", "id_ms", "bid"])
def test_footer_that_pyarrow_cannot_take_is_named_and_ends_no_process(
    recording: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for the statistics of a column whose counts do not fit its schema, pyarrow ends the process."""
    victim = next(path for path in files_of(recording, "trade") if not path.name.startswith("s31"))
    data = victim.read_bytes()
    # in the thrift of the footer: OPTIONAL or REQUIRED, before the column's name
    name = bytes([len(column)]) + column.encode()
    (at,) = [found.start() + 1 for found in re.finditer(rb"[\x15\x25][\x00\x02]\x18" + name, data)]
    victim.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
    command = "import sys; from services.archive.reader import read_recorded; from pathlib import Path;"
    command += "print(len(list(read_recorded(Path(sys.argv[1]), ('trade',)))))"
    done = subprocess.run(
        [sys.executable, "-c", command, str(recording)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), "killed by a signal"
    assert victim.name in done.stderr
    assert "terminate called" not in done.stderr
