"""Seconds of a trade stream by its own time, and blocks of ten of them. Pure.

A trade that opens a pane closes those before it one by one, empty ones too. A block is ten panes, aligned to
the epoch, that were all closed. Its state is written block by block, each once.
"""

from collections import deque
from collections.abc import Iterator, Mapping

from services.signals.moments import Moments
from tickbus.fixed_point import TENS
from tickbus.units import SECOND

PANES, FAST, BLOCK, HISTORY = 60, 10, 10, 60
"""Closed panes kept; those of the fast window; panes of a block; blocks of the history."""
MIN_HISTORY = 30
MOST_AT_ONCE = 300
"""Panes of one jump that are closed; if it is longer, the rest is skipped."""
SLOTS = HISTORY + BLOCK
"""Blocks that are stored: the next one replaces the oldest."""

VOLUME, COUNT, BUYS, SELLS, QUOTED, TICKED, UNKNOWN = range(7)
"""Columns of a pane; the last three count trades by how their side was found, if not by the vendor."""
Pane = list[int]
_EMPTY = (0,) * 7


class History:
    """One column of the newest full blocks that ended long enough ago."""

    __slots__ = ("moments", "values")

    def __init__(self) -> None:
        self.values: deque[int] = deque()
        self.moments = Moments()

    def add(self, value: int) -> None:
        self.values.append(value)
        self.moments.add(value)
        if len(self.values) > HISTORY:
            self.moments.drop(self.values.popleft())

    def scale(self, factor: int) -> None:
        self.values = deque(value * factor for value in self.values)
        self.moments.scale(factor)


