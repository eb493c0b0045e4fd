"""Trading hours: when they are open, and which texts are refused."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from services.trading_hours import TradingHours
from tickbus.errors import ConfigError
from tickbus.units import SECOND


def at(text: str, zone: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * SECOND


NEW_YORK = "America/New_York"


@pytest.mark.parametrize(
    ("when", "open_"),
    [
        ("2024-08-09T09:29:59", False), ("2024-08-09T09:30:00", True),
        ("2024-08-09T15:59:59", True), ("2024-08-09T16:00:00", False),
        ("2024-08-10T12:00:00", False), ("2024-08-11T12:00:00", False), ("2024-08-12T12:00:00", True),
        ("2024-03-11T09:30:00", True), ("2024-03-11T09:29:59", False),  # the Monday after DST began
    ],
)  # fmt: skip
def test_session_within_a_day(when: str, open_: bool) -> None:
    assert TradingHours.parse("mon-fri 09:30-16:00 America/New_York").contains(at(when, NEW_YORK)) is open_


@pytest.mark.parametrize(
    ("when", "open_"),
    [
        ("2024-08-11T17:59:00", False), ("2024-08-11T18:00:00", True),
        ("2024-08-12T03:00:00", True), ("2024-08-12T17:00:00", False),
        ("2024-08-15T20:00:00", True), ("2024-08-16T16:59:59", True),
        ("2024-08-16T17:00:00", False), ("2024-08-16T20:00:00", False),
    ],
)  # fmt: skip
def test_session_past_midnight(when: str, open_: bool) -> None:
    assert (
        TradingHours.parse("sun-thu 18:00-17:00 America/Chicago").contains(at(when, "America/Chicago"))
        is open_
    )


def test_days_may_wrap_around_the_week_or_be_single() -> None:
    assert TradingHours.parse("fri-mon 00:00-23:59 UTC").days == {4, 5, 6, 0}
    assert TradingHours.parse("Sat 09:00-10:00 Asia/Hong_Kong").days == {5}


def test_days_and_zone_are_optional() -> None:
    hours = TradingHours.parse("13:30-20:00")
    assert [hours.contains(hour * 3600 * SECOND) for hour in (0, 13, 14, 19, 20, 24 * 5 + 15)] == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]
    over_midnight = TradingHours.parse("22:00-02:00 UTC")
    assert [over_midnight.contains(hour * 3600 * SECOND) for hour in (0, 2, 12, 22, 25)] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert TradingHours.parse("sat 09:00-10:00") == TradingHours.parse("sat 09:00-10:00 UTC")


def test_equal_ends_mean_the_whole_day() -> None:
    session = TradingHours.parse("mon-sun 00:00-00:00 UTC")
    assert all(session.contains(hour * 3600 * SECOND) for hour in range(24 * 8))


@pytest.mark.parametrize(
    "text",
    [
        "", "mon-fri", "9-17", "24:00-01:00", "09:60-10:00", "09:00", "mon-fri 9:30-16:00 UTC",
        "mon-fri 09:30-25:00 UTC", "mo-fr 09:30-16:00 UTC", "mon-fri 09:30-16:00 Mars/Olympus",
        "mon-fri 09:30-16:00 America", "mon-fri 09:30-16:00 ../../etc/passwd",
        "mon-fri 09:30-16:00 " + "x" * 300, "mon-fri 09:30-16:00 UTC\0",
    ],
)  # fmt: skip
def test_invalid_session_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"invalid trading hours .*expected e\.g\. 'mon-fri 09:30-16:00 America/New_York'"
    ) as error:
        TradingHours.parse(text)
    assert "\n" not in str(error.value)
