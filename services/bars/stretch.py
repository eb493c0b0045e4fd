"""A batch of trades as columns, so that a stretch of it can be tallied by loops that run in C. Pure.

It is a shortcut only: what it gives is what one trade after the other would give, and where that is not plain to see it
declines and leaves the trade to the long way.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import mul, sub
from typing import cast

from services.bars.digits import Finer
from services.bars.tally import Tally
from tickbus.messages import Gap, Side, Trade
from tickbus.names import StreamId
from tickbus.units import MILLISECOND

WORTHWHILE = 20
"""Entries from which on the columns cost less than they save."""

_BUY, _SELL = Side.BUY, Side.SELL


class Columns:
    def __init__(self, bus_ms: list[int], stamps: list[int], texts: list[str], prices: list[int], sizes: list[int], sides: list[Side]) -> None:
        self.bus_ms, self.stamps, self.texts, self.prices, self.sizes = bus_ms, stamps, texts, prices, sizes
        self.values = list(map(mul, prices, sizes))
        self.sided = sides.count(Side.UNKNOWN) < len(sides)
        """Are there buys and sells at all? Most tapes of shares do not tell."""
        self.buys = [size if side is _BUY else 0 for side, size in zip(sides, sizes, strict=True)] if self.sided else []
        self.sells = [size if side is _SELL else 0 for side, size in zip(sides, sizes, strict=True)] if self.sided else []
        self._ahead: int | None = None

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
        # closer: no trade can bring the watermark further ahead of bus time than it is itself, nor than any of the batch is
        if self._ahead is None:
            self._ahead = _ahead(stamps, bus_ms)
        ahead = newest - newest_at * MILLISECOND
        if max(ahead, self._ahead) + (bus_ms[end - 1] - 1) * MILLISECOND < due:
            return end
        ahead = max(ahead, _ahead(stamps[begin:end], bus_ms[begin:end]))
        return bisect_right(bus_ms, -((ahead - due) // MILLISECOND), begin, end)

    def tally(self, run: Tally, begin: int, end: int) -> None:
        """Add the trades [begin, end) to the run."""
        prices = self.prices[begin:end]
        highest, lowest = max(prices), min(prices)
        if highest > run.highest:
            run.highest, run.high = highest, self.texts[begin + prices.index(highest)]
        if lowest < run.lowest:
            run.lowest, run.low = lowest, self.texts[begin + prices.index(lowest)]
        run.close, run.last_ts = self.texts[end - 1], self.stamps[end - 1]
        run.trades += end - begin
        run.volume += sum(self.sizes[begin:end])
        run.value += sum(self.values[begin:end])
        if self.sided:
            run.buys += sum(self.buys[begin:end])
            run.sells += sum(self.sells[begin:end])


def _ahead(stamps: list[int], bus_ms: list[int]) -> int:
    """The most by which a trade's ts_event is ahead of its bus time, ns; below zero where all of them are behind."""
    ahead: int = max(map(sub, stamps, map(mul, bus_ms, repeat(MILLISECOND))))
    return ahead


def columns(entries: Sequence[tuple[StreamId, Trade | Gap]], prices: Mapping[str, int], sizes: Mapping[str, int], apart: int) -> Columns | None:
    """None if the batch holds anything but trades in order of time, with price and size, at these scales, without a flag of `apart`."""
    messages = [message for _, message in entries]
    if set(map(type, messages)) != {Trade}:
        return None
    trades = cast(list[Trade], messages)
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
    return Columns([id[0] for id, _ in entries], stamps, texts, scaled_prices, scaled_sizes, [trade.side for trade in trades])
