"""Text to numbers and back: exact, or a clear error."""

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.units import (
    DAY,
    HOUR,
    MICROSECOND,
    MILLISECOND,
    MINUTE,
    SECOND,
    canonical,
    canonical_size,
    epoch_ns,
    format_duration,
    format_size,
    format_time,
    is_plain,
    is_plain_size,
    iso_ns,
    parse_duration,
    parse_size,
    parse_time,
    plain,
    plain_number,
)  # fmt: skip

LAST = (1 << 63) - 1


# durations and sizes


@pytest.mark.parametrize(
    ("text", "value"),
    [("500ms", 500 * MILLISECOND), ("2s", 2 * SECOND), ("1.5h", 90 * MINUTE), ("1d", DAY), ("0s", 0),
     ("7us", 7 * MICROSECOND), ("9ns", 9), ("0.1s", 100 * MILLISECOND), (" 5m ", 5 * MINUTE),
     ("36h", 36 * HOUR)],
)  # fmt: skip
def test_durations_are_parsed(text: str, value: int) -> None:
    assert parse_duration(text) == value


@given(st.integers(0, 10**20))
def test_durations_round_trip(value: int) -> None:
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0s"),
        (DAY, "1d"),
        (36 * HOUR, "36h"),
        (90 * SECOND, "90s"),
        (1500 * MILLISECOND, "1500ms"),
        (1, "1ns"),
    ],
)
def test_durations_are_formatted_in_the_largest_exact_unit(value: int, text: str) -> None:
    assert format_duration(value) == text


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "1 s", "1e3s", "1S", "1w", "1.s", ".5s", "1s2ms", "infs"]
)
def test_invalid_duration_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected e\.g\. 500ms, 2s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1000", 1000), ("64MB", 64 << 20), ("4gb", 4 << 30), ("1.5 KB", 1536), ("10B", 10)],
)
def test_sizes_are_parsed(text: str, value: int) -> None:
    assert parse_size(text) == value


@given(st.integers(0, 1 << 50))
def test_sizes_round_trip(value: int) -> None:
    assert parse_size(format_size(value)) == value


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1TB", "1e3", "1,5MB"])
def test_invalid_size_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected e\.g\. 512KB"):
        parse_size(text)


# times


@given(st.integers(100_000_000_000_000_000, LAST))
def test_unit_of_a_time_follows_from_its_magnitude(ns: int) -> None:
    assert epoch_ns(ns) == ns
    assert epoch_ns(ns // MICROSECOND) == ns - ns % MICROSECOND
    assert epoch_ns(ns // MILLISECOND) == ns - ns % MILLISECOND
    assert epoch_ns(ns // SECOND) == ns - ns % SECOND


def test_boundaries_between_time_units() -> None:
    assert epoch_ns(9_223_372_036) == 9_223_372_036 * SECOND
    assert epoch_ns(100_000_000_000) == 100_000_000_000 * MILLISECOND
    assert epoch_ns(100_000_000_000_000) == 100_000_000_000_000 * MICROSECOND
    assert epoch_ns(100_000_000_000_000_000) == 100_000_000_000_000_000
    assert epoch_ns(LAST) == LAST
    assert epoch_ns(0) == 0


@pytest.mark.parametrize(
    "value",
    [9_223_372_037, 99_999_999_999, 99_999_999_999_999, 99_999_999_999_999_999, LAST + 1, 10**30, -(10**30)],
)
def test_time_beyond_64_bits_is_rejected(value: int) -> None:
    with pytest.raises(ValueError, match="between 1714 and 2262"):
        epoch_ns(value)


@given(st.integers(0, LAST))
def test_times_round_trip(ns: int) -> None:
    text = format_time(ns)
    assert iso_ns(text) == parse_time(text) == ns
    assert len(text) == len("2024-08-09T13:30:00.123456789Z")


@given(st.datetimes(datetime(1970, 1, 1), datetime(2262, 1, 1)), st.integers(-23 * 60, 23 * 60))
def test_iso_times_agree_with_the_standard_library(when: datetime, offset: int) -> None:
    moment = when.replace(tzinfo=timezone(timedelta(minutes=offset)))
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert (
        iso_ns(moment.isoformat())
        == (since.days * 86_400 + since.seconds) * SECOND + since.microseconds * 1000
    )


@pytest.mark.parametrize(
    ("text", "same"),
    [("2024-08-09", "2024-08-09T00:00:00Z"), ("2024-08-09 13:30", "2024-08-09T13:30:00Z"),
     ("2024-08-09T13:30:00,5z", "2024-08-09T13:30:00.5Z"),
     ("2024-08-09T15:30:00+0200", "2024-08-09T13:30:00Z"),
     (" 2024-08-09T13:30:00.1234567891 ", "2024-08-09T13:30:00.123456789Z")],
)  # fmt: skip
def test_iso_time_variants_are_parsed(text: str, same: str) -> None:
    assert iso_ns(text) == iso_ns(same)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2024",
        "2024-13-01",
        "2024-02-30",
        "2024-08-09T25:00",
        "2024-08-09T13:30:60",
        "09.08.2024",
        "9999-12-31",
        "0001-01-01",
    ],
)
def test_invalid_time_is_rejected(text: str) -> None:
    with pytest.raises(ValueError):
        iso_ns(text)


@given(st.text(max_size=40))
def test_any_text_parses_as_time_or_raises_value_error(text: str) -> None:
    try:
        assert -(1 << 63) <= parse_time(text) <= LAST
    except ValueError as error:
        assert str(error)


# decimals


NUMBERS = st.decimals(
    allow_nan=False, allow_infinity=False, min_value=Decimal("-1e30"), max_value=Decimal("1e30")
).filter(lambda d: abs(d.adjusted()) < 30 and len(str(d)) <= 64)  # longer ones are rejected, see below


@given(NUMBERS)
def test_plain_number_is_the_same_number_without_exponent(value: Decimal) -> None:
    text = plain_number(str(value))
    assert Decimal(text) == value
    assert "E" not in text.upper() and "+" not in text
    assert len(text) > 64 or plain_number(text) == text
    assert plain(Decimal(text)) == text


@given(NUMBERS | st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**21, places=19))
def test_canonical_is_what_decimal128_38_18_holds_or_is_refused(value: Decimal) -> None:
    exact = Context(prec=200)
    fits = abs(value) < 10**20 and exact.scaleb(value, 18) == exact.to_integral_value(exact.scaleb(value, 18))
    try:
        text = canonical(str(value))
    except ValueError as error:
        assert not fits
        assert "expected less than 10^20" in str(error) or "at most 18 can be stored" in str(error)
        return
    assert fits
    assert Decimal(text) == value and canonical(text) == text
    assert bool(is_plain(text)) and len(text) <= 40
    assert bool(is_plain_size(text)) == (value >= 0)


