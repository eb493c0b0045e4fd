"""CSV ticks of the US tape as a market: one symbol, one day. Prices (x 10000, whole) get their point by integer arithmetic."""

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from services.simulator.files import existing, pieces
from services.simulator.source import Recorded
from services.simulator.tick import Tick, is_symbol, key_of, quote_tick, trade_tick
from tickbus.errors import ConfigError
from tickbus.units import MILLISECOND, SECOND

_NEW_YORK = ZoneInfo("America/New_York")
_SCALE = 10_000
_NOTHING: tuple[str | None, str | None] = (None, None)
"""Price and size of an absent side."""


class TapeTicks(Recorded):
    """CSV or zip ticks of one symbol and day, merged by time; trade or quote and the day stand in the files' names.

    Trade rows: ms since midnight New York, price x 10000, size. Quote rows: ms, bid, bid size, ask, ask size, one side per row
    and 0 for the other: sent so, the other side absent, or with the side known so far where `merge_sides` is set.
    """

    def __init__(
        self, paths: Sequence[Path], symbol: str, *, merge_sides: bool = False, date: str | None = None
    ) -> None:
        if not is_symbol(symbol):
            raise ConfigError(
                "--source ticks: needs --symbol, the vendor's name of the recorded symbol, like BAC.US"
            )
        super().__init__(frozenset((symbol,)))
        self._paths = existing(paths)
        self._symbol = symbol
        self._merge_sides = merge_sides
        self._midnights = [_midnight(path, date) for path in self._paths]
        self._kinds = [_kind(path) for path in self._paths]

    def __iter__(self) -> Iterator[Tick]:
        counters = {"trade": iter(range(1, 1 << 62)), "quote": iter(range(1, 1 << 62))}
        files = zip(self._paths, self._kinds, self._midnights, strict=True)
        for tick in heapq.merge(*(self._read(*file) for file in files), key=lambda tick: tick.at):
            # the tape has no ids: they are counted, so that what goes missing later can be told
            tick.id = next(counters[tick.kind])
            yield tick

    def _read(self, path: Path, kind: str, midnight: int) -> Iterator[Tick]:
        row = self._trade_row() if kind == "trade" else self._quote_row()
        done = 0
        for lines in pieces(path):
            for number, line in enumerate(lines, done + 1):
                try:
                    fields = line.split(b",")
                    tick = row(midnight + int(fields[0]) * MILLISECOND, fields)
                except (ValueError, IndexError) as error:
                    raise ConfigError(
                        f"{path}, line {number}: {error}; rows are milliseconds, price x 10000, size, ..."
                    ) from None
                yield tick
            done += len(lines)

    def _trade_row(self) -> Callable[[int, list[bytes]], Tick]:
        key, symbol = key_of(self._symbol, "trade"), self._symbol
        return lambda at, row: trade_tick(key, symbol, 0, at, at, _price(row[1]), str(int(row[2])))

    def _quote_row(self) -> Callable[[int, list[bytes]], Tick]:
        key, symbol, merge = key_of(self._symbol, "quote"), self._symbol, self._merge_sides
        bid, ask = _NOTHING, _NOTHING

        def tick(at: int, row: list[bytes]) -> Tick:
            nonlocal bid, ask
            new_bid, new_ask = _side(row[1], row[2]), _side(row[3], row[4])
            bid = bid if merge and new_bid is _NOTHING else new_bid
            ask = ask if merge and new_ask is _NOTHING else new_ask
            return quote_tick(key, symbol, 0, at, at, *bid, *ask)

        return tick


def _side(price: bytes, size: bytes) -> tuple[str | None, str | None]:
    return (_price(price), str(int(size))) if int(price) else _NOTHING


def _price(text: bytes) -> str:
    """137850 -> 13.7850."""
    whole, fraction = divmod(int(text), _SCALE)
    return f"{whole}.{fraction:04d}"


def _midnight(path: Path, date: str | None) -> int:
    """Midnight New York, in ns, of the day in the file's name."""
    digits = re.search(r"(?<!\d)\d{8}(?!\d)", date.replace("-", "") if date else path.name)
    try:
        if digits is None:
            raise ValueError
        day = datetime.strptime(digits[0], "%Y%m%d")
    except ValueError:
        raise ConfigError(
            f"{date or path.name}: no day in it; name the file like bac_20131009_trade.zip or give --date 2013-10-09"
        ) from None
    return int(day.replace(tzinfo=_NEW_YORK).timestamp()) * SECOND


def _kind(path: Path) -> str:
    for kind in ("trade", "quote"):
        if kind in path.name.lower():
            return kind
    raise ConfigError(f"{path.name}: trades or quotes? Put `trade` or `quote` in the file's name")
