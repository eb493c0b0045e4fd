"""What one stream did within an interval, as one element. Pure.

`Recent` keeps what a stream did lately, round by round, and makes any interval from it: all who conflate a
stream share one, whenever each of them beats.

A quote or a bar is replaced by the next one. Trades are not: the element holds the first, highest, lowest and
last price, volume, value and count, so that nothing that was printed is hidden. Trades that arrived late,
were fetched later, cancelled or printed off the book move none of these; they are counted beside them. Gaps
are never conflated: they precede the element.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

from tickbus.protocol.messages import Bar, Flag, Gap, Message, Quote, Trade
from tickbus.units import plain

_EXACT = Context(prec=100)
_ASIDE = int(Flag.LATE | Flag.BACKFILLED | Flag.CANCELLED | Flag.OFF_BOOK)


class Entry(NamedTuple):
    """One entry of a stream."""

    cursor: str
    """Its ID."""
    message: Message
    field: bytes
    payload: bytes
    """Field and value as they stand on the bus."""


class TradeSummary:
    """The trades of an interval: price of the first, highest, lowest and last, and their sums."""

    __slots__ = (
        "aside",
        "count",
        "first",
        "high",
        "last",
        "low",
        "ts_event",
        "ts_recv",
        "value",
        "volume",
    )

    def __init__(self) -> None:
        self.first = self.high = self.low = self.last = Decimal(0)
        self.volume = self.value = Decimal(0)
        self.count = 0
        self.aside = 0
        """Trades that are not in the sums: late, backfilled, cancelled, off the book."""
        self.ts_event: int | None = None
        """Of the newest trade that is in the sums; `ts_recv` too."""
        self.ts_recv: int | None = None

    def add(self, trade: Trade) -> None:
        if trade.flags & _ASIDE:
            self.aside += 1
            return
        price, size = trade.price, trade.size
        value = _EXACT.multiply(price, size)
        if not self.count:
            self.first = self.high = self.low = price
            self.volume, self.value = size, value
        else:
            if price > self.high:
                self.high = price
            elif price < self.low:
                self.low = price
            self.volume = _EXACT.add(self.volume, size)
            self.value = _EXACT.add(self.value, value)
        self.last = price
        self.count += 1
        self.ts_event, self.ts_recv = trade.ts_event, trade.ts_recv

    def row(self) -> "list[object]":
        """Return the values in the order of `TRADE_FIELDS`."""
        prices = (self.first, self.high, self.low, self.last) if self.count else (None,) * 4
        return [
            *(None if price is None else plain(price) for price in prices),
            plain(self.volume),
            plain(self.value),
            self.count,
            self.aside,
            self.ts_event,
            self.ts_recv,
        ]


TRADE_FIELDS = (
    "first", "high", "low", "last", "volume", "value", "count", "aside", "ts_event", "ts_recv",
)  # fmt: skip
"""Fields of a conflated trade, after symbol; in MessagePack an array in this order, with `has_gap` behind."""


class Interval:
    """One stream within one interval."""

    __slots__ = ("cursor", "gaps", "latest", "trades")

    def __init__(self) -> None:
        self.cursor = ""
        """ID of the newest entry."""
        self.gaps: list[Entry] = []
        self.trades: TradeSummary | None = None
        self.latest: dict[int, Entry] = {}
        """The newest quote, under 0, or the newest revision of each bar, under its start."""

    def add(self, entry: Entry) -> None:
        """Add the next entry of the stream."""
        message = entry.message
        self.cursor = entry.cursor
        if isinstance(message, Trade):
            if self.trades is None:
                self.trades = TradeSummary()
            self.trades.add(message)
        elif isinstance(message, Gap):
            self.gaps.append(entry)
        elif isinstance(message, Bar):
            self.latest.pop(message.start, None)
            self.latest[message.start] = entry
        elif not (isinstance(message, Quote) and message.flags & _ASIDE):
            self.latest[0] = entry


def merged(intervals: Sequence[Interval]) -> Interval:
    """Return consecutive intervals of one stream, at least one, as one. They stay as they are."""
    if len(intervals) == 1:
        return intervals[0]
    whole = Interval()
    whole.cursor = intervals[-1].cursor
    whole.trades = _summed([interval.trades for interval in intervals if interval.trades is not None])
    whole.gaps = [gap for interval in intervals for gap in interval.gaps]
    latest = whole.latest
    for interval in intervals:
        for start, entry in interval.latest.items():
            latest.pop(start, None)
            latest[start] = entry
    return whole


def _summed(parts: list[TradeSummary]) -> TradeSummary | None:
    if len(parts) <= 1:
        return parts[0] if parts else None
    whole = TradeSummary()
    whole.aside = sum([part.aside for part in parts])
    parts = [part for part in parts if part.count]
    if parts:
        newest = parts[-1]
        whole.first, whole.last = parts[0].first, newest.last
        whole.ts_event, whole.ts_recv = newest.ts_event, newest.ts_recv
        whole.high = max([part.high for part in parts])
        whole.low = min([part.low for part in parts])
        whole.volume = reduce(_EXACT.add, [part.volume for part in parts])
        whole.value = reduce(_EXACT.add, [part.value for part in parts])
        whole.count = sum([part.count for part in parts])
    return whole


_FOLDED_FROM = 32
"""Rounds kept of a stream: below, folding is not worth its time."""


class Recent:
    """What one stream did in the newest rounds.

    Example: when the rounds 1 to 9 were added, `between(5, 8)` is the interval of the rounds 6, 7 and 8.
    """

    __slots__ = ("_intervals", "_limit", "_rounds")

    def __init__(self) -> None:
        self._rounds: list[int] = []
        self._intervals: list[Interval] = []
        """What each of these rounds brought."""
        self._limit = _FOLDED_FROM

    def add(self, round: int, interval: Interval) -> None:
        """Add what a round brought. round: greater than all before."""
        self._rounds.append(round)
        self._intervals.append(interval)

    def between(self, after: int, until: int) -> Interval | None:
        """Return what followed the round `after`, up to `until`; None if nothing did. Not to be changed."""
        rounds = self._rounds
        if not rounds or rounds[-1] <= after:
            return None
        found = self._intervals[bisect_right(rounds, after) : bisect_right(rounds, until)]
        return merged(found) if found else None

    @property
    def is_long(self) -> bool:
        """Whether it is time to fold it."""
        return len(self._rounds) > self._limit

    def fold(self, marks: Iterable[int]) -> None:
        """Merge the rounds that nobody tells apart, and forget those that everybody has had.

        marks: sorted, the rounds that `between` will be asked for, besides the newest one and later ones.
        """
        rounds, intervals = self._rounds, self._intervals
        self._rounds, self._intervals = [], []
        ends = [bisect_right(rounds, mark) for mark in marks]
        for begin, end in pairwise([*ends, len(rounds)]):
            if begin < end:
                self.add(rounds[end - 1], merged(intervals[begin:end]))
        self._limit = _FOLDED_FROM + len(self._rounds)
