"""When a market is open: `13:30-20:00`, in UTC, every day. Pure."""

import re
from collections.abc import Callable

from tickbus.errors import ConfigError
from tickbus.units import DAY, HOUR, MINUTE


def parse_hours(text: str) -> Callable[[int], bool]:
    """Opening hours -> whether they hold at a time in ns since the epoch. An end before the start lies on the next day."""
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text, re.ASCII)
    if not match:
        raise ConfigError(f"--session {text}: write it like 13:30-20:00 (UTC)")
    first, second, third, fourth = map(int, match.groups())
    start, end = first * HOUR + second * MINUTE, third * HOUR + fourth * MINUTE
    return lambda wall: (wall - start) % DAY < (end - start) % DAY
