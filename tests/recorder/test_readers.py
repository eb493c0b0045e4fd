"""The files are one table for DuckDB, Polars and pandas, without our code; and the examples run."""

import datetime
import runpy
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from recorder.recorded import (
    BARS,
    BTC,
    ETH,
    MIDNIGHT,
    NOON,
    QUOTES,
    SIGNALS,
    UNREPRESENTABLE_PRICE,
    add,
    bar,
    gap,
    open_store,
    quote,
    signal,
    trade,
)
from support.paths import ROOT

from tickbus.protocol.messages import Signal, SignalState

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several commits across midnight, of all kinds, with the files a recorder leaves beside the tables."""
    data_dir = tmp_path_factory.mktemp("data")
    store = open_store(data_dir)
    for seq in range(1, 101):
        time = MIDNIGHT + (seq - 50) * 1_000_000_000
        add(
            store,
            BTC,
            seq,
            gap(time=time) if seq == 20 else trade(seq, time=time, price=f"0.{seq:018d}"),
            time=MIDNIGHT,
        )
        add(store, ETH, seq, trade(seq, "ETH-USDT", time=time, price="2600.5"), time=MIDNIGHT)
        add(store, QUOTES, seq, quote(seq, time=time), time=MIDNIGHT)
        if seq % 30 == 0:
            store.commit()
    add(store, BARS, 1, bar())
    for seq in range(1, 6):
        said = signal(seq, MIDNIGHT, ts_event=0) if seq == 4 else signal(seq, MIDNIGHT)
        add(store, SIGNALS, seq, said, time=MIDNIGHT)
    add(store, BTC, 101, trade(101, price=UNREPRESENTABLE_PRICE), time=MIDNIGHT)
    store.commit()
    add(store, BTC, 102, trade(102), time=MIDNIGHT)
    open_store(data_dir)
    return data_dir


def test_duckdb_reads_files_as_one_table(recording: Path) -> None:
    connection = duckdb.connect()
    trades = f"read_parquet('{recording}/trade/**/*.parquet', hive_partitioning=true)"
    rows = connection.sql(
        f"SELECT date, symbol, count(*), min(price), max(seq) FROM {trades} GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    first, second = datetime.date(2024, 8, 8), datetime.date(2024, 8, 9)
    assert rows == [
        (first, "BTC-USDT", 48, Decimal("0.000000000000000001"), 49),
        (first, "ETH-USDT", 49, Decimal("2600.5"), 49),
        (second, "BTC-USDT", 51, Decimal("0.000000000000000050"), 100),
        (second, "ETH-USDT", 51, Decimal("2600.5"), 100),
    ]
    # DuckDB 1 reads times in microseconds
    event, recv = (MIDNIGHT, MIDNIGHT) if duckdb.__version__ < "2" else (MIDNIGHT + 50, MIDNIGHT + 55)
    assert connection.sql(
        f"SELECT epoch_ns(ts_event), epoch_ns(ts_recv), side, trade_id FROM {trades} "
        "WHERE symbol = 'BTC-USDT' AND seq = 50"
    ).fetchall() == [(event, recv, "sell", "1050")]
    bars = f"read_parquet('{recording}/bar/**/*.parquet', hive_partitioning=true)"
    assert connection.sql(f"SELECT spec, epoch_ns(start), vwap, quality FROM {bars}").fetchall() == [
        ("time:1m", NOON, Decimal("1.5"), ["has_gap", "repaired"])
    ]


def test_polars_reads_files_as_one_table(recording: Path) -> None:
    trades = pl.scan_parquet(f"{recording}/trade/**/*.parquet", hive_partitioning=True)
    btc = (
        trades.filter(pl.col("symbol") == "BTC-USDT")
        .sort("seq")
        .select("seq", "price", pl.col("ts_event").cast(pl.Int64))
        .collect()
    )
    seqs = [seq for seq in range(1, 101) if seq != 20]
    assert btc.rows() == [
        (seq, Decimal(f"0.{seq:018d}"), MIDNIGHT + (seq - 50) * 1_000_000_000 + seq) for seq in seqs
    ]
    assert trades.collect_schema()["ts_recv"] == pl.Datetime("ns", "UTC")
    gaps = pl.scan_parquet(f"{recording}/gap/**/*.parquet", hive_partitioning=True).collect()
    assert gaps.select("symbol", "stream", "kind", "count", "repairable").rows() == [
        ("BTC-USDT", "trade", "sequence", 3, True)
    ]


def test_pandas_reads_files_as_one_table(recording: Path) -> None:
    pandas = pytest.importorskip("pandas")
    trades = pandas.read_parquet(recording / "trade")
    assert len(trades) == 199
    row = trades[(trades.symbol == "BTC-USDT") & (trades.seq == 50)].iloc[0]
    assert (row.price, row.ts_event.value, row.ts_event.tz is not None, str(row.date)) == (
        Decimal("0.000000000000000050"),
        MIDNIGHT + 50,
        True,
        "2024-08-09",
    )


SAID = (
    "name",
    "value",
    "threshold",
    "window",
    "message",
    "state",
    "direction",
    "unit",
    "quality",
    "cause",
    "params",
)


def said(row: dict[str, Any]) -> Signal:
    """Return the signal that a row was recorded from; its times are ns, or None."""
    values = {
        "value_text": format(row["value"], "f").rstrip("0").rstrip("."),
        "threshold_text": f"{int(row['threshold'])}",
        "symbol": row["symbol"],
        "ts_event": row["ts_event"] or 0,
        "episode": row["episode"] or 0,
        "state": SignalState[row["state"].upper()],
        "quality": tuple(row["quality"]),
        "details": tuple(
            (each["name"], format(each["value"], "f").rstrip("0").rstrip(".")) for each in row["details"]
        ),
    }
    return Signal(**{name: row[name] for name in SAID if f"{name}_text" not in values} | values)


EVERY_SIGNAL = [signal(seq, MIDNIGHT, **({"ts_event": 0} if seq == 4 else {})) for seq in range(1, 6)]


@pytest.mark.skipif(duckdb.__version__ < "2", reason="cuts times to microseconds")
def test_duckdb_reads_every_field_of_signals(recording: Path) -> None:
    connection = duckdb.connect()
    files = f"read_parquet('{recording}/signal/**/*.parquet', hive_partitioning=true)"
    times = "epoch_ns(ts_event) AS ts_event, epoch_ns(episode) AS episode"
    found = connection.sql(f"SELECT * REPLACE ({times}) FROM {files} ORDER BY seq")
    assert [said(dict(zip(found.columns, row, strict=True))) for row in found.fetchall()] == EVERY_SIGNAL
    largest = f"SELECT seq, max(detail.value) FROM (SELECT seq, unnest(details) AS detail FROM {files}) "
    assert connection.sql(f"{largest} WHERE detail.name = 'mean' GROUP BY seq ORDER BY seq").fetchall() == [
        (seq, Decimal("60000.25")) for seq in (1, 2, 3, 5)
    ]


def test_polars_reads_every_field_of_signals(recording: Path) -> None:
    signals = pl.scan_parquet(f"{recording}/signal/**/*.parquet", hive_partitioning=True).sort("seq")
    found = signals.with_columns(pl.col("ts_event", "episode").cast(pl.Int64)).collect()
    assert [said(row) for row in found.to_dicts()] == EVERY_SIGNAL
    detail = pl.col("details").struct
    details = signals.explode("details").select("seq", detail.field("name"), detail.field("value"))
    assert details.filter(pl.col("name") == "small").collect().rows() == [
        (seq, "small", Decimal("-1E-18")) for seq in (2, 3)
    ]  # fmt: skip


def test_pandas_reads_every_field_of_signals(recording: Path) -> None:
    pandas = pytest.importorskip("pandas")
    signals = pandas.read_parquet(recording / "signal").sort_values("seq")
    rows = signals.to_dict("records")
    for row in rows:
        for name in ("ts_event", "episode"):
            row[name] = None if row[name] is pandas.NaT else row[name].value
    assert [said(row) for row in rows] == EVERY_SIGNAL
    assert set(signals["date"]) == {"2024-08-09"}


def test_each_kind_has_one_schema(recording: Path) -> None:
    for kind in ("trade", "quote", "bar", "signal", "gap"):
        schemas = {str(pl.read_parquet_schema(path)) for path in (recording / kind).rglob("*.parquet")}
        assert len(schemas) == 1


@pytest.mark.parametrize("name", ["duckdb_queries.py", "polars_queries.py"])
def test_example_proves_recording_complete(
    recording: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counter 101 is in _aside. As the last one it is not reported missing, so each stream is complete."""
    monkeypatch.setattr("sys.argv", [name, str(recording)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    proof = capsys.readouterr().out.partition("Every entry exactly once")[2]
    numbers = [
        line.replace("│", " ").replace("┆", " ").split() for line in proof.splitlines() if "USDT" in line
    ]
    assert numbers == [["binance", "BTC-USDT", "100", "0", "0"], ["binance", "ETH-USDT", "100", "0", "0"]]


@pytest.mark.parametrize("name", ["duckdb_queries.py", "polars_queries.py"])
def test_example_reports_empty_recording(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [name, str(tmp_path)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert "yet" in capsys.readouterr().out


def test_largest_number_is_exact_everywhere(tmp_path: Path) -> None:
    """Also in the statistics, which readers use to skip row groups."""
    largest = "99999999999999999999.999999999999999999"
    store = open_store(tmp_path)
    for seq, price in enumerate(("-" + largest, "0.000000000000000001", largest), start=1):
        add(store, BTC, seq, trade(seq, price=price))
    store.commit()
    pattern = f"{tmp_path}/trade/**/*.parquet"
    query = f"SELECT seq FROM read_parquet('{pattern}') WHERE price = {largest}::DECIMAL(38, 18)"
    assert duckdb.connect().sql(query).fetchall() == [(3,)]
    assert duckdb.connect().sql(f"SELECT min(price), max(price) FROM '{pattern}'").fetchall() == [
        (Decimal("-" + largest), Decimal(largest))
    ]
    assert pl.scan_parquet(pattern).sort("seq").select("price").collect().rows() == [
        (Decimal("-" + largest),),
        (Decimal("1E-18"),),
        (Decimal(largest),),
    ]
