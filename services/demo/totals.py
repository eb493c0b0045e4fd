"""The totals of the demo: on the bus from the counters of the streams, in the files from their footers."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tickbus.monitoring.status import Totals


def on_bus(totals: Totals) -> str:
    return f"{totals.trades:,} trades, {totals.quotes:,} quotes, {totals.bars:,} bars, {totals.gaps:,} gaps"


@dataclass
class RecordedTotals:
    rows: Counter[str] = field(default_factory=Counter)
    """By kind."""
    files: int = 0
    bytes: int = 0

    @classmethod
    def count(cls, data_dir: Path) -> "RecordedTotals":
        import pyarrow.parquet as pq  # only here: the start of the demo need not wait for it

        totals = cls()
        for path in data_dir.glob("*/date=*/*.parquet"):
            totals.rows[path.parts[-3]] += pq.read_metadata(path).num_rows
            totals.files += 1
            totals.bytes += path.stat().st_size
        return totals

    def __str__(self) -> str:
        rows = ", ".join(f"{self.rows[kind]:,} {kind}s" for kind in ("trade", "quote", "bar", "gap"))
        return f"{rows} in {self.files:,} files, {self.bytes / 1024:,.0f} KB"
