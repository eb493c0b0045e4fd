"""Our own recorded files (docs/files.md) as a market: trades and quotes of all feeds, in the order they were received.

Needs pyarrow, which is loaded on first use. A day is read whole; its decimals lose the zeros that the column's scale gave them.
"""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.simulator.source import Recorded
from services.simulator.tick import Tick, stream_of
from tickbus.errors import ConfigError
from tickbus.units import plain

if TYPE_CHECKING:
    import pyarrow

_COLUMNS = {
    "trade": ["symbol", "price", "size", "side", "trade_id", "ts_event", "ts_recv"],
    "quote": ["symbol", "bid", "bid_size", "ask", "ask_size", "ts_event", "ts_recv"],
}


class ParquetTicks(Recorded):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._days = sorted({path.name for kind in _COLUMNS for path in folder.glob(f"{kind}/date=*")})
        self._folder = folder
        if not self._days:
            raise ConfigError(f"--source parquet: no trade/date=... or quote/date=... folders under {folder}")

    def __iter__(self) -> Iterator[Tick]:
        counters: dict[str, int] = {}
        for day in self._days:
            ticks = [tick for kind in _COLUMNS for tick in self._read(kind, day)]
            # stable, so that ties stay in the order of the files
            ticks.sort(key=lambda tick: tick.at)
            for tick in ticks:
                counters[tick.stream] = counters.get(tick.stream, 0) + 1
                tick.id = tick.id or counters[tick.stream]
                yield tick

    def _read(self, kind: str, day: str) -> Iterator[Tick]:
        for path in sorted((self._folder / kind / day).glob("**/*.parquet")):
            for batch in _table(path, kind).to_batches():
                columns = [batch.column(name) for name in _COLUMNS[kind]]
                times = [_nanoseconds(column) for column in columns[-2:]]
                for row in zip(*(column.to_pylist() for column in columns[:-2]), *times, strict=True):
                    yield _trade(*row) if kind == "trade" else _quote(*row)


def _table(path: Path, kind: str) -> "pyarrow.Table":
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("--source parquet needs pyarrow; pip install 'tickbus-services[recorder]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path).read(columns=_COLUMNS[kind])
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _nanoseconds(column: Any) -> list[int]:
    import pyarrow

    times: list[int] = column.cast(pyarrow.int64()).to_pylist()
    return times


def _trade(symbol: str, price: Decimal, size: Decimal, side: str | None, trade_id: str | None, event: int, received: int) -> Tick:
    number = int(trade_id) if trade_id and trade_id.isdecimal() else 0
    return Tick("trade", stream_of(symbol, "trade"), symbol, number, event, received, _text(price), _text(size), side)


def _quote(symbol: str, *values: Any) -> Tick:
    *sides, event, received = values
    bid, bid_size, ask, ask_size = (None if value is None else _text(value) for value in sides)
    return Tick("quote", stream_of(symbol, "quote"), symbol, 0, event, received, bid=bid, bid_size=bid_size, ask=ask, ask_size=ask_size)


def _text(value: Decimal) -> str:
    """61837.630000000000000000 -> 61837.63."""
    digits = plain(value)
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
