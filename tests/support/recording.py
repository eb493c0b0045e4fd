"""Subscription what the recorder wrote, with DuckDB: none of our own code between the files and the check."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb


class Recording:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def query(self, sql: str, kind: str = "trade") -> list[tuple[Any, ...]]:
        """`sql` with FILES for the table of one kind."""
        if not any((self._folder / kind).glob("date=*/*.parquet")):
            return []
        return duckdb.sql(
            sql.replace(
                "FILES", f"read_parquet('{self._folder}/{kind}/**/*.parquet', hive_partitioning=true)"
            )
        ).fetchall()

    def trades(self, symbol: str) -> list[tuple[str, Decimal, Decimal, str | None, int]]:
        """(trade_id, price, size, side, ts_event) in stream order."""
        return self.query(
            f"select trade_id, price, size, side, epoch_ns(ts_event) from FILES where symbol = '{symbol}' order by seq"
        )

    def quotes(self, symbol: str) -> list[tuple[Decimal, Decimal, Decimal, Decimal]]:
        return self.query(
            f"select bid, bid_size, ask, ask_size from FILES where symbol = '{symbol}' order by seq", "quote"
        )

    def gaps(self, stream: str = "trade") -> list[tuple[str, str | None, str | None, int | None, bool]]:
        """(kind, from_id, to_id, count, repaired) in stream order."""
        return self.query(
            f"select kind, from_id, to_id, count, repaired from FILES where stream = '{stream}' order by id_ms, seq",
            "gap",
        )

    def doubled(self, kind: str) -> list[tuple[Any, ...]]:
        """Entries that are in the files more than once."""
        spec = "spec" if kind == "bar" else "''"
        return self.query(
            f"select symbol, {spec}, seq, count(*) from FILES group by all having count(*) > 1", kind
        )

    def bars(self, spec: str) -> dict[int, tuple[Any, ...]]:
        """start -> the bar's newest revision: open, high, low, close, volume, value, vwap, trades, buy, sell volume."""
        rows = self.query(
            "select epoch_ns(start), open, high, low, close, volume, value, vwap, trades, buy_volume, sell_volume from FILES "
            f"where spec = '{spec}' qualify revision = max(revision) over (partition by start) order by seq",
            "bar",
        )
        return {row[0]: tuple(row[1:]) for row in rows}


def reference_bars(
    trades: list[tuple[str, Decimal, Decimal, str | None, int]], length: int
) -> dict[int, tuple[Any, ...]]:
    """Time bars of `length` ns, the slow and obvious way."""
    buckets: dict[int, list[tuple[str, Decimal, Decimal, str | None, int]]] = {}
    for trade in trades:
        buckets.setdefault(trade[4] // length * length, []).append(trade)
    bars = {}
    for start, rows in buckets.items():
        prices = [row[1] for row in rows]
        volume = sum((row[2] for row in rows), Decimal(0))
        value = sum((row[1] * row[2] for row in rows), Decimal(0))
        sides = {
            side: sum((row[2] for row in rows if row[3] == side), Decimal(0)) for side in ("buy", "sell")
        }
        vwap = (value / volume).quantize(Decimal(1).scaleb(-18))
        bars[start] = (
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
            volume,
            value,
            vwap,
            len(rows),
            sides["buy"],
            sides["sell"],
        )
    return bars
