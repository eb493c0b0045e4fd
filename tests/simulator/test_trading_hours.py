import pytest

from services.simulator.trading_hours import parse_hours
from tickbus.errors import ConfigError
from tickbus.units import DAY, HOUR, MINUTE


@pytest.mark.parametrize(
    ("text", "open_at", "closed_at"),
    [
        ("13:30-20:00", [13 * HOUR + 30 * MINUTE, 20 * HOUR - 1, 5 * DAY + 15 * HOUR], [0, 20 * HOUR, 13 * HOUR]),
        ("22:00-02:00", [23 * HOUR, DAY + HOUR, 0], [2 * HOUR, 12 * HOUR]),
    ],
)
def test_hours(text: str, open_at: list[int], closed_at: list[int]) -> None:
    is_open = parse_hours(text)
    assert [is_open(wall) for wall in open_at] == [True] * len(open_at)
    assert [is_open(wall) for wall in closed_at] == [False] * len(closed_at)


@pytest.mark.parametrize("text", ["", "9-17", "24:00-01:00", "09:60-10:00", "09:00", "09:00-10:00 UTC"])
def test_no_hours(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like"):
        parse_hours(text)
