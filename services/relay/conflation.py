"""What one stream did within an interval, as one element. Pure.

A quote or a bar is replaced by the next one. Trades are not: the element holds the first, highest, lowest and
last price, volume, value and count, so that nothing that was printed is hidden. Trades that arrived late,
were fetched later, cancelled or printed off the book move none of these; they are counted beside them. Gaps
are never conflated: they precede the element.
"""

from decimal import Context, Decimal
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

    __slots__ = ("aside", "count", "first", "high", "last", "low", "newest", "value", "volume")

    def __init__(self) -> None:
        self.first = self.high = self.low = self.last = Decimal(0)
        self.volume = self.value = Decimal(0)
        self.count = 0
        self.aside = 0
        """Trades that are not in the sums: late, backfilled, cancelled, off the book."""
        self.newest: Trade | None = None

    def add(self, trade: Trade) -> None:
        if trade.flags & _ASIDE:
            self.aside += 1
            return
        price, size = trade.price, trade.size
        if not self.count:
            self.first = self.high = self.low = price
        elif price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.last = price
        self.volume = _EXACT.add(self.volume, size)
        self.value = _EXACT.add(self.value, _EXACT.multiply(price, size))
        self.count += 1
        self.newest = trade

    def copy(self) -> "TradeSummary":
        copied = TradeSummary.__new__(TradeSummary)
        copied.first, copied.high, copied.low, copied.last = self.first, self.high, self.low, self.last
        copied.volume, copied.value, copied.count = self.volume, self.value, self.count
        copied.aside, copied.newest = self.aside, self.newest
        return copied

    def merge(self, later: "TradeSummary") -> None:
        """Append the summary of the interval after this one."""
        self.aside += later.aside
        if not later.count:
            return
        if not self.count:
            self.first, self.high, self.low = later.first, later.high, later.low
        else:
            if later.high > self.high:
                self.high = later.high
            if later.low < self.low:
                self.low = later.low
        self.last, self.newest = later.last, later.newest
        self.volume = _EXACT.add(self.volume, later.volume)
        self.value = _EXACT.add(self.value, later.value)
        self.count += later.count

    def row(self) -> "list[object]":
        """Return the values in the order of `TRADE_FIELDS`."""
        newest = self.newest
        prices = (self.first, self.high, self.low, self.last) if self.count else (None,) * 4
        return [
            *(None if price is None else plain(price) for price in prices),
            plain(self.volume),
            plain(self.value),
            self.count,
            self.aside,
            None if newest is None else newest.ts_event,
            None if newest is None else newest.ts_recv,
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

    def merge(self, later: "Interval") -> None:
        """Append the interval after this one, which stays as it is: others share it."""
        self.cursor = later.cursor
        if later.gaps:
            self.gaps = self.gaps + later.gaps
        if later.trades is not None:
            if self.trades is None:
                self.trades = later.trades.copy()
            else:
                self.trades.merge(later.trades)
        for start, entry in later.latest.items():
            self.latest.pop(start, None)
            self.latest[start] = entry

    def copy(self) -> "Interval":
        """Return a copy to merge others into."""
        copied = Interval()
        copied.merge(self)
        return copied
