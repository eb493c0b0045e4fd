"""A seeded synthetic market that behaves like one: ticks in bursts, symbols that move together. Pure.

Ticks excite ticks: their intensity is that of a Hawkes process (Hawkes 1971, "Spectra of some self-exciting
and mutually exciting point processes"), whose descendants are mostly of the same symbol; some symbols are
busier than others. Now and then there is news, of one symbol or of all: see Walk.surprise. Prices and
sizes: services/simulator/walk.py and instruments.py.

A symbol's ids and its price level follow from (seed, symbol) alone; which symbol is next and when, and how
the prices move, follows from the seed and the symbols in the order in which they were opened. Prices and
sizes are integers until they become text: no float comes near them.
"""

from collections.abc import Iterator, Sequence
from math import exp, log
from random import Random

from services.simulator.tick import Tick, is_symbol, key_of
from services.simulator.walk import Factor, Walk
from tickbus.units import SECOND

_ONE = 1 << 16
"""1 in fixed point."""
_EXPONENTIAL = tuple(round(-_ONE * log((number + 0.5) / 1024)) for number in range(1023, -1, -1))
"""Equally likely values of an exponential distribution of mean 1, in _ONE, rising."""
_DECAY = tuple(round(_ONE * exp(-(number + 0.5) / 64)) for number in range(1024))
"""What is left of the excitement after so many 64ths of a mean interval, in _ONE."""
_DESCENDANTS = _ONE * 5 // 8
"""Ticks that a tick excites, on average, a mean interval later; so 3 of 8 ticks come by themselves."""
_MIN_NEWS, _NEWS_BITS = 6 * SECOND, 34
"""News comes every 6 to 23 s."""
_NEWS_LENGTH = 8 * SECOND


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
        self._factor = Factor(seed)
        self._at = 0
        self._walks: list[Walk] = []
        """Each symbol as many times as it is active."""
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
            walk = Walk(symbol, self._seed, self._quotes_per_trade, self._factor, self._at)
            self._walks += [walk] * walk.instrument.activity

    def __iter__(self) -> Iterator[Tick]:
        """Yield ticks forever. Their mean rate is `rate`."""
        bits = Random(f"{self._seed}").getrandbits
        walks, factor, interval = self._walks, self._factor, self._interval
        alone = interval * _ONE // (_ONE - _DESCENDANTS)
        """Mean time between ticks that come by themselves."""
        at = excited = 0  # excited: how many descendants are still to be expected, in _ONE
        newsworthy: Walk | None = None
        news_at, news_until = _MIN_NEWS + bits(_NEWS_BITS), 0
        walk = walks[0]
        while True:
            drawn = bits(30)
            # Dassios and Zhao 2013, "Exact simulation of Hawkes process with exponentially decaying
            # intensity": which comes first, the next tick by itself or the next descendant?
            by_itself = step = alone * _EXPONENTIAL[drawn & 1023] >> 16
            if (used := _EXPONENTIAL[drawn >> 10 & 1023]) < excited:
                step = min(step, interval * _EXPONENTIAL[used * 1024 // excited] >> 16)
            if descendant := step < by_itself:
                excited += _DESCENDANTS - used
            else:
                excited = (excited * _DECAY[min(1023, (step << 6) // interval)] >> 16) + _DESCENDANTS
            at += step
            self._at = at
            factor.advance(at)
            if at >= news_at:
                news_at, news_until = at + _MIN_NEWS + bits(_NEWS_BITS), at + _NEWS_LENGTH
                if bits(3):
                    candidates = (walks[bits(32) % len(walks)], walks[bits(32) % len(walks)])
                    newsworthy = max(candidates, key=_activity)
                    newsworthy.surprise(news_until)
                else:
                    factor.jump()
            if not descendant or not drawn & 0x300000:
                if newsworthy is None or drawn & 0xC00000:
                    walk = walks[bits(32) % len(walks)]
                else:
                    walk = newsworthy
                    if at >= news_until:
                        newsworthy = None
            yield walk.next(at)


def _activity(walk: Walk) -> int:
    return walk.instrument.activity
