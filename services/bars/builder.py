"""All bars of one trade stream. Pure: entries and bus time go in, bars come out.

The rules
- A time bar holds the trades with start <= ts_event < end; a count bar holds trades in stream order until one fills it.
  First and last are by stream order everywhere.
- The watermark is the newest ts_event of the stream plus the bus time that passed since the entry that brought it. (Trades
  flagged FUTURE_TIME bring none; those that move no bar do.) A time bar closes at the first whole ms of bus time at which the
  watermark has reached end + grace, after all entries of that ms: a trade of that very ms is in, a trade of a later ms finds
  the bar closed, whether `clock` was called in between or not. What is closed stays closed, also when the watermark falls
  because a belated trade sets it anew.
- So bars, revisions, their order and their causes follow from the entries alone: not from how often `clock` is called, nor
  from where the builder was stopped and started again with its state.
- A late trade of a closed bar makes a revision while the watermark is below end + grace + horizon; so does one of an
  interval that had no bar and should be closed by now (its first bar, revision 0). From then on it is too late. A trade
  newer than all before it is the watermark, however long the bus was quiet: it is never too late, so that a tape replayed
  slowly, or a feed that stalls and then delivers, ends in the same bars. Count bars know no lateness.
- A Gap marks the bars that it overlaps, [from_ts, to_ts] with [start, end): open, closed or yet to come, and the count bar that
  is open or comes next. A closed bar is in its reach until the newest ts_event, without the bus time passed, is beyond the
  horizon: the Gap of a long outage comes long after the clock closed the bar in which the outage began. A repaired Gap adds
  `repaired`; `has_gap` stays, for nobody can prove that this was all that the hole held.
- `partial`: the bars that start no later than the first trade read, unless the stream was read from its very first entry.

How it is fast: trades in a row that fall into the same open bar of every spec are one run, tallied once; the tally is merged
into the bars when anything else happens. So a further spec costs per bar, not per trade. Of a batch, stretches of a run are
tallied column by column (services.bars.columnar).
"""

from collections.abc import Sequence
from math import inf

from services.bars.columnar import WORTHWHILE, Columns, Entries
from services.bars.columnar import columns as make_columns
from services.bars.count_bars import CountBars, least_room
from services.bars.fixed_point import PrecisionExceeded, fitting, scaled
from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import HAS_GAP, REPAIRED, OpenBar
from services.bars.state import VERSION, StreamState, dump, load
from services.bars.time_bars import ALWAYS, NEVER
from services.bars.timeline import Emitted, Timeline
from services.bars.watermark import Watermark
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Flag, Gap, Side, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import MILLISECOND

__all__ = ["Emitted", "StreamBars"]

_CANCELLED, _OFF_BOOK, _FUTURE = int(Flag.CANCELLED), int(Flag.OFF_BOOK), int(Flag.FUTURE_TIME)
_APART = _CANCELLED | _OFF_BOOK | _FUTURE
_BUY, _SELL = Side.BUY, Side.SELL


