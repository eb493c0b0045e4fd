"""The time bars of all specs of a stream: which of them a trade opens or revises, and which close at what watermark. Pure."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import OpenBar
from services.bars.state import TimeState
from services.bars.time_bars import ALWAYS, NEVER, TimeBars
from services.bars.watermark import Watermark
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar

_END = attrgetter("end")


Emitted = tuple[int, Bar]
"""Bus time in ms of what made the bar, and the bar. The time is that of the entry, or of the instant at which it closed; it never
falls from one emitted bar to the next. A plain tuple: making a named one takes as long as a tenth of the bar."""


class Timeline:
    """`grace` and `horizon` in ns. The watermark is the stream's: its owner brings it along."""

    def __init__(
        self,
        symbol: str,
        specs: Sequence[Spec],
        grace: int,
        horizon: int,
        watermark: Watermark,
        states: Mapping[str, TimeState],
    ) -> None:
        self.specs = [TimeBars(symbol, spec, states.get(spec.text)) for spec in specs]
        self._grace, self._keep = grace, grace + horizon
        self._watermark = watermark
        first = min([bars.first_end for bars in self.specs], default=ALWAYS)
        self.due = first if first == ALWAYS else first + grace
        """The watermark at which the next bar closes."""

    @property
    def reach(self) -> int:
        """Neither a late trade nor a Gap changes a closed bar that ends here or before: the watermark is never below the newest ts_event."""
        return self._watermark.newest - self._keep

    def start(self, ms: int, run: Ohlcv, emitted: list[Emitted]) -> tuple[list[OpenBar], int, int, bool]:
        """The run's first trade, at the bus time `ms`, after what was due is closed. -> the open bars it belongs to, the range
        [low, high) of ts_event that these have in common, and whether it is too late for any spec. Closed bars are revised."""
        ts, cells = run.first_ts, []
        # a bar that ends at one of these or before is closed; is out of reach
        watermark = self._watermark.before(ms)
        closed, gone = watermark - self._grace, watermark - self._keep
        low, high, too_late = NEVER, ALWAYS, False
        for bars in self.specs:
            start, end = bars.interval(ts)
            if start not in bars.closed and (end > closed or start in bars.open):
                cells.append(bars.opened(start, end))
                if start > low:
                    low = start
                if end < high:
                    high = end
            elif end > gone:
                emitted.append((ms, bars.revise(start, end, run)))
            else:
                too_late = True
        if high + self._grace < self.due:
            self.due = high + self._grace
        return cells, low, high, too_late

    def closes(self, end: int, watermark: int) -> bool:
        """Whether a bar that ends at `end` is closed at this watermark."""
        return end + self._grace <= watermark

    def close(self, watermark: int, emitted: list[Emitted]) -> None:
        """Close what was to be closed at a watermark that is not behind `due`, by end; of bars that end together, by spec."""
        grace, instant = self._grace, self._watermark.instant
        until, reach, due = watermark - grace, self.reach, ALWAYS
        closed: list[Bar] = []
        for bars in self.specs:
            if bars.first_end <= until:
                closed += bars.close(until, reach)
            if bars.first_end < due:
                due = bars.first_end
        self.due = due if due == ALWAYS else due + grace
        if len(closed) > 1:
            closed.sort(key=_END)
        emitted += [(instant(bar.end + grace), bar) for bar in closed]

    def mark(self, low: int, high: int, quality: int) -> list[Bar]:
        """A Gap from `low` to `high`, both inclusive; -> revisions of the closed bars that it marks."""
        return [bar for bars in self.specs for bar in bars.mark(low, high, quality, self.reach)]

    def begin(self, complete: bool) -> None:
        """Before the first entry of a spec without history: is there nothing in the stream before it?"""
        for bars in self.specs:
            if not bars.known:
                bars.begin(complete)

    @property
    def first_is_due(self) -> bool:
        """Is the trade still to come that tells which bars are partial?"""
        return any(bars.partial_until == ALWAYS for bars in self.specs)

    def first(self, ts: int) -> None:
        """It tells which bars are partial: those of its time and before."""
        for bars in self.specs:
            if bars.partial_until == ALWAYS:
                bars.partial_until = ts

    def states(self) -> dict[str, TimeState]:
        for bars in self.specs:
            bars.forget(self.reach)
        return {bars.spec: bars.state() for bars in self.specs}
