"""The market's clock: which ticks are due. Pure: time is an argument.

One market runs for all clients. At a speed it goes on by the clock, whoever listens; at `max` (speed None) every tick is due
as soon as it is asked for, and the caller asks as fast as its clients take.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice

from msgspec.structs import force_setattr

from services.simulator.source import Source
from services.simulator.tick import Tick
from tickbus.errors import ConfigError


def parse_speed(text: str) -> Fraction | None:
    """`1`, `0.5`, `10` -> the factor; `max` -> None."""
    if text == "max":
        return None
    try:
        speed = Fraction(text)
    except (ValueError, ZeroDivisionError):
        speed = Fraction(0)
    if speed <= 0:
        raise ConfigError(f"--speed {text}: use a number like 1, 10 or 0.5, or max")
    return speed


class Market:
    """`limit`: so many ticks, then no more; 0 = all there are. `restamp`: recorded ticks get the present time too.
    `preload`: so many ticks are read now and kept, so that reading them later costs nothing.
    """

    def __init__(
        self,
        source: Source,
        speed: Fraction | None,
        *,
        limit: int = 0,
        loop: bool = False,
        restamp: bool = False,
        preload: int = 0,
    ) -> None:
        # at max nothing looks at the market's clock, so one pass needs no rewriting of it
        ticks = iter(source) if speed is None and not loop else _one_after_another(source, loop)
        ticks = islice(ticks, limit) if limit else ticks
        self._ticks = chain(list(islice(ticks, preload)), ticks) if preload else ticks
        self._speed = speed
        self._live = source.live
        self._restamp = restamp
        self._ahead: Tick | None = None
        """Read, and not yet due."""
        self._since: int | None = None
        self._passed_before = 0
        self.ended = False

    def due(self, now: int, wall: int, most: int) -> list[Tick]:
        """The ticks due at `now` (monotonic, ns), at most `most`. The first call starts the clock. `wall` is for the stamps."""
        if self._since is None:
            self._since = now
        ticks = (
            self._any(most)
            if self._speed is None
            else self._by_the_clock(self._passed(now) * self._speed, most)
        )
        if self._live or self._restamp:
            for tick in ticks:
                if tick.message is not None:
                    # nobody has seen it yet: a copy of each tick would cost more than the rest of this
                    force_setattr(tick.message, "ts_event", wall)
                    tick.recorded = None
        return ticks

    def wait(self, now: int) -> int | None:
        """ns until the next tick is due; None if there is none."""
        if self._speed is None:
            return None if self.ended else 0
        tick = self._peek()
        return None if tick is None else max(0, int(tick.at / self._speed) - self._passed(now))

    def stand_still(self, now: int) -> None:
        """The clock stops until the next call of `due`."""
        self._passed_before = self._passed(now)
        self._since = None

    def _passed(self, now: int) -> int:
        return self._passed_before + (0 if self._since is None else now - self._since)

    def _any(self, most: int) -> list[Tick]:
        ticks = list(islice(self._ticks, most))
        self.ended = len(ticks) < most
        return ticks

    def _by_the_clock(self, shown: Fraction, most: int) -> list[Tick]:
        ticks: list[Tick] = []
        whole = int(shown)
        while len(ticks) < most and (tick := self._peek()) is not None and tick.at <= whole:
            ticks.append(tick)
            self._ahead = None
        return ticks

    def _peek(self) -> Tick | None:
        if self._ahead is None:
            self._ahead = next(self._ticks, None)
            self.ended = self._ahead is None
        return self._ahead


def _one_after_another(source: Source, loop: bool) -> Iterator[Tick]:
    """The source's ticks on the market's own clock, which shows 0 at the first; with `loop` again and again, without a pause."""
    base = 0
    while True:
        first, last = None, base
        for tick in source:
            if first is None:
                first = tick.at
            tick.at += base - first
            last = tick.at
            yield tick
        if first is None or not loop:
            return
        base = last
