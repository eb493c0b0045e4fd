"""Polars on the recorder's files: `python examples/polars_queries.py data`. Needs only `pip install polars`;
tried with Polars 1.0 and 2.1.

Everything is lazy: only the files, row groups and columns that a query needs are read. Prices and sizes are
Decimal(38, 18), from 10^-18 to 10^20. Smallest, largest, first and last are exact. Products, sums and
differences may not fit: Polars 2 ends the whole query then, and Polars 1 returns other numbers without a
word. So compute as Float64, which has 15 digits at any size, as below.
"""

import datetime
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl


def scan(data_dir: str, kind: str) -> pl.LazyFrame:
    """Return all files of one kind as one table; the folder name `date=...` is a column of dates."""
    return pl.scan_parquet(
        f"{data_dir}/{kind}/**/*.parquet", hive_partitioning=True, hive_schema={"date": pl.Date}
    )


def number(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64)


def one_day(trades: pl.LazyFrame, day: datetime.date = datetime.date(2024, 8, 8)) -> pl.LazyFrame:
    """Only the folder of that day is read."""
    return (
        trades.filter(pl.col("date") == day).group_by("symbol").agg(pl.len().alias("trades")).sort("symbol")
    )


def per_day(trades: pl.LazyFrame) -> pl.LazyFrame:
    rows = trades.group_by("date", "feed", "symbol").agg(
        pl.len().alias("trades"),
        pl.col("price").min().alias("low"),
        pl.col("price").max().alias("high"),
        number("size").sum().alias("volume"),
    )
    return rows.sort("date", "feed", "symbol")


def bars(trades: pl.LazyFrame, every: str = "1m") -> pl.LazyFrame:
    """Return bars. Open and close follow stream order, not time: trades may share a nanosecond."""
    ordered = trades.sort("id_ms", "seq").with_columns(pl.col("ts_event").dt.truncate(every).alias("start"))
    price, size = pl.col("price"), number("size")
    rows = ordered.group_by("feed", "symbol", "start", maintain_order=True).agg(
        price.first().alias("open"), price.max().alias("high"),
        price.min().alias("low"), price.last().alias("close"),
        size.sum().alias("volume"), (number("price") * size).sum().alias("value"),
    )  # fmt: skip
    return rows.sort("feed", "symbol", "start")


def spread(quotes: pl.LazyFrame) -> pl.LazyFrame:
    rows = quotes.group_by("feed", "symbol").agg(
        (number("ask") - number("bid")).min().alias("min"),
        (number("ask") - number("bid")).mean().alias("mean"),
    )
    return rows.sort("feed", "symbol")


def holes(gaps: pl.LazyFrame) -> pl.LazyFrame:
    return (
        gaps.filter(~pl.col("repaired"))
        .select("feed", "symbol", "stream", "kind", "from_ts", "to_ts", "from_id", "to_id", "count")
        .sort("from_ts")
    )


def exactly_once(trades: pl.LazyFrame, gaps: pl.LazyFrame | None) -> pl.LazyFrame:
    """Check each stream: its counters are dense over ticks and Gaps, so `duplicates` and `missing` are 0
    unless Redis was emptied in between."""
    columns = [pl.col("feed").cast(pl.String), pl.col("symbol").cast(pl.String), "id_ms", "seq"]
    entries = trades.select(columns)
    if gaps is not None:
        entries = pl.concat([entries, gaps.filter(pl.col("stream") == "trade").select(columns)])
    rows = entries.group_by("feed", "symbol").agg(
        pl.len().alias("entries"),
        (pl.len() - pl.struct("id_ms", "seq").n_unique()).alias("duplicates"),
        (pl.col("seq").max() - pl.col("seq").min() + 1 - pl.len().cast(pl.Int64)).alias("missing"),
    )
    return rows.sort("feed", "symbol")


def main(data_dir: str) -> None:
    tables = {
        kind: scan(data_dir, kind)
        for kind in ("trade", "quote", "gap")
        if next((Path(data_dir) / kind).rglob("*.parquet"), None)
    }
    queries: dict[str, tuple[str, Callable[[pl.LazyFrame], pl.LazyFrame]]] = {
        "Trades per day": ("trade", per_day),
        "Trades of one day": ("trade", one_day),
        "One-minute bars, from the trades": ("trade", bars),
        "Spread": ("quote", spread),
        "What is missing, as reported by Gaps": ("gap", holes),
        "Every entry exactly once": ("trade", lambda trades: exactly_once(trades, tables.get("gap"))),
    }
    for title, (kind, query) in queries.items():
        print(f"\n{title}")
        print(query(tables[kind]).head(10).collect() if kind in tables else f"no files of kind {kind} yet")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["data"])
