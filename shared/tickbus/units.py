"""Text to numbers and back: durations, byte sizes, points in time, exact decimals. Pure.

Durations and times are integers in nanoseconds, sizes integers in bytes. Every parser raises ValueError
with a text that says what is expected.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import NewType

Duration = NewType("Duration", int)
"""A duration in nanoseconds."""
Size = NewType("Size", int)
"""A number of bytes."""

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_DURATIONS = {"d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND, "ms": MILLISECOND, "us": MICROSECOND, "ns": 1}
_SIZES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def parse_duration(text: str) -> Duration:
    """Parse `500ms`, `2s`, `1.5h` into nanoseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|us|ns|s|m|h|d)", text.strip())
    if not match:
        raise ValueError(f"invalid duration {text!r}: expected e.g. 500ms, 2s, 5m, 1h or 1d")
    return Duration(int(Decimal(match[1]) * _DURATIONS[match[2]]))


def format_duration(value: int) -> str:
    """Return the shortest exact text that `parse_duration` reads back, from nanoseconds."""
    for unit, length in _DURATIONS.items():
        if value % length == 0 and (value or unit == "s"):
            return f"{value // length}{unit}"
    raise AssertionError("every integer is divisible by 1ns")


def parse_size(text: str) -> Size:
    """Parse `64MB`, `4GB`, `1000` into bytes (powers of 1024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|)", text.strip().upper())
    if not match:
        raise ValueError(f"invalid size {text!r}: expected e.g. 512KB, 64MB or 4GB")
    return Size(int(Decimal(match[1]) * _SIZES[match[2]]))


def format_size(value: int) -> str:
    """Return a size as an option takes it, in its largest whole unit: `64MB`."""
    for unit in ("GB", "MB", "KB"):
        if value and value % _SIZES[unit] == 0:
            return f"{value // _SIZES[unit]}{unit}"
    return f"{value}B"


def parse_time(text: str) -> int:
    """Parse a time into ns since the epoch.

    Either ISO 8601 (UTC unless it has an offset), or a number since the epoch as for `epoch_ns`.
    """
    if re.fullmatch(r"\d{1,20}", text):
        return epoch_ns(int(text))
    return iso_ns(text)


def epoch_ns(value: int) -> int:
    """Convert seconds, milliseconds, microseconds or nanoseconds since the epoch to ns.

    The unit follows from the magnitude: below 1e11 s (until the year 5138), below 1e14 ms, below 1e17 us,
    else ns. This is right for every time between 1973 and 2262, where 64 bits of ns end: ValueError beyond.
    """
    if value >= 100_000_000_000_000_000:
        return value if value < 1 << 63 else in_64_bits(value)
    if value >= 100_000_000_000_000:
        return in_64_bits(value * MICROSECOND)
    if value >= 100_000_000_000:
        return in_64_bits(value * MILLISECOND)
    return in_64_bits(value * SECOND)


def in_64_bits(ns: int) -> int:
    """Return the time unchanged. ValueError if it, or an interval that contains it, does not fit 64 bits."""
    if not -(1 << 63) + (1 << 60) <= ns < 1 << 63:
        raise ValueError(f"invalid time {ns} ns: expected between 1714 and 2262")
    return ns


_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9})\d*)?)?\s*(Z|[+-]\d\d:?\d\d)?",
    re.IGNORECASE,
)


def iso_ns(text: str) -> int:
    """Parse ISO 8601 with up to nine fractional digits into ns since the epoch. UTC if it has no offset."""
    match = _ISO.fullmatch(text.strip())
    if not match:
        raise ValueError(
            f"invalid time {text!r}: expected e.g. 2024-08-09T13:30:00Z, or a number since the epoch"
        )
    day, clock, fraction, offset = match.groups()
    zone = "+00:00" if offset is None or offset in "Zz" else offset
    whole = datetime.fromisoformat(f"{day}T{clock or '00:00'}{zone}")
    seconds = int((whole - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return in_64_bits(seconds * SECOND + int((fraction or "").ljust(9, "0")))


def format_time(ns: int) -> str:
    """Return ns since the epoch as ISO 8601 in UTC with nine digits, exact."""
    seconds, fraction = divmod(ns, SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


_WHOLE_DIGITS, _PLACES = 20, 18
_UNSIGNED = rf"(?:0|[1-9]\d{{0,{_WHOLE_DIGITS - 1}}})(?:\.\d{{1,{_PLACES}}})?"
is_plain = re.compile(f"(?:-(?=[0.]*[1-9]))?{_UNSIGNED}", re.ASCII).fullmatch
"""Match a number that is `canonical` already, as nearly all are; else None. Hot paths call it directly."""
is_plain_size = re.compile(_UNSIGNED, re.ASCII).fullmatch
_MAX_DECIMAL = 64
"""Longest decimal that is read at all: an exponent must not blow up into gigabytes of zeros."""


def canonical(text: str) -> str:
    """Return a vendor's price in canonical form; ValueError if it is no number, or out of range.

    The digits are the same, without exponent, plus sign, minus zero or leading zeros. Trailing zeros stay:
    `201.187000` keeps its six places. The range is that of decimal128(38, 18), so that what enters the bus
    fits everywhere behind it: less than 10^20, at most 18 decimals (zeros behind them are left out). Not
    cached: with many symbols few prices repeat, and a miss costs more than the check.
    """
    if is_plain(text):
        return text
    whole, _, fraction = (number := plain_number(text)).partition(".")
    if len(whole.lstrip("-")) > _WHOLE_DIGITS:
        raise ValueError(f"invalid number {text[:80]!r}: expected less than 10^{_WHOLE_DIGITS}")
    if len(fraction) <= _PLACES:
        return number
    if fraction[_PLACES:].strip("0"):
        places = len(fraction.rstrip("0"))
        raise ValueError(
            f"invalid number {text[:80]!r}: it has {places} decimals, and at most {_PLACES} can be stored"
        )
    return f"{whole}.{fraction[:_PLACES]}"


def canonical_size(text: str) -> str:
    """Like `canonical`, for a number that is never negative."""
    if is_plain_size(text):
        return text
    return _not_negative(canonical(text))


def plain_number(text: str) -> str:
    """Like `canonical`, for a stored number: of any size up to 64 digits, as earlier versions wrote it."""
    if is_plain(text):
        return text
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        value = Decimal("NaN")
    if (
        not value.is_finite()
        or not text.isascii()
        or "_" in text
        or abs(value.adjusted()) > _MAX_DECIMAL
        or len(text) > _MAX_DECIMAL
    ):
        raise ValueError(f"invalid number {text[:80]!r}: expected a decimal, e.g. 201.187")
    return plain(value or abs(value))


def plain_size(text: str) -> str:
    """Like `plain_number`, for a number that is never negative."""
    return _not_negative(plain_number(text))


def _not_negative(number: str) -> str:
    if number[0] == "-":
        raise ValueError(f"invalid size {number}: expected zero or more")
    return number


def plain(value: Decimal) -> str:
    """Return the digits of a finite Decimal without exponent, as on the wire."""
    return format(value, "f")
