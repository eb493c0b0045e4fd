"""All bars of one trade stream. Pure: entries and bus time go in, bars come out.

Rules
- A time bar holds the trades with start <= ts_event < end; a count bar holds trades in stream order until
  one fills it. First and last are always by stream order.
- The watermark is the newest ts_event of the stream plus the bus time elapsed since the entry that carried
  it. (Trades that move no bar advance it too. Those flagged FUTURE_TIME or BAD_TIME do not, unless no others
  come: services.bars.watermark. Bars that are open, or take a trade, while the vendor's clock is ahead are
  `clock_ahead`; their intervals stay by ts_event.) A time bar closes at the first whole ms of bus time at
  which the watermark has reached end + grace, after all entries of that ms: a trade of that very ms is
  included, a trade of a later ms finds the bar closed, whether or not `clock` was called in between. A closed
  bar stays closed, even when the watermark falls because a delayed trade resets it.
- So bars, revisions, their order and their causes depend on the entries alone: not on how often `clock` is
  called, nor on where the builder was stopped and restarted from its state.
- A late trade for a closed bar makes a revision while the watermark is below end + grace + horizon. So does
  one for an interval that had no bar and should be closed by now (its first bar, revision 0). After that it
  is too late; a bar that it was too late for, and that a Gap could still revise, gets `has_gap`. A trade not
  older than the newest before it is never too late, however long the bus was quiet: so a tape replayed
  slowly, or a feed that stalls and then delivers, ends in the same bars. Lateness does not apply to count
  bars.
- A Gap marks the bars that it overlaps, [from_ts, to_ts] with [start, end): open, closed or still to come,
  and the count bar that is open or comes next. A Gap can mark a closed bar until the newest ts_event,
  without the elapsed bus time, is beyond the horizon: the Gap of a long outage arrives long after the clock
  closed the bar in which the outage began.
- A repaired Gap adds `repaired` to the bars that it overlaps and that took a late trade since the one before:
  nowhere else is anything repaired. One of kind VOID adds it to all that have a hole, but for those that a
  trade came too late for. `has_gap` stays, because nobody can prove that the repair was everything the hole
  contained.
- `partial`: time bars that start no later than the first trade read; if that is the first of the stream, only
  those that start before the vendor acknowledged the subscription (`subscribed`). And the first count bar,
  unless the stream was read from its start.
- A trade of doubtful id (DOUBTFUL_ID) counts like any other: it is a print, only its id is unsure.

Why it is fast: consecutive trades that fall into the same open bar of every spec form one run, accumulated
once; the run is merged into the bars when anything else happens. So another spec costs per bar, not per
trade. In a batch, stretches of a run are accumulated column by column (services.bars.columnar).
"""

from collections.abc import Sequence
from math import inf

from services.bars.columnar import MIN_BATCH, Columns, Entries
from services.bars.columnar import columns as make_columns
from services.bars.count_bars import CountBars, min_remaining
from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import CLOCK_AHEAD, LATE, OpenBar
from services.bars.state import VERSION, StreamState, dump, load
from services.bars.timeline import Emitted, Timeline
from services.bars.watermark import MAX_TIME, MIN_TIME, SUSPICIOUS_TRADES, Watermark
from tickbus.fixed_point import PrecisionExceeded, ensure_scale, scale_table
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Flag, Gap, Side, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import MILLISECOND

__all__ = ["Emitted", "StreamBars"]

_CANCELLED, _OFF_BOOK, _FUTURE = int(Flag.CANCELLED), int(Flag.OFF_BOOK), int(Flag.FUTURE_TIME)
_LATE = int(Flag.LATE | Flag.BACKFILLED)
_SPECIAL = _CANCELLED | _OFF_BOOK | _FUTURE | int(Flag.BAD_TIME) | _LATE
"""A trade with one of these is a run of its own."""
_BUY, _SELL = Side.BUY, Side.SELL


