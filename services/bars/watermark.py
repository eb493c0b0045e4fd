"""How far a trade stream has advanced by the vendor's clock. Pure.

The watermark is the newest ts_event of the stream plus the bus time elapsed since the entry that carried it.
A ts_event that cannot be used as a clock (FUTURE_TIME, BAD_TIME) does not count; but where no other comes,
the time of receipt replaces it:

- after `AHEAD_TRADES` trades that are all flagged FUTURE_TIME, the vendor's clock is ahead of ours: until one
  without the flag comes, ts_recv of the newest trade counts as the newest ts_event;
- in a stream that never had a usable ts_event, BAD_TIME does count: the vendor has no clock.

The newest never decreases: what is final stays so.
"""

from tickbus.protocol.messages import Flag, Trade
from tickbus.units import MILLISECOND

MIN_TIME = -(1 << 62)
MAX_TIME = 1 << 62

AHEAD_TRADES = 100
"""This many trades in a row, all flagged FUTURE_TIME: the vendor's clock is ahead."""
SUSPICIOUS_TRADES = 10
"""From this many on it is worth a word, where nothing else tells the time."""

_FUTURE = int(Flag.FUTURE_TIME)
_UNUSABLE = _FUTURE | int(Flag.BAD_TIME)


class Watermark:
    """`newest`: the newest ts_event that counts, or the ts_recv that replaces it, ns; `newest_at`: bus time
    in ms of the entry that carried it. The builder updates both in place, in its hot loops, while no trade
    is flagged.
    """

    __slots__ = ("ahead", "newest", "newest_at", "timed")

    def __init__(self, newest: int, newest_at: int, ahead: int = 0, timed: bool | None = None) -> None:
        self.newest, self.newest_at = newest, newest_at
        self.ahead = ahead
        """How many of the newest trades are flagged FUTURE_TIME, all of them; at most `AHEAD_TRADES`."""
        self.timed = newest != MIN_TIME if timed is None else timed
        """Whether there was a usable ts_event."""

    @property
    def clock_ahead(self) -> bool:
        """Whether the vendor's clock is ahead, so that the times of receipt count."""
        return self.ahead >= AHEAD_TRADES

    @property
    def exists(self) -> bool:
        """Whether any trade has told the time."""
        return self.newest != MIN_TIME

    def note(self, trade: Trade, ms: int) -> bool:
        """Note the next trade of the stream, at bus time `ms`. Return whether `clock_ahead` begins."""
        if not trade.flags & _UNUSABLE:
            self.ahead, self.timed = 0, True
            self._advance(trade.ts_event, ms)
        elif trade.flags & _FUTURE:
            before = self.ahead
            self.ahead = min(before + 1, AHEAD_TRADES)
            if self.clock_ahead:
                self._advance(trade.ts_recv, ms)
                return before < AHEAD_TRADES
        elif not self.timed:
            self._advance(trade.ts_event, ms)
        return False

    def _advance(self, ts: int, ms: int) -> None:
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
