"""Prices of the synthetic market: one common factor, and a random walk per symbol. Pure, integers only.

Volatility is itself a mean-reverting random walk, so that large moves come together (Cont 2001, "Empirical
properties of asset returns", 2-8; Taylor 1986 for the model), and each symbol's moves are a share of the
factor's and its own. Quotes lie around the price, wider when it is volatile; trades print at the quoted bid
or ask (Roll 1984). Aggressors come in long runs (Lillo and Farmer 2004), and what a trade tells beyond what
was expected moves the price (Hasbrouck 1991), so that no run makes a trend of itself.
"""

from math import isqrt
from random import Random

from services.simulator.instruments import LOADING_ONE, PARTS, SIZES, instrument
from services.simulator.tick import Tick, key_of
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import MILLISECOND, SECOND

_FRACTION_BITS = 20
"""A price is counted in price steps << 20: rounding the smallest moves would be a drift."""
_MIN_STEP = 10 * MILLISECOND
"""Prices move at most once in this time: more often, at high rates, would only cost."""
_MAX_STEP = 60 * SECOND
_REGIME = SECOND
"""How often volatility changes."""
_NORMAL_BITS = 64
"""The number of ones in 64 random bits, less 32, is normal enough; its standard deviation is 4."""
_UNIT = 4 * 256 * 31_623
"""What a move of one standard deviation in a second at the usual volatility is multiplied by: 4 from the
above, 256 from the multiples below, and the root of a second in ns."""
_FACTOR_ONE = 10**12
"""A move of the common factor of one standard deviation."""

_VOLATILITIES = (65, 78, 93, 110, 131, 156, 186, 221, 263, 313, 372, 443, 527, 626, 745, 886)
"""Multiples of the usual volatility, of 256: 1/4 to 3 1/2."""
_USUAL = 7
_EXCITED = 4
"""News raises the volatility by this many of those."""
_MIN_JUMP, _JUMP_BITS = 10, 3
"""News moves the price of a symbol by 10 to 17 standard deviations of a second."""
_JUMP_TIME = SECOND // 2
"""How long the market takes over most of it."""
_PRESSURE = 96
"""Of 256, what one-sided order flow adds to the odds of its side."""
_TILT = 20
"""Of 256, what the last move of the price adds to them."""
_REVERSION_BITS = 12
"""Each second, a price returns by 1/4096 of its distance to the level of its symbol."""


class _Volatility:
    """A level that wanders, and returns to the usual one."""

    def __init__(self) -> None:
        self.level = _USUAL

    def step(self, drawn: int) -> int:
        """Return the next multiple, of 256. drawn: 6 random bits."""
        # of 64: 28 up and 28 down, one more towards the usual level per level of distance
        up = 28 + _USUAL - self.level
        self.level += 1 if drawn < up else -1 if drawn >= 8 + up else 0
        self.level = min(len(_VOLATILITIES) - 1, max(0, self.level))
        return _VOLATILITIES[self.level]

    def excite(self) -> None:
        self.level = min(len(_VOLATILITIES) - 1, self.level + _EXCITED)


class Factor:
    """What moves all symbols at once. Moves of one standard deviation a second are _FACTOR_ONE."""

    def __init__(self, seed: int) -> None:
        self.bits = Random(f"{seed}:").getrandbits
        """What moves prices draws from here: so the ids of a symbol do not depend on how prices move."""
        self._volatility = _Volatility()
        self._scale = 0
        self._at = 0
        self._regime_due = 0
        self.value = 0

    def advance(self, at: int) -> None:
        if (step := at - self._at) < _MIN_STEP:
            return
        self._at = at
        if at >= self._regime_due:
            self._regime_due = at + _REGIME
            self._scale = _FACTOR_ONE * self._volatility.step(self.bits(6)) // _UNIT
        normal = self.bits(_NORMAL_BITS).bit_count() - _NORMAL_BITS // 2
        self.value += normal * isqrt(min(step, _MAX_STEP)) * self._scale

    def jump(self) -> None:
        """Move at once, as at news that concern everybody."""
        drawn = self.bits(_JUMP_BITS + 1)
        size = _FACTOR_ONE * (_MIN_JUMP + (drawn >> 1)) // 2
        self.value += size if drawn & 1 else -size
        self._volatility.excite()