class StreamBars:
    """`grace` and `horizon` in ns. `state`: from `state()`, of any set of specs; a spec missing in it
    starts without history. `subscribed`: when the vendor acknowledged the stream's subscription, ns, 0 if
    unknown; it matters only before the first entry. Each spec once.

    Entries must come in stream order, none twice. Bars are emitted in order of cause. Within one instant:
    closed bars by end, then by spec; then those that a trade or Gap revises; then the count bars that it
    fills, in the order of the specs.
    """

    def __init__(
        self,
        symbol: str,
        specs: Sequence[Spec],
        grace: int,
        horizon: int,
        state: bytes | None = None,
        subscribed: int = 0,
    ) -> None:
        restored = load(state) if state is not None else StreamState(VERSION, MIN_TIME, 0, 0, 0, {}, {})
        self.counters = {"too_late": 0, "off_book": 0, "zero": 0, "cancelled": 0}
        """Trades that moved no bar since creation, by reason. One too late for any spec counts once."""
        self._watermark = Watermark(restored.newest, restored.newest_at, restored.ahead, restored.timed)
        self._subscribed = subscribed
        self._first_ahead = MAX_TIME if restored.first_ahead is None else restored.first_ahead
        """Until the first usable ts_event: the lowest one so far."""
        time_specs = [spec for spec in specs if spec.measure == "time"]
        self._timeline = Timeline(symbol, time_specs, grace, horizon, self._watermark, restored.time)
        self._count_bars = [
            CountBars(symbol, spec, restored.counts.get(spec.text))
            for spec in specs
            if spec.measure != "time"
        ]
        self._has_amount_bars = any(bars.measure != "tick" for bars in self._count_bars)
        self._began = all(bars.began for bars in self._count_bars) and all(
            bars.known for bars in self._timeline.specs
        )
        self._awaits_first_trade = not self._began or self._timeline.awaits_first_trade
        self._prices, self._sizes = scale_table(restored.price_scale), scale_table(restored.size_scale)
        self._run: Ohlcv | None = None
        """Trades since the bars were last updated; they belong to `_run_bars` and to every count bar."""
        self._run_bars: list[OpenBar] = []
        self._start = self._end = 0
        """A trade with ts_event in [_start, _end) continues the run."""
        self._remaining: tuple[float, float, float] = (inf, inf, inf)
        """Trades, volume and value of a run that fill a count bar."""

    @property
    def open_bars(self) -> int:
        return sum(len(bars.open) for bars in self._timeline.specs) + sum(
            bars.open for bars in self._count_bars
        )

    @property
    def newest_event(self) -> int:
        """The newest ts_event, or what replaces it in the watermark; 0 before the first trade."""
        return max(self._watermark.newest, 0)

    @property
    def clock_ahead(self) -> bool:
        """Whether the vendor's clock is ahead, so that bars close by the times of receipt."""
        return self._watermark.clock_ahead

    @property
    def has_clock(self) -> bool:
        """Whether time bars can close."""
        return self._watermark.exists

    @property
    def awaits_clock(self) -> bool:
        """Whether the vendor's clock seems to be ahead, and no time bar can close before that is certain."""
        mark = self._watermark
        return bool(self._timeline.specs) and not mark.exists and mark.ahead >= SUSPICIOUS_TRADES

    @property
    def closes_at_ms(self) -> int | None:
        """Bus time at which the next time bar closes if nothing else arrives; a `clock` beyond it emits the
        bar. None if no time bar is open.
        """
        return None if self._timeline.due == MAX_TIME else self._watermark.reaches_at(self._timeline.due)

    def apply(self, id: StreamId, message: Trade | Gap) -> list[Emitted]:
        """Apply the next entry of the stream. WireError if its numbers are invalid."""
        emitted: list[Emitted] = []
        self._apply(id, message, emitted)
        return emitted

    def apply_many(self, entries: Entries) -> list[Emitted]:
        """Apply the next entries of the stream: as one by one, but faster from about twenty on."""
        emitted: list[Emitted] = []
        columns = None
        if len(entries) >= MIN_BATCH and not self._has_amount_bars:
            columns = make_columns(entries, self._prices, self._sizes, _SPECIAL)
        if columns is None:
            for id, message in entries:
                self._apply(id, message, emitted)
            return emitted
        self._apply(*entries[0], emitted)
        self._apply_columns(entries, columns, emitted)
        return emitted

    def _apply(self, id: StreamId, message: Trade | Gap, emitted: list[Emitted]) -> None:
        """Apply one entry. A trade that continues the run is handled inline: this is the hot path."""
        ms, mark = id[0], self._watermark
        watermark = mark.newest + (ms - 1 - mark.newest_at) * MILLISECOND
        if watermark >= self._timeline.due and ms > mark.newest_at:
            self._close(watermark, emitted)
        if not isinstance(message, Trade):
            self._apply_gap(id, message, emitted)
            return
        run, ts, text = self._run, message.ts_event, message.price_text
        if run is None or ts < self._start or ts >= self._end or message.flags & _SPECIAL:
            self._apply_trade(id, message, emitted)
            return
        try:
            price, size = self._prices[text], self._sizes[message.size_text]
        except PrecisionExceeded:
            price = size = 0
        if not price or not size:
            self._apply_trade(id, message, emitted)
            return
        run.trades += 1
        run.volume += size
        run.value += price * size
        if price > run.highest:
            run.highest, run.high = price, text
        elif price < run.lowest:
            run.lowest, run.low = price, text
        run.close, run.last_ts = text, ts
        side = message.side
        if side is _BUY:
            run.buys += size
        elif side is _SELL:
            run.sells += size
        if ts > mark.newest:
            mark.newest, mark.newest_at = ts, ms
        if self._count_bars:
            trades, volume, value = self._remaining
            if run.trades >= trades or run.volume >= volume or run.value >= value:
                self._close_full(ms, emitted)

    def _apply_columns(self, entries: Entries, columns: Columns, emitted: list[Emitted]) -> None:
        """Apply all entries but the first, run by run: like `_apply` and `_apply_trade`, minus the checks."""
        position, count, mark = 1, len(entries), self._watermark
        stamps, prices, sizes = columns.stamps, columns.prices, columns.sizes
        while (position := self._extend_run(columns, position, emitted)) < count:
            (id, trade), ts = entries[position], stamps[position]
            ms = id[0]
            watermark = mark.newest + (ms - 1 - mark.newest_at) * MILLISECOND
            if watermark >= self._timeline.due and ms > mark.newest_at:
                self._close(watermark, emitted)
            if self._start <= ts < self._end or not isinstance(trade, Trade):
                # it continues the run, and fills a count bar
                self._apply(id, trade, emitted)
            else:
                self._end_run()
                if ts > mark.newest:
                    mark.newest, mark.newest_at = ts, ms
                self._start_run(ms, trade, prices[position], sizes[position], emitted)
            position += 1

    def _extend_run(self, columns: Columns, begin: int, emitted: list[Emitted]) -> int:
        """Add the trades from `begin` on that continue the run, if any. Return the index after them."""
        run = self._run
        # the first was in [_start, _end) and the batch is in order, so only the end matters
        if run is None or not self._end:
            return begin
        # the trade that fills a count bar is left out: it does more than continue the run
        end = columns.run_end(begin, self._remaining[0] - run.trades - 1, self._end)
        position = begin
        while (
            position := columns.advance_watermark(position, end, self._timeline.due, self._watermark)
        ) < end:
            watermark = self._watermark.before(columns.entries[position][0][0])
            if self._timeline.is_closed(self._end, watermark):
                # the run's own bars; the others need not wait for it
                end = position
            else:
                self._timeline.close(watermark, emitted)
        if end > begin:
            columns.add_to(run, begin, end)
        return end

    def clock(self, bus_ms: int) -> list[Emitted]:
        """Advance bus time: all entries of this stream with id.ms < bus_ms were applied; no more follow."""
        emitted: list[Emitted] = []
        if self._watermark.has_passed(self._timeline.due, bus_ms):
            self._close(self._watermark.before(bus_ms), emitted)
        return emitted

    def state(self) -> bytes:
        """Return everything needed to resume after the last entry applied."""
        self._end_run()
        mark, counts = self._watermark, {bars.spec: bars.state() for bars in self._count_bars}
        return dump(
            StreamState(
                VERSION,
                mark.newest,
                mark.newest_at,
                self._prices.scale,
                self._sizes.scale,
                self._timeline.states(),
                counts,
                mark.ahead,
                mark.timed,
                None if self._first_ahead == MAX_TIME else self._first_ahead,
            )
        )

    def _apply_trade(self, id: StreamId, trade: Trade, emitted: list[Emitted]) -> None:
        """Apply a trade that does not simply continue the run."""
        self._end_run()
        if not self._began:
            self._begin(id)
        ms, flags = id[0], trade.flags
        if self._watermark.note(trade, ms):
            self._timeline.mark_open(CLOCK_AHEAD)
        if self._awaits_first_trade:
            self._note_first(trade)
        if flags & _CANCELLED:
            self.counters["cancelled"] += 1
        elif flags & _OFF_BOOK:
            self.counters["off_book"] += 1
        else:
            try:
                price, size = self._prices[trade.price_text], self._sizes[trade.size_text]
            except PrecisionExceeded:
                price, size = self._raise_scales(trade)
            if not (price and size):
                self.counters["zero"] += 1
            elif flags & _SPECIAL:
                self._run_alone(ms, trade, price, size, emitted)
            else:
                self._start_run(ms, trade, price, size, emitted)

    def _note_first(self, trade: Trade) -> None:
        """Decide which bars are partial by the first trade with a usable ts_event, or once it is known that
        there is none.
        """
        first = trade.ts_event
        if trade.flags & _FUTURE:
            first = self._first_ahead = min(self._first_ahead, first)
            if not self._watermark.clock_ahead:
                return
        self._awaits_first_trade, self._first_ahead = False, MAX_TIME
        self._timeline.first_trade(first)

    def _run_alone(self, ms: int, trade: Trade, price: int, size: int, emitted: list[Emitted]) -> None:
        """Take a trade that says something of the bars it is in."""
        late = trade.flags & _LATE
        quality = (LATE if late else 0) | (CLOCK_AHEAD if self._watermark.clock_ahead else 0)
        self._start_run(ms, trade, price, size, emitted, quality)
        self._end_run()
        if late:
            for bars in self._count_bars:
                bars.took_late()

    def _start_run(
        self, ms: int, trade: Trade, price: int, size: int, emitted: list[Emitted], quality: int = 0
    ) -> None:
        """Start a run. Precondition: no run is open, and all bars that were due are closed.

        `quality`: bits to set on the bars that take it.
        """
        run = self._run = Ohlcv.of(trade, price, size, self._prices.scale, self._sizes.scale)
        self._run_bars, low, high, too_late = self._timeline.start_run(ms, run, quality, emitted)
        if too_late:
            self.counters["too_late"] += 1
        if len(self._run_bars) == len(self._timeline.specs) and not self._awaits_first_trade:
            self._start, self._end = low, high
        if self._count_bars:
            self._remaining = min_remaining(self._count_bars, self._prices.scale, self._sizes.scale)
            trades, volume, value = self._remaining
            if trades <= 1 or size >= volume or run.value >= value:
                self._close_full(ms, emitted)

    def _raise_scales(self, trade: Trade) -> tuple[int, int]:
        """Return price and size at scales that can represent them. The stream's scales grow, so no run may
        be open: a run has one scale throughout.
        """
        self._prices = ensure_scale(self._prices, trade.price_text)
        self._sizes = ensure_scale(self._sizes, trade.size_text)
        return self._prices[trade.price_text], self._sizes[trade.size_text]

    def _close_full(self, ms: int, emitted: list[Emitted]) -> None:
        self._end_run()
        emitted += [(ms, bar) for bars in self._count_bars if (bar := bars.close_if_full())]

    def _apply_gap(self, id: StreamId, gap: Gap, emitted: list[Emitted]) -> None:
        self._end_run()
        if not self._began:
            self._begin(id)
        emitted += [(id.ms, bar) for bar in self._timeline.apply_gap(gap)]
        for bars in self._count_bars:
            bars.apply_gap(gap)

    def _begin(self, id: StreamId) -> None:
        """Before the first entry of a spec without history: was the stream read from its beginning?"""
        self._began = True
        complete = id.seq == 1
        self._timeline.begin(self._subscribed if complete else 0)
        for bars in self._count_bars:
            if not bars.began:
                bars.begin(complete)

    def _end_run(self) -> None:
        """Merge the run into its bars; the next trade starts a new run."""
        run = self._run
        if run is None:
            return
        for bar in self._run_bars:
            bar.add(run)
        for bars in self._count_bars:
            bars.add(run)
        self._run, self._run_bars = None, []
        self._start = self._end = 0

    def _close(self, watermark: int, emitted: list[Emitted]) -> None:
        """Close the bars that are due at this watermark, which has reached the next one due."""
        if self._timeline.is_closed(self._end, watermark):
            # otherwise the run's bars are among those that stay open
            self._end_run()
        self._timeline.close(watermark, emitted)
