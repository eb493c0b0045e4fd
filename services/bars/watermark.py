"""How far a trade stream has come by the vendor's clock. Pure.

The watermark is the newest ts_event of the stream plus the bus time that passed since the entry that brought it.
"""

from tickbus.units import MILLISECOND


class Watermark:
    """`newest`: the newest ts_event, ns; `newest_at`: bus time in ms of the entry that brought it. The builder brings both
    along in place, in its hot loops."""

    __slots__ = ("newest", "newest_at")

    def __init__(self, newest: int, newest_at: int) -> None:
        self.newest, self.newest_at = newest, newest_at

    def bring(self, ts: int, ms: int) -> None:
        if ts > self.newest:
            self.newest, self.newest_at = ts, ms

    def before(self, ms: int) -> int:
        """The watermark at the end of the ms before `ms`; of the entries so far, if some were of this ms."""
        passed = ms - 1 - self.newest_at
        return self.newest + passed * MILLISECOND if passed > 0 else self.newest

    def passed(self, due: int, ms: int) -> bool:
        """Was it at `due` by the end of a ms before `ms`? All entries of that ms are in, then."""
        return ms > self.newest_at and self.newest + (ms - 1 - self.newest_at) * MILLISECOND >= due

    def instant(self, due: int) -> int:
        """The first ms, from the newest entry on, at which it is at `due`."""
        # rounded up
        ahead = -((self.newest - due) // MILLISECOND)
        return self.newest_at + ahead if ahead > 0 else self.newest_at