class Panes:
    """The panes of one stream."""

    def __init__(self) -> None:
        self.now: int | None = None
        """Number of the open pane: its second since the epoch."""
        self.open: Pane = list(_EMPTY)
        self.closed: deque[Pane] = deque()
        """The newest closed ones, at most `PANES`; after a jump none of those before it."""
        self.sums: Pane = list(_EMPTY)
        """Of the closed ones, by column."""
        self.warm = 0
        """Panes closed so far, at most `PANES`."""
        self.volumes, self.counts = History(), History()
        self._waiting: deque[tuple[int, int, int]] = deque()
        """Full blocks that ended too recently: (end, volume, count)."""
        self._ends: deque[int] = deque(maxlen=HISTORY)
        self._block: list[Pane] = []
        """Closed panes of the unfinished block."""
        self._sequence = 0
        """Blocks ended so far."""
        self._ended: list[tuple[int, int, list[Pane]]] = []
        """Those since `take_parts`: (sequence, end, panes)."""

    def advance(self, now: int) -> Iterator[int]:
        """A trade of this pane comes: close those before it. Yield the end of each, once it is closed, as the
        number of the next pane.
        """
        if self.now is None:
            self.now = now
            return
        for pane in range(self.now, min(now, self.now + MOST_AT_ONCE)):
            self._close(pane)
            yield pane + 1
        if now > self.now + MOST_AT_ONCE:
            self.closed.clear()
            self.sums = list(_EMPTY)
            self._block = []
        self.now = max(now, self.now)

    def _close(self, pane: int) -> None:
        self._push(self.open)
        self._block.append(self.open)
        self.open = list(_EMPTY)
        self.warm = min(self.warm + 1, PANES)
        if pane % BLOCK == BLOCK - 1:
            self._sequence += 1
            self._end_block(pane + 1, self._block)
            self._ended.append((self._sequence, pane + 1, self._block))
            self._block = []
        self._ripen(pane + 1)

    def _push(self, pane: Pane) -> None:
        self.closed.append(pane)
        leaving = self.closed.popleft() if len(self.closed) > PANES else _EMPTY
        if pane[COUNT] or leaving[COUNT]:
            self.sums = [
                total + more - less for total, more, less in zip(self.sums, pane, leaving, strict=True)
            ]

    def has_traded(self, panes: int) -> bool:
        """Whether there was a trade in the newest closed panes, so many."""
        closed = self.closed
        return any(closed[at][COUNT] for at in range(max(0, len(closed) - panes), len(closed)))

    def _end_block(self, end: int, panes: list[Pane]) -> None:
        if len(panes) == BLOCK:
            volume, count = (sum(pane[column] for pane in panes) for column in (VOLUME, COUNT))
            self._waiting.append((end, volume, count))

    def _ripen(self, boundary: int) -> None:
        """Blocks that ended before the fast window of this boundary join the history."""
        while self._waiting and self._waiting[0][0] <= boundary - FAST:
            end, volume, count = self._waiting.popleft()
            self.volumes.add(volume)
            self.counts.add(count)
            self._ends.append(end)

    @property
    def history_start(self) -> int:
        """The pane with which the history begins."""
        return self._ends[0] - BLOCK if self._ends else 0

    def fast(self, column: int) -> int:
        """Return the sum of a column over the fast window."""
        closed = self.closed
        return sum([closed[at][column] for at in range(max(0, len(closed) - FAST), len(closed))])

    def scale(self, factor: int) -> None:
        """Sizes became so many times larger."""
        panes = [self.open, *self.closed]
        panes += [pane for pane in self._block if not any(pane is one for one in panes)]
        for _, _, block in self._ended:
            panes += [pane for pane in block if not any(pane is one for one in panes)]
        for pane in panes:
            for column in (VOLUME, BUYS, SELLS):
                pane[column] *= factor
        for column in (VOLUME, BUYS, SELLS):
            self.sums[column] *= factor
        self._waiting = deque((end, volume * factor, count) for end, volume, count in self._waiting)
        self.volumes.scale(factor)

    # state

    def hot(self) -> str:
        """Return what changes with every trade."""
        parts = [self.now if self.now is not None else "", self.warm, self._sequence, len(self.closed)]
        return "|".join([*map(str, parts), _text([self.open]), _text(self._block)])

    def take_parts(self, size_scale: int) -> dict[int, str]:
        """Return the blocks that ended since the last call, by slot."""
        ended, self._ended = self._ended, []
        return {
            sequence % SLOTS: f"{sequence}|{size_scale}|{end}|{_text(panes)}"
            for sequence, end, panes in ended[-SLOTS:]
        }

    def restore(self, hot: str, parts: Mapping[int, str], size_scale: int) -> None:
        """Continue. ValueError if a text is none of ours."""
        now, warm, sequence, closed, opened, block = hot.split("|")
        self.now, self.warm, self._sequence = int(now) if now else None, int(warm), int(sequence)
        (self.open,) = _parse(opened, 1)
        panes: list[Pane] = []
        for number in range(max(1, self._sequence - SLOTS + 1), self._sequence + 1):
            stored, scale, end, text = (parts.get(number % SLOTS) or "0|0|0|").split("|")
            if int(stored) != number:
                continue
            found = _parse(text, TENS[size_scale - int(scale)])
            panes += found
            self._end_block(int(end), found)
            self._ripen(int(end))
        self._block = _parse(block, 1)
        if self.now is not None:
            self._ripen(self.now)
        panes += self._block
        for pane in panes[len(panes) - int(closed) :] if int(closed) else []:
            self._push(pane)


def pane_of(ts: int) -> int:
    return ts // SECOND


def _text(panes: list[Pane]) -> str:
    rows = []
    for pane in panes:
        used = len(pane)
        while used and not pane[used - 1]:
            used -= 1
        rows.append(",".join(map(str, pane[:used])))
    return "".join(f"{row};" for row in rows)


def _parse(text: str, factor: int) -> list[Pane]:
    panes = []
    for row in text.split(";")[:-1]:
        pane = [int(value) for value in row.split(",") if value]
        pane += [0] * (len(_EMPTY) - len(pane))
        for column in (VOLUME, BUYS, SELLS):
            pane[column] *= factor
        panes.append(pane)
    return panes
