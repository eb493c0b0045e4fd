"""Where a time bar begins and ends. Pure.

Seconds, minutes and hours are aligned to the epoch. Days run from local midnight to local midnight of the
symbol's market, given by its suffix (`AAPL.US`: New York), so the day of a clock change has 23 or 25 hours;
pairs and everything else have UTC days. Bars of several days count their days from 1970-01-01.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache, lru_cache
from zoneinfo import ZoneInfo

from tickbus.protocol.bar_specs import Spec
from tickbus.units import SECOND

ZONES = {
    "US": "America/New_York",
    "CA": "America/Toronto",
    "HK": "Asia/Hong_Kong",
    "SH": "Asia/Shanghai",
    "SZ": "Asia/Shanghai",
    "BJ": "Asia/Shanghai",
    "TW": "Asia/Taipei",
    "JP": "Asia/Tokyo",
    "KR": "Asia/Seoul",
    "SG": "Asia/Singapore",
    "IN": "Asia/Kolkata",
    "AU": "Australia/Sydney",
    "UK": "Europe/London",
    "DE": "Europe/Berlin",
    "FR": "Europe/Paris",
}
"""Suffix of a listed symbol -> the zone whose midnight ends its day."""

Interval = tuple[int, int]
"""start <= ts_event < end, ns."""

_EPOCH = date(1970, 1, 1).toordinal()


def has_market(symbol: str) -> bool:
    """Return whether a symbol has a market's suffix: one that closes at night."""
    _, _, suffix = symbol.rpartition(".")
    return suffix != symbol and suffix in ZONES


def zone_of(symbol: str) -> tzinfo:
    """Return the zone whose midnight ends a symbol's day."""
    return _zone(ZONES[symbol.rpartition(".")[2]]) if has_market(symbol) else UTC


def intervals(spec: Spec, symbol: str) -> Callable[[int], Interval]:
    """Return the function from a ts_event to the interval of the time spec that contains it."""
    zone, days = zone_of(symbol), spec.days
    if days and zone is not UTC:
        return lambda ts: _local_days(ts, zone, days)
    length = int(spec.size)

    def aligned(ts: int) -> Interval:
        start = ts - ts % length
        return start, start + length

    return aligned


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _local_days(ts: int, zone: tzinfo, days: int) -> Interval:
    today = datetime.fromtimestamp(ts // SECOND, zone).toordinal() - _EPOCH
    first = date.fromordinal(_EPOCH + today - today % days)
    return _midnight(first, zone), _midnight(first + timedelta(days), zone)


@lru_cache(maxsize=4096)
def _midnight(day: date, zone: tzinfo) -> int:
    # where clocks jump over midnight itself, this is the instant of the jump: the first of the day
    return int(datetime.combine(day, time(), zone).timestamp()) * SECOND
