"""A batch of trades as columns, so that a stretch of it can be tallied by loops that run in C. Pure.

It is a shortcut only: what it gives is what one trade after the other would give, and where that is not plain to see it
declines and leaves the trade to the long way.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import compress, repeat
from operator import is_, mul, sub

from services.bars.digits import Finer
from services.bars.tally import Tally
from tickbus.messages import Gap, Side, Trade
from tickbus.names import StreamId
from tickbus.units import MILLISECOND

WORTHWHILE = 12
"""Entries from which on the columns cost less than they save."""


class Columns:
    def __init__(self, bus_ms: list[int], stamps: list[int], trades: list[Trade], prices: list[int], sizes: list[int]) -> None:
        self.bus_ms, self.stamps, self.prices, self.sizes = bus_ms, stamps, prices, sizes
        self._texts = [trade.price_text for trade in trades]
        self._sides = [trade.side for trade in trades]
        self._leads = list(map(sub, stamps, map(MILLISECOND.__mul__, bus_ms)))
        """By how much each trade's ts_event is ahead of bus time, ns."""

    def extent(self, begin: int, most: float, end_ts: int, due: int, lead: int) -> int:
        """-> the index behind the trades from `begin` on, at most so many, that lie before `end_ts` and come surely before the
        watermark has reached `due`. `lead`: by how much it is ahead of bus time now."""
        end = bisect_left(self.stamps, end_ts, begin)
        if end - begin > most:
            end = begin + int(most)
        if end <= begin:
            return begin
        # no trade can bring the watermark further ahead of bus time than it is itself
        lead = max(lead, max(self._leads[begin:end]))
        return bisect_right(self.bus_ms, -((lead - due) // MILLISECOND), begin, end)

    def tally(self, run: Tally, begin: int, end: int) -> None:
        """Add the trades [begin, end) to the run."""
        prices, sizes, sides = self.prices[begin:end], self.sizes[begin:end], self._sides[begin:end]
        highest, lowest = max(prices), min(prices)
        if highest > run.highest:
            run.highest, run.high = highest, self._texts[begin + prices.index(highest)]
        if lowest < run.lowest:
            run.lowest, run.low = lowest, self._texts[begin + prices.index(lowest)]
        run.close, run.last_ts = self._texts[end - 1], self.stamps[end - 1]
        run.trades += end - begin
        run.volume += sum(sizes)
        run.value += sum(map(mul, prices, sizes))
        if sides.count(Side.UNKNOWN) < len(sides):
            run.buys += sum(compress(sizes, map(is_, sides, repeat(Side.BUY))))
            run.sells += sum(compress(sizes, map(is_, sides, repeat(Side.SELL))))


def columns(entries: Sequence[tuple[StreamId, Trade | Gap]], prices: Mapping[str, int], sizes: Mapping[str, int], apart: int) -> Columns | None:
    """None if the batch holds anything but trades in order of time, with price and size, at these scales, without a flag of `apart`."""
    trades = [message for _, message in entries if type(message) is Trade]
    if len(trades) < len(entries) or any(flags & apart for flags in {trade.flags for trade in trades}):
        return None
    stamps = [trade.ts_event for trade in trades]
    if stamps != sorted(stamps):
        return None
    try:
        scaled_prices = [prices[trade.price_text] for trade in trades]
        scaled_sizes = [sizes[trade.size_text] for trade in trades]
    except Finer:
        return None
    if not all(scaled_prices) or not all(scaled_sizes):
        return None
    return Columns([id[0] for id, _ in entries], stamps, trades, scaled_prices, scaled_sizes)
