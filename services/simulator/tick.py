"""The one record that runs through the simulator: a tick of the simulated market, before a vendor's protocol dresses it."""

import re
from typing import Literal

import msgspec

from tickbus.units import SECOND

Kind = Literal["trade", "quote", "other"]

_SYMBOL = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Tick(msgspec.Struct, gc=False):
    """gc=False: only text and numbers in it. It is changed by its one owner at a time: the market stamps it, faults replace it."""

    kind: Kind
    """`other`: a recorded frame that is no tick (a depth update); only binance clients get it."""
    stream: str
    """Binance's name of the stream, `btcusdt@trade`; one per symbol and kind, so everything is keyed by it."""
    symbol: str
    """As the vendor spells it."""
    id: int
    """Trades: +1 per symbol. Quotes: rising."""
    time: int
    """The vendor's time, ns since the epoch."""
    at: int
    """When it is due, ns on the source's own clock; only differences count."""
    price: str = ""
    size: str = ""
    side: str | None = None
    """The aggressor: buy, sell, None = not known."""
    bid: str | None = None
    bid_size: str | None = None
    ask: str | None = None
    ask_size: str | None = None
    raw: bytes | None = None
    """The recorded Binance frame, sent as it stands where nothing has changed it."""
    fault: str | None = None
    """What was done to it."""
    withheld: bool = False
    """A fault took it away: nobody gets it, and only the ledger knows."""
    seconds: bool = False
    """Render its time in whole seconds, whatever the protocol's unit is."""

    def in_unit(self, unit: int) -> int:
        """Its time in `unit` ns, or in seconds where a fault says so."""
        return self.time // (SECOND if self.seconds else unit)


def stream_of(symbol: str, kind: str) -> str:
    """`BTC-USDT`, `trade` -> `btcusdt@trade`. Symbols that differ only in case or dashes share a stream."""
    return f"{symbol.replace('-', '').lower()}@{'trade' if kind == 'trade' else 'bookTicker'}"


def is_symbol(text: str) -> bool:
    """Whether it can be a symbol here: what stands in frames unescaped must need no escaping."""
    return _SYMBOL.fullmatch(text) is not None
