"""The time bars of all specs of a stream: which a trade opens or revises, which close and when. Pure."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import OpenBar
from services.bars.state import TimeState
from services.bars.time_bars import TimeBars
from services.bars.watermark import MAX_TIME, MIN_TIME, Watermark
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar, Gap, GapKind

_END = attrgetter("end")


Emitted = tuple[int, Bar]
"""Bus time in ms of what caused the bar, and the bar. The time is that of the entry, or of the instant at
which the bar closed; it never decreases. A plain tuple: a named one costs a tenth of building the bar.
"""


class Timeline:
    """`grace` and `horizon` in ns. The watermark belongs to the stream: its owner advances it."""

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
        self._grace, self._final_after = grace, grace + horizon
        self._watermark = watermark
        first = min([bars.first_end for bars in self.specs], default=MAX_TIME)
        self.due = first if first == MAX_TIME else first + grace
        """The watermark at which the next bar closes."""

    @property
    def final_until(self) -> int:
        """Neither a late trade nor a Gap changes a closed bar that ends here or before: the watermark is
        never below the newest ts_event.
        """
        return self._watermark.newest - self._final_after

    def start_run(
        self, ms: int, run: Ohlcv, quality: int, emitted: list[Emitted]
    ) -> tuple[list[OpenBar], int, int, bool]:
        """Add the run's first trade, at bus time `ms`, after all due bars are closed; revise closed bars.

        `quality`: bits to set on the bars that take it. Return the open bars it belongs to, the range
        [low, high) of ts_event that these have in common, and whether it is too late for any spec.
        """
        ts, open_bars = run.first_ts, []
        # a bar that ends at or before the first is closed; at or before the second, final
        watermark = self._watermark.before(ms)
        closed, final = watermark - self._grace, watermark - self._final_after
        if ts >= self._watermark.newest:
            # not older than all before it: never too late, however long the bus was quiet
            final = MIN_TIME
        low, high, too_late = MIN_TIME, MAX_TIME, False
        for bars in self.specs:
            start, end = bars.interval(ts)
            if start not in bars.closed and (end > closed or start in bars.open):
                open_bars.append(bars.get_or_open(start, end))
                if start > low:
                    low = start
                if end < high:
                    high = end
            elif end > final:
                emitted.append((ms, bars.revise(start, end, run, quality)))
            else:
                too_late = True
                if end > self.final_until and (bar := bars.miss(start, end)):
                    emitted.append((ms, bar))
        if quality:
            for open_bar in open_bars:
                open_bar.quality |= quality
        if high + self._grace < self.due:
            self.due = high + self._grace
        return open_bars, low, high, too_late

    def is_closed(self, end: int, watermark: int) -> bool:
        """Return whether a bar that ends at `end` is closed at this watermark."""
        return end + self._grace <= watermark

    def close(self, watermark: int, emitted: list[Emitted]) -> None:
        """Close the bars due at this watermark, which has reached `due`: by end, then by spec."""
        grace, reaches_at = self._grace, self._watermark.reaches_at
        until, final_until, due = watermark - grace, self.final_until, MAX_TIME
        closed: list[Bar] = []
        for bars in self.specs:
            if bars.first_end <= until:
                closed += bars.close(until, final_until)
            if bars.first_end < due:
                due = bars.first_end
        self.due = due if due == MAX_TIME else due + grace
        if len(closed) > 1:
            closed.sort(key=_END)
        emitted += [(reaches_at(bar.end + grace), bar) for bar in closed]

    def mark_open(self, quality: int) -> None:
        """Set these bits on all open bars."""
        for bars in self.specs:
            for bar in bars.open.values():
                bar.quality |= quality

    def apply_gap(self, gap: Gap) -> list[Bar]:
        """Mark the bars that a Gap concerns. Return revisions of the closed ones."""
        # the two ends may come from different clocks: an inverted range still says where the hole is
        low, high = sorted((gap.from_ts, gap.to_ts))
        until, revised = self.final_until, []
        for bars in self.specs:
            if not gap.repaired:
                revised += bars.mark_hole(low, high, until)
            elif gap.kind is GapKind.VOID:
                revised += bars.mark_void(low, high, until)
            else:
                revised += bars.mark_repair(low, high, until)
        return revised

    def begin(self, subscribed: int) -> None:
        """Before the first entry of a spec without history. `subscribed`: as for TimeBars."""
        for bars in self.specs:
            if not bars.known:
                bars.begin(subscribed)

    @property
    def awaits_first_trade(self) -> bool:
        """Whether the trade that decides which bars are partial is still to come."""
        return any(bars.partial_until == MAX_TIME for bars in self.specs)

    def first_trade(self, ts: int) -> None:
        """The trade that decides which bars are partial."""
        for bars in self.specs:
            if bars.partial_until == MAX_TIME:
                bars.first_trade(ts)

    def states(self) -> dict[str, TimeState]:
        for bars in self.specs:
            bars.forget(self.final_until)
        return {bars.spec: bars.state() for bars in self.specs}
