"""What ticks take to arrive, to put receive times on the vendor's clock. Pure.

A feed may lag behind by minutes (a delayed plan) or stand still for seconds (a paused gateway finds old frames in its socket).
What is missing after an outage begins where the newest tick was made, which the newest delay tells; it ends where new ticks are made,
which the least delay tells. That one is handed on from gateway to gateway: one that stood still may end before a fresh tick came.
"""

from collections.abc import Iterable

_NEVER = 1 << 62


class MinLatency:
    def __init__(self) -> None:
        self.least = _NEVER
        """ns, over all ticks noted so far that bear a time of the vendor's, and what was inherited."""
        self._own = _NEVER
        self._newest = 0

    def note(self, event: int, recv: int) -> None:
        """A tick without flags, now and then. Equal times are no time of the vendor's."""
        if event != recv and recv - event < self._own:
            self._own = recv - event
            self.least = min(self.least, self._own)

    def measure(self, ticks: Iterable[tuple[int, int]]) -> None:
        """(ts_event, ts_recv) of the newest tick of each stream, at an outage."""
        timed = [(event, recv) for event, recv in ticks if recv and recv != event]
        if timed:
            event, recv = max(timed)
            self._newest = recv - event
        for event, recv in timed:
            self.note(event, recv)

    @property
    def observed(self) -> int | None:
        """The least that was seen here, for the next gateway; None: nothing was. Not what was inherited: a vendor may become slower."""
        return None if self._own == _NEVER else self._own

    def inherit(self, observed: int | None, *, ends_in_gap: bool) -> None:
        """What the gateway before us saw. `ends_in_gap`: what it told last is a Gap, which ends where new ticks were made."""
        if observed is not None:
            self.least = min(self.least, observed)
        if ends_in_gap:
            self._newest = min(self._newest, self.least)

    def missing_from(self, recv: int) -> int:
        """Event time of what came at `recv`, the last before an outage."""
        return recv - self._newest

    def missing_to(self, recv: int) -> int:
        """Event time of what is made when `recv` is received, after it."""
        return recv - self.least if self.least != _NEVER else recv
