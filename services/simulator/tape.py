"""CSV ticks of the US tape as a market: one symbol, one day.

Prices are integers (x 10000) that get their decimal point by integer arithmetic.
"""

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from services.simulator.files import check_files, line_batches
from services.simulator.source import RecordedSource
from services.simulator.tick import Tick, is_symbol, key_of, quote_tick, trade_tick
from tickbus.errors import ConfigError
from tickbus.units import MILLISECOND, SECOND

_NEW_YORK = ZoneInfo("America/New_York")
_SCALE = 10_000
_NO_SIDE: tuple[str | None, str | None] = (None, None)
"""Price and size of an absent side."""


class TapeTicks(RecordedSource):
    """CSV or zip ticks of one symbol and day, merged by time; kind and day are in the file names.

    Trade rows: ms since midnight New York, price x 10000, size. Quote rows: ms, bid, bid size, ask, ask
    size, one side per row and 0 for the other. The other side is sent as absent or, with `merge_sides`,
    with its previous value.
    """

    def __init__(
        self, paths: Sequence[Path], symbol: str, *, merge_sides: bool = False, date: str | None = None
    ) -> None:
        if not is_symbol(symbol):
            raise ConfigError(
                "--source ticks: requires --symbol, the vendor's name of the recorded symbol, e.g. BAC.US"
            )
        super().__init__(frozenset((symbol,)))
        self._paths = check_files(paths)
        self._symbol = symbol
        self._merge_sides = merge_sides
        self._midnights = [_midnight(path, date) for path in self._paths]
        self._kinds = [_kind(path) for path in self._paths]

    def __iter__(self) -> Iterator[Tick]:
        counters = {"trade": iter(range(1, 1 << 62)), "quote": iter(range(1, 1 << 62))}
        files = zip(self._paths, self._kinds, self._midnights, strict=True)
        for tick in heapq.merge(*(self._read(*file) for file in files), key=lambda tick: tick.at):
            # the tape has no ids: they are counted, so that ticks that go missing later can be identified
            tick.id = next(counters[tick.kind])
            yield tick

    def _read(self, path: Path, kind: str, midnight: int) -> Iterator[Tick]:
        row = self._trade_row() if kind == "trade" else self._quote_row()
        lines_read = 0
        for lines in line_batches(path):
            for number, line in enumerate(lines, lines_read + 1):
                try:
                    fields = line.split(b",")
                    tick = row(midnight + int(fields[0]) * MILLISECOND, fields)
                except (ValueError, IndexError) as error:
                    raise ConfigError(
                        f"{path}, line {number}: {error}: expected milliseconds, price x 10000, size, ..."
                    ) from None
                yield tick
            lines_read += len(lines)

    def _trade_row(self) -> Callable[[int, list[bytes]], Tick]:
        key, symbol = key_of(self._symbol, "trade"), self._symbol
        return lambda at, row: trade_tick(key, symbol, 0, at, at, _price(row[1]), str(int(row[2])))

    def _quote_row(self) -> Callable[[int, list[bytes]], Tick]:
        key, symbol, merge = key_of(self._symbol, "quote"), self._symbol, self._merge_sides
        bid, ask = _NO_SIDE, _NO_SIDE

        def tick(at: int, row: list[bytes]) -> Tick:
            nonlocal bid, ask
            new_bid, new_ask = _side(row[1], row[2]), _side(row[3], row[4])
            bid = bid if merge and new_bid is _NO_SIDE else new_bid
            ask = ask if merge and new_ask is _NO_SIDE else new_ask
            return quote_tick(key, symbol, 0, at, at, *bid, *ask)

        return tick


def _side(price: bytes, size: bytes) -> tuple[str | None, str | None]:
    return (_price(price), str(int(size))) if int(price) else _NO_SIDE


def _price(text: bytes) -> str:
    """Return a price with its decimal point: 13.7850 for 137850."""
    whole, fraction = divmod(int(text), _SCALE)
    return f"{whole}.{fraction:04d}"


def _midnight(path: Path, date: str | None) -> int:
    """Return midnight New York, in ns, of `date` or else of the day in the file's name."""
    digits = re.search(r"(?<!\d)\d{8}(?!\d)", date.replace("-", "") if date else path.name)
    try:
        if digits is None:
            raise ValueError
        day = datetime.strptime(digits[0], "%Y%m%d")
    except ValueError:
        raise ConfigError(
            f"no date in {date or path.name}: name the file like bac_20131009_trade.zip or give --date, "
            "e.g. 2013-10-09"
        ) from None
    return int(day.replace(tzinfo=_NEW_YORK).timestamp()) * SECOND


def _kind(path: Path) -> str:
    for kind in ("trade", "quote"):
        if kind in path.name.lower():
            return kind
    raise ConfigError(f"no kind in {path.name}: put `trade` or `quote` in the file's name")
