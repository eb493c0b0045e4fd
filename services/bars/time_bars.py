"""The bars of one time spec: those that are open, and the closed ones that can still change. Pure.

The builder decides from the stream's watermark what closes when, and what is past the horizon.
"""

from operator import attrgetter

from services.bars.calendar import intervals
from services.bars.interval_set import IntervalSet
from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import HAS_GAP, OPEN, PARTIAL, REPAIRED, OpenBar
from services.bars.state import TimeState, pack, unpack
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar

MIN_TIME = -(1 << 62)
MAX_TIME = 1 << 62

_END = attrgetter("end")


class TimeBars:
    def __init__(self, symbol: str, spec: Spec, state: TimeState | None) -> None:
        self.symbol, self.spec = symbol, spec.text
        self.interval = intervals(spec, symbol)
        self._marks = {
            HAS_GAP: IntervalSet(state.holes if state else None),
            REPAIRED: IntervalSet(state.repairs if state else None),
        }
        self._marked = any(marks.ranges for marks in self._marks.values())
        self.open: dict[int, OpenBar] = {bar.start: bar for bar in map(unpack, state.open)} if state else {}
        self.closed: dict[int, OpenBar] = (
            {bar.start: bar for bar in map(unpack, state.closed)} if state else {}
        )
        self.first_end = min((bar.end for bar in self.open.values()), default=MAX_TIME)
        """The earliest end of an open bar; MAX_TIME if none is open."""
        self._forget_above = 64
        """With more closed bars than this it is worth looking for those that can be forgotten."""
        self.known = state is not None and state.partial_until is not None
        """Whether it is known if the stream had entries before the first one read; set by `begin`."""
        self.partial_until = state.partial_until if state and state.partial_until is not None else MAX_TIME
        """A bar that starts by then may lack trades older than the first one read; MAX_TIME before that."""

    def begin(self, complete: bool) -> None:
        """Before the first entry ever. `complete`: there was nothing in the stream before it."""
        self.known = True
        self.partial_until = MIN_TIME if complete else MAX_TIME

    def get_or_open(self, start: int, end: int) -> OpenBar:
        """Return the open bar of an interval that is not closed."""
        bar = self.open.get(start)
        if bar is None:
            # most bars are neither marked nor partial: every bar passes here
            quality = self._quality(start, end) if self._marked or start <= self.partial_until else 0
            bar = self.open[start] = OpenBar(start, end, quality)
            if end < self.first_end:
                self.first_end = end
        return bar

    def revise(self, start: int, end: int, run: Ohlcv) -> Bar:
        """Add a late trade. Return the revised closed bar, or the first bar of an interval that had none."""
        bar = self.closed.get(start)
        if bar is None:
            bar = self.closed[start] = OpenBar(start, end, self._quality(start, end))
        bar.add(run)
        return bar.emit(self.symbol, self.spec)

    def close(self, until: int, final_until: int) -> list[Bar]:
        """Close bars that end by `until`, oldest first; those that end by `final_until` may be forgotten."""
        due, first_end = [], MAX_TIME
        for bar in self.open.values():
            end = bar.end
            if end <= until:
                due.append(bar)
            elif end < first_end:
                first_end = end
        self.first_end = first_end
        if len(due) > 1:
            due.sort(key=_END)
        closed, symbol, spec, emitted = self.closed, self.symbol, self.spec, []
        for bar in due:
            closed[bar.start] = bar
            del self.open[bar.start]
            emitted.append(bar.emit(symbol, spec))
        if len(closed) > self._forget_above:
            self.forget(final_until)
        return emitted

    def mark(self, low: int, high: int, quality: int, after: int) -> list[Bar]:
        """Mark the bars that a Gap from `low` to `high`, both inclusive, touches.

        Return revisions of the closed ones that end after `after`.
        """
        start, end = self.interval(low)[0], self.interval(high)[1]
        self._marks[quality].add(start, end)
        self._marked = True
        revised = []
        for bar in sorted([*self.open.values(), *self.closed.values()], key=lambda bar: bar.start):
            if bar.start < end and start < bar.end and not bar.quality & quality:
                if bar.revision == OPEN:
                    bar.quality |= quality
                elif bar.end > after:
                    bar.quality |= quality
                    revised.append(bar.emit(self.symbol, self.spec))
        return revised

    def forget(self, until: int) -> None:
        """Drop the closed bars and the Gap ranges that end at `until` or before."""
        expired = []
        for start, bar in self.closed.items():
            if bar.end > until:
                # in the order of closing: an older bar behind this one stays longer, but does not change
                break
            expired.append(start)
        for start in expired:
            del self.closed[start]
        self._forget_above = 2 * len(self.closed) + 64
        if self._marked:
            for marks in self._marks.values():
                marks.forget(until)
            self._marked = any(marks.ranges for marks in self._marks.values())

    def state(self) -> TimeState:
        return TimeState(
            list(map(pack, self.open.values())),
            list(map(pack, self.closed.values())),
            self._marks[HAS_GAP].ranges,
            self._marks[REPAIRED].ranges,
            self.partial_until if self.known else None,
        )

    def _quality(self, start: int, end: int) -> int:
        quality = PARTIAL if start <= self.partial_until else 0
        for bit, marks in self._marks.items():
            if marks.overlaps(start, end):
                quality |= bit
        return quality
