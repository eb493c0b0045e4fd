"""`sigma.price` and `sigma.return`: a trade many deviations from the mean of the newest n. Pure.

Rolling z-score: with D = n x - S1 over the n values before this trade, an episode starts at
D^2 (n - 1) >= k^2 n V, and ends where that no longer holds with the lower k. `sigma.return` takes the simple
return to the trade before, in units of 1e-9, half-even.
"""

from collections.abc import Iterator

from services.signals.episode import Episode
from services.signals.finding import STARTS, Finding
from services.signals.moments import Moments
from services.signals.parameters import Sigma, decimal_text
from services.signals.trade_window import TradeWindow
from tickbus.fixed_point import divide_half_even

_BILLION = 10**9


class SigmaPrice:
    """Of the price."""

    name = "sigma.price"
    _what = "price"
    _reach = 0
    """Trades before the window that it depends on."""

    def __init__(self, parameters: Sigma) -> None:
        self.parameters = parameters
        self._thresholds = decimal_text(parameters.start), decimal_text(parameters.end)
        self.episode = Episode(parameters.cooldown)
        self.moments = Moments()
        self.flat = 0
        """Evaluations without a decision: all values were equal."""

    def _value(self, window: TradeWindow, ago: int) -> int:
        return window.price(ago)

    def _next(self, window: TradeWindow, price: int) -> int | None:
        return price

    def trade(self, window: TradeWindow, price: int, ts: int, since_gap: int) -> Iterator[Finding]:
        """Evaluate the next trade, not in the window yet. since_gap: trades since the newest hole."""
        x, moments, parameters = self._next(window, price), self.moments, self.parameters
        if x is None or moments.n < parameters.n:
            return
        if not (v := moments.v):
            self.flat += 1
            return
        d = moments.n * x - moments.s1
        on = moments.is_beyond(d, parameters.start)
        if not on and self.episode.start is None:
            return
        off = not on and not moments.is_beyond(d, parameters.end)
        for change in self.episode.step(ts, on=on, off=off, direction=(d > 0) - (d < 0)):
            value, starts = moments.deviations(d), change.state is STARTS
            side = "above" if d > 0 else "below"
            message = (
                f"{self._what} {value.lstrip('-')[:-4]} deviations {side} the mean of {moments.n} trades"
                if starts
                else f"{self._what} is back at {value[:-4]} deviations"
            )
            yield Finding(
                self.name, ts, value, self._thresholds[not starts], f"{moments.n} trades", "sd", message,
                since_gap < moments.n + self._reach, change.state, change.direction, change.episode,
            )  # fmt: skip
        assert v

    def add(self, window: TradeWindow, price: int) -> None:
        """Take the trade into the window; called before `window.add`."""
        x, n = self._next(window, price), self.parameters.n
        if x is None:
            return
        if self.moments.n == n:
            self.moments.drop(self._value(window, n))
        self.moments.add(x)

    def scale(self, price_factor: int) -> None:
        """Prices became so many times larger."""
        self.moments.scale(price_factor)

    def refill(self, window: TradeWindow, since: int) -> None:
        """Build the moments from a window. since: trades since this signal began."""
        self.moments = Moments()
        known = min(self.parameters.n, since, window.known - self._reach)
        for ago in range(known, 0, -1):
            self.moments.add(self._value(window, ago))


class SigmaReturn(SigmaPrice):
    """Of the return."""

    name = "sigma.return"
    _what = "return"
    _reach = 1

    def _value(self, window: TradeWindow, ago: int) -> int:
        return simple_return(window.price(ago + 1), window.price(ago))

    def _next(self, window: TradeWindow, price: int) -> int | None:
        return simple_return(window.price(1), price) if window.known else None

    def scale(self, price_factor: int) -> None:
        """A return has no scale."""


def simple_return(before: int, price: int) -> int:
    """Return price / before - 1 in 1e-9, half-even."""
    return divide_half_even(_BILLION * (price - before), before)
