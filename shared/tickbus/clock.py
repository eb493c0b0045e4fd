"""Clocks. Durations are measured on the monotonic clock, timestamps come from the bus clock."""

import time

from tickbus.units import MICROSECOND, MILLISECOND, SECOND

monotonic_ns = time.monotonic_ns


class BusClock:
    """Bus time: the Redis server's TIME when it was last set, plus the monotonic clock since.

    All gateways of a bus share it, and a stepped wall clock on any of their machines has no effect. It never
    goes backwards: after a setting that is behind, it waits at the old value.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() - monotonic_ns()
        self._floor = 0

    def set(self, server_time: tuple[int, int], sent_ns: int, received_ns: int) -> None:
        """Set it to the reply to TIME (seconds, microseconds), sent and received at these monotonic times."""
        seconds, micros = server_time
        self._offset = seconds * SECOND + micros * MICROSECOND - (sent_ns + received_ns) // 2

    def not_before(self, ns: int) -> None:
        """Never return a time below `ns` from now on (the newest entry already stored)."""
        self._floor = max(self._floor, ns)

    def now_ns(self) -> int:
        """Return the bus time in ns since the epoch; never less than before."""
        self._floor = now = max(self._floor, monotonic_ns() + self._offset)
        return now

    def now_ms(self) -> int:
        """Return the bus time in ms, as in stream IDs."""
        return self.now_ns() // MILLISECOND
