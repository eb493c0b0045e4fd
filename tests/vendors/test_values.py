from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors.values import book_side, is_zero, trade_id
from tickbus.units import canonical


@pytest.mark.parametrize(
    ("price", "size", "side"),
    [
        ("1.50", "2", ("1.50", "2")),
        ("1e2", "+2", ("100", "2")),
        ("1.50", "", ("1.50", None)),
        ("1.50", None, ("1.50", None)),
        ("1.50", "0", ("1.50", "0")),  # a price is a price: some vendors send no sizes but 0
        ("-37.63", "5", ("-37.63", "5")),
        ("0", "0", (None, None)),
        ("0.00000000", "0.00000000", (None, None)),
        ("-0.0", "0", (None, None)),
        ("0", None, (None, None)),
        ("0", "5", ("0", "5")),  # somebody bids nothing for five: a spread, or an option at its end
        ("", "", (None, None)),
        ("", "5", (None, None)),
        (None, None, (None, None)),
        ("0.00000001", "0", ("0.00000001", "0")),
    ],
)
def test_side_of_the_book(price: str | None, size: str | None, side: tuple[str | None, str | None]) -> None:
    assert book_side(price, size) == side


@pytest.mark.parametrize(("price", "size"), [("x", "1"), ("1", "x"), ("1", "-1"), ("1e30", "1")])
def test_side_with_a_bad_number_is_an_error(price: str, size: str) -> None:
    with pytest.raises(ValueError, match="invalid"):
        book_side(price, size)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=8))
def test_zero_is_zero_however_it_is_written(value: object) -> None:
    text = canonical(str(value))
    assert is_zero(text) == (value == 0)


@pytest.mark.parametrize(("text", "id"), [("", None), ("0", None), ("1", "1"), ("00", "00"), ("a-0", "a-0")])
def test_trade_id(text: str, id: str | None) -> None:
    assert trade_id(text) == id


@pytest.mark.parametrize(
    ("price", "size"), [([], "1"), ({}, "1"), (False, "1"), (0, "1"), ("1", []), ("1", {})]
)
def test_a_side_that_is_no_text_is_refused(price: Any, size: Any) -> None:
    """A decoder that takes anything leaves an empty list or object; it is no empty side."""
    with pytest.raises(ValueError, match="expected a number or text"):
        book_side(price, size)
