"""`volume_profile`: where a session's volume traded, by price. Pure.

Market Profile: buckets of width w, fixed at the session's first trade: the largest 1, 2 or 5 times a power of
ten that is at most a two-thousandth of the price, at least one unit of the scale. The point of control is the
bucket with most volume, the lowest of equals. The value area grows from it by the larger neighbour, the upper
of equals, until it holds 70 % of the volume. With more than 2,000 buckets w doubles.
"""

from collections.abc import Callable, Iterator, Mapping

from services.signals.finding import Finding
from services.signals.parameters import Profile
from tickbus.fixed_point import TENS, to_text
from tickbus.units import SECOND

MOST_BUCKETS = 2_000
PART = 32
"""Buckets that are stored together."""


class VolumeProfile:
    """Of the session of the newest trade. interval: from a ts_event to its session, as for bars of a day."""

    name = "volume_profile"

    def __init__(self, parameters: Profile, interval: Callable[[int], tuple[int, int]]) -> None:
        self.parameters = parameters
        self._interval = interval
        self._start = self._end = 0
        self._width = 1
        self._volumes: dict[int, int] = {}
        self._traded = False
        """Whether anything traded since the newest indicator."""
        self._partial = True
        """Whether the session had begun before the stream was seen."""
        self._dirty: set[int] = set()
        self._cleared = True
        """Whether all that is stored is out of date."""

    def add(self, price: int, size: int, ts: int) -> None:
        """Take a trade."""
        if not self._start <= ts < self._end:
            self._partial = not self._end
            self._start, self._end = self._interval(ts)
            self._width = width_of(price)
            self._volumes, self._dirty, self._cleared = {}, set(), True
        bucket = price // self._width
        self._volumes[bucket] = self._volumes.get(bucket, 0) + size
        self._dirty.add(bucket // PART)
        self._traded = True
        while len(self._volumes) > MOST_BUCKETS:
            self._width *= 2
            merged: dict[int, int] = {}
            for number, volume in self._volumes.items():
                merged[number // 2] = merged.get(number // 2, 0) + volume
            self._volumes, self._cleared = merged, True

    def pane(self, end: int, gap_to: int, price_scale: int, size_scale: int) -> Iterator[Finding]:
        """Say where the volume is, at the end of each `every`. end: the next pane."""
        ts = end * SECOND
        if ts % self.parameters.every or not self._traded:
            return
        self._traded = False
        poc, low, high, total = value_area(self._volumes)
        prices = [to_text(bucket * self._width, price_scale) for bucket in (poc, low, high + 1)]
        yield Finding(
            self.name, ts, prices[0], "0", "session", "price",
            f"most volume at {prices[0]}, 70 % between {prices[1]} and {prices[2]}", gap_to >= self._start,
            partial=self._partial,
            details=(("val", prices[1]), ("vah", prices[2]), ("volume", to_text(total, size_scale))),
        )  # fmt: skip

    def scale(self, price_factor: int, size_factor: int) -> None:
        """Prices and sizes became so many times larger: the buckets stay where they are."""
        self._width *= price_factor
        self._volumes = {bucket: volume * size_factor for bucket, volume in self._volumes.items()}
        self._cleared = True

    # state

    def hot(self) -> str:
        """Return what changes with every trade."""
        return f"{self._start}|{self._end}|{self._width}|{int(self._traded)}|{int(self._partial)}"

    def take_parts(self, scales: tuple[int, int]) -> dict[str, str]:
        """Return the buckets that changed since the last call, by group."""
        groups = {bucket // PART for bucket in self._volumes} if self._cleared else self._dirty
        self._dirty, self._cleared = set(), False
        return {
            str(group): f"{self._start}|{self._width}|{scales[1]}|{self._group(group)}" for group in groups
        }

    def _group(self, group: int) -> str:
        numbers = range(group * PART, (group + 1) * PART)
        return ";".join(f"{number},{self._volumes[number]}" for number in numbers if number in self._volumes)

    def restore(self, hot: str, parts: Mapping[str, str], scales: tuple[int, int]) -> None:
        """Continue. ValueError if a text is none of ours."""
        self._start, self._end, self._width, traded, partial = map(int, hot.split("|"))
        self._traded, self._partial, self._cleared = bool(traded), bool(partial), False
        for text in parts.values():
            start, width, size_scale, rows = text.split("|")
            if (int(start), int(width)) != (self._start, self._width):
                continue  # of another session, or of a finer width
            factor = TENS[scales[1] - int(size_scale)]
            for row in filter(None, rows.split(";")):
                number, volume = row.split(",")
                self._volumes[int(number)] = int(volume) * factor


def width_of(price: int) -> int:
    """Return the width of the buckets for a price, both in units of the scale."""
    goal = max(1, price // MOST_BUCKETS)
    power = TENS[len(str(goal)) - 1]
    return next(step * power for step in (5, 2, 1) if step * power <= goal)


def value_area(volumes: Mapping[int, int]) -> tuple[int, int, int, int]:
    """Return the point of control, the lowest and the highest bucket of the value area, and the volume."""
    most = max(volumes.values())
    poc = low = high = min(bucket for bucket, volume in volumes.items() if volume == most)
    first, last, total, inside = min(volumes), max(volumes), sum(volumes.values()), most
    while 10 * inside < 7 * total:
        above, below = volumes.get(high + 1, 0), volumes.get(low - 1, 0)
        if low == first or (high < last and above >= below):
            high += 1
            inside += above
        else:
            low -= 1
            inside += below
    return poc, low, high, total
