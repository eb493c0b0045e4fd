"""When a market is open: `mon-fri 09:30-16:00 America/New_York`, `13:30-20:00`. Pure."""

import re
from dataclasses import dataclass
from datetime import datetime, time
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tickbus.errors import ConfigError
from tickbus.units import SECOND

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORMAT = re.compile(
    r"(?:([a-z]{3})(?:-([a-z]{3}))? +)?(\d\d:\d\d)-(\d\d:\d\d)(?: +(\S+))?", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True)
class TradingHours:
    """A weekly session. If it ends before it starts, it runs past midnight; equal ends mean the whole day."""

    days: frozenset[int]
    opens: time
    closes: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str) -> "TradingHours":
        """Parse `[days] HH:MM-HH:MM [zone]`: by default every day, UTC. Raises ConfigError if invalid."""
        match = _FORMAT.fullmatch(text.strip())
        try:
            if match is None:
                raise ValueError
            first, last, opens, closes, zone = match.groups()
            begin = _DAYS.index((first or "mon").lower())
            end = _DAYS.index((last or first or "sun").lower())
            days = frozenset((begin + step) % 7 for step in range((end - begin) % 7 + 1))
            return cls(days, time.fromisoformat(opens), time.fromisoformat(closes), ZoneInfo(zone or "UTC"))
        except (
            ValueError,
            ZoneInfoNotFoundError,
            OSError,
        ):  # OSError: the zone is a folder, or not a file name
            raise ConfigError(
                f"invalid trading hours {text!r}: expected e.g. 'mon-fri 09:30-16:00 America/New_York' "
                "or '13:30-20:00' (--session)"
            ) from None

    def contains(self, ns: int) -> bool:
        """Return whether the market is open at `ns` since the epoch."""
        local = datetime.fromtimestamp(ns / SECOND, self.zone)
        today, now = local.weekday(), local.time()
        if self.opens < self.closes:
            return today in self.days and self.opens <= now < self.closes
        return (today in self.days and now >= self.opens) or (
            (today - 1) % 7 in self.days and now < self.closes
        )
