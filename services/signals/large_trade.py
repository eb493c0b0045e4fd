"""`large_trade`: a size in the top percentile, and many times the median, of the newest n. Pure.

Percentile by nearest rank; each such trade is an alert of its own, without an end.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator

from services.signals.finding import STARTS, Finding
from services.signals.moments import quotient
from services.signals.parameters import Large, decimal_text
from services.signals.trade_window import TradeWindow
from tickbus.fixed_point import to_text


class LargeTrade:
    """Sizes of the newest n trades, sorted."""

    name = "large_trade"

    def __init__(self, parameters: Large) -> None:
        self.parameters = parameters
        self._threshold = decimal_text(parameters.multiple)
        percentile, n = parameters.percentile, parameters.n
        self._rank = max(1, -(-(percentile.numerator * n) // (100 * percentile.denominator)))
        self._sizes: list[int] = []

    def trade(
        self, window: TradeWindow, size: int, ts: int, since_gap: int, direction: int, scale: int
    ) -> Iterator[Finding]:
        """Evaluate the next trade, which is not in the window yet. scale: of sizes."""
        sizes, n, multiple = self._sizes, self.parameters.n, self.parameters.multiple
        if len(sizes) < n or size < sizes[self._rank - 1]:
            return
        # twice the median: of an even number of sizes it lies between two
        median = sizes[(n - 1) // 2] + sizes[n // 2]
        if 2 * size * multiple.denominator < multiple.numerator * median:
            return
        value = quotient(2 * size, median)
        yield Finding(
            self.name, ts, value, self._threshold, f"{n} trades", "ratio",
            f"a trade of {value[:-4]} times the median size", since_gap < n, STARTS, direction, ts,
            details=self._histogram(scale),
        )  # fmt: skip

    def add(self, window: TradeWindow, size: int) -> None:
        """Take the trade into the window; called before `window.add`."""
        if len(self._sizes) == self.parameters.n:
            del self._sizes[bisect_left(self._sizes, window.size(self.parameters.n))]
        insort(self._sizes, size)

    def scale(self, size_factor: int) -> None:
        """Sizes became so many times larger."""
        self._sizes = [size * size_factor for size in self._sizes]

    def refill(self, window: TradeWindow, since: int) -> None:
        """Build the sorted sizes from a window. since: trades since this signal began."""
        known = min(self.parameters.n, since, window.known)
        self._sizes = sorted(window.size(ago) for ago in range(1, known + 1))

    def _histogram(self, scale: int) -> tuple[tuple[str, str], ...]:
        """Return how many sizes are at least a power of two and below the next, by that power."""
        powers = Counter(size.bit_length() - 1 for size in self._sizes)
        return tuple((to_text(1 << power, scale), str(count)) for power, count in sorted(powers.items()))
