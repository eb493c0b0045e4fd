"""How long to wait before the next connection. Pure; randomness is an argument."""

from collections.abc import Callable

_FIRST, _LAST, _FACTOR = 0.25, 30.0, 2.0


class Backoff:
    """Doubling delays with jitter.

    Call `reset` after the first valid data, not on connect: a server that accepts and closes is not healthy.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._delay = _FIRST

    def next(self, minimum: float = 0.0) -> float:
        """Return seconds: half to all of the delay, and at least `minimum`, which gets jitter on top too."""
        delay, self._delay = self._delay, min(_LAST, self._delay * _FACTOR)
        return max(delay * (0.5 + self._random() / 2), minimum * (1 + self._random() / 10))

    def reset(self) -> None:
        self._delay = _FIRST
