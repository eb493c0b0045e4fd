"""DuckDB on the recorder's files: `python examples/duckdb_queries.py data`. Needs only `pip install duckdb`;
tried with DuckDB 1.0 and 2.0.

Prices and sizes are DECIMAL(38, 18), from 10^-18 to 10^20. Smallest, largest, first and last are exact. A
product of two, and a sum beyond 10^20, do not fit: DuckDB ends the whole query, and a cast to fewer places
makes 50 out of 61.7 where a price is 0.00000001234. So multiply and add as DOUBLE, which has 15 digits at any
size, as below. Exact sums, of any size: whole units and the rest apart, as in `VOLUME_EXACT`.

Times differ by version: TIMESTAMPTZ_NS in DuckDB 2.0, which has hardly any functions for it yet
(duckdb/duckdb issue 25476), TIMESTAMPTZ before, in microseconds. The views below convert them to TIMESTAMP in
UTC, and add what is left of the nanoseconds as integers, `ts_event_ns`. Filter by `date` where you can: it
names the folders, so that the others are not even opened; a literal '2024-08-08' fits a date and a text.
"""

import sys
from pathlib import Path

import duckdb

PER_DAY = """
    SELECT date, feed, symbol, count(*) AS trades, min(price) AS low, max(price) AS high,
           sum(size::DOUBLE) AS volume
    FROM trade GROUP BY ALL ORDER BY ALL
"""
ONE_DAY = """
    SELECT symbol, count(*) AS trades FROM trade
    WHERE date = '2024-08-08' GROUP BY ALL ORDER BY ALL
"""
MINUTE_BARS = """
    SELECT symbol, time_bucket(INTERVAL 1 minute, ts_event) AS minute,
           first(price ORDER BY id_ms, seq) AS open, max(price) AS high,
           min(price) AS low, last(price ORDER BY id_ms, seq) AS close,
           sum(size::DOUBLE) AS volume,
           sum(price::DOUBLE * size::DOUBLE) AS value
    FROM trade GROUP BY ALL ORDER BY ALL LIMIT 10
"""
VOLUME_EXACT = """
    SELECT symbol, sum(floor(size)::HUGEINT) AS whole, sum(size - floor(size)) AS rest
    FROM trade GROUP BY ALL ORDER BY ALL
"""
"""The exact volume is whole + rest."""
BUYERS_AND_SELLERS = """
    SELECT symbol, coalesce(sum(size::DOUBLE) FILTER (side = 'buy'), 0) AS bought,
           coalesce(sum(size::DOUBLE) FILTER (side = 'sell'), 0) AS sold
    FROM trade GROUP BY ALL ORDER BY ALL
"""
LATENCY = """
    SELECT feed,
           quantile_cont((ts_recv_ns::HUGEINT - ts_event_ns) / 1e6, [0.5, 0.99])
           AS event_to_receive_ms_p50_p99
    FROM trade GROUP BY ALL ORDER BY ALL
"""
HOLES = """
    SELECT feed, symbol, stream, kind, from_ts, to_ts, from_id, to_id, count
    FROM gap WHERE NOT repaired ORDER BY ALL LIMIT 10
"""
PROOF = """
    WITH entry AS (
        SELECT feed, symbol, id_ms, seq FROM trade
        UNION ALL SELECT feed, symbol, id_ms, seq FROM gap WHERE stream = 'trade'
    )
    SELECT feed, symbol, count(*) AS entries, count(*) - count(DISTINCT (id_ms, seq)) AS duplicates,
           max(seq) - min(seq) + 1 - count(*) AS missing
    FROM entry GROUP BY ALL ORDER BY ALL
"""
"""Counters are dense per stream over ticks and Gaps: `duplicates` and `missing` are 0 unless Redis was
emptied in between."""

EMPTY_TABLES = {
    "trade": """
        CREATE TABLE trade (
            date DATE, feed TEXT, symbol TEXT, id_ms BIGINT, seq BIGINT, price DECIMAL(38, 18), size
            DECIMAL(38, 18), side TEXT, ts_event TIMESTAMP, ts_recv TIMESTAMP, ts_event_ns BIGINT, ts_recv_ns
            BIGINT)""",
    "gap": """
        CREATE TABLE gap (
            feed TEXT, symbol TEXT, stream TEXT, kind TEXT, from_ts TIMESTAMP, to_ts TIMESTAMP, from_id TEXT,
            to_id TEXT, count BIGINT, repaired BOOLEAN, id_ms BIGINT, seq BIGINT)""",
}
"""DuckDB refuses a pattern that matches no file; a recording without a single Gap has no file of that
kind."""

QUERIES = {
    "Trades per day": PER_DAY,
    "Trades of one day": ONE_DAY,
    "One-minute bars, from the trades": MINUTE_BARS,
    "Volume, exact": VOLUME_EXACT,
    "Who crossed the spread": BUYERS_AND_SELLERS,
    "Latency from the vendor's clock to ours": LATENCY,
    "What is missing, as reported by Gaps": HOLES,
    "Every entry exactly once": PROOF,
}


def connect(data_dir: str) -> duckdb.DuckDBPyConnection:
    """Return a connection with the views `trade` and `gap`."""
    connection = duckdb.connect()
    for kind, times in {"trade": ("ts_event", "ts_recv"), "gap": ("from_ts", "to_ts")}.items():
        files = Path(data_dir) / kind
        if next(files.rglob("*.parquet"), None) is None:
            print(f"{files} has no files yet")
            connection.execute(EMPTY_TABLES[kind])
            continue
        utc = ", ".join(f"make_timestamp(epoch_ns({time}) // 1000) AS {time}" for time in times)
        ns = ", ".join(f"epoch_ns({time}) AS {time}_ns" for time in times)
        connection.execute(
            f"CREATE VIEW {kind} AS SELECT * REPLACE ({utc}), {ns} "
            f"FROM read_parquet('{files}/**/*.parquet', hive_partitioning = true)"
        )
    return connection


def main(data_dir: str) -> None:
    connection = connect(data_dir)
    for title, query in QUERIES.items():
        print(f"\n{title}")
        print(connection.sql(query))


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["data"])
