"""A seeded synthetic market: a random walk per symbol in whole price steps, quotes around it, trades at the touch, bursts. Pure.

The ticks of a symbol follow from (seed, symbol) alone; which symbol is next, and when, follows from the seed and the order in
which the symbols were opened. Prices and sizes are integers until they become text: no float is anywhere near them.
"""

from collections.abc import Iterator, Sequence
from random import Random

from services.simulator.tick import Tick, is_symbol, key_of
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import SECOND

_DECIMALS = (2, 2, 4, 5)
_QUIET = 48
"""Of so many draws one starts a burst."""
_HURRY = 8
"""In a burst ticks come so many times closer together."""
_SIZES = tuple(f"{lots // 100}.{lots % 100:02d}" for lots in range(1, 4097))
"""0.01 to 40.96."""


class Synthetic:
    """`symbols` empty: it opens whatever a client asks for."""

    live = True

    def __init__(
        self, *, seed: int, rate: int, quotes_per_trade: int = 1, symbols: Sequence[str] = ()
    ) -> None:
        self._seed = seed
        self._gap = SECOND // rate
        self._quotes = quotes_per_trade
        self._fixed = frozenset(symbols)
        self._walks: list[_Walk] = []
        self._streams: set[str] = set()
        for symbol in symbols:
            self._add(symbol)

    @property
    def idle(self) -> bool:
        return not self._walks

    def knows(self, symbol: str) -> bool:
        return symbol in self._fixed if self._fixed else is_symbol(symbol)

    def open(self, symbol: str) -> None:
        if not self._fixed and is_symbol(symbol):
            self._add(symbol)

    def _add(self, symbol: str) -> None:
        stream = key_of(symbol, "trade")
        if stream not in self._streams:
            self._streams.add(stream)
            self._walks.append(_Walk(symbol, self._seed, self._quotes))

    def __iter__(self) -> Iterator[Tick]:
        """Never ends. The mean distance of ticks is that of the rate: what a burst saves, the pause after it takes."""
        bits = Random(f"{self._seed}").getrandbits
        walks, gap = self._walks, self._gap
        at = 0
        while True:
            drawn = bits(48)
            walk = walks[(drawn & 0xFFFFFFFF) % len(walks)]
            if drawn >> 32 < (1 << 16) // _QUIET:
                length = 2 + bits(4)
                for _ in range(length):
                    at += gap // _HURRY
                    yield walk.next(at)
                at += length * (gap - gap // _HURRY)
            else:
                at += gap
                yield walk.next(at)


class _Walk:
    """One symbol: the price in steps of its last decimal, and the ids."""

    def __init__(self, symbol: str, seed: int, quotes: int) -> None:
        self.symbol = symbol
        self._bits = bits = Random(f"{seed}:{symbol}").getrandbits
        self._decimals = _DECIMALS[bits(2)]
        self._price = 10**self._decimals * (2 + bits(9))
        # a whole number of units must stay in front of the point, so that the text is only cut, never padded
        self._hub = 10**self._decimals
        self._trade_id = 1 + bits(30)
        self._quote_id = 1 + bits(34)
        self._quotes = quotes
        self._due = quotes
        self._trades = key_of(symbol, "trade")
        self._book = key_of(symbol, "quote")
        self._bid = self._ask = ""
        self._move(0)

    def next(self, at: int) -> Tick:
        drawn = self._bits(32)
        # a step of -1, 0 or +1, mostly 0, before what comes next sees the price
        if (step := drawn & 7) < 2:
            self._move(1 if step else -1)
        # by position, not by name: that is half of the cost of making a tick
        if self._due:
            self._due -= 1
            self._quote_id += 1 + (drawn >> 28)
            bid_size, ask_size = _SIZES[drawn >> 4 & 0xFFF], _SIZES[drawn >> 16 & 0xFFF]
            return Tick(
                self._book,
                self.symbol,
                self._quote_id,
                at,
                Quote(self.symbol, self._bid, bid_size, self._ask, ask_size, 0, 0),
            )
        self._due = self._quotes
        self._trade_id += 1
        size = _SIZES[drawn >> 4 & 0xFFF]
        price, side = (self._ask, Side.BUY) if drawn & 8 else (self._bid, Side.SELL)
        return Tick(
            self._trades, self.symbol, self._trade_id, at, Trade(self.symbol, price, size, side, None, 0, 0)
        )

    def _move(self, steps: int) -> None:
        self._price = price = max(self._hub + 2, self._price + steps)
        self._bid, self._ask = self._text(price - 1), self._text(price + 1)

    def _text(self, price: int) -> str:
        digits = str(price)
        return f"{digits[: -self._decimals]}.{digits[-self._decimals :]}"
