"""When a feed is expected to deliver: `mon-fri 09:30-16:00 America/New_York`. Pure."""

import re
from dataclasses import dataclass
from datetime import datetime, time
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tickbus.errors import ConfigError
from tickbus.units import SECOND

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class Session:
    """A weekly session; one that ends before it starts runs over midnight."""

    days: frozenset[int]
    opens: time
    closes: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str) -> "Session":
        match = re.fullmatch(r"([a-z]{3})(?:-([a-z]{3}))? +(\d\d:\d\d)-(\d\d:\d\d) +(\S+)", text.strip(), re.IGNORECASE)
        try:
            if match is None:
                raise ValueError
            first, last, opens, closes, zone = match.groups()
            begin = _DAYS.index(first.lower())
            end = _DAYS.index((last or first).lower())
            days = frozenset((begin + step) % 7 for step in range((end - begin) % 7 + 1))
            return cls(days, time.fromisoformat(opens), time.fromisoformat(closes), ZoneInfo(zone))
        except (ValueError, ZoneInfoNotFoundError, OSError):  # a zone that is a folder, or no file name at all
            raise ConfigError(f"--session {text!r}: write it like 'mon-fri 09:30-16:00 America/New_York'") from None

    def contains(self, ns: int) -> bool:
        local = datetime.fromtimestamp(ns / SECOND, self.zone)
        today, now = local.weekday(), local.time()
        if self.opens < self.closes:
            return today in self.days and self.opens <= now < self.closes
        return (today in self.days and now >= self.opens) or ((today - 1) % 7 in self.days and now < self.closes)
