"""A batch of trades as columns, so that a stretch of it can be tallied by loops that run in C. Pure.

It is a shortcut only: what it gives is what one trade after the other would give, and where that is not plain to see it
declines and leaves the trade to the long way.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import compress, repeat
from operator import is_, itemgetter, mul, sub
from typing import cast

from services.bars.digits import Finer
from services.bars.tally import Tally
from tickbus.messages import Gap, Side, Trade
from tickbus.names import StreamId
from tickbus.units import MILLISECOND

WORTHWHILE = 20
"""Entries from which on the columns cost less than they save."""


class Columns:
    def __init__(self, ids: Sequence[StreamId], stamps: list[int], texts: list[str], prices: list[int], sizes: list[int], sides: list[Side]) -> None:
        self.bus_ms = list(map(itemgetter(0), ids))
        self.stamps, self.texts, self.prices, self.sizes, self.sides = stamps, texts, prices, sizes, sides

    def extent(self, begin: int, most: float, end_ts: int, due: int, newest: int, newest_at: int) -> int:
        """-> the index behind the trades from `begin` on, at most so many, that lie before `end_ts` and come surely before the
        watermark has reached `due`. It starts from `newest` at the bus time `newest_at`, ms."""
        stamps, bus_ms = self.stamps, self.bus_ms
        end = bisect_left(stamps, end_ts, begin)
        if end - begin > most:
            end = begin + int(most)
        if end <= begin:
            return begin
        last = stamps[end - 1]
        if (last if last > newest else newest) + (bus_ms[end - 1] - newest_at) * MILLISECOND < due:
            return end
        # closer: no trade can bring the watermark further ahead of bus time than it is itself
        ahead = max(newest - newest_at * MILLISECOND, max(map(sub, stamps[begin:end], map(MILLISECOND.__mul__, bus_ms[begin:end]))))
        return bisect_right(bus_ms, -((ahead - due) // MILLISECOND), begin, end)

    def tally(self, run: Tally, begin: int, end: int) -> None:
        """Add the trades [begin, end) to the run."""
        prices, sizes, sides = self.prices[begin:end], self.sizes[begin:end], self.sides[begin:end]
        highest, lowest = max(prices), min(prices)
        if highest > run.highest:
            run.highest, run.high = highest, self.texts[begin + prices.index(highest)]
        if lowest < run.lowest:
            run.lowest, run.low = lowest, self.texts[begin + prices.index(lowest)]
        run.close, run.last_ts = self.texts[end - 1], self.stamps[end - 1]
        run.trades += end - begin
        run.volume += sum(sizes)
        run.value += sum(map(mul, prices, sizes))
        if sides.count(Side.UNKNOWN) < len(sides):
            run.buys += sum(compress(sizes, map(is_, sides, repeat(Side.BUY))))
            run.sells += sum(compress(sizes, map(is_, sides, repeat(Side.SELL))))


def columns(entries: Sequence[tuple[StreamId, Trade | Gap]], prices: Mapping[str, int], sizes: Mapping[str, int], apart: int) -> Columns | None:
    """None if the batch holds anything but trades in order of time, with price and size, at these scales, without a flag of `apart`."""
    ids, messages = zip(*entries, strict=True)
    if set(map(type, messages)) != {Trade}:
        return None
    trades = cast(tuple[Trade, ...], messages)
    if any(flags & apart for flags in {trade.flags for trade in trades}):
        return None
    stamps = [trade.ts_event for trade in trades]
    if stamps != sorted(stamps):
        return None
    texts = [trade.price_text for trade in trades]
    try:
        scaled_prices = list(map(prices.__getitem__, texts))
        scaled_sizes = list(map(sizes.__getitem__, [trade.size_text for trade in trades]))
    except Finer:
        return None
    if not all(scaled_prices) or not all(scaled_sizes):
        return None
    return Columns(ids, stamps, texts, scaled_prices, scaled_sizes, [trade.side for trade in trades])