@given(st.from_regex(r"-?[0-9]{1,24}(\.[0-9]{1,22})?", fullmatch=True))
def test_what_passes_as_plain_is_in_range(text: str) -> None:
    """The fast path of every hot mapper: what it lets through is never looked at again."""
    if is_plain(text) or is_plain_size(text):
        assert canonical(text) == text
        assert abs(Decimal(text)) < 10**20 and Decimal(text).as_tuple().exponent >= -18  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("100000000000000000000", "expected less than 10^20"),
        ("-1e20", "expected less than 10^20"),
        ("1e64", "expected less than 10^20"),
        ("0.1234567890123456789", "it has 19 decimals, and at most 18 can be stored"),
        ("1e-19", "it has 19 decimals, and at most 18 can be stored"),
    ],
)
def test_number_out_of_range_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^invalid number '{re.escape(text)}': {re.escape(why)}$"):
        canonical(text)
    assert Decimal(plain_number(text)) == Decimal(text)  # as a stored number it is still read


def test_zeros_behind_the_last_place_are_left_out() -> None:
    assert canonical("1.50000000000000000000000") == "1.500000000000000000"
    assert canonical("-0e-30") == "0.000000000000000000"


@pytest.mark.parametrize(
    ("text", "digits"),
    [("201.187000", "201.187000"), ("+1", "1"), ("007", "7"), (".5", "0.5"), ("5.", "5"), (" 1 ", "1"),
     ("1E+5", "100000"), ("1e-8", "0.00000001"),
     ("123456789012345678.123456789012345678", "123456789012345678.123456789012345678"),
     ("-0.10", "-0.10"), ("-0.00", "0.00"), ("-0", "0")],
)  # fmt: skip
def test_canonical_digits(text: str, digits: str) -> None:
    assert canonical(text) == digits


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "1,5",
        "1_000",
        "NaN",
        "-Infinity",
        "sNaN1",
        "1e999999",
        "1e-999999",
        "0e999999",
        "١٢",
        "9" * 65,
        "1" + "0" * 10**6,
        "0x1p3",
    ],
)
def test_invalid_decimal_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="invalid number"):
        canonical(text)


def test_sizes_are_never_negative() -> None:
    assert (canonical_size("1.50"), canonical_size("-0.0")) == ("1.50", "0.0")
    with pytest.raises(ValueError, match="invalid size -1"):
        canonical_size("-1")


@given(st.text(max_size=80))
def test_any_text_parses_as_decimal_or_raises_value_error(text: str) -> None:
    try:
        assert Decimal(canonical(text)).is_finite()
    except ValueError as error:
        assert "invalid number" in str(error)
