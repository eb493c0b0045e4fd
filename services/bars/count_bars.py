"""The bar of one tick, volume or value spec. Pure. There is one open bar at most; a closed one never changes."""

from collections.abc import Sequence
from decimal import Decimal
from math import inf

from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import HAS_GAP, PARTIAL, REPAIRED, OpenBar
from services.bars.state import CountState, pack, unpack
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar


class CountBars:
    def __init__(self, symbol: str, spec: Spec, state: CountState | None) -> None:
        self.symbol, self.spec, self.measure = symbol, spec.text, spec.measure
        self._size = spec.size
        self._cell = unpack(state.open[0]) if state and state.open else None
        self._quality = state.quality if state else 0
        """Of the bar that comes next, while none is open."""
        self.began = bool(state and state.began)

    @property
    def open(self) -> bool:
        return self._cell is not None

    def begin(self, complete: bool) -> None:
        """Before the first entry ever: was there nothing in the stream before it?"""
        self.began = True
        self._quality |= 0 if complete else PARTIAL

    def room(self, price_scale: int, size_scale: int) -> tuple[float, float, float]:
        """(trades, volume, value) that fill the bar, the two last at the given scales; infinite for what is not its measure."""
        tally = self._cell.tally.at(price_scale, size_scale) if self._cell and self._cell.tally else None
        match self.measure:
            case "tick":
                return int(self._size) - (tally.trades if tally else 0), inf, inf
            case "volume":
                return inf, _least(self._size, size_scale) - (tally.volume if tally else 0), inf
            case _:
                return inf, inf, _least(self._size, price_scale + size_scale) - (tally.value if tally else 0)

    def add(self, run: Ohlcv) -> None:
        cell = self._cell
        if cell is None:
            cell = self._cell = OpenBar(run.first_ts, run.last_ts, self._quality)
            self._quality = 0
        cell.add(run)
        cell.end = run.last_ts

    def close_if_full(self) -> Bar | None:
        cell = self._cell
        if (
            cell is None
            or cell.tally is None
            or min(self.room(cell.tally.price_scale, cell.tally.size_scale)) > 0
        ):
            return None
        self._cell = None
        return cell.emit(self.symbol, self.spec)

    def mark(self, quality: int) -> None:
        """A Gap lies in the open bar, or else before the first trade of the next. A repair is of interest only to a bar with a hole."""
        now = self._cell.quality if self._cell else self._quality
        if quality == REPAIRED and not now & HAS_GAP:
            return
        if self._cell:
            self._cell.quality |= quality
        else:
            self._quality |= quality

    def state(self) -> CountState:
        return CountState([pack(self._cell)] if self._cell else [], self._quality, self.began)


def least_room(
    all_bars: Sequence[CountBars], price_scale: int, size_scale: int
) -> tuple[float, float, float]:
    """(trades, volume, value) that fill the first of the bars, whichever it is."""
    trades, volumes, values = zip(*(bars.room(price_scale, size_scale) for bars in all_bars), strict=True)
    return min(trades), min(volumes), min(values)


def _least(size: Decimal, scale: int) -> int:
    """The smallest scaled integer that is no less than `size`."""
    number, divisor = size.as_integer_ratio()
    scaled: int = -(-number * 10**scale // divisor)
    return scaled
