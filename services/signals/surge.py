"""`volume_surge` and `trade_rate`: much more than usual within ten seconds. Pure.

Relative volume: F, the sum over the newest ten panes, against the mean of up to 60 blocks of ten panes that
ended before them, at least 30. An episode starts at n F >= r S1 and (n F - S1)^2 (n - 1) >= z^2 n V with
n F > S1, and ends at n F < r' S1.
"""

from collections.abc import Iterator

from services.signals.episode import Episode
from services.signals.finding import STARTS, Finding
from services.signals.moments import Moments, quotient
from services.signals.panes import FAST, HISTORY, MIN_HISTORY, VOLUME, Panes
from services.signals.parameters import Surge, decimal_text
from tickbus.fixed_point import to_text
from tickbus.units import SECOND


class Ratio:
    """An episode while a fast value is many times, and many deviations above, the mean of a history."""

    def __init__(self, name: str, parameters: Surge) -> None:
        self.name = name
        self.parameters = parameters
        self.thresholds = decimal_text(parameters.start), decimal_text(parameters.end)
        self.episode = Episode(parameters.cooldown)
        self.flat = 0
        """Evaluations without a decision: all values of the history were equal."""

    def step(self, ts: int, fast: int, history: Moments) -> list[tuple[Finding, bool]]:
        """Return what starts or ends, as an unfinished finding, and whether it starts."""
        if not history.v:
            self.flat += 1
            return []
        d, parameters = history.n * fast - history.s1, self.parameters
        on = self._reaches(fast, history, parameters.start) and d > 0 and history.is_beyond(d, parameters.z)
        if not on and self.episode.start is None:
            return []
        off = not on and not self._reaches(fast, history, parameters.end)
        found = []
        for change in self.episode.step(ts, on=on, off=off):
            starts = change.state is STARTS
            finding = Finding(
                self.name, ts, "", self.thresholds[not starts], "", "", "", False,
                change.state, 0, change.episode, details=(("z", history.deviations(d)),),
            )  # fmt: skip
            found.append((finding, starts))
        return found

    @staticmethod
    def _reaches(fast: int, history: Moments, ratio: object) -> bool:
        numerator, denominator = ratio.numerator, ratio.denominator  # type: ignore[attr-defined]
        return bool(history.n * fast * denominator >= numerator * history.s1)


class PaneSurge:
    """Of a column of the panes: the volume, or the number of trades."""

    def __init__(self, name: str, column: int, parameters: Surge) -> None:
        self.name = name
        self._column = column
        self.ratio = Ratio(name, parameters)
        self._indicated = 0
        """When the newest indicator was due, ns."""

    def pane(self, panes: Panes, end: int, gap_to: int, scale: int) -> Iterator[Finding]:
        """Evaluate a closed pane. end: the next pane; gap_to: end of the newest hole, ns; scale: of sizes."""
        history = panes.volumes if self._column == VOLUME else panes.counts
        moments, ts = history.moments, end * SECOND
        fast = panes.fast(self._column)
        has_gap = gap_to >= (min(panes.history_start, end - FAST) if moments.n else end - FAST) * SECOND
        if moments.n >= MIN_HISTORY:
            for finding, starts in self.ratio.step(ts, fast, moments):
                value = quotient(moments.n * fast, moments.s1) if moments.s1 else "0.000000"
                what = "volume" if self._column == VOLUME else "trades"
                yield finding._replace(
                    value=value, window=f"{FAST}s", unit="ratio", has_gap=has_gap,
                    partial=moments.n < HISTORY,
                    message=f"{what} {value[:-4]} times the usual" if starts
                    else f"{what} back to {value[:-4]} times the usual",
                )  # fmt: skip
        parameters = self.ratio.parameters
        if (
            parameters.indicator
            and not ts % parameters.every
            and panes.has_traded(parameters.every // SECOND)
        ):
            amount = to_text(fast, scale) if self._column == VOLUME else str(fast)
            yield Finding(
                self.name, ts, quotient(fast, FAST * 10 ** (scale if self._column == VOLUME else 0)), "0",
                f"{FAST}s", "units/s" if self._column == VOLUME else "trades/s",
                f"{amount} in {FAST} s", gap_to >= ts - FAST * SECOND,
            )  # fmt: skip
