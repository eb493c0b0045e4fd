"""The trades that a feed has delivered, by ids that are unique but not contiguous. Pure.

A repeat is not judged by its id alone: it must also agree with what is known of it.
"""

import hashlib
from decimal import Decimal
from enum import Enum

from tickbus.protocol.messages import Flag, Trade
from tickbus.units import MICROSECOND, MILLISECOND, SECOND

MAX_IDS = 100_000
"""Trades remembered per symbol, at most; at least half of them."""
MAX_IDS_IN_ALL = 250_000
"""The same over all symbols: about 64 MB."""
_LONGEST_ID = 64
_UNITS = (SECOND, MILLISECOND, MICROSECOND, 1)

_Known = tuple[str, str, int]
"""Price, size, and ts_event; 0: the vendor gave none."""


class Seen(Enum):
    NEW = 0
    """An id not known."""
    REPEAT = 1
    """The same trade again."""
    OTHER = 2
    """A known id with other values."""


class SeenIds:
    """Remembers trades across connections, in two generations per symbol: the older is forgotten whole."""

    def __init__(self, symbols: int = 1) -> None:
        self._by_symbol: dict[str, tuple[dict[str, _Known], dict[str, _Known]]] = {}
        self._generation = 0
        self.expect(symbols)

    def expect(self, symbols: int) -> None:
        """Divide the memory between this many symbols."""
        self._generation = max(1, min(MAX_IDS, MAX_IDS_IN_ALL // max(1, symbols)) // 2)

    def note(self, trade: Trade) -> Seen:
        """Return how a trade with an id compares to earlier ones of its symbol; remember it if it is new."""
        assert trade.trade_id is not None
        newer, older = self._by_symbol.get(trade.symbol) or self._add(trade.symbol)
        key = _bounded(trade.trade_id)
        known = newer.get(key) or older.get(key)
        event = 0 if trade.flags & Flag.BAD_TIME else trade.ts_event
        if known is not None:
            return Seen.REPEAT if _agree(known, (trade.price_text, trade.size_text, event)) else Seen.OTHER
        if len(newer) >= self._generation:
            newer = {}
            self._by_symbol[trade.symbol] = newer, self._by_symbol[trade.symbol][0]
        newer[key] = trade.price_text, trade.size_text, event
        return Seen.NEW

    def _add(self, symbol: str) -> tuple[dict[str, _Known], dict[str, _Known]]:
        self._by_symbol[symbol] = {}, {}
        return self._by_symbol[symbol]


def _bounded(id: str) -> str:
    return (
        id
        if len(id) <= _LONGEST_ID
        else hashlib.blake2b(id.encode(errors="replace"), digest_size=32).hexdigest()
    )


def _agree(known: _Known, other: _Known) -> bool:
    """Prices and sizes as numbers, times at the coarser unit of the two, absent ones not at all."""
    return known == other or (
        Decimal(known[0]) == Decimal(other[0])
        and Decimal(known[1]) == Decimal(other[1])
        and (not known[2] or not other[2] or _same_time(known[2], other[2]))
    )


def _same_time(one: int, other: int) -> bool:
    unit = max(next(unit for unit in _UNITS if time % unit == 0) for time in (one, other))
    return one // unit == other // unit
