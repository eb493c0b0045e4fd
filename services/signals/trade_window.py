"""The newest trades of a stream as integers, for the windows that count trades. Pure.

Its state is written in blocks: each once, when it is full; only the unfinished one with every commit.
"""

from collections.abc import Mapping
from itertools import pairwise

from services.signals.parameters import WINDOW
from tickbus.fixed_point import TENS

SIZE = WINDOW + 1
"""One more than the longest window: a return needs the price before it."""
BLOCK = 20
SLOTS = -(-SIZE // BLOCK) + 1
"""Blocks that are kept; the next one replaces the oldest."""


class TradeWindow:
    """Prices and sizes at the stream's scales, times in ms."""

    __slots__ = ("_full", "_prices", "_sizes", "_times", "count", "known")

    def __init__(self) -> None:
        self.count = 0
        """Trades ever added."""
        self.known = 0
        """How many of the newest are here."""
        self._prices, self._sizes, self._times = [0] * SIZE, [0] * SIZE, [0] * SIZE
        self._full: list[int] = []
        """Numbers of the blocks that were filled since `take_parts`."""

    def add(self, price: int, size: int, ms: int) -> None:
        """Add the next trade."""
        at = self.count % SIZE
        self._prices[at], self._sizes[at], self._times[at] = price, size, ms
        self.count += 1
        if self.known < SIZE:
            self.known += 1
        if not self.count % BLOCK:
            self._full.append(self.count // BLOCK - 1)

    def price(self, ago: int) -> int:
        """Return a price: 1 is the newest trade's. ago: at most `known`."""
        return self._prices[(self.count - ago) % SIZE]

    def size(self, ago: int) -> int:
        """Return a size, like `price`."""
        return self._sizes[(self.count - ago) % SIZE]

    def time(self, ago: int) -> int:
        """Return a time in ms, like `price`."""
        return self._times[(self.count - ago) % SIZE]

    def scale(self, price_factor: int, size_factor: int) -> None:
        """The scales became finer: all prices and sizes get so many times larger."""
        self._prices = [price * price_factor for price in self._prices]
        self._sizes = [size * size_factor for size in self._sizes]

    # state

    def _rows(self, begin: int, end: int) -> str:
        """Return trades by their number: the first as it is, the others by their differences."""
        rows = [
            (self._prices[at % SIZE], self._sizes[at % SIZE], self._times[at % SIZE])
            for at in range(begin, end)
        ]
        if not rows:
            return ""
        later = [f"{b[0] - a[0]},{b[1]},{b[2] - a[2]}" for a, b in pairwise(rows)]
        return ";".join([",".join(map(str, rows[0])), *later])

    def tail(self) -> str:
        """Return the unfinished block."""
        return self._rows(self.count - min(self.count % BLOCK, self.known), self.count)

    def take_parts(self, scales: tuple[int, int]) -> dict[int, str]:
        """Return the blocks that were filled since the last call, by slot. scales: of the stream."""
        full, self._full = self._full, []
        return {
            block % SLOTS: f"{block}|{scales[0]}|{scales[1]}|{self._rows(block * BLOCK, (block + 1) * BLOCK)}"
            for block in full[-SLOTS:]
            if (block + 1) * BLOCK > self.count - self.known and self.count - block * BLOCK <= SIZE
        }

    def restore(self, count: int, tail: str, parts: Mapping[int, str], scales: tuple[int, int]) -> None:
        """Continue after `count` trades. A block that is missing ends the window there. ValueError if a text
        is none of ours.
        """
        rows = _parse(tail)
        block = count // BLOCK - 1
        while block >= 0 and len(rows) < SIZE:
            number, price_scale, size_scale, text = (parts.get(block % SLOTS) or "-1|0|0|").split("|")
            if int(number) != block:
                break
            prices, sizes = TENS[scales[0] - int(price_scale)], TENS[scales[1] - int(size_scale)]
            rows[:0] = [(price * prices, size * sizes, ms) for price, size, ms in _parse(text)]
            block -= 1
        rows = rows[-SIZE:]
        self.count = count - len(rows)
        for row in rows:
            self.add(*row)
        self.known, self._full = len(rows), []


def _parse(text: str) -> list[tuple[int, int, int]]:
    rows: list[tuple[int, int, int]] = []
    for part in filter(None, text.split(";")):
        price, size, ms = map(int, part.split(","))
        if rows:
            price, ms = price + rows[-1][0], ms + rows[-1][2]
        rows.append((price, size, ms))
    return rows