class StreamBars:
    """`grace` and `horizon` in ns; `state` as from `state()`, of any set of specs: one that is not in it starts without history. Each spec once.

    Entries come in stream order, none twice. What they emit comes in order of cause; of one instant: closings by end, then
    by spec, then what a trade or Gap revises, then the count bars that it fills, in the order of the specs.
    """

    def __init__(
        self, symbol: str, specs: Sequence[Spec], grace: int, horizon: int, state: bytes | None = None
    ) -> None:
        old = load(state) if state is not None else StreamState(VERSION, NEVER, 0, 0, 0, {}, {})
        self.counters = {"too_late": 0, "off_book": 0, "zero": 0, "cancelled": 0}
        """Trades that moved no bar, by reason, since this object was made; too late counts if it was so for any spec."""
        self._watermark = Watermark(old.newest, old.newest_at)
        timed = [spec for spec in specs if spec.measure == "time"]
        self._time = Timeline(symbol, timed, grace, horizon, self._watermark, old.time)
        self._counts = [
            CountBars(symbol, spec, old.counts.get(spec.text)) for spec in specs if spec.measure != "time"
        ]
        self._by_amount = any(bars.measure != "tick" for bars in self._counts)
        self._began = all(bars.began for bars in self._counts) and all(
            bars.known for bars in self._time.specs
        )
        self._first_is_due = not self._began or self._time.first_is_due
        self._prices, self._sizes = scaled(old.price_scale), scaled(old.size_scale)
        self._run: Ohlcv | None = None
        """Trades since the bars were last brought up to date; they belong to `_cells` and to every count bar."""
        self._cells: list[OpenBar] = []
        self._start = self._end = 0
        """A trade with ts_event in [_start, _end) goes on with the run."""
        self._room: tuple[float, float, float] = (inf, inf, inf)
        """Trades, volume and value of a run that fill a count bar."""

    @property
    def open_bars(self) -> int:
        return sum(len(bars.open) for bars in self._time.specs) + sum(bars.open for bars in self._counts)

    @property
    def newest_event(self) -> int:
        """The newest ts_event; 0 before the first trade."""
        return self._watermark.newest

    @property
    def closes_at_ms(self) -> int | None:
        """Bus time at which the next time bar closes if nothing else comes; a `clock` beyond it emits the bar."""
        return None if self._time.due == ALWAYS else self._watermark.instant(self._time.due)

    def apply(self, id: StreamId, message: Trade | Gap) -> list[Emitted]:
        """The next entry of the stream. WireError if its numbers are none."""
        emitted: list[Emitted] = []
        self._apply(id, message, emitted)
        return emitted

    def apply_many(self, entries: Entries) -> list[Emitted]:
        """The next entries of the stream: the same as one after the other, and faster from some twenty on."""
        emitted: list[Emitted] = []
        columns = None
        if len(entries) >= WORTHWHILE and not self._by_amount:
            columns = make_columns(entries, self._prices, self._sizes, _APART)
        if columns is None:
            for id, message in entries:
                self._apply(id, message, emitted)
            return emitted
        self._apply(*entries[0], emitted)
        self._apply_columns(entries, columns, emitted)
        return emitted

    def _apply(self, id: StreamId, message: Trade | Gap, emitted: list[Emitted]) -> None:
        """One entry. A trade that goes on with the run is dealt with here, and here is where the time goes."""
        ms, mark = id[0], self._watermark
        watermark = mark.newest + (ms - 1 - mark.newest_at) * MILLISECOND
        if watermark >= self._time.due and ms > mark.newest_at:
            self._close(watermark, emitted)
        if not isinstance(message, Trade):
            self._gap(id, message, emitted)
            return
        run, ts, text = self._run, message.ts_event, message.price_text
        if run is None or ts < self._start or ts >= self._end or message.flags & _APART:
            self._trade(id, message, emitted)
            return
        try:
            price, size = self._prices[text], self._sizes[message.size_text]
        except PrecisionExceeded:
            price = size = 0
        if not price or not size:
            self._trade(id, message, emitted)
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
        if self._counts:
            trades, volume, value = self._room
            if run.trades >= trades or run.volume >= volume or run.value >= value:
                self._fill(ms, emitted)

    def _apply_columns(self, entries: Entries, columns: Columns, emitted: list[Emitted]) -> None:
        """The entries after the first, run by run: as `_apply` and `_trade` do, for trades of which nothing is left to ask."""
        position, count, mark = 1, len(entries), self._watermark
        stamps, prices, sizes = columns.stamps, columns.prices, columns.sizes
        while (position := self._stretch(columns, position, emitted)) < count:
            (id, trade), ts = entries[position], stamps[position]
            ms = id[0]
            watermark = mark.newest + (ms - 1 - mark.newest_at) * MILLISECOND
            if watermark >= self._time.due and ms > mark.newest_at:
                self._close(watermark, emitted)
            if self._start <= ts < self._end or not isinstance(trade, Trade):
                # it goes on with the run, and fills a count bar
                self._apply(id, trade, emitted)
            else:
                self._end_run()
                if ts > mark.newest:
                    mark.newest, mark.newest_at = ts, ms
                self._start_run(ms, trade, prices[position], sizes[position], emitted)
            position += 1

    def _stretch(self, columns: Columns, begin: int, emitted: list[Emitted]) -> int:
        """Add to the run, if there is one, what goes on with it from `begin` on; -> the index behind."""
        run = self._run
        # the first was in [_start, _end) and the batch is in order, so only the end is of interest
        if run is None or not self._end:
            return begin
        # the trade that fills a count bar is left out: it does more than go on
        end = columns.extent(begin, self._room[0] - run.trades - 1, self._end)
        position = begin
        while (position := columns.passing(position, end, self._time.due, self._watermark)) < end:
            watermark = self._watermark.before(columns.entries[position][0][0])
            if self._time.closes(self._end, watermark):
                # the run's own bars; the others need not wait for it
                end = position
            else:
                self._time.close(watermark, emitted)
        if end > begin:
            columns.tally(run, begin, end)
        return end

    def clock(self, bus_ms: int) -> list[Emitted]:
        """Bus time: every entry of this stream with id.ms < bus_ms has been applied, and none will come."""
        emitted: list[Emitted] = []
        if self._watermark.passed(self._time.due, bus_ms):
            self._close(self._watermark.before(bus_ms), emitted)
        return emitted

    def state(self) -> bytes:
        """All that is needed to go on after the last entry applied."""
        self._end_run()
        mark, counts = self._watermark, {bars.spec: bars.state() for bars in self._counts}
        return dump(
            StreamState(
                VERSION,
                mark.newest,
                mark.newest_at,
                self._prices.scale,
                self._sizes.scale,
                self._time.states(),
                counts,
            )
        )

    def _trade(self, id: StreamId, trade: Trade, emitted: list[Emitted]) -> None:
        """Any trade that does not simply go on with the run."""
        self._end_run()
        if not self._began:
            self._begin(id)
        ms, flags, ts = id[0], trade.flags, trade.ts_event
        if not flags & _FUTURE:
            if self._first_is_due:
                self._first_is_due = False
                self._time.first(ts)
            self._watermark.bring(ts, ms)
        if flags & _CANCELLED:
            self.counters["cancelled"] += 1
        elif flags & _OFF_BOOK:
            self.counters["off_book"] += 1
        else:
            try:
                price, size = self._prices[trade.price_text], self._sizes[trade.size_text]
            except PrecisionExceeded:
                price, size = self._finer(trade)
            if price and size:
                self._start_run(ms, trade, price, size, emitted)
            else:
                self.counters["zero"] += 1

    def _start_run(self, ms: int, trade: Trade, price: int, size: int, emitted: list[Emitted]) -> None:
        """No run is open, and what was due is closed."""
        run = self._run = Ohlcv.of(trade, price, size, self._prices.scale, self._sizes.scale)
        self._cells, low, high, too_late = self._time.start(ms, run, emitted)
        if too_late:
            self.counters["too_late"] += 1
        if len(self._cells) == len(self._time.specs) and not self._first_is_due:
            self._start, self._end = low, high
        if self._counts:
            self._room = least_room(self._counts, self._prices.scale, self._sizes.scale)
            trades, volume, value = self._room
            if trades <= 1 or size >= volume or run.value >= value:
                self._fill(ms, emitted)

    def _finer(self, trade: Trade) -> tuple[int, int]:
        """Price and size at scales that hold them: the stream's scales grow, and so no run, all of one scale, may be open."""
        self._prices = fitting(self._prices, trade.price_text)
        self._sizes = fitting(self._sizes, trade.size_text)
        return self._prices[trade.price_text], self._sizes[trade.size_text]

    def _fill(self, ms: int, emitted: list[Emitted]) -> None:
        self._end_run()
        emitted += [(ms, bar) for bars in self._counts if (bar := bars.close_if_full())]

    def _gap(self, id: StreamId, gap: Gap, emitted: list[Emitted]) -> None:
        self._end_run()
        if not self._began:
            self._begin(id)
        quality = REPAIRED if gap.repaired else HAS_GAP
        # two clocks may have made the range: one that is upside down still says where the hole is
        low, high = sorted((gap.from_ts, gap.to_ts))
        emitted += [(id.ms, bar) for bar in self._time.mark(low, high, quality)]
        for counted in self._counts:
            counted.mark(quality)

    def _begin(self, id: StreamId) -> None:
        """Before the first entry of a spec without history: is the stream read from its birth?"""
        self._began = True
        complete = id.seq == 1
        self._time.begin(complete)
        for counted in self._counts:
            if not counted.began:
                counted.begin(complete)

    def _end_run(self) -> None:
        """Bring the bars up to date; the next trade starts a run of its own."""
        run = self._run
        if run is None:
            return
        for cell in self._cells:
            cell.add(run)
        for bars in self._counts:
            bars.add(run)
        self._run, self._cells = None, []
        self._start = self._end = 0

    def _close(self, watermark: int, emitted: list[Emitted]) -> None:
        """Close what was to be closed at a watermark that is not behind what is due."""
        if self._time.closes(self._end, watermark):
            # else the bars of the run are among those that stay open
            self._end_run()
        self._time.close(watermark, emitted)
