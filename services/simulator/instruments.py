"""What the synthetic market knows of each symbol: price level, price step, spread, volatility, sizes. Pure.

A small table names what people type first; any other name gets a plausible level from a hash of itself.
Everything ends as integers and text: the few floats below are rounded before anything uses them.
"""

import re
from dataclasses import dataclass
from functools import cache
from math import exp
from statistics import NormalDist
from typing import Literal
from zlib import crc32

PARTS = 10**12
"""Volatility and spread are counted in these parts of the price."""
_BASIS_POINT = PARTS // 10_000
LOADING_ONE = 256
SIZES = 4096
"""Entries of a table of sizes: equally likely ones."""

_Kind = Literal["crypto", "stock", "currency", "metal"]


@dataclass(frozen=True, slots=True)
class Instrument:
    price: int
    """The level it starts at and stays near, in price steps."""
    decimals: int
    """A price step is 10^-decimals."""
    spread: int
    """Usual spread, in PARTS of the price."""
    volatility: int
    """Usual standard deviation over one second, in PARTS of the price."""
    loading: int
    """How much of its moves is the common factor's, of LOADING_ONE."""
    activity: int
    """How often it ticks, relative to the others."""
    sizes: tuple[str, ...]
    """SIZES sizes; one of them at random is a usual size, rarely a block."""
    surge_sizes: tuple[str, ...]
    """The same, about twice as large."""


@dataclass(frozen=True)
class _Class:
    """What symbols of a kind have in common. Spread and volatility in basis points."""

    spread: float
    volatility: float
    loading: float
    money: float
    """Usual size of a trade, in money."""
    lot: str
    """Sizes are multiples of it."""


# About three times as volatile as on a calm day, so that half a minute shows it.
_CLASSES: dict[_Kind, _Class] = {
    "crypto": _Class(0.4, 1.8, 0.80, 2_000, "0.001"),
    "stock": _Class(0.6, 1.6, 0.70, 40_000, "100"),
    "currency": _Class(0.15, 0.6, 0.40, 200_000, "1000"),
    "metal": _Class(0.9, 1.2, 0.35, 20_000, "1"),
}
# kind, price, activity
_KNOWN: dict[str, tuple[_Kind, str, int]] = {
    "BTCUSDT": ("crypto", "64250.00", 14),
    "ETHUSDT": ("crypto", "3180.00", 6),
    "SOLUSDT": ("crypto", "152.40", 4),
    "BNBUSDT": ("crypto", "586.00", 3),
    "XRPUSDT": ("crypto", "0.5820", 3),
    "DOGEUSDT": ("crypto", "0.12350", 3),
    "ADAUSDT": ("crypto", "0.4120", 2),
    "LTCUSDT": ("crypto", "71.30", 2),
    "AAPL": ("stock", "228.40", 4),
    "MSFT": ("stock", "418.20", 4),
    "GOOGL": ("stock", "176.30", 3),
    "GOOG": ("stock", "177.90", 2),
    "AMZN": ("stock", "189.60", 3),
    "NVDA": ("stock", "127.80", 5),
    "META": ("stock", "562.10", 3),
    "TSLA": ("stock", "248.50", 4),
    "BAC": ("stock", "41.20", 2),
    "JPM": ("stock", "214.70", 2),
    "SPY": ("stock", "568.30", 5),
    "QQQ": ("stock", "486.90", 4),
    "700.HK": ("stock", "412.60", 2),
    "EURUSD": ("currency", "1.08540", 3),
    "GBPUSD": ("currency", "1.29310", 2),
    "USDJPY": ("currency", "149.830", 2),
    "USDCHF": ("currency", "0.86420", 1),
    "GOLD": ("metal", "2648.50", 2),
    "XAUUSD": ("metal", "2648.50", 2),
    "SILVER": ("metal", "31.245", 1),
    "XAGUSD": ("metal", "31.245", 1),
}
_QUOTED_IN_DOLLARS = re.compile(r"(.+?)(?:USDT|USDC|USD)")


@cache
def instrument(symbol: str) -> Instrument:
    """Return what the market knows of a symbol, however a vendor spells it."""
    name = re.sub(r"[-_]", "", symbol.upper()).removesuffix(".US")
    crypto = _QUOTED_IN_DOLLARS.fullmatch(name)
    known = _KNOWN.get(name) or (_KNOWN.get(f"{crypto[1]}USDT") if crypto else None)
    kind, price, activity = known or ("crypto" if crypto else "stock", _level(name), 1)
    traits = _CLASSES[kind]
    decimals = len(price.partition(".")[2])
    lots = traits.money / float(price) / float(traits.lot)
    # few different ones, as each is a table: 1, 2, 5, 10, ... lots
    usual = next(number for number in range(len(_LOTS)) if _LOTS[number + 1] > lots)
    return Instrument(
        price=int(price.replace(".", "")),
        decimals=decimals,
        spread=round(traits.spread * _BASIS_POINT),
        volatility=round(traits.volatility * _BASIS_POINT),
        loading=round(traits.loading * LOADING_ONE),
        activity=activity,
        sizes=_sizes(_LOTS[usual], traits.lot),
        surge_sizes=_sizes(_LOTS[usual + 1], traits.lot),
    )


def _level(name: str) -> str:
    """Return a price between 5 and 500, as likely below 50 as above, from the name alone."""
    hashed = crc32(name.encode())
    price = 5 * 10 ** (hashed % 2048 / 1024)
    return f"{price:.{4 if price < 10 else 3 if price < 100 else 2}f}"


_LOTS = [digit * 10**power for power in range(10) for digit in (1, 2, 5)]
_LARGEST_USUAL = 3.6
"""Usual sizes end at this many medians; blocks start at _SMALLEST_BLOCK."""
_BLOCKS = SIZES // 512
_SMALLEST_BLOCK = 12.0
_BLOCK_EXPONENT = 1.5


@cache
def _multiples() -> list[float]:
    """Return equally likely sizes, in medians: lognormal, and one in 512 a block with a power-law tail.

    Gopikrishnan et al. 2000, "Statistical properties of share volume traded in financial markets".
    """
    usual = SIZES - _BLOCKS
    normal = NormalDist()
    return [
        min(_LARGEST_USUAL, exp(0.7 * normal.inv_cdf((number + 0.5) / usual))) for number in range(usual)
    ] + [_SMALLEST_BLOCK * ((number + 0.5) / _BLOCKS) ** (-1 / _BLOCK_EXPONENT) for number in range(_BLOCKS)]


@cache
def _sizes(median: int, lot: str) -> tuple[str, ...]:
    """Return equally likely sizes. median: in lots."""
    decimals = len(lot.partition(".")[2])
    unit = int(lot.replace(".", ""))
    sizes = []
    for multiple in _multiples():
        # as people type it: two significant digits
        lots = max(1, round(median * multiple))
        step = 10 ** max(0, len(str(lots)) - 2)
        digits = str((lots + step // 2) // step * step * unit).zfill(decimals + 1)
        sizes.append(f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits)
    return tuple(sizes)
