from collections.abc import Iterator
from fractions import Fraction

import pytest

from services.simulator.market import Market, parse_speed
from services.simulator.source import RecordedSource
from services.simulator.tick import RecordedFrame, Tick, trade_tick
from tickbus.errors import ConfigError

MAX_TICKS = 100
RECORDED = RecordedFrame("v", "a@trade", b"raw")


class Times(RecordedSource):
    """Trades at the given times, ns."""

    def __init__(self, *times: int, live: bool = False) -> None:
        super().__init__()
        self.live = live
        self._times = times

    def __iter__(self) -> Iterator[Tick]:
        for number, at in enumerate(self._times, 1):
            tick = trade_tick("trade:A", "A", number, at, at, "1", "1")
            tick.recorded_frame = RECORDED
            yield tick


def ids(ticks: list[Tick]) -> list[int]:
    return [tick.id for tick in ticks]


def test_clock_starts_with_the_first_tick() -> None:
    market = Market(Times(1000, 1010, 1030), Fraction(1))
    assert ids(market.due(5, 0, MAX_TICKS)) == [1]
    assert market.wait(5) == 10
    assert ids(market.due(14, 0, MAX_TICKS)) == []
    assert ids(market.due(15, 0, MAX_TICKS)) == [2]
    assert market.wait(20) == 15
    assert not market.ended
    assert ids(market.due(99, 0, MAX_TICKS)) == [3]
    assert ids(market.due(99, 0, MAX_TICKS)) == []
    assert market.ended
    assert market.wait(99) is None


def test_high_speed_shortens_the_waits() -> None:
    market = Market(Times(0, 100), Fraction(10))
    assert ids(market.due(0, 0, MAX_TICKS)) == [1]
    assert market.wait(0) == 10
    assert ids(market.due(10, 0, MAX_TICKS)) == [2]


def test_low_speed_lengthens_the_waits() -> None:
    market = Market(Times(0, 100), Fraction(1, 2))
    assert ids(market.due(0, 0, MAX_TICKS)) == [1]
    assert market.wait(0) == 200


def test_clock_does_not_advance_while_paused() -> None:
    market = Market(Times(0, 10), Fraction(1))
    market.due(0, 0, MAX_TICKS)
    market.pause(4)
    assert ids(market.due(100, 0, MAX_TICKS)) == []
    assert market.wait(100) == 6


def test_max_speed_returns_as_many_ticks_as_requested() -> None:
    market = Market(Times(0, 10**18, 2), None)
    assert ids(market.due(0, 0, 2)) == [1, 2]
    assert ids(market.due(0, 0, 2)) == [3]
    assert market.ended


@pytest.mark.parametrize("speed", [None, Fraction(1)])
@pytest.mark.parametrize("preload", [0, 3, 100])
def test_loop_repeats_without_a_pause_until_the_limit(speed: Fraction | None, preload: int) -> None:
    market = Market(Times(50, 60), speed, loop=True, limit=5, preload=preload)
    assert ids(market.due(0, 0, MAX_TICKS) + market.due(10, 0, MAX_TICKS) + market.due(30, 0, MAX_TICKS)) == [
        1,
        2,
        1,
        2,
        1,
    ]
    market.due(10**9, 0, MAX_TICKS)
    assert market.ended


def test_loop_over_an_empty_source_ends() -> None:
    market = Market(Times(), None, loop=True)
    assert market.due(0, 0, MAX_TICKS) == []
    assert market.ended


def test_recorded_times_stay_unless_restamped() -> None:
    kept, stamped, live = (
        Market(source, None, restamp=restamp).due(0, 777, MAX_TICKS)[0]
        for source, restamp in ((Times(5), False), (Times(5), True), (Times(5, live=True), False))
    )
    assert kept.message is not None and stamped.message is not None and live.message is not None
    assert (kept.message.ts_event, kept.recorded_frame) == (5, RECORDED)
    assert (stamped.message.ts_event, stamped.recorded_frame) == (777, None)
    assert live.message.ts_event == 777


@pytest.mark.parametrize(
    ("text", "speed"), [("1", Fraction(1)), ("0.5", Fraction(1, 2)), ("10", Fraction(10)), ("max", None)]
)
def test_valid_speeds(text: str, speed: Fraction | None) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["0", "-1", "fast", "1/0", ""])
def test_invalid_speed_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a number, e\.g\. 1"):
        parse_speed(text)
