from contextlib import suppress
from decimal import ROUND_HALF_EVEN, Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.errors import WireError
from tickbus.fixed_point import PrecisionExceeded, ScaleTable, divide_half_even, to_text
from tickbus.units import canonical

WIDE = Context(prec=400)
texts = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20).map(str)


@given(texts, st.integers(0, 30))
def test_texts_round_trip_through_scaled_integers(text: str, scale: int) -> None:
    try:
        text = canonical(text)
    except ValueError:
        return
    places = len(text.partition(".")[2])
    if places > scale:
        with pytest.raises(PrecisionExceeded) as caught:
            ScaleTable(scale)[text]
        assert caught.value.places == places
        return
    number = ScaleTable(scale)[text]
    assert Decimal(number).scaleb(-scale, WIDE) == Decimal(text)
    shortest = to_text(number, scale)
    assert Decimal(shortest) == Decimal(text)
    assert canonical(shortest) == shortest
    assert "." not in shortest or not shortest.endswith("0")


@given(st.text(max_size=80))
def test_any_text_is_number_or_documented_error(text: str) -> None:
    with suppress(WireError, PrecisionExceeded):
        assert isinstance(ScaleTable(70)[text], int)


@pytest.mark.parametrize("text", ["", ".", "-", "1e5", "NaN", "1.2.3", "1,5", "9" * 5000])
def test_non_plain_decimal_is_rejected(text: str) -> None:
    with pytest.raises(WireError):
        ScaleTable(8)[text]


def test_table_size_is_bounded() -> None:
    table = ScaleTable(0)
    for number in range((1 << 16) + 10):
        assert table[str(number)] == number
    assert len(table) <= 1 << 16


@pytest.mark.parametrize(
    ("number", "scale", "text"),
    [
        (0, 3, "0"),
        (5, 0, "5"),
        (-5, 3, "-0.005"),
        (1500, 3, "1.5"),
        (100, 2, "1"),
        (10, 0, "10"),
        (-120, 1, "-12"),
    ],
)
def test_text_is_shortest(number: int, scale: int, text: str) -> None:
    assert to_text(number, scale) == text


@given(st.integers(-(10**40), 10**40), st.integers(1, 10**20))
def test_division_rounds_like_decimal(number: int, divisor: int) -> None:
    quotient = WIDE.divide(Decimal(number), Decimal(divisor))
    assert divide_half_even(number, divisor) == int(quotient.quantize(Decimal(1), ROUND_HALF_EVEN, WIDE))


@given(st.integers(-1000, 1000))
def test_ties_round_to_even(whole: int) -> None:
    assert divide_half_even(2 * whole + 1, 2) % 2 == 0
