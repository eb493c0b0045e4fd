"""The one record that flows through the simulator: a market tick, before a vendor's dialect renders it."""

import re
from typing import Literal

import msgspec

from tickbus.protocol.messages import Quote, Side, Trade

Kind = Literal["trade", "quote", "other"]

_SYMBOL = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RecordedFrame(msgspec.Struct, frozen=True, gc=False):
    """A frame as a vendor sent it."""

    vendor: str
    channel: str
    """The vendor's name of its channel, `btcusdt@trade`."""
    frame: bytes


class Tick(msgspec.Struct, gc=False):
    """One tick. Only its current owner changes it: the market stamps it, faults replace it.

    gc=False: it contains only text and numbers.
    """

    key: str
    """The routing key: one per symbol and kind, and per channel of recorded frames without ticks."""
    symbol: str
    """As the market spells it."""
    id: int
    """Trades: +1 per symbol. Quotes: rising."""
    at: int
    """When it is due, ns on the source's own clock; only differences count."""
    message: Trade | Quote | None
    """None: a recorded frame that is not a tick (a depth update); only clients of that vendor get it."""
    recorded_frame: RecordedFrame | None = None
    """Sent unchanged to that vendor's clients, unless a fault has changed the tick."""
    fault: str | None = None
    """The fault that was applied to it."""
    dropped: bool = False
    """A fault dropped it: nobody gets it, and only the ledger records it."""

    @property
    def kind(self) -> Kind:
        return "other" if self.message is None else "trade" if isinstance(self.message, Trade) else "quote"


def key_of(symbol: str, kind: str) -> str:
    """Return the key of a symbol's trades or quotes. Symbols that differ only in case or dashes share it."""
    return f"{kind}:{symbol.replace('-', '').upper()}"


def trade_tick(
    key: str, symbol: str, id: int, at: int, time: int, price: str, size: str, side: Side = Side.UNKNOWN
) -> Tick:
    """Return a trade. time: the vendor's, ns since the epoch."""
    return Tick(key, symbol, id, at, Trade(symbol, price, size, side, None, time, 0))


def quote_tick(
    key: str,
    symbol: str,
    id: int,
    at: int,
    time: int,
    bid: str | None,
    bid_size: str | None,
    ask: str | None,
    ask_size: str | None,
) -> Tick:
    """Return a quote. time: the vendor's, ns since the epoch."""
    return Tick(key, symbol, id, at, Quote(symbol, bid, bid_size, ask, ask_size, time, 0))


def is_symbol(text: str) -> bool:
    """Return whether a text can be a symbol here: it goes into frames unescaped."""
    return _SYMBOL.fullmatch(text) is not None
