"""What the demo counts: on the bus by the streams' own counters, in the files by their footers."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tickbus.monitoring.status import BusStatus


@dataclass(frozen=True)
class OnBus:
    """Entries ever written, by kind; Gaps (repairs among them) apart."""

    trades: int = 0
    quotes: int = 0
    bars: int = 0
    gaps: int = 0

    @classmethod
    def of(cls, status: BusStatus | None) -> "OnBus":
        ticks: Counter[str] = Counter()
        gaps = 0
        for stream in status.streams if status is not None else ():
            ticks[stream.stream.kind] += stream.ticks
            gaps += sum(stream.gaps.values()) + stream.repaired
        return cls(ticks["trade"], ticks["quote"], ticks["bar"], gaps)

    @property
    def entries(self) -> int:
        return self.trades + self.quotes + self.bars + self.gaps

    def since(self, before: "OnBus") -> "OnBus":
        return OnBus(self.trades - before.trades, self.quotes - before.quotes, self.bars - before.bars, self.gaps - before.gaps)

    def __str__(self) -> str:
        return f"{self.trades:,} trades, {self.quotes:,} quotes, {self.bars:,} bars, {self.gaps:,} gaps"


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
