"""Open, high, low, close, volume, value, buys, sells and count of a run of trades. Pure and exact.

The totals of two consecutive runs merge into the totals of both: that is how one pass over the trades feeds
bars of every length. Prices, sizes and what is derived from them are scaled integers
(tickbus.fixed_point) at the object's own scales.
"""

from dataclasses import dataclass, replace

from tickbus.fixed_point import PLACES, TENS, divide_half_even, to_text
from tickbus.protocol.messages import Side, Trade

_BUY, _SELL = Side.BUY, Side.SELL


@dataclass(slots=True)
class Ohlcv:
    """The builder adds the next trade of a run in place, in its hot loop; for all others it is a value."""

    price_scale: int
    size_scale: int
    first_ts: int
    last_ts: int
    """ts_event of the first and last trade in stream order."""
    open: str
    high: str
    low: str
    close: str
    """The vendor's own digits."""
    highest: int
    lowest: int
    trades: int
    volume: int
    value: int
    """Sum of price x size, at the sum of the two scales."""
    buys: int
    sells: int

    @classmethod
    def of(cls, trade: Trade, price: int, size: int, price_scale: int, size_scale: int) -> "Ohlcv":
        """Return the totals of one trade."""
        text, ts, side = trade.price_text, trade.ts_event, trade.side
        return cls(
            price_scale, size_scale, ts, ts, text, text, text, text, price, price, 1, size, price * size,
            size if side is _BUY else 0, size if side is _SELL else 0,
        )  # fmt: skip

    def merge(self, later: "Ohlcv") -> "Ohlcv":
        """Return the totals of this run and the later one. Of equal prices the earlier text stays."""
        price_scale, size_scale = (
            max(self.price_scale, later.price_scale),
            max(self.size_scale, later.size_scale),
        )
        one, two = self.rescaled(price_scale, size_scale), later.rescaled(price_scale, size_scale)
        higher, lower = two.highest > one.highest, two.lowest < one.lowest
        return Ohlcv(
            price_scale, size_scale, one.first_ts, two.last_ts,
            one.open, two.high if higher else one.high, two.low if lower else one.low, two.close,
            two.highest if higher else one.highest, two.lowest if lower else one.lowest,
            one.trades + two.trades, one.volume + two.volume, one.value + two.value,
            one.buys + two.buys, one.sells + two.sells,
        )  # fmt: skip

    def rescaled(self, price_scale: int, size_scale: int) -> "Ohlcv":
        """Return the same totals at equal or finer scales."""
        if price_scale == self.price_scale and size_scale == self.size_scale:
            return self
        prices, sizes = TENS[price_scale - self.price_scale], TENS[size_scale - self.size_scale]
        return replace(
            self, price_scale=price_scale, size_scale=size_scale,
            highest=self.highest * prices, lowest=self.lowest * prices,
            volume=self.volume * sizes, value=self.value * prices * sizes,
            buys=self.buys * sizes, sells=self.sells * sizes,
        )  # fmt: skip

    def value_text(self) -> str:
        """Return the value, exact up to 18 places, rounded half-even beyond."""
        scale = self.price_scale + self.size_scale
        return (
            to_text(self.value, scale)
            if scale <= PLACES
            else to_text(divide_half_even(self.value, TENS[scale - PLACES]), PLACES)
        )

    def vwap_text(self) -> str | None:
        """Return value / volume from the exact value, rounded half-even at 18 places; None at zero volume."""
        if not self.volume:
            return None
        missing = PLACES - self.price_scale
        number, divisor = (
            (self.value * TENS[missing], self.volume)
            if missing >= 0
            else (self.value, self.volume * TENS[-missing])
        )
        return to_text(divide_half_even(number, divisor), PLACES)
