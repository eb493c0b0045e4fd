"""Pacing by the monotonic clock. The same code drives both sides of a comparison."""

import time
from collections.abc import Iterator


def due(rate: float, count: int) -> Iterator[int]:
    """Yield repeatedly how many items are due now, until all `count` are; sleep while none is.

    After a late wake-up several are due at once, so that the rate holds.
    """
    started = time.monotonic_ns()
    done = 0
    while done < count:
        now = time.monotonic_ns()
        target = min(count, int((now - started) * rate / 1e9) + 1)
        if target > done:
            yield target - done
            done = target
        else:
            time.sleep(max(0.0, (started + done * 1e9 / rate - now) / 1e9))
