"""Exact decimals as scaled integers: `61837.63` at scale 2 is 6183763. Pure.

Integers add and multiply faster than Decimals, have any number of digits, and cannot round in silence: the one division is
`half_even`. A scale is a number of places after the point.
"""

from functools import cache

from tickbus.errors import WireError

PLACES = 18
"""What is derived (value, vwap) is rounded to this many places."""

TENS: tuple[int, ...] = tuple(10**power for power in range(256))
"""Powers of ten, further than any two scales go: the gateway takes no number of more than 64 digits."""

_REMEMBERED = 1 << 16
_LONGEST = 130
"""Characters: what `tickbus.units.canonical` may write, 64 digits of which the last stands up to 127 places behind the point."""


class PrecisionExceeded(Exception):
    """A number has more places than the scale; `places` says how many."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self.places = places


class Scaled(dict[str, int]):
    """Text -> integer at one scale. Prices and sizes repeat, so that most are only looked up.

    A text that is no plain decimal raises WireError, one with more places than the scale raises PrecisionExceeded.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def __missing__(self, text: str) -> int:
        whole, _, fraction = text.partition(".")
        try:
            if len(text) > _LONGEST:
                raise ValueError
            unscaled = int(whole + fraction)
        except ValueError:
            raise WireError(
                f"{text[:80]!r} in a trade is no decimal number; whoever wrote it does not keep to docs/wire-format.md"
            ) from None
        if len(fraction) > self.scale:
            raise PrecisionExceeded(len(fraction))
        value = unscaled * TENS[self.scale - len(fraction)]
        if len(self) >= _REMEMBERED:
            self.clear()
        self[text] = value
        return value


@cache
def scaled(scale: int) -> Scaled:
    """One per scale, shared by all streams: ten thousand symbols have few scales, and most of their numbers in common."""
    return Scaled(scale)


def fitting(numbers: Scaled, text: str) -> Scaled:
    """These, or those of the scale that holds the text."""
    try:
        numbers[text]
    except PrecisionExceeded as finer:
        return scaled(finer.places)
    return numbers


def to_text(number: int, scale: int) -> str:
    """A scaled integer -> its shortest text: no exponent, no zeros at the end of the fraction."""
    digits = str(number)
    if not scale or not number:
        return digits
    if number < 0:
        return "-" + to_text(-number, scale)
    if len(digits) <= scale:
        digits = digits.zfill(scale + 1)
    fraction = digits[-scale:].rstrip("0")
    return f"{digits[:-scale]}.{fraction}" if fraction else digits[:-scale]


def half_even(number: int, divisor: int) -> int:
    """number / divisor to the nearest whole number, a tie to the even one. divisor > 0."""
    whole, rest = divmod(number, divisor)
    if 2 * rest > divisor or (2 * rest == divisor and whole % 2):
        whole += 1
    return whole
