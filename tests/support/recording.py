"""Read the recorded files with DuckDB: none of our own code is between the files and the check."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from support.captures import TradeRow


class Recording:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def query(self, sql: str, kind: str = "trade") -> list[tuple[Any, ...]]:
        """Run `sql`, in which FILES stands for the table of one kind, and return its rows."""
        if not any((self._folder / kind).glob("date=*/*.parquet")):
            return []
        files = f"read_parquet('{self._folder}/{kind}/**/*.parquet', hive_partitioning=true)"
        result = duckdb.sql(sql.replace("FILES", files))
        assert result is not None
        return result.fetchall()

    def trades(self, symbol: str) -> list[TradeRow]:
        """Return the trades in stream order."""
        return self.query(
            "select trade_id, price, size, side, epoch_ns(ts_event) from FILES "
            f"where symbol = '{symbol}' order by seq"
        )

    def quotes(self, symbol: str) -> list[tuple[Decimal, Decimal, Decimal, Decimal]]:
        """Return (bid, bid_size, ask, ask_size) in stream order."""
        return self.query(
            f"select bid, bid_size, ask, ask_size from FILES where symbol = '{symbol}' order by seq", "quote"
        )

    def gaps(self, stream: str = "trade") -> list[tuple[str, str | None, str | None, int | None, bool]]:
        """Return (kind, from_id, to_id, count, repaired) in stream order."""
        return self.query(
            "select kind, from_id, to_id, count, repaired from FILES "
            f"where stream = '{stream}' order by id_ms, seq",
            "gap",
        )

    def duplicates(self, kind: str) -> list[tuple[Any, ...]]:
        """Return the entries that are in the files more than once."""
        spec = "spec" if kind == "bar" else "''"
        return self.query(
            f"select symbol, {spec}, seq, count(*) from FILES group by all having count(*) > 1", kind
        )

    def bars(self, spec: str) -> dict[int, tuple[Any, ...]]:
        """Return the newest revision of each bar by its start.

        A bar is (open, high, low, close, volume, value, vwap, trades, buy volume, sell volume).
        """
        rows = self.query(
            "select epoch_ns(start), open, high, low, close, volume, value, vwap, trades, buy_volume, "
            f"sell_volume from FILES where spec = '{spec}' "
            "qualify revision = max(revision) over (partition by start) order by seq",
            "bar",
        )
        return {row[0]: tuple(row[1:]) for row in rows}


def reference_bars(trades: list[TradeRow], length: int) -> dict[int, tuple[Any, ...]]:
    """Return time bars of `length` ns, built the slow and obvious way."""
    buckets: dict[int, list[TradeRow]] = {}
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
