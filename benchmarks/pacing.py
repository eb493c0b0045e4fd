"""Pacing by the monotonic clock: how many are due now. The same code drives both sides of a comparison."""

import time
from collections.abc import Iterator


def due(rate: float, count: int) -> Iterator[int]:
    """Yield, again and again, how many items are due now, until `count` are out. Sleeps where none is.

    A late wake-up is followed by several at once, so that the rate holds.
    """
    begin = time.monotonic_ns()
    out = 0
    while out < count:
        now = time.monotonic_ns()
        target = min(count, int((now - begin) * rate / 1e9) + 1)
        if target > out:
            yield target - out
            out = target
        else:
            time.sleep(max(0.0, (begin + out * 1e9 / rate - now) / 1e9))
