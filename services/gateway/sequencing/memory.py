"""The newest trades of a stream, and whether a trade repeats one of them. Pure.

A vendor that sends an id again may mean the same trade, or another one: its ids began again, or one of them
is corrupt. A repeat agrees with what is remembered of its id.
"""

from collections.abc import Sequence
from decimal import Decimal

from services.vendors.feed import NO_ID
from tickbus.protocol.codec import DECODE
from tickbus.protocol.messages import Flag, Trade
from tickbus.units import MICROSECOND, MILLISECOND, SECOND

REMEMBERED = 128
"""Trades remembered per stream, and up to twice as many before they are trimmed: about 130 bytes each."""

_OUT_OF_ORDER = Flag.LATE | Flag.DOUBTFUL_ID

_decode = DECODE[b"t"]


class TradeMemory:
    """The newest trades of a stream, packed.

    They are appended for every tick, and looked at when one comes that is not in order. They are found by
    their trade_id, which is the vendor id where ids are contiguous.
    """

    __slots__ = ("_by_id", "_complete", "_indexed", "_past", "_trimmed", "trades")

    def __init__(self) -> None:
        self.trades: list[bytes] = []
        """In the order in which they were stored; `append` adds one."""
        self._indexed = 0
        """How many of them are in `_by_id`."""
        self._by_id: dict[int, list[Trade]] = {}
        self._past: dict[int, list[Trade]] = {}
        """Those before the last reset: they may be repeated too."""
        self._complete = 0
        """From this id on, all trades that were stored have been added."""
        self._trimmed = False
        """Whether some of them were forgotten since."""

    def begin(self, complete: int) -> None:
        """Nothing from the id `complete` on is stored yet."""
        self.trades.clear()
        self._by_id, self._indexed, self._complete, self._trimmed = {}, 0, complete, False

    def begin_again(self, complete: int) -> None:
        """The ids begin again: what is remembered belongs to the ids before."""
        self._index()
        self._past = self._by_id
        self.begin(complete)

    def trim(self) -> None:
        """Forget the oldest if there are too many."""
        if len(self.trades) > 2 * REMEMBERED:
            del self.trades[:-REMEMBERED]
            self._by_id, self._indexed, self._trimmed = {}, 0, True

    def known(self, vendor_id: int) -> Sequence[Trade]:
        """Return the trades of this id, doubtful ones included."""
        self._index()
        return self._by_id.get(vendor_id, ())

    def repeats(self, tick: Trade, vendor_id: int) -> bool:
        """Whether a trade is stored already: one of the same id agrees with it."""
        return any(agrees(tick, known) for known in (*self.known(vendor_id), *self._past.get(vendor_id, ())))

    @property
    def complete_from(self) -> int:
        """The id from which on every trade that was stored is remembered."""
        self._index()
        if not self._trimmed:
            return self._complete
        in_order = (
            vendor_id
            for vendor_id, trades in self._by_id.items()
            if any(not trade.flags & _OUT_OF_ORDER for trade in trades)
        )
        return min(in_order, default=1 << 64)

    def _index(self) -> None:
        self.trim()
        if self._indexed < len(self.trades):
            for trade in map(_decode, self.trades[self._indexed :]):
                if (vendor_id := trade_number(trade)) != NO_ID:
                    self._by_id.setdefault(vendor_id, []).append(trade)
            self._indexed = len(self.trades)


def agrees(tick: Trade, known: Trade) -> bool:
    """Whether two trades of one id can be the same.

    Prices and sizes are compared as numbers, times at the coarser unit of the two, where both have one.
    """
    if has_time(tick) and has_time(known):
        unit = max(_unit(tick.ts_event), _unit(known.ts_event))
        if tick.ts_event // unit != known.ts_event // unit:
            return False
    return _same(tick.price_text, known.price_text) and _same(tick.size_text, known.size_text)


def has_time(tick: Trade) -> bool:
    """Whether the vendor gave the time of a trade."""
    return tick.ts_event != tick.ts_recv and not tick.flags & Flag.BAD_TIME


def trade_number(tick: Trade) -> int:
    """Return the trade_id as a number; NO_ID if it is none."""
    text = tick.trade_id
    return int(text) if text is not None and text.isdecimal() else NO_ID


def _same(number: str, other: str) -> bool:
    return number == other or Decimal(number) == Decimal(other)


def _unit(time: int) -> int:
    """Return the unit in which a time is given, judging by its zeros."""
    return next((unit for unit in (SECOND, MILLISECOND, MICROSECOND) if time % unit == 0), 1)
