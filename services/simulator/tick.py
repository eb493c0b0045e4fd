"""The one record that runs through the simulator: a tick of the simulated market, before a vendor's dialect renders it."""

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
    """The vendor's name of what it belongs to, `btcusdt@trade`."""
    frame: bytes


class Tick(msgspec.Struct, gc=False):
    """gc=False: only text and numbers in it. It is changed by its one owner at a time: the market stamps it, faults replace it."""

    key: str
    """What is routed alike: one per symbol and kind, and per channel of recorded frames without ticks."""
    symbol: str
    """As the market spells it."""
    id: int
    """Trades: +1 per symbol. Quotes: rising."""
    at: int
    """When it is due, ns on the source's own clock; only differences count."""
    message: Trade | Quote | None
    """None: a recorded frame that is no tick (a depth update); only clients of that vendor get it."""
    recorded: RecordedFrame | None = None
    """Sent as it stands to that vendor's clients where nothing has changed it."""
    fault: str | None = None
    """What was done to it."""
    withheld: bool = False
    """A fault took it away: nobody gets it, and only the ledger knows."""

    @property
    def kind(self) -> Kind:
        return "other" if self.message is None else "trade" if isinstance(self.message, Trade) else "quote"


def key_of(symbol: str, kind: str) -> str:
    """Return the key of a symbol's trades or quotes. Symbols that differ only in case or dashes share it."""
    return f"{kind}:{symbol.replace('-', '').upper()}"


def trade_tick(
    key: str, symbol: str, id: int, at: int, time: int, price: str, size: str, side: Side = Side.UNKNOWN
) -> Tick:
    """`time`: the vendor's, ns since the epoch."""
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
    return Tick(key, symbol, id, at, Quote(symbol, bid, bid_size, ask, ask_size, time, 0))


def is_symbol(text: str) -> bool:
    """Return whether it can be a symbol here: what stands in frames unescaped must need no escaping."""
    return _SYMBOL.fullmatch(text) is not None
