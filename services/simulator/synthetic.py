"""A seeded synthetic market: random walks, quotes around them, trades at the touch, bursts. Pure.

Each symbol walks in whole price steps. Its ticks follow from (seed, symbol) alone; which symbol is next,
and when, follows from the seed and the order in which the symbols were opened. Prices and sizes are
integers until they become text: no float comes near them.
"""

from collections.abc import Iterator, Sequence
from random import Random

from services.simulator.tick import Tick, is_symbol, key_of
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import SECOND

_DECIMALS = (2, 2, 4, 5)
_BURST_ODDS = 48
"""One in this many draws starts a burst."""
_BURST_SPEEDUP = 8
"""In a burst, ticks are this many times closer together."""
_SIZES = tuple(f"{lots // 100}.{lots % 100:02d}" for lots in range(1, 4097))
"""0.01 to 40.96."""


class Synthetic:
    """Synthetic ticks of `symbols`, or, if there are none, of whatever symbols clients request."""

    live = True

    def __init__(
        self, *, seed: int, rate: int, quotes_per_trade: int = 1, symbols: Sequence[str] = ()
    ) -> None:
        self._seed = seed
        self._interval = SECOND // rate
        self._quotes_per_trade = quotes_per_trade
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
            self._walks.append(_Walk(symbol, self._seed, self._quotes_per_trade))

    def __iter__(self) -> Iterator[Tick]:
        """Yield ticks forever. Their mean rate is `rate`: a pause after each burst makes up for it."""
        bits = Random(f"{self._seed}").getrandbits
        walks, interval = self._walks, self._interval
        at = 0
        while True:
            drawn = bits(48)
            walk = walks[(drawn & 0xFFFFFFFF) % len(walks)]
            if drawn >> 32 < (1 << 16) // _BURST_ODDS:
                length = 2 + bits(4)
                for _ in range(length):
                    at += interval // _BURST_SPEEDUP
                    yield walk.next(at)
                at += length * (interval - interval // _BURST_SPEEDUP)
            else:
                at += interval
                yield walk.next(at)


class _Walk:
    """One symbol's price, in steps of its last decimal, and its ids."""

    def __init__(self, symbol: str, seed: int, quotes_per_trade: int) -> None:
        self.symbol = symbol
        self._bits = bits = Random(f"{seed}:{symbol}").getrandbits
        self._decimals = _DECIMALS[bits(2)]
        self._price = 10**self._decimals * (2 + bits(9))
        # at least one unit must stay before the decimal point, so that the text is only split, never padded
        self._min_price = 10**self._decimals
        self._trade_id = 1 + bits(30)
        self._quote_id = 1 + bits(34)
        self._quotes_per_trade = quotes_per_trade
        self._quotes_due = quotes_per_trade
        self._trade_key = key_of(symbol, "trade")
        self._quote_key = key_of(symbol, "quote")
        self._bid = self._ask = ""
        self._move(0)

    def next(self, at: int) -> Tick:
        drawn = self._bits(32)
        # a step of -1, 0 or +1, mostly 0, before the next tick uses the price
        if (step := drawn & 7) < 2:
            self._move(1 if step else -1)
        # by position, not by keyword: half the cost of making a tick
        if self._quotes_due:
            self._quotes_due -= 1
            self._quote_id += 1 + (drawn >> 28)
            bid_size, ask_size = _SIZES[drawn >> 4 & 0xFFF], _SIZES[drawn >> 16 & 0xFFF]
            return Tick(
                self._quote_key,
                self.symbol,
                self._quote_id,
                at,
                Quote(self.symbol, self._bid, bid_size, self._ask, ask_size, 0, 0),
            )
        self._quotes_due = self._quotes_per_trade
        self._trade_id += 1
        size = _SIZES[drawn >> 4 & 0xFFF]
        price, side = (self._ask, Side.BUY) if drawn & 8 else (self._bid, Side.SELL)
        trade = Trade(self.symbol, price, size, side, None, 0, 0)
        return Tick(self._trade_key, self.symbol, self._trade_id, at, trade)

    def _move(self, steps: int) -> None:
        self._price = price = max(self._min_price + 2, self._price + steps)
        self._bid, self._ask = self._text(price - 1), self._text(price + 1)

    def _text(self, price: int) -> str:
        digits = str(price)
        return f"{digits[: -self._decimals]}.{digits[-self._decimals :]}"
