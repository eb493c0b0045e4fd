"""Whether a refusal is for good: one answer is no proof once the connection has worked. Pure; the clock is an
argument.

A CDN in front of a vendor answers 403 or 404 for a while to what was fine for hours. So a refusal ends the
gateway only if no connection of this process was ever subscribed (or, if wrong data are the reason, ever
delivered a tick), or if nothing but refusals came back for long enough.
"""

from collections.abc import Callable

MIN_REFUSALS = 10
MIN_SECONDS = 1800.0
"""After it worked, a refusal is for good after this many in a row over at least this time."""


class Verdict:
    """Collects what became of the attempts to connect."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: returns seconds, and never goes back."""
        self._clock = clock
        self._worked = self._delivered = False
        self._refusals = 0
        self._since = 0.0

    def worked(self, *, delivered: bool) -> None:
        """Note a subscribed connection. Only one that delivered ends a series of refusals."""
        self._worked = True
        if delivered:
            self._delivered = True
            self._refusals = 0

    def forget(self) -> None:
        """Note another failure: the refusals before it were not all there was."""
        self._refusals = 0

    def is_final(self, wrong_data: bool = False) -> bool:
        """Note a refusal. Return whether it is for good.

        wrong_data: what was received is the reason, so that only ticks prove that it ever worked.
        """
        if not (self._delivered if wrong_data else self._worked):
            return True
        if not self._refusals:
            self._since = self._clock()
        self._refusals += 1
        return self._refusals >= MIN_REFUSALS and self._clock() - self._since >= MIN_SECONDS