class Walk:
    """One symbol: its price, its order flow, its ids."""

    def __init__(self, symbol: str, seed: int, quotes_per_trade: int, factor: Factor, at: int) -> None:
        self.symbol = symbol
        self.instrument = traits = instrument(symbol)
        self._bits = bits = Random(f"{seed}:{symbol}").getrandbits
        self._trade_id = 1 + bits(30)
        self._quote_id = 1 + bits(34)
        self._quotes_per_trade = quotes_per_trade
        self._quotes_due = quotes_per_trade
        self._trade_key = key_of(symbol, "trade")
        self._quote_key = key_of(symbol, "quote")
        self._sizes = traits.sizes
        self._surge_until = 0
        # up to 2 % from the level of the symbol, by the seed
        self._level = traits.price * (980 + bits(12) * 40 // 4096) // 1000 << _FRACTION_BITS
        self._price = self._level
        self._shared = traits.volatility * traits.loading // LOADING_ONE
        self._own = traits.volatility * isqrt(LOADING_ONE**2 - traits.loading**2) // LOADING_ONE
        self._factor = factor
        self._factor_seen = factor.value
        self._volatility = _Volatility()
        self._set_volatility(_VOLATILITIES[_USUAL])
        self._jump = 0
        """What news still moves the price by, in PARTS of it."""
        self._pressure = 0
        self._pressure_until = 0
        self._buy_odds = 128
        self._spread = 1
        self._at = at
        self._regime_due = 0
        self._whole = 10**traits.decimals
        self._text = f"%d.%0{traits.decimals}d"
        self._bid = self._ask = ""
        self._quote(0)

    def next(self, at: int) -> Tick:
        drawn = self._bits(32)
        if at - self._at >= _MIN_STEP and (self._quotes_due or not self._quotes_per_trade):
            self._move(at)
        # by position, not by keyword: half the cost of making a tick
        if self._quotes_due:
            self._quotes_due -= 1
            self._quote_id += 1 + (drawn >> 28)
            sizes = self._sizes
            return Tick(
                self._quote_key,
                self.symbol,
                self._quote_id,
                at,
                Quote(
                    self.symbol, self._bid, sizes[drawn & 0xFFF], self._ask, sizes[drawn >> 12 & 0xFFF], 0, 0
                ),
            )
        self._quotes_due = self._quotes_per_trade
        self._trade_id += 1
        odds = self._buy_odds
        if drawn >> 12 & 0xFF < odds:
            price, side, surprise = self._ask, Side.BUY, 256 - odds
        else:
            price, side, surprise = self._bid, Side.SELL, -odds
        # a trade that was as likely as not moves the price by 1/16 of the spread
        self._price += surprise * self._spread << _FRACTION_BITS - 11
        trade = Trade(self.symbol, price, self._sizes[drawn & 0xFFF], side, None, 0, 0)
        return Tick(self._trade_key, self.symbol, self._trade_id, at, trade)

    def surprise(self, until: int) -> None:
        """Take news: a jump, volatility, one-sided orders of twice the size, until this time."""
        drawn = self._factor.bits(_JUMP_BITS + 1)
        self._pressure, self._pressure_until = (1 if drawn & 1 else -1), until
        jump = self._pressure * self.instrument.volatility * (_MIN_JUMP + (drawn >> 1))
        self._price += self._price * jump // (3 * PARTS)
        self._jump += 2 * jump // 3
        self._volatility.excite()
        self._set_volatility(_VOLATILITIES[self._volatility.level])
        self._sizes, self._surge_until = self.instrument.surge_sizes, until

    def _move(self, at: int) -> None:
        step = min(at - self._at, _MAX_STEP)
        self._at = at
        if at >= self._regime_due:
            self._next_regime(at)
        drawn = self._factor.bits(_NORMAL_BITS + 2)
        normal = (drawn >> 2).bit_count() - _NORMAL_BITS // 2
        value = self._factor.value
        move = normal * isqrt(step) * self._scale
        move += (value - self._factor_seen) * self._shared // _FACTOR_ONE
        self._factor_seen = value
        if self._jump:
            part = self._jump * step // (step + _JUMP_TIME)
            self._jump -= part
            move += part
        self._price += self._price * move // PARTS
        self._buy_odds = 128 + _PRESSURE * self._pressure + (_TILT if move > 0 else -_TILT)
        self._quote(drawn & 3)

    def _next_regime(self, at: int) -> None:
        self._regime_due = at + _REGIME
        drawn = self._factor.bits(14)
        self._price += self._level - self._price >> _REVERSION_BITS
        self._set_volatility(self._volatility.step(drawn & 63))
        if at >= self._pressure_until:
            self._pressure = (0, 0, 1, -1)[drawn >> 6 & 3]
            self._pressure_until = at + (12 + (drawn >> 8)) * SECOND
        if at >= self._surge_until:
            self._sizes = self.instrument.sizes

    def _set_volatility(self, multiple: int) -> None:
        self._scale = self._own * multiple // _UNIT
        usual = self._price * self.instrument.spread * multiple // (256 * PARTS)
        self._usual_spread = usual >> _FRACTION_BITS - 6

    def _quote(self, width: int) -> None:
        """Quote around the price. width: 0 to 3, how wide."""
        price = self._price >> _FRACTION_BITS
        self._spread = spread = self._usual_spread * (3 + width) >> 8 or 1
        bid = max(1, price - (spread >> 1))
        self._bid = self._text % divmod(bid, self._whole)
        self._ask = self._text % divmod(bid + spread, self._whole)


assert SIZES == 0xFFF + 1
