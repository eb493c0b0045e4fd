from contextlib import suppress
from decimal import ROUND_HALF_EVEN, Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bars.fixed_point import PrecisionExceeded, Scaled, half_even, to_text
from tickbus.errors import WireError
from tickbus.units import canonical

WIDE = Context(prec=400)
texts = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20).map(str)


@given(texts, st.integers(0, 30))
def test_texts_become_scaled_integers_and_texts_again(text, scale):
    try:
        text = canonical(text)
    except ValueError:
        return
    places = len(text.partition(".")[2])
    if places > scale:
        with pytest.raises(PrecisionExceeded) as finer:
            Scaled(scale)[text]
        assert finer.value.places == places
        return
    number = Scaled(scale)[text]
    assert Decimal(number).scaleb(-scale, WIDE) == Decimal(text)
    shown = to_text(number, scale)
    assert Decimal(shown) == Decimal(text)
    assert canonical(shown) == shown
    assert "." not in shown or not shown.endswith("0")


@given(st.text(max_size=80))
def test_any_text_is_a_number_or_a_documented_error(text):
    with suppress(WireError, PrecisionExceeded):
        assert isinstance(Scaled(70)[text], int)


@pytest.mark.parametrize("text", ["", ".", "-", "1e5", "NaN", "1.2.3", "1,5", "9" * 5000])
def test_what_is_no_plain_decimal_is_refused(text):
    with pytest.raises(WireError):
        Scaled(8)[text]


def test_no_more_texts_are_remembered_than_fit():
    numbers = Scaled(0)
    for number in range((1 << 16) + 10):
        assert numbers[str(number)] == number
    assert len(numbers) <= 1 << 16


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
def test_shortest_text(number, scale, text):
    assert to_text(number, scale) == text


@given(st.integers(-(10**40), 10**40), st.integers(1, 10**20))
def test_half_even_is_that_of_decimal(number, divisor):
    quotient = WIDE.divide(Decimal(number), Decimal(divisor))
    assert half_even(number, divisor) == int(quotient.quantize(Decimal(1), ROUND_HALF_EVEN, WIDE))


@given(st.integers(-1000, 1000))
def test_ties_go_to_the_even_one(whole):
    assert half_even(2 * whole + 1, 2) % 2 == 0
