"""Exact decimals as scaled integers: `61837.63` at scale 2 is 6183763. Pure.

Integers add and multiply faster than Decimals, have any number of digits, and cannot round silently: the
only division is `divide_half_even`. A scale is a number of places after the decimal point.
"""

from functools import cache

from tickbus.errors import WireError

PLACES = 18
"""Derived numbers (value, vwap) are rounded to this many places."""

TENS: tuple[int, ...] = tuple(10**power for power in range(256))
"""Powers of ten, beyond the sum of any two scales: the gateway accepts no number of more than 64 digits."""

_MAX_CACHED = 1 << 16
_MAX_CHARACTERS = 130
"""What `tickbus.units.canonical` may write: 64 digits, the last up to 127 places after the point."""


class PrecisionExceeded(Exception):
    """A number has more decimal places than the scale. `places`: how many."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self.places = places


class ScaleTable(dict[str, int]):
    """Decimal text -> integer at one scale. Prices and sizes repeat, so most are only looked up.

    A lookup raises WireError if the text is not a plain decimal, PrecisionExceeded if it has more places.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def __missing__(self, text: str) -> int:
        whole, _, fraction = text.partition(".")
        try:
            if len(text) > _MAX_CHARACTERS:
                raise ValueError
            unscaled = int(whole + fraction)
        except ValueError:
            raise WireError(
                f"invalid number {text[:80]!r} in a trade: expected plain digits as in docs/wire-format.md"
            ) from None
        if len(fraction) > self.scale:
            raise PrecisionExceeded(len(fraction))
        value = unscaled * TENS[self.scale - len(fraction)]
        if len(self) >= _MAX_CACHED:
            self.clear()
        self[text] = value
        return value


@cache
def scale_table(scale: int) -> ScaleTable:
    """Return the table of a scale, one for all streams: 10,000 symbols share few scales and many numbers."""
    return ScaleTable(scale)


def ensure_scale(table: ScaleTable, text: str) -> ScaleTable:
    """Return this table, or that of a finer scale if the text needs one."""
    try:
        table[text]
    except PrecisionExceeded as exceeded:
        return scale_table(exceeded.places)
    return table


def to_text(number: int, scale: int) -> str:
    """Return the shortest text of a scaled integer: no exponent, no trailing zeros in the fraction."""
    digits = str(number)
    if not scale or not number:
        return digits
    if number < 0:
        return "-" + to_text(-number, scale)
    if len(digits) <= scale:
        digits = digits.zfill(scale + 1)
    fraction = digits[-scale:].rstrip("0")
    return f"{digits[:-scale]}.{fraction}" if fraction else digits[:-scale]


def divide_half_even(number: int, divisor: int) -> int:
    """Return number / divisor rounded to the nearest integer, ties to even. divisor > 0."""
    whole, rest = divmod(number, divisor)
    if 2 * rest > divisor or (2 * rest == divisor and whole % 2):
        whole += 1
    return whole
