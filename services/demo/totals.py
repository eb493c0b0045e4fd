"""What the demo counts: on the bus by the streams' own counters, in the files by their footers."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tickbus.monitoring.status import Totals


def on_bus(totals: Totals) -> str:
    return f"{totals.trades:,} trades, {totals.quotes:,} quotes, {totals.bars:,} bars, {totals.gaps:,} gaps"


@dataclass
class InFiles:
    rows: Counter[str] = field(default_factory=Counter)
    """By kind."""
    files: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, data_dir: Path) -> "InFiles":
        import pyarrow.parquet as pq  # only here: the demo's start need not wait for it

        found = cls()
        for path in data_dir.glob("*/date=*/*.parquet"):
            found.rows[path.parts[-3]] += pq.read_metadata(path).num_rows
            found.files += 1
            found.bytes += path.stat().st_size
        return found

    def __str__(self) -> str:
        rows = ", ".join(f"{self.rows[kind]:,} {kind}s" for kind in ("trade", "quote", "bar", "gap"))
        return f"{rows} in {self.files:,} files, {self.bytes / 1024:,.0f} KB"
