"""How far a trade stream has advanced by the vendor's clock. Pure.

The watermark is the newest ts_event of the stream plus the bus time elapsed since the entry that carried it.
"""

from tickbus.units import MILLISECOND


class Watermark:
    """`newest`: the newest ts_event, ns; `newest_at`: bus time in ms of the entry that carried it. The
    builder updates both in place, in its hot loops.
    """

    __slots__ = ("newest", "newest_at")

    def __init__(self, newest: int, newest_at: int) -> None:
        self.newest, self.newest_at = newest, newest_at

    def advance(self, ts: int, ms: int) -> None:
        if ts > self.newest:
            self.newest, self.newest_at = ts, ms

    def before(self, ms: int) -> int:
        """Return the watermark at the end of the ms before `ms`, or now if entries of `ms` were applied."""
        elapsed = ms - 1 - self.newest_at
        return self.newest + elapsed * MILLISECOND if elapsed > 0 else self.newest

    def has_passed(self, due: int, ms: int) -> bool:
        """Return whether it reached `due` by the end of a ms before `ms`, with all entries of that ms in."""
        return ms > self.newest_at and self.newest + (ms - 1 - self.newest_at) * MILLISECOND >= due

    def reaches_at(self, due: int) -> int:
        """Return the first ms, from the newest entry on, at which it reaches `due`."""
        # rounded up
        ahead = -((self.newest - due) // MILLISECOND)
        return self.newest_at + ahead if ahead > 0 else self.newest_at
