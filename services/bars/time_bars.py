"""The bars of one time spec: which are open, which are closed and can still change. Pure.

What closes when, and what is past the horizon, the builder decides from the stream's watermark.
"""

from operator import attrgetter

from services.bars.calendar import intervals
from services.bars.interval_set import Ranges
from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import HAS_GAP, OPEN, PARTIAL, REPAIRED, OpenBar
from services.bars.state import TimeState, pack, unpack
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar

NEVER = -(1 << 62)
ALWAYS = 1 << 62

_END = attrgetter("end")


class TimeBars:
    def __init__(self, symbol: str, spec: Spec, state: TimeState | None) -> None:
        self.symbol, self.spec = symbol, spec.text
        self.interval = intervals(spec, symbol)
        self._marks = {
            HAS_GAP: Ranges(state.holes if state else None),
            REPAIRED: Ranges(state.repairs if state else None),
        }
        self._marked = any(ranges.ranges for ranges in self._marks.values())
        self.open: dict[int, OpenBar] = (
            {cell.start: cell for cell in map(unpack, state.open)} if state else {}
        )
        self.closed: dict[int, OpenBar] = (
            {cell.start: cell for cell in map(unpack, state.closed)} if state else {}
        )
        self.first_end = min((cell.end for cell in self.open.values()), default=ALWAYS)
        """The earliest end of an open bar; ALWAYS without one."""
        self._crowded = 64
        """So many closed bars make it worth looking for those that can be forgotten."""
        self.known = state is not None and state.partial_until is not None
        """Whether it is known that there was anything in the stream before the first entry read; `begin` tells."""
        self.partial_until = state.partial_until if state and state.partial_until is not None else ALWAYS
        """A bar that starts here or before may lack trades from before the first that was read. ALWAYS until that one comes."""

    def begin(self, complete: bool) -> None:
        """Before the first entry ever: was there nothing in the stream before it?"""
        self.known = True
        self.partial_until = NEVER if complete else ALWAYS

    def opened(self, start: int, end: int) -> OpenBar:
        """The open bar of an interval that is not closed."""
        cell = self.open.get(start)
        if cell is None:
            # most bars are neither: this is on the way of every bar
            quality = self._quality(start, end) if self._marked or start <= self.partial_until else 0
            cell = self.open[start] = OpenBar(start, end, quality)
            if end < self.first_end:
                self.first_end = end
        return cell

    def revise(self, start: int, end: int, run: Ohlcv) -> Bar:
        """A late trade: the closed bar with it, or the first bar of an interval that had none."""
        cell = self.closed.get(start)
        if cell is None:
            cell = self.closed[start] = OpenBar(start, end, self._quality(start, end))
        cell.add(run)
        return cell.emit(self.symbol, self.spec)

    def close(self, until: int, reach: int) -> list[Bar]:
        """Close the bars that end at `until` or before, oldest first. Closed ones that end at `reach` or before may be forgotten."""
        due, first_end = [], ALWAYS
        for cell in self.open.values():
            end = cell.end
            if end <= until:
                due.append(cell)
            elif end < first_end:
                first_end = end
        self.first_end = first_end
        if len(due) > 1:
            due.sort(key=_END)
        closed, symbol, spec, bars = self.closed, self.symbol, self.spec, []
        for cell in due:
            closed[cell.start] = cell
            del self.open[cell.start]
            bars.append(cell.emit(symbol, spec))
        if len(closed) > self._crowded:
            self.forget(reach)
        return bars

    def mark(self, low: int, high: int, quality: int, after: int) -> list[Bar]:
        """A Gap from `low` to `high`, both inclusive: mark the bars it touches; -> revisions of the closed ones that end after `after`."""
        start, end = self.interval(low)[0], self.interval(high)[1]
        self._marks[quality].add(start, end)
        self._marked = True
        revised = []
        for cell in sorted([*self.open.values(), *self.closed.values()], key=lambda cell: cell.start):
            if cell.start < end and start < cell.end and not cell.quality & quality:
                if cell.revision == OPEN:
                    cell.quality |= quality
                elif cell.end > after:
                    cell.quality |= quality
                    revised.append(cell.emit(self.symbol, self.spec))
        return revised

    def forget(self, until: int) -> None:
        """Drop the closed bars and the holes that end at `until` or before."""
        gone = []
        for start, cell in self.closed.items():
            if cell.end > until:
                # they stand in the order of closing; what is older and lies behind this one waits, out of reach
                break
            gone.append(start)
        for start in gone:
            del self.closed[start]
        self._crowded = 2 * len(self.closed) + 64
        if self._marked:
            for ranges in self._marks.values():
                ranges.forget(until)
            self._marked = any(ranges.ranges for ranges in self._marks.values())

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
        for bit, ranges in self._marks.items():
            if ranges.touch(start, end):
                quality |= bit
        return quality
