import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.protocol.bar_specs import parse
from tickbus.trading_days import ZONES, intervals
from tickbus.units import DAY, HOUR, SECOND, iso_ns


def interval(symbol: str, spec: str, at: str) -> tuple[int, int]:
    return intervals(parse(spec), symbol)(iso_ns(at))


@pytest.mark.parametrize(
    ("symbol", "at", "start", "end"),
    [
        ("AAPL.US", "2024-08-09T13:30:00Z", "2024-08-09T04:00:00Z", "2024-08-10T04:00:00Z"),
        ("AAPL.US", "2024-08-09T03:59:59.999999999Z", "2024-08-08T04:00:00Z", "2024-08-09T04:00:00Z"),
        ("AAPL.US", "2024-08-09T04:00:00Z", "2024-08-09T04:00:00Z", "2024-08-10T04:00:00Z"),
        (".DJI.US", "2024-03-10T12:00:00Z", "2024-03-10T05:00:00Z", "2024-03-11T04:00:00Z"),  # 23 hours
        ("BRK-B.US", "2024-11-03T12:00:00Z", "2024-11-03T04:00:00Z", "2024-11-04T05:00:00Z"),  # 25 hours
        ("VOD.UK", "2024-03-31T12:00:00Z", "2024-03-31T00:00:00Z", "2024-03-31T23:00:00Z"),
        ("700.HK", "2024-08-09T01:30:00Z", "2024-08-08T16:00:00Z", "2024-08-09T16:00:00Z"),
        ("600519.SH", "2024-08-09T01:30:00Z", "2024-08-08T16:00:00Z", "2024-08-09T16:00:00Z"),
        ("BTC-USDT", "2024-08-09T23:59:59Z", "2024-08-09T00:00:00Z", "2024-08-10T00:00:00Z"),
        ("GOLD", "2024-08-09T01:00:00Z", "2024-08-09T00:00:00Z", "2024-08-10T00:00:00Z"),
        ("US", "2024-08-09T01:00:00Z", "2024-08-09T00:00:00Z", "2024-08-10T00:00:00Z"),
        ("X.UNKNOWN", "2024-08-09T01:00:00Z", "2024-08-09T00:00:00Z", "2024-08-10T00:00:00Z"),
    ],
)
def test_days_end_at_local_midnight(symbol: str, at: str, start: str, end: str) -> None:
    assert interval(symbol, "time:1d", at) == (iso_ns(start), iso_ns(end))


def test_days_of_clock_changes_have_23_and_25_hours() -> None:
    lengths = [
        end - start
        for start, end in (
            interval("AAPL.US", "time:1d", f"{day}T12:00:00Z")
            for day in ("2024-03-10", "2024-06-10", "2024-11-03")
        )
    ]
    assert lengths == [23 * HOUR, 24 * HOUR, 25 * HOUR]


def test_hours_and_minutes_align_to_epoch_in_every_market() -> None:
    assert interval("AAPL.US", "time:1h", "2024-03-10T07:30:00Z") == (
        iso_ns("2024-03-10T07:00:00Z"),
        iso_ns("2024-03-10T08:00:00Z"),
    )
    assert interval("RELIANCE.IN", "time:1h", "2024-08-09T04:45:00Z") == (
        iso_ns("2024-08-09T04:00:00Z"),
        iso_ns("2024-08-09T05:00:00Z"),
    )
    start, end = interval("BTC-USDT", "time:7m", "2024-08-09T04:45:00Z")
    assert start % (7 * 60 * SECOND) == 0
    assert end - start == 7 * 60 * SECOND


SYMBOLS = [f"X.{suffix}" for suffix in ZONES] + ["BTC-USDT"]


@given(
    st.integers(0, iso_ns("2100-01-01")),
    st.sampled_from(SYMBOLS),
    st.sampled_from(["time:1s", "time:7m", "time:1h", "time:1d", "time:3d", "time:7d"]),
)
def test_intervals_contain_their_instant_and_tile_time(ts: int, symbol: str, spec: str) -> None:
    interval_of = intervals(parse(spec), symbol)
    start, end = interval_of(ts)
    assert start <= ts < end
    assert interval_of(start) == interval_of(end - 1) == (start, end)
    assert interval_of(end)[0] == end
    assert abs(end - start - int(parse(spec).size)) < DAY
