"""A batch of trades as columns, so that a stretch of it can be accumulated by loops that run in C. Pure.

It is only a shortcut: its results are those of one trade after the other, and where that is not obvious it
declines and leaves the trade to the regular path.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from operator import mul
from typing import cast

from services.bars.ohlcv import Ohlcv
from services.bars.watermark import Watermark
from tickbus.fixed_point import PrecisionExceeded
from tickbus.protocol.messages import Gap, Side, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import MILLISECOND

Entries = Sequence[tuple[StreamId, Trade | Gap]]

MIN_BATCH = 20
"""Entries from which on columns cost less than they save."""

_BUY, _SELL = Side.BUY, Side.SELL


class Columns:
    def __init__(
        self,
        entries: Entries,
        stamps: list[int],
        texts: list[str],
        prices: list[int],
        sizes: list[int],
        sides: list[Side],
    ) -> None:
        self.entries, self.stamps, self.texts, self.prices, self.sizes = entries, stamps, texts, prices, sizes
        self.sided = sides.count(Side.UNKNOWN) < len(sides)
        """Whether any trade has a side: most equity tapes do not say."""
        self.buys = (
            [size if side is _BUY else 0 for side, size in zip(sides, sizes, strict=True)]
            if self.sided
            else []
        )
        self.sells = (
            [size if side is _SELL else 0 for side, size in zip(sides, sizes, strict=True)]
            if self.sided
            else []
        )

    def run_end(self, begin: int, limit: float, end_ts: int) -> int:
        """Return the index after the trades from `begin` on, at most `limit`, that lie before `end_ts`."""
        end = bisect_left(self.stamps, end_ts, begin)
        return end if end - begin <= limit else max(begin, begin + int(limit))

    def advance_watermark(self, begin: int, end: int, due: int, watermark: Watermark) -> int:
        """Advance the watermark over the trades [begin, end) until it has passed `due`. Return the index of
        the first trade before which it has, or else `end`.
        """
        stamps, entries = self.stamps, self.entries
        newest, newest_at = watermark.newest, watermark.newest_at
        position, stop = begin, end
        while position < end:
            last, ms = stamps[stop - 1], entries[stop - 1][0][0]
            passed = (ms - 1 - newest_at) * MILLISECOND
            if (last if last > newest else newest) + passed < due:
                # not before any of [position, stop): there it never exceeds this
                if last > newest:
                    newest, newest_at = last, entries[bisect_left(stamps, last, position, stop)][0][0]
                position, stop = stop, end
            elif stop - position > 1:
                stop = (position + stop) // 2
            elif newest + passed >= due and ms > newest_at:
                break
            else:
                if last > newest:
                    newest, newest_at = last, ms
                position, stop = stop, end
        watermark.newest, watermark.newest_at = newest, newest_at
        return position

    def add_to(self, run: Ohlcv, begin: int, end: int) -> None:
        """Add the trades [begin, end) to the run."""
        prices, sizes, last = self.prices[begin:end], self.sizes[begin:end], end - 1
        highest, lowest = max(prices), min(prices)
        if highest > run.highest:
            run.highest, run.high = highest, self.texts[begin + prices.index(highest)]
        if lowest < run.lowest:
            run.lowest, run.low = lowest, self.texts[begin + prices.index(lowest)]
        run.close, run.last_ts = self.texts[last], self.stamps[last]
        run.trades += end - begin
        run.volume += sum(sizes)
        run.value += sum(map(mul, prices, sizes))
        if self.sided:
            run.buys += sum(self.buys[begin:end])
            run.sells += sum(self.sells[begin:end])


def columns(
    entries: Entries, prices: Mapping[str, int], sizes: Mapping[str, int], special: int
) -> Columns | None:
    """Return the batch as columns; None if it contains anything but trades in order of time, with price and
    size, at these scales, without a flag of `special`.
    """
    messages = [message for _, message in entries]
    if set(map(type, messages)) != {Trade}:
        return None
    trades = cast(list[Trade], messages)
    if any(flags & special for flags in {trade.flags for trade in trades}):
        return None
    stamps = [trade.ts_event for trade in trades]
    if stamps != sorted(stamps):
        return None
    texts = [trade.price_text for trade in trades]
    try:
        scaled_prices = list(map(prices.__getitem__, texts))
        scaled_sizes = list(map(sizes.__getitem__, [trade.size_text for trade in trades]))
    except PrecisionExceeded:
        return None
    if not all(scaled_prices) or not all(scaled_sizes):
        return None
    return Columns(entries, stamps, texts, scaled_prices, scaled_sizes, [trade.side for trade in trades])
