"""How long ticks take to arrive, which maps receive times onto the vendor's clock. Pure.

A feed may lag by minutes (a delayed plan) or stall for seconds (a paused gateway finds old frames in its
socket). What is missing after an outage begins where the newest tick was made, according to the newest
latency; it ends where new ticks are made, according to the minimum latency. The minimum is handed on from
gateway to gateway: one that stalled may end before a fresh tick arrives.
"""

from collections.abc import Iterable

_UNKNOWN = 1 << 62


class MinLatency:
    """The newest and the minimum latency of a feed."""

    def __init__(self) -> None:
        self.minimum = _UNKNOWN
        """ns, over all ticks noted so far that carry a vendor timestamp, and the inherited value."""
        self._own = _UNKNOWN
        self._newest = 0

    def note(self, event: int, recv: int) -> None:
        """Note an occasional tick without flags. Equal times mean that the vendor sent none."""
        if event != recv and recv - event < self._own:
            self._own = recv - event
            self.minimum = min(self.minimum, self._own)

    def measure(self, ticks: Iterable[tuple[int, int]]) -> None:
        """Note (ts_event, ts_recv) of the newest tick of each stream, at an outage."""
        timed = [(event, recv) for event, recv in ticks if recv and recv != event]
        if timed:
            event, recv = max(timed)
            self._newest = recv - event
        for event, recv in timed:
            self.note(event, recv)

    @property
    def observed(self) -> int | None:
        """The minimum seen by this process, for the next gateway; None if it saw none.

        Without the inherited value: a vendor may become slower.
        """
        return None if self._own == _UNKNOWN else self._own

    def inherit(self, observed: int | None, *, ends_in_gap: bool) -> None:
        """Take over what the previous gateway observed.

        `ends_in_gap`: the newest entry it stored is a Gap, which ends where new ticks were made.
        """
        if observed is not None:
            self.minimum = min(self.minimum, observed)
        if ends_in_gap:
            self._newest = min(self._newest, self.minimum)

    def missing_from(self, recv: int) -> int:
        """Return the event time of what was received at `recv`, the last before an outage.

        Not later than `recv`, although a vendor's clock may be ahead: quotes without a time have ours.
        """
        return recv - max(self._newest, 0)

    def missing_to(self, recv: int) -> int:
        """Return the event time of what is made at receive time `recv`, after an outage."""
        return recv - self.minimum if self.minimum != _UNKNOWN else recv
