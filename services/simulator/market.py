"""The market's clock: which ticks are due. Pure: time is an argument.

One market runs for all clients. At a speed it advances by the clock, regardless of its clients; at `max`
(speed None) every tick is due as soon as the caller asks, which it does as fast as its clients read.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice

from msgspec.structs import force_setattr

from services.simulator.source import Source
from services.simulator.tick import Tick
from tickbus.errors import ConfigError


def parse_speed(text: str) -> Fraction | None:
    """Return the factor of `1`, `0.5`, `10`; None for `max`. ConfigError for anything else."""
    if text == "max":
        return None
    try:
        speed = Fraction(text)
    except (ValueError, ZeroDivisionError):
        speed = Fraction(0)
    if speed <= 0:
        raise ConfigError(f"invalid --speed {text}: expected a number, e.g. 1, 10 or 0.5, or max")
    return speed


class Market:
    """Returns the ticks of a source when they are due.

    limit: the market ends after this many ticks; 0 = no limit. loop: restart the source at its end.
    restamp: recorded ticks get the current time too. preload: read this many ticks now, so that reading
    them later costs nothing.
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
        # at max nothing reads the market's clock, so a single pass needs no shifted times
        ticks = iter(source) if speed is None and not loop else _on_market_clock(source, loop)
        ticks = islice(ticks, limit) if limit else ticks
        self._ticks = chain(list(islice(ticks, preload)), ticks) if preload else ticks
        self._speed = speed
        self._live = source.live
        self._restamp = restamp
        self._next: Tick | None = None
        """Read, but not yet due."""
        self._resumed_at: int | None = None
        self._elapsed_before = 0
        """ns that the clock had run before it was last paused."""
        self.ended = False

    def due(self, now: int, wall: int, max_ticks: int) -> list[Tick]:
        """Return the ticks due at `now` (monotonic, ns), and start or resume the clock.

        wall: the time to stamp them with, ns.
        """
        if self._resumed_at is None:
            self._resumed_at = now
        ticks = (
            self._next_ticks(max_ticks)
            if self._speed is None
            else self._due_by_clock(self._elapsed(now) * self._speed, max_ticks)
        )
        if self._live or self._restamp:
            for tick in ticks:
                if tick.message is not None:
                    # nobody has seen it yet, and a copy of each tick would cost more than the rest of this
                    # method
                    force_setattr(tick.message, "ts_event", wall)
                    tick.recorded_frame = None
        return ticks

    def wait(self, now: int) -> int | None:
        """Return the ns until the next tick is due; None if there is none."""
        if self._speed is None:
            return None if self.ended else 0
        tick = self._peek()
        return None if tick is None else max(0, int(tick.at / self._speed) - self._elapsed(now))

    def pause(self, now: int) -> None:
        """Stop the clock until the next call of `due`."""
        self._elapsed_before = self._elapsed(now)
        self._resumed_at = None

    def _elapsed(self, now: int) -> int:
        return self._elapsed_before + (0 if self._resumed_at is None else now - self._resumed_at)

    def _next_ticks(self, max_ticks: int) -> list[Tick]:
        ticks = list(islice(self._ticks, max_ticks))
        self.ended = len(ticks) < max_ticks
        return ticks

    def _due_by_clock(self, clock: Fraction, max_ticks: int) -> list[Tick]:
        ticks: list[Tick] = []
        time = int(clock)
        while len(ticks) < max_ticks and (tick := self._peek()) is not None and tick.at <= time:
            ticks.append(tick)
            self._next = None
        return ticks

    def _peek(self) -> Tick | None:
        if self._next is None:
            self._next = next(self._ticks, None)
            self.ended = self._next is None
        return self._next


def _on_market_clock(source: Source, loop: bool) -> Iterator[Tick]:
    """Yield the source's ticks on the market's own clock, from 0 on; with `loop` forever, without a pause."""
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
