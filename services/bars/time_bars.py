"""The bars of one time spec: those that are open, and the closed ones that can still change. Pure.

The builder decides from the stream's watermark what closes when, and what is past the horizon.
"""

from collections.abc import Iterable
from operator import attrgetter

from services.bars.interval_set import IntervalSet
from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import HAS_GAP, LATE, MISSED, OPEN, PARTIAL, REPAIRED, OpenBar
from services.bars.state import TimeState, pack, unpack
from services.bars.watermark import MAX_TIME
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar
from tickbus.trading_days import intervals

_START, _END = attrgetter("start"), attrgetter("end")


class TimeBars:
    def __init__(self, symbol: str, spec: Spec, state: TimeState | None) -> None:
        self.symbol, self.spec = symbol, spec.text
        self.interval = intervals(spec, symbol)
        self._holes = IntervalSet(state.holes if state else None)
        self._voids = IntervalSet(state.voids if state else None)
        self._marked = bool(self._holes.ranges or self._voids.ranges)
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
        self._subscribed = state.subscribed if state else 0

    def begin(self, subscribed: int) -> None:
        """Before the first entry ever. `subscribed`: since when all trades are in the stream, and read; 0 if
        that is unknown, or if the stream had entries before.
        """
        self.known = True
        self._subscribed = subscribed

    def first_trade(self, ts: int) -> None:
        """Decide which bars are partial: those that start by `ts`, the time of the first trade read, unless
        the vendor had acknowledged the subscription by then.
        """
        self.partial_until = min(ts, self._subscribed - 1) if self._subscribed else ts
        self._subscribed = 0
        for bar in self.open.values():
            if bar.start > self.partial_until:
                bar.quality &= ~PARTIAL

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

    def revise(self, start: int, end: int, run: Ohlcv, quality: int) -> Bar:
        """Add a late trade. Return the revised closed bar, or the first bar of an interval that had none.

        `quality`: bits to set.
        """
        bar = self.closed.get(start)
        if bar is None:
            bar = self.closed[start] = OpenBar(start, end, self._quality(start, end))
        bar.add(run)
        bar.quality |= quality
        return bar.emit(self.symbol, self.spec)

    def miss(self, start: int, end: int) -> Bar | None:
        """A trade came too late for an interval. Return the revision that says so, if there is a bar that
        does not yet.
        """
        self._holes.add(start, end)
        self._marked = True
        bar = self.closed.get(start)
        if bar is None or bar.quality & MISSED:
            return None
        known = bar.quality & HAS_GAP
        bar.quality |= HAS_GAP | MISSED
        bar.packed = None
        return None if known else bar.emit(self.symbol, self.spec)

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

    def mark_hole(self, low: int, high: int, after: int) -> list[Bar]:
        """Mark the bars that a Gap from `low` to `high`, both inclusive, touches: HAS_GAP.

        Return revisions of the closed ones that end after `after`.
        """
        start, end = self.interval(low)[0], self.interval(high)[1]
        self._holes.add(start, end)
        self._marked = True
        return self._mark(self._touched(start, end), HAS_GAP, after)

    def mark_repair(self, low: int, high: int, after: int) -> list[Bar]:
        """The missing trades of a range are in the stream now: mark the bars that took one, REPAIRED.

        Arguments and result as for `mark_hole`.
        """
        start, end = self.interval(low)[0], self.interval(high)[1]
        took = [bar for bar in self._touched(start, end) if bar.quality & LATE]
        for bar in took:
            bar.quality &= ~LATE
            bar.packed = None
        return self._mark(took, REPAIRED, after)

    def mark_void(self, low: int, high: int, after: int) -> list[Bar]:
        """Nothing was missing in a range: mark the bars with a hole, REPAIRED, unless a trade came too late.

        Arguments and result as for `mark_hole`.
        """
        start, end = self.interval(low)[0], self.interval(high)[1]
        self._voids.add(start, end)
        self._marked = True
        touched = self._touched(start, end)
        return self._mark(
            [bar for bar in touched if bar.quality & (HAS_GAP | MISSED) == HAS_GAP], REPAIRED, after
        )

    def _touched(self, start: int, end: int) -> list[OpenBar]:
        """Return the bars that overlap [start, end), oldest first."""
        bars = (bar for bars in (self.open, self.closed) for bar in bars.values())
        return sorted((bar for bar in bars if bar.start < end and start < bar.end), key=_START)

    def _mark(self, bars: Iterable[OpenBar], quality: int, after: int) -> list[Bar]:
        revised = []
        for bar in bars:
            if not bar.quality & quality:
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
            self._holes.forget(until)
            self._voids.forget(until)
            self._marked = bool(self._holes.ranges or self._voids.ranges)

    def state(self) -> TimeState:
        return TimeState(
            list(map(pack, self.open.values())),
            list(map(pack, self.closed.values())),
            self._holes.ranges,
            self._voids.ranges,
            self.partial_until if self.known else None,
            self._subscribed,
        )

    def _quality(self, start: int, end: int) -> int:
        quality = PARTIAL if start <= self.partial_until else 0
        if self._holes.overlaps(start, end):
            quality |= HAS_GAP
            if self._voids.overlaps(start, end):
                quality |= REPAIRED
        return quality
