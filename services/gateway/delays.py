"""What ticks take to arrive, to put receive times on the vendor's clock. Pure.

A feed may lag behind by minutes (a delayed plan) or stand still for seconds (a paused gateway finds old frames in its socket).
What is missing after an outage begins where the newest tick was made, which the newest delay tells; it ends where new ticks are made,
which the least delay tells.
"""

from collections.abc import Iterable


class Delays:
    def __init__(self) -> None:
        self._newest = 0
        self._least: int | None = None

    def measure(self, ticks: Iterable[tuple[int, int]]) -> None:
        """(ts_event, ts_recv) of the newest tick of each stream. Equal ones carry no time of the vendor's."""
        timed = [(event, recv - event) for event, recv in ticks if recv and recv != event]
        if timed:
            self._newest = max(timed)[1]
            least = min(delay for _, delay in timed)
            self._least = least if self._least is None else min(self._least, least)

    def missing_from(self, recv: int) -> int:
        """Event time of what came at `recv`, the last before an outage."""
        return recv - self._newest

    def missing_to(self, recv: int) -> int:
        """Event time of what is made when `recv` is received, after it."""
        return recv - (self._least or 0)
