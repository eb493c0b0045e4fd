"""The bars of one tick, volume or value spec. Pure. At most one bar is open; a closed one never changes."""

from collections.abc import Sequence
from decimal import Decimal
from math import inf

from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import HAS_GAP, LATE, PARTIAL, REPAIRED, OpenBar
from services.bars.state import CountState, pack, unpack
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar, Gap, GapKind


class CountBars:
    def __init__(self, symbol: str, spec: Spec, state: CountState | None) -> None:
        self.symbol, self.spec, self.measure = symbol, spec.text, spec.measure
        self._size = spec.size
        self._open = unpack(state.open[0]) if state and state.open else None
        self._quality = state.quality & (HAS_GAP | PARTIAL | REPAIRED) if state else 0
        """Quality of the next bar, while none is open."""
        self.began = bool(state and state.began)

    @property
    def open(self) -> bool:
        return self._open is not None

    def begin(self, complete: bool) -> None:
        """Before the first entry ever. `complete`: there was nothing in the stream before it."""
        self.began = True
        self._quality |= 0 if complete else PARTIAL

    def remaining(self, price_scale: int, size_scale: int) -> tuple[float, float, float]:
        """Return (trades, volume, value) that fill the bar, at the given scales; inf for other measures."""
        ohlcv = (
            self._open.ohlcv.rescaled(price_scale, size_scale) if self._open and self._open.ohlcv else None
        )
        match self.measure:
            case "tick":
                return int(self._size) - (ohlcv.trades if ohlcv else 0), inf, inf
            case "volume":
                return inf, _scale_up(self._size, size_scale) - (ohlcv.volume if ohlcv else 0), inf
            case _:
                return (
                    inf,
                    inf,
                    _scale_up(self._size, price_scale + size_scale) - (ohlcv.value if ohlcv else 0),
                )

    def add(self, run: Ohlcv) -> None:
        bar = self._open
        if bar is None:
            bar = self._open = OpenBar(run.first_ts, run.last_ts, self._quality)
            self._quality = 0
        bar.add(run)
        bar.end = run.last_ts

    def close_if_full(self) -> Bar | None:
        bar = self._open
        if (
            bar is None
            or bar.ohlcv is None
            or min(self.remaining(bar.ohlcv.price_scale, bar.ohlcv.size_scale)) > 0
        ):
            return None
        self._open = None
        return bar.emit(self.symbol, self.spec)

    def took_late(self) -> None:
        """The newest trade was late: remember it for the Gap that may say that it was a repair."""
        if self._open:
            self._open.quality |= LATE

    def apply_gap(self, gap: Gap) -> None:
        """Mark the open bar, or else the next one: the Gap lies before its first trade.

        A repair concerns only the open bar, if it has a hole: one that took a late trade, or where nothing
        was missing.
        """
        bar = self._open
        if not gap.repaired:
            if bar:
                bar.quality |= HAS_GAP
            else:
                self._quality |= HAS_GAP
        elif bar and gap.kind is GapKind.VOID:
            if (
                bar.quality & HAS_GAP
                and min(bar.start, bar.end) <= gap.to_ts
                and gap.from_ts <= max(bar.start, bar.end)
            ):
                bar.quality |= REPAIRED
        elif bar and bar.quality & LATE:
            bar.quality &= ~LATE
            if bar.quality & HAS_GAP:
                bar.quality |= REPAIRED

    def state(self) -> CountState:
        return CountState([pack(self._open)] if self._open else [], self._quality, self.began)


def min_remaining(
    all_bars: Sequence[CountBars], price_scale: int, size_scale: int
) -> tuple[float, float, float]:
    """Return (trades, volume, value) that fill the first of the bars, whichever it is."""
    trades, volumes, values = zip(
        *(bars.remaining(price_scale, size_scale) for bars in all_bars), strict=True
    )
    return min(trades), min(volumes), min(values)


def _scale_up(size: Decimal, scale: int) -> int:
    """Return the smallest scaled integer that is not below `size`."""
    number, divisor = size.as_integer_ratio()
    scaled: int = -(-number * 10**scale // divisor)
    return scaled
