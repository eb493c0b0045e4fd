"""Mean and deviation of exact integers, and decisions about them without rounding. Pure.

Over n values: S1 their sum, S2 the sum of their squares, V = n S2 - S1^2. The sample deviation is
sqrt(V / (n (n - 1))).
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

from tickbus.fixed_point import divide_half_even

PLACES = 6
_MILLION = 10**PLACES
_CONTEXT = Context(prec=60)
_STEP = Decimal(1).scaleb(-PLACES)


class Moments:
    """Of a window: values are added as they enter and dropped as they leave."""

    __slots__ = ("n", "s1", "s2")

    def __init__(self) -> None:
        self.n = self.s1 = self.s2 = 0

    def add(self, x: int) -> None:
        self.n += 1
        self.s1 += x
        self.s2 += x * x

    def drop(self, x: int) -> None:
        self.n -= 1
        self.s1 -= x
        self.s2 -= x * x

    def scale(self, factor: int) -> None:
        """Every value becomes `factor` times as large."""
        self.s1 *= factor
        self.s2 *= factor * factor

    @property
    def v(self) -> int:
        """V: 0 if all values are equal."""
        return self.n * self.s2 - self.s1 * self.s1

    def is_beyond(self, d: int, k: Fraction) -> bool:
        """Whether the distance d = n x - S1 is at least k sample deviations; the same whatever its sign."""
        return d * d * (self.n - 1) * k.denominator**2 >= k.numerator**2 * self.n * self.v

    def deviations(self, d: int) -> str:
        """Return the distance d = n x - S1 in sample deviations, for people. V is not 0."""
        with_sign = _CONTEXT.multiply(
            Decimal(d),
            _CONTEXT.sqrt(_CONTEXT.divide(Decimal(self.n - 1), Decimal(self.n * self.v))),
        )
        return f"{with_sign.quantize(_STEP, ROUND_HALF_EVEN, _CONTEXT):f}"


def quotient(numerator: int, denominator: int) -> str:
    """Return numerator / denominator as text with six places, half-even. denominator > 0."""
    number = divide_half_even(numerator * _MILLION, denominator)
    digits = str(abs(number)).zfill(PLACES + 1)
    return f"{'-' if number < 0 else ''}{digits[:-PLACES]}.{digits[-PLACES:]}"
