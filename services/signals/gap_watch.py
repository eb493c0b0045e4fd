"""`gap_watch`: a hole in the stream, or a silence that is long for this symbol. Pure.

A Gap that is not repaired starts an episode, the first kept trade after it ends it. Where the market never
closes, so does a silence of more than ten seconds and twenty times the 99th percentile of the newest 200
inter-arrival times. It begins at a computed instant of bus time, after all entries of that ms, whenever that
is noticed.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from services.signals.episode import Episode
from services.signals.finding import Finding
from services.signals.moments import quotient
from services.signals.parameters import Quiet
from services.signals.trade_window import TradeWindow
from tickbus.protocol.messages import Gap
from tickbus.units import MILLISECOND, SECOND

ARRIVALS = 200
_RANK = -(-99 * ARRIVALS // 100)


class GapWatch:
    """Of one trade stream."""

    name = "gap_watch"

    def __init__(self, parameters: Quiet, watches_silence: bool) -> None:
        """watches_silence: the market of this symbol never closes."""
        self._parameters = parameters
        self._watches_silence = watches_silence
        self.episode = Episode(0)
        self._arrivals: list[int] = []
        """The newest inter-arrival times in ms, sorted."""
        self.last_ms = 0
        """Bus time of the newest kept trade; 0 before the first."""

    @property
    def due_ms(self) -> int | None:
        """The bus time at which silence begins, if nothing comes; None if it cannot, or has begun."""
        if not self._watches_silence or self.episode.start is not None or len(self._arrivals) < ARRIVALS:
            return None
        return self.last_ms + self._limit_ms()

    def _limit_ms(self) -> int:
        shortest, multiple = self._parameters.quiet // MILLISECOND, self._parameters.multiple
        usual = multiple * self._arrivals[_RANK - 1]
        return max(shortest, -(-usual.numerator // usual.denominator)) + 1

    def silent(self, ms: int, ts: int) -> Iterator[Finding]:
        """It is `due_ms` now. ts: the stream's newest time, ns."""
        at = ts + (ms - self.last_ms) * MILLISECOND
        for change in self.episode.step(at, on=True, off=False):
            value = quotient(ms - self.last_ms, 1000)
            finding = Finding(self.name, at, value, "0", "silence", "s", "", False)
            yield finding.changed(
                change, quotient(self._limit_ms() - 1, 1000), f"no trade for {value[:-3]} s, which is unusual"
            )

    def gap(self, gap: Gap, ts: int) -> Iterator[Finding]:
        """A hole. ts: the stream's newest time, ns."""
        at = max(ts, gap.from_ts, gap.to_ts)
        for change in self.episode.step(at, on=True, off=False):
            value = quotient(abs(gap.to_ts - gap.from_ts), SECOND)
            count = "an unknown number of" if gap.count is None else str(gap.count)
            finding = Finding(self.name, at, value, "0", gap.kind.name.lower(), "s", "", True)
            yield finding.changed(change, "0", f"{count} trades missing in {value[:-3]} s")

    def trade(self, ms: int, ts: int) -> Iterator[Finding]:
        """A kept trade ends what was open. ms: its bus time; ts: the stream's newest time, ns."""
        begun = self.episode.start
        for change in self.episode.step(max(ts, begun or 0), on=False, off=True):
            value = quotient(max(0, ts - (begun or ts)), SECOND)
            finding = Finding(self.name, max(ts, begun or 0), value, "0", "", "s", "", False)
            yield finding.changed(change, "0", f"trades again after {value[:-3]} s")

    def add(self, window: TradeWindow, ms: int) -> None:
        """Take the trade into the window; called before `window.add`."""
        if window.known:
            if len(self._arrivals) == ARRIVALS:
                old = window.time(ARRIVALS) - window.time(ARRIVALS + 1)
                del self._arrivals[bisect_left(self._arrivals, old)]
            insort(self._arrivals, ms - window.time(1))
        self.last_ms = ms

    def refill(self, window: TradeWindow) -> None:
        """Build the arrivals of a window that was restored."""
        known = min(ARRIVALS, max(0, window.known - 1))
        self._arrivals = sorted(window.time(ago) - window.time(ago + 1) for ago in range(1, known + 1))
        self.last_ms = window.time(1) if window.known else 0
