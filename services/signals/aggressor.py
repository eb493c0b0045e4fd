"""`aggressor`: who crosses the spread, buyers or sellers, over the newest 60 seconds. Pure.

A = (B - S) / (B + S), volumes by side. The side is the vendor's; else by the quote rule, against the middle
of the bid and ask known when the trade arrived; else by the tick rule, against the last different price (Lee
and Ready 1991, without lag). A trade without either is in neither sum.
"""

from collections.abc import Iterator

from services.signals.episode import Episode
from services.signals.finding import STARTS, Finding
from services.signals.moments import quotient
from services.signals.panes import BUYS, COUNT, PANES, QUOTED, SELLS, TICKED, UNKNOWN, Pane, Panes
from services.signals.parameters import Aggressor, decimal_text
from tickbus.units import SECOND


def side_of(price: int, middle: int | None, before: int | None) -> tuple[int, int]:
    """Return the side of a trade without one: 1 buy, -1 sell, 0 unknown; and how it was found, as a column.

    middle: bid plus ask; before: the last different price.
    """
    if middle is not None and 2 * price != middle:
        return (1 if 2 * price > middle else -1), QUOTED
    if before is not None:
        return (1 if price > before else -1), TICKED
    return 0, UNKNOWN


class AggressorIndex:
    """Evaluated at each pane, once 60 were closed."""

    name = "aggressor"

    def __init__(self, parameters: Aggressor) -> None:
        self.parameters = parameters
        self._thresholds = decimal_text(parameters.start), decimal_text(parameters.end)
        self.episode = Episode(parameters.cooldown, turns=True)

    def pane(self, panes: Panes, end: int, gap_to: int) -> Iterator[Finding]:
        """Evaluate a closed pane. end: the next pane; gap_to: end of the newest hole, ns."""
        parameters, ts = self.parameters, end * SECOND
        sums = panes.sums
        if panes.warm < PANES or not (sums[COUNT] or self.episode.start is not None):
            return
        buys, sells = sums[BUYS], sums[SELLS]
        total, difference = buys + sells, buys - sells
        distance, start, stop = abs(difference), parameters.start, parameters.end
        enough = total and sums[COUNT] >= parameters.trades
        on = bool(enough and distance * start.denominator >= start.numerator * total)
        off = not on and (not total or distance * stop.denominator <= stop.numerator * total)
        side = (difference > 0) - (difference < 0)
        changes = self.episode.step(ts, on=on, off=off, direction=side)
        indicates = (
            parameters.indicator
            and total
            and not ts % parameters.every
            and panes.has_traded(parameters.every // SECOND)
        )
        if not changes and not indicates:
            return
        value = quotient(difference, total) if total else "0.000000"
        message = f"buyers less sellers: {value[:-4]} of the volume"
        finding = Finding(
            self.name, ts, value, "0", f"{PANES}s", "share", message,
            ts <= gap_to + PANES * SECOND, direction=side, details=self._methods(sums),
        )  # fmt: skip
        for change in changes:
            starts = change.state is STARTS
            who = "buyers" if change.direction > 0 else "sellers"
            yield finding.changed(
                change, self._thresholds[not starts],
                f"{who} {'cross' if starts else 'no longer cross'} the spread: {value[:-4]} of the volume",
            )  # fmt: skip
        if indicates:
            yield finding

    @staticmethod
    def _methods(sums: Pane) -> tuple[tuple[str, str], ...]:
        """Return the share of trades whose side was found in each way."""
        trades, quoted, ticked, unknown = sums[COUNT], sums[QUOTED], sums[TICKED], sums[UNKNOWN]
        vendor = trades - quoted - ticked - unknown
        named = (("vendor", vendor), ("quote", quoted), ("tick", ticked), ("unknown", unknown))
        return tuple((name, quotient(count, trades)) for name, count in named) if trades else ()
