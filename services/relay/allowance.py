"""How often a client may ask. Pure: the time comes from the caller."""

REQUESTS_PER_SECOND = 20
BURST = 200


class Allowance:
    """Requests of one client, pings included: so many a second, more at once after a pause."""

    __slots__ = ("_asked_at", "_left")

    def __init__(self, now: float) -> None:
        """now: monotonic time in seconds."""
        self._left = float(BURST)
        self._asked_at = now

    def take(self, now: float) -> bool:
        """Count a request. Return whether it is within the rate."""
        self._left = min(BURST, self._left + (now - self._asked_at) * REQUESTS_PER_SECOND) - 1
        self._asked_at = now
        return self._left >= 0
