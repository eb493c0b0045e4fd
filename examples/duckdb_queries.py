"""DuckDB on the recorder's files: `python examples/duckdb_queries.py data`. Needs only `pip install duckdb`.

Prices and sizes are DECIMAL(38, 18). Sums and differences are exact without further care. A product of two
such columns would need 36 decimal places and overflows, so cast to fewer places first, as below: 8 are
enough for what most markets trade in (a cast rounds).

Times are TIMESTAMPTZ_NS in DuckDB 2.0, a type for which it has hardly any functions yet (duckdb/duckdb issue
25476), and fetching it in Python needs pytz: the views below convert them to TIMESTAMP_NS, in UTC, with all
nine digits. Filter by `date` where you can: it names the folders, so that the others are not even opened.
"""

import sys
from pathlib import Path

import duckdb

PER_DAY = """
    SELECT date, feed, symbol, count(*) AS trades, min(price) AS low, max(price) AS high, sum(size) AS volume
    FROM trade GROUP BY ALL ORDER BY ALL
"""
MINUTE_BARS = """
    SELECT symbol, time_bucket(INTERVAL 1 minute, ts_event) AS minute,
           first(price ORDER BY id_ms, seq) AS open, max(price) AS high,
           min(price) AS low, last(price ORDER BY id_ms, seq) AS close,
           sum(size) AS volume,
           sum(price::DECIMAL(20, 8) * size::DECIMAL(18, 8)) AS value
    FROM trade GROUP BY ALL ORDER BY ALL LIMIT 10
"""
BUYERS_AND_SELLERS = """
    SELECT symbol, coalesce(sum(size) FILTER (side = 'buy'), 0) AS bought,
           coalesce(sum(size) FILTER (side = 'sell'), 0) AS sold
    FROM trade GROUP BY ALL ORDER BY ALL
"""
LATENCY = """
    SELECT feed,
           quantile_cont((epoch_ns(ts_recv) - epoch_ns(ts_event)) / 1e6, [0.5, 0.99]) AS
           event_to_receive_ms_p50_p99
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
            DECIMAL(38, 18), side TEXT, ts_event TIMESTAMP_NS, ts_recv TIMESTAMP_NS)""",
    "gap": """
        CREATE TABLE gap (
            feed TEXT, symbol TEXT, stream TEXT, kind TEXT, from_ts TIMESTAMP_NS, to_ts TIMESTAMP_NS, from_id
            TEXT, to_id TEXT, count BIGINT, repaired BOOLEAN, id_ms BIGINT, seq BIGINT)""",
}
"""DuckDB refuses a pattern that matches no file; a recording without a single Gap has no file of that
kind."""

QUERIES = {
    "Trades per day": PER_DAY,
    "One-minute bars, from the trades": MINUTE_BARS,
    "Who crossed the spread": BUYERS_AND_SELLERS,
    "Latency from the vendor's clock to ours": LATENCY,
    "What is missing, as reported by Gaps": HOLES,
    "Every entry exactly once": PROOF,
}


def main(data_dir: str) -> None:
    connection = duckdb.connect()
    for kind, times in {"trade": ("ts_event", "ts_recv"), "gap": ("from_ts", "to_ts")}.items():
        files = Path(data_dir) / kind
        if next(files.rglob("*.parquet"), None) is None:
            print(f"{files} has no files yet")
            connection.execute(EMPTY_TABLES[kind])
            continue
        plain = ", ".join(f"make_timestamp_ns(epoch_ns({time})) AS {time}" for time in times)
        connection.execute(
            f"CREATE VIEW {kind} AS SELECT * REPLACE ({plain}) "
            f"FROM read_parquet('{files}/**/*.parquet', hive_partitioning = true)"
        )
    for title, query in QUERIES.items():
        print(f"\n{title}")
        print(connection.sql(query))


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["data"])
