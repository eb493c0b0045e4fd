"""The rules of the builder, one by one. Times are seconds after T0: vendor's in trades, the bus's in IDs."""

from decimal import Decimal

import pytest
from bars.factories import LONG_BEFORE, SYMBOL, T0, builder, entry_id, gap, ms, trade

from services.bars.builder import Emitted, StreamBars
from services.bars.watermark import AHEAD_TRADES
from tickbus.errors import WireError
from tickbus.protocol.bar_specs import parse
from tickbus.protocol.messages import Flag, Gap, GapKind, Side, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import DAY, HOUR, MILLISECOND, SECOND

Row = tuple[float, float, int, int, tuple[str, ...]]
"""Cause and start in seconds after T0, trades, revision, quality."""


def rows(emitted: list[Emitted]) -> list[Row]:
    return [
        ((cause - ms(0)) / 1000, (bar.start - T0) / SECOND, bar.trades, bar.revision, bar.quality)
        for cause, bar in emitted
    ]


def test_bar_closes_by_bus_clock_after_grace() -> None:
    bars = builder("time:1s")
    # the vendor's clock is 0.25 s behind the bus
    assert bars.apply(entry_id(0.65, 1), trade(0.4)) == []
    assert bars.closes_at_ms == ms(3.25)
    assert bars.open_bars == 1
    assert bars.clock(ms(3.25)) == []
    assert rows(bars.clock(ms(3.25) + 1)) == [(3.25, 0, 1, 0, ())]
    assert bars.closes_at_ms is None
    assert bars.open_bars == 0
    assert bars.clock(ms(100)) == []


def test_trade_of_closing_ms_is_included_and_later_trade_revises() -> None:
    cases: list[tuple[int, list[Row]]] = [
        (0, [(3.0, 0, 2, 0, ())]),
        (1, [(3.0, 0, 1, 0, ()), (3.001, 0, 2, 1, ())]),
    ]
    for late, expected in cases:
        bars = builder("time:1s")
        emitted = bars.apply(entry_id(0.5, 1), trade(0.5))
        emitted += bars.apply(entry_id(3.0 + late / 1000, 2), trade(0.25))
        assert rows(emitted + bars.clock(ms(10))) == expected


def test_cause_is_rounded_up_to_whole_ms() -> None:
    bars = builder("time:1s")
    tick = trade(0.5)
    bars.apply(entry_id(0.5, 1), trade(0.5 + 1e-9))
    assert tick.ts_event % MILLISECOND == 0
    # 2.499999999 s to go
    assert [cause for cause, _ in bars.clock(ms(100))] == [ms(3.0)]


def test_bar_has_exact_fields() -> None:
    bars = builder("time:1m")
    for seq, (at, price, size, side) in enumerate(
        [(1, "10.5", "2", Side.BUY), (3, "11.25", "1.5", Side.SELL), (2, "9", "0.5", Side.UNKNOWN)], 1
    ):
        bars.apply(entry_id(at, seq), trade(at, price, size, side))
    ((_, bar),) = bars.clock(ms(600))
    assert (bar.symbol, bar.spec, bar.start, bar.end) == (
        SYMBOL,
        "time:1m",
        T0 - T0 % (60 * SECOND),
        T0 - T0 % (60 * SECOND) + 60 * SECOND,
    )
    assert (bar.open_text, bar.high_text, bar.low_text, bar.close_text) == ("10.5", "11.25", "9", "9")
    assert (bar.volume_text, bar.value_text, bar.buy_volume_text, bar.sell_volume_text) == (
        "4",
        "42.375",
        "2",
        "1.5",
    )
    assert (bar.vwap, bar.trades, bar.revision, bar.quality) == (Decimal("10.59375"), 3, 0, ())


def test_late_trades_revise_bar_one_by_one_until_horizon() -> None:
    bars = builder("time:1s", horizon=10)
    emitted = bars.apply_many([(entry_id(at, seq), trade(at)) for seq, at in enumerate((0.5, 1.5, 5), 1)])
    assert rows(emitted) == [(3.0, 0, 1, 0, ()), (4.0, 1, 1, 0, ())]
    assert rows(bars.apply(entry_id(5, 4), trade(0.7))) == [(5, 0, 2, 1, ())]
    assert rows(bars.apply(entry_id(6, 5), trade(0.6, "99"))) == [(6, 0, 3, 2, ())]
    # the watermark at the end of the ms before must be below 1 + 2 + 10
    assert rows(bars.apply(entry_id(13, 6), trade(0.6))) == [(8, 5, 1, 0, ()), (13, 0, 4, 3, ())]
    # too late now, and the bar says so, once
    assert rows(bars.apply(entry_id(13.001, 7), trade(0.6))) == [(13.001, 0, 4, 4, ("has_gap",))]
    assert bars.apply(entry_id(13.002, 8), trade(0.7)) == []
    assert bars.counters == {"too_late": 2, "off_book": 0, "zero": 0, "cancelled": 0}


def test_trade_not_older_than_newest_is_never_too_late() -> None:
    """Equal times after a long standstill: the vendor's clock has whole seconds, or the feed resumed."""
    bars = builder("time:1s", "time:1m")
    bars.apply(entry_id(0.5, 1), trade(0.5))
    assert rows(bars.apply(entry_id(7200, 2), trade(0.5, "99"))) == [
        (3, 0, 1, 0, ()),
        (42, -20, 1, 0, ()),
        (7200, 0, 2, 1, ()),
        (7200, -20, 2, 1, ()),
    ]
    assert bars.counters["too_late"] == 0


def test_tie_of_trade_that_moved_no_bar_makes_the_bar() -> None:
    bars = builder("time:1s")
    bars.apply(entry_id(0.5, 1), trade(0.5, flags=Flag.OFF_BOOK))
    assert rows(bars.apply(entry_id(7200, 2), trade(0.5))) == [(7200, 0, 1, 0, ())]


def test_bar_that_a_trade_came_too_late_for_is_not_complete() -> None:
    bars = builder("time:1s", "time:1h")
    bars.apply_many([(entry_id(0.5, 1), trade(0.5)), (entry_id(20.5, 2), trade(20.5))])
    emitted = bars.apply(entry_id(300, 3), trade(0.6))
    # the hour is still open, and takes it
    assert rows(emitted) == [(23, 20, 1, 0, ()), (300, 0, 1, 1, ("has_gap",))]
    assert bars.counters["too_late"] == 1
    # an interval that had no bar keeps the mark for one that comes
    assert bars.apply(entry_id(300, 4), trade(10.5)) == []
    bars.apply(entry_id(301, 5), trade(21))
    assert rows(bars.apply(entry_id(302, 6), trade(10.7))) == [(302, 10, 1, 0, ("has_gap",))]
    # beyond the horizon by the stream's own time nothing is revised any more
    bars.apply(entry_id(400, 7), trade(400))
    assert bars.apply(entry_id(401, 8), trade(20.6)) == []


def test_late_trade_of_empty_interval_emits_closed_bar_immediately() -> None:
    bars = builder("time:1s")
    bars.apply_many([(entry_id(at, seq), trade(at)) for seq, at in enumerate((0.5, 9.5), 1)])
    assert rows(bars.apply(entry_id(9.6, 3), trade(4.5))) == [(9.6, 4, 1, 0, ())]
    assert rows(bars.apply(entry_id(9.7, 4), trade(4.6))) == [(9.7, 4, 2, 1, ())]


def test_slow_replay_ends_in_same_bars() -> None:
    def last_of_each(speed: float) -> dict[tuple[str, int], tuple[object, ...]]:
        bars = builder("time:1s", "time:10s")
        emitted: list[Emitted] = []
        for seq in range(1, 40):
            emitted += bars.apply(entry_id(seq * 0.4 / speed, seq), trade(seq * 0.4, str(seq)))
        emitted += bars.clock(ms(10_000))
        assert not any(bars.counters.values())
        return {
            (bar.spec, bar.start): (bar.open, bar.high, bar.close, bar.trades, bar.value)
            for _, bar in emitted
        }

    assert last_of_each(0.001) == last_of_each(1) == last_of_each(1000)


def test_future_trades_do_not_advance_watermark_but_have_bars() -> None:
    bars = builder("time:1s")
    emitted = bars.apply(entry_id(0.5, 1), trade(0.5))
    emitted += bars.apply(entry_id(0.6, 2), trade(500, flags=int(Flag.FUTURE_TIME)))
    emitted += bars.apply(entry_id(0.7, 3), trade(0.7))
    assert bars.open_bars == 2
    assert rows(emitted + bars.clock(ms(1000))) == [(3, 0, 2, 0, ()), (503, 500, 1, 0, ())]


@pytest.mark.parametrize(
    ("ignored", "reason"),
    [
        (trade(0.6, size="0.000"), "zero"),
        (trade(0.6, price="0"), "zero"),
        (trade(0.6, flags=int(Flag.OFF_BOOK)), "off_book"),
        (trade(0.6, flags=int(Flag.CANCELLED)), "cancelled"),
    ],
)
def test_ignored_trade_is_counted_and_advances_watermark(ignored: Trade, reason: str) -> None:
    bars = builder("time:1s", "tick:1")
    assert bars.apply(entry_id(0.5, 1), ignored) == []
    assert bars.open_bars == 0
    bars.apply(entry_id(0.7, 2), trade(0.5))
    assert bars.counters == {"too_late": 0, "off_book": 0, "zero": 0, "cancelled": 0} | {reason: 1}
    # the newest ts_event is that of the ignored one, 0.6 at 0.5
    assert bars.closes_at_ms == ms(2.9)


def test_negative_prices_are_valid() -> None:
    bars = builder("time:1s")
    bars.apply_many([(entry_id(0.1, 1), trade(0.1, "-37.63", "2")), (entry_id(0.2, 2), trade(0.2, "1", "1"))])
    ((_, bar),) = bars.clock(ms(9))
    assert (bar.low_text, bar.high_text, bar.value_text, bar.vwap_text) == (
        "-37.63",
        "1",
        "-74.26",
        "-24.753333333333333333",
    )


def test_invalid_number_raises_wire_error() -> None:
    with pytest.raises(WireError):
        builder("time:1s").apply(entry_id(0.1, 1), trade(0.1, "1e5"))


class TestPartial:
    def test_bars_up_to_first_trade_read_are_partial(self) -> None:
        bars = builder("time:1s", "tick:2")
        emitted = bars.apply_many(
            [(entry_id(5 + at, seq), trade(at)) for seq, at in enumerate((1.5, 0.9, 1.6, 2.5), 7)]
        )
        assert rows(emitted + bars.clock(ms(100))) == [
            (5.9, 1.5, 2, 0, ("partial",)),
            (7.5, 1.6, 2, 0, ()),
            (8.0, 0, 1, 0, ("partial",)),
            (9.0, 1, 2, 0, ("partial",)),
            (10.0, 2, 1, 0, ()),
        ]

    def test_bars_subscribed_before_they_began_are_complete(self) -> None:
        bars = builder("time:1s", "tick:1")
        emitted = (
            bars.apply(entry_id(1, 1), gap(0, 0.9))
            + bars.apply(entry_id(1, 2), trade(1.5))
            + bars.clock(ms(100))
        )
        assert [bar.quality for _, bar in emitted] == [("has_gap",), ()]

    @pytest.mark.parametrize(
        ("subscribed", "partial"),
        [
            (0, {"time:1s", "time:1m", "time:1d"}),
            (LONG_BEFORE, set()),
            (T0 - 20 * SECOND, {"time:1d"}),
            (T0 - 20 * SECOND + 1, {"time:1m", "time:1d"}),
            (T0 + SECOND, {"time:1m", "time:1d"}),
            (T0 + SECOND + 1, {"time:1s", "time:1m", "time:1d"}),
            (T0 + 500 * SECOND, {"time:1s", "time:1m", "time:1d"}),
        ],
    )
    def test_start_of_stream_is_not_start_of_market(self, subscribed: int, partial: set[str]) -> None:
        """Of the bars with the first tick, at counter 1, those that the subscription was in time for are
        complete; so are all later ones, and count bars."""
        specs = ("time:1s", "time:1m", "time:1d", "tick:1")
        bars = builder(*specs, subscribed=subscribed)
        emitted = bars.apply(entry_id(1.5, 1), trade(1.5))
        restarted = builder(*specs, state=bars.state(), subscribed=0)
        emitted += restarted.apply(entry_id(2.5, 2), trade(2.5)) + restarted.apply(entry_id(61, 3), trade(61))
        emitted += restarted.clock(ms(0) + 86_400_000)
        assert {(bar.spec, (bar.start - T0) // SECOND): bar.quality for _, bar in emitted} == {
            ("tick:1", 1): (),
            ("tick:1", 2): (),
            ("tick:1", 61): (),
            ("time:1s", 1): ("partial",) if "time:1s" in partial else (),
            ("time:1s", 2): (),
            ("time:1s", 61): (),
            ("time:1m", -20): ("partial",) if "time:1m" in partial else (),
            ("time:1m", 40): (),
            ("time:1d", -T0 % -DAY // SECOND): ("partial",) if "time:1d" in partial else (),
        }

    def test_what_was_subscribed_is_kept_until_first_trade(self) -> None:
        bars = builder("time:1s")
        bars.apply(entry_id(0.5, 1), gap(-1, 0))
        bars = builder("time:1s", state=bars.state(), subscribed=0)
        bars.apply(entry_id(1.5, 2), trade(1.5))
        assert [bar.quality for _, bar in bars.clock(ms(9))] == [()]

    def test_late_trade_before_subscription_has_partial_bar(self) -> None:
        bars = builder("time:1s", subscribed=T0 + SECOND)
        emitted = bars.apply_many(
            [(entry_id(5, seq), trade(at)) for seq, at in enumerate((5.5, 0.5, 3.5), 1)]
        )
        assert [(bar.start - T0, bar.quality) for _, bar in emitted + bars.clock(ms(50))] == [
            (0, ("partial",)),
            (3 * SECOND, ()),
            (5 * SECOND, ()),
        ]

    def test_subscription_says_nothing_of_a_stream_read_from_the_middle(self) -> None:
        bars = builder("time:1s", "tick:1")
        emitted = bars.apply(entry_id(1.5, 7), trade(1.5)) + bars.clock(ms(50))
        assert [bar.quality for _, bar in emitted] == [("partial",), ("partial",)]

    def test_spec_missing_in_state_starts_without_history(self) -> None:
        bars = builder("time:1s")
        bars.apply(entry_id(0.5, 1), trade(0.5))
        bars = builder("time:1m", "time:1s", state=bars.state())
        bars.apply(entry_id(0.6, 2), trade(0.6))
        assert [(bar.spec, bar.trades, bar.quality) for _, bar in bars.clock(ms(200))] == [
            ("time:1s", 2, ()),
            ("time:1m", 1, ("partial",)),
        ]

    def test_bar_opened_by_future_trade_is_not_partial_if_it_is_later(self) -> None:
        bars = builder("time:1s", subscribed=0)
        bars.apply(entry_id(1, 1), trade(9, flags=Flag.FUTURE_TIME))
        bars.apply(entry_id(1, 2), trade(1))
        assert [(bar.start - T0, bar.quality) for _, bar in bars.clock(ms(50))] == [
            (SECOND, ("partial",)),
            (9 * SECOND, ()),
        ]

    def test_future_trade_does_not_set_start_of_reading(self) -> None:
        bars = builder("time:1s")
        bars.apply_many(
            [
                (entry_id(1, 5), trade(99, flags=int(Flag.FUTURE_TIME))),
                (entry_id(1, 6), trade(1)),
                (entry_id(2, 7), trade(2)),
            ]
        )
        assert [(bar.start - T0, bar.quality) for _, bar in bars.clock(ms(50))] == [
            (SECOND, ("partial",)),
            (2 * SECOND, ()),
        ]


class TestGaps:
    def test_gap_marks_bars_before_within_and_after(self) -> None:
        bars = builder("time:1s")
        emitted = bars.apply_many([(entry_id(at, seq), trade(at)) for seq, at in enumerate((0.5, 1.5), 1)])
        emitted += bars.apply(entry_id(5.2, 3), gap(1.5, 5.1))
        emitted += bars.apply_many([(entry_id(at, seq), trade(at)) for seq, at in ((4, 5.2), (5, 6.2))])
        emitted += bars.apply(entry_id(6.3, 6), trade(3.5))
        assert rows(emitted + bars.clock(ms(50))) == [
            (3, 0, 1, 0, ()),
            (4, 1, 1, 0, ()),
            (5.2, 1, 1, 1, ("has_gap",)),
            (6.3, 3, 1, 0, ("has_gap",)),
            (8, 5, 1, 0, ("has_gap",)),
            (9, 6, 1, 0, ()),
        ]

    def test_long_outage_revises_bar_in_which_it_began_despite_horizon(self) -> None:
        bars = builder("time:1s")
        bars.apply(entry_id(0.5, 1), trade(0.5))
        assert rows(bars.apply(entry_id(3600, 2), gap(0.6, 3600))) == [
            (3, 0, 1, 0, ()),
            (3600, 0, 1, 1, ("has_gap",)),
        ]
        bars.apply_many([(entry_id(at, seq), trade(at)) for seq, at in ((3, 3600.5), (4, 3700))])
        assert bars.apply(entry_id(3700, 5), gap(0.6, 0.7)) == [], "beyond the horizon now"

    def test_gap_range_is_inclusive_and_bar_end_exclusive(self) -> None:
        for low, high, marked in (
            (1, 1, True),
            (0, 0.999, False),
            (1.999, 5, True),
            (2, 5, False),
            (1.5, 1.0, True),
            (5, 0, True),
        ):
            bars = builder("time:1s")
            bars.apply(entry_id(1.5, 1), trade(1.5))
            bars.apply(entry_id(1.6, 2), gap(low, high))
            assert [bar.quality for _, bar in bars.clock(ms(50))] == [("has_gap",) if marked else ()]

    def test_repair_is_marked_and_gap_mark_stays(self) -> None:
        bars = builder("time:1s", "tick:3")
        bars.apply_many(
            [
                (entry_id(0.5, 1), trade(0.5)),
                (entry_id(0.6, 2), gap(0.5, 0.6)),
                (entry_id(5, 3), gap(0.7, 0.8)),
            ]
        )
        emitted = bars.apply(entry_id(6, 4), trade(0.55, flags=int(Flag.LATE))) + bars.apply(
            entry_id(6, 5), gap(0.5, 0.6, repaired=True)
        )
        assert rows(emitted) == [(6, 0, 2, 1, ("has_gap",)), (6, 0, 2, 2, ("has_gap", "repaired"))]
        assert bars.apply(entry_id(6, 6), gap(0.5, 0.6, repaired=True)) == [], "nothing new, no revision"
        assert bars.apply(entry_id(6, 6), gap(0.5, 0.6)) == [], "nothing new, no revision"
        assert rows(bars.apply(entry_id(6.1, 7), trade(6.1))) == [(6.1, 0.5, 3, 0, ("has_gap", "repaired"))]

    @pytest.mark.parametrize("restart", [False, True])
    def test_repaired_is_said_where_the_trade_was_taken_and_nowhere_else(self, restart: bool) -> None:
        """The trade is too late for the second, not for the hour; the count bar that takes it had no hole."""
        specs = ("time:1s", "time:1h", "tick:3", "tick:4")
        bars = builder(*specs)
        emitted = bars.apply_many([(entry_id(0.5, 1), trade(0.5)), (entry_id(0.9, 2), gap(0.5, 0.9))])
        emitted += bars.apply_many([(entry_id(1, 3), trade(1)), (entry_id(1, 4), trade(1))])
        emitted += bars.apply(entry_id(300, 5), trade(0.7, flags=Flag.LATE))
        if restart:
            bars = builder(*specs, state=bars.state())
        emitted += bars.apply(entry_id(300, 6), gap(0.7, 0.7, repaired=True, kind=GapKind.SEQUENCE))
        emitted += bars.apply(entry_id(301, 7), trade(301)) + bars.apply(entry_id(301, 8), trade(301))
        emitted += bars.clock(ms(9000))
        newest = {(bar.spec, (bar.start - T0) / SECOND): (bar.trades, bar.quality) for _, bar in emitted}
        assert bars.counters["too_late"] == (0 if restart else 1)
        assert newest == {
            ("time:1s", 0): (1, ("has_gap",)),
            ("time:1s", 1): (2, ()),
            ("time:1s", 301): (2, ()),
            ("time:1h", -T0 % -HOUR // SECOND): (6, ("has_gap", "repaired")),
            ("tick:3", 0.5): (3, ("has_gap",)),
            ("tick:3", 0.7): (3, ()),
            ("tick:4", 0.5): (4, ("has_gap",)),
        }

    @pytest.mark.parametrize("flags", [Flag.OFF_BOOK, Flag.CANCELLED])
    def test_missing_trade_that_moves_no_bar_repairs_none(self, flags: Flag) -> None:
        bars = builder("time:1s", "tick:2")
        bars.apply_many([(entry_id(0.5, 1), trade(0.5)), (entry_id(0.6, 2), gap(0.5, 0.6))])
        bars.apply(entry_id(0.7, 3), trade(0.55, flags=Flag.LATE | flags))
        emitted = bars.apply(entry_id(0.7, 4), gap(0.55, 0.55, repaired=True))
        emitted += bars.apply(entry_id(0.8, 5), trade(0.8))
        assert [bar.quality for _, bar in emitted + bars.clock(ms(9))] == [("has_gap",), ("has_gap",)]

    def test_count_bar_that_took_the_missing_trade_is_repaired(self) -> None:
        bars = builder("tick:3")
        emitted = bars.apply_many(
            [
                (entry_id(1, 1), gap(0.5, 0.6)),
                (entry_id(1, 2), trade(1)),
                (entry_id(1, 3), trade(0.55, flags=Flag.LATE | Flag.BACKFILLED)),
                (entry_id(1, 4), gap(0.55, 0.55, repaired=True)),
                (entry_id(1, 5), trade(1)),
            ]
        )
        assert [bar.quality for _, bar in emitted] == [("has_gap", "repaired")]

    def test_run_of_repaired_trades_before_one_gap(self) -> None:
        """Live trades may come between the runs of a repair and the Gap that reports it."""
        bars = builder("time:1s")
        bars.apply_many([(entry_id(0.5, 1), trade(0.5)), (entry_id(5, 2), gap(0.5, 4.9))])
        flags = Flag.LATE | Flag.BACKFILLED
        late = [trade(0.6, flags=flags), trade(2.6, flags=flags), trade(2.7, flags=flags)]
        emitted = bars.apply_many([(entry_id(5.1, seq), message) for seq, message in enumerate(late, 3)])
        emitted += bars.apply(entry_id(5.2, 6), trade(5.2))
        emitted += bars.apply(entry_id(5.3, 7), gap(0.5, 4.9, repaired=True))
        assert rows(emitted)[-2:] == [
            (5.3, 0, 2, 3, ("has_gap", "repaired")),
            (5.3, 2, 2, 1, ("has_gap", "repaired")),
        ]
        emitted += bars.clock(ms(60))
        newest = {(bar.start - T0) // SECOND: (bar.trades, bar.quality) for _, bar in emitted}
        assert newest == {
            0: (2, ("has_gap", "repaired")),
            2: (2, ("has_gap", "repaired")),
            5: (1, ()),
        }

    def test_void_says_that_nothing_is_missing_any_more(self) -> None:
        bars = builder("time:1s", "time:1m", "tick:9")
        bars.apply_many([(entry_id(at, seq), trade(at)) for seq, at in enumerate((0.5, 1.5), 1)])
        emitted = bars.apply(entry_id(2, 3), gap(1.5, 1.9))
        emitted += bars.apply(entry_id(9, 4), gap(1.5, 1.9, repaired=True, kind=GapKind.VOID))
        # a bar that comes later in the voided range had a hole, and nothing was missing in it
        emitted += bars.apply(entry_id(9, 5), gap(3.1, 3.9))
        emitted += bars.apply(entry_id(9, 6), gap(3.1, 3.9, repaired=True, kind=GapKind.VOID))
        emitted += bars.apply(entry_id(9, 7), trade(9))
        emitted += bars.apply(entry_id(9, 8), trade(3.5))
        emitted += bars.clock(ms(200))
        newest = {(bar.spec, (bar.start - T0) // SECOND): bar.quality for _, bar in emitted}
        assert newest == {
            ("time:1s", 0): (),
            ("time:1s", 1): ("has_gap", "repaired"),
            ("time:1s", 3): ("has_gap", "repaired"),
            ("time:1s", 9): (),
            ("time:1m", -20): ("has_gap", "repaired"),
        }

    def test_void_does_not_hide_a_trade_that_came_too_late(self) -> None:
        bars = builder("time:1s")
        bars.apply_many([(entry_id(0.5, 1), trade(0.5)), (entry_id(1, 2), gap(0.5, 0.9))])
        bars.apply(entry_id(300, 3), trade(0.4))
        assert bars.apply(entry_id(300, 4), gap(0.5, 0.9, repaired=True, kind=GapKind.VOID)) == []

    def test_pause_of_the_subscription_is_a_hole(self) -> None:
        bars = builder("time:1s", "tick:1")
        bars.apply(entry_id(0.5, 1), trade(0.5))
        emitted = bars.apply(entry_id(0.8, 2), gap(0.8, 0.8, kind=GapKind.UNSUBSCRIBED))
        emitted += bars.apply(entry_id(60, 3), gap(0.8, 60.2, kind=GapKind.UNSUBSCRIBED))
        emitted += bars.apply(entry_id(60.3, 4), trade(60.3)) + bars.apply(entry_id(61, 5), trade(61))
        assert rows(emitted + bars.clock(ms(90))) == [
            (3, 0, 1, 0, ("has_gap",)),
            (60.3, 60.3, 1, 0, ("has_gap",)),
            (61, 61, 1, 0, ()),
            (63, 60, 1, 0, ("has_gap",)),
            (64, 61, 1, 0, ()),
        ]

    def test_count_bar_has_gap_before_its_first_trade(self) -> None:
        bars = builder("tick:1")
        messages: list[Trade | Gap] = [trade(0), gap(0, 1), trade(1), trade(2)]
        emitted = [
            out for seq, message in enumerate(messages, 1) for out in bars.apply(entry_id(seq, seq), message)
        ]
        assert [bar.quality for _, bar in emitted] == [(), ("has_gap",), ()]


class TestClockAhead:
    """The vendor's clock is 8 s ahead of ours: every trade is flagged."""

    @staticmethod
    def entries(count: int, start: int = 0) -> list[tuple[StreamId, Trade | Gap]]:
        """Return trades, ten a second from `start` tenths on."""
        return [
            (
                entry_id((start + at) / 10, start + at + 1),
                trade((start + at) / 10 + 8, flags=Flag.FUTURE_TIME, received=(start + at) / 10),
            )
            for at in range(count)
        ]

    @pytest.mark.parametrize("size", [1, 7, 200])
    def test_bars_close_by_times_of_receipt(self, size: int) -> None:
        bars = builder("time:1s", grace=1)
        entries = self.entries(200)
        emitted: list[Emitted] = []
        for at in range(0, 200, size):
            emitted += bars.apply_many(entries[at : at + size])
            bars = builder("time:1s", grace=1, state=bars.state(), subscribed=0)
        assert bars.clock_ahead
        # the hundredth trade arrives at 9.9: its bar and nine more by their trades, all within 8 s + grace
        assert rows(emitted)[:2] == [(10, 8, 10, 0, ("clock_ahead",)), (11, 9, 10, 0, ("clock_ahead",))]
        emitted += bars.clock(ms(60))
        assert [(row[1], row[2], row[4]) for row in rows(emitted)] == [
            (8 + second, 10, ("clock_ahead",)) for second in range(20)
        ]
        assert bars.open_bars == 0

    def test_ninety_nine_are_not_enough(self) -> None:
        bars = builder("time:1s", grace=1)
        assert bars.apply_many(self.entries(AHEAD_TRADES - 1)) == []
        assert bars.clock(ms(1000)) == []
        assert not bars.clock_ahead
        bars.apply(entry_id(1000, 100), trade(9.5))
        assert not bars.clock_ahead
        assert bars.apply_many(self.entries(AHEAD_TRADES - 1, 10_000)) != []
        assert not bars.clock_ahead, "one without the flag begins the count anew"

    def test_trade_without_flag_ends_it(self) -> None:
        bars = builder("time:1s", grace=1)
        bars.apply_many(self.entries(100))
        assert bars.clock_ahead
        emitted = bars.apply(entry_id(20, 101), trade(20.1, received=20.2))
        assert not bars.clock_ahead
        emitted += bars.apply_many([(entry_id(at, 102 + at), trade(at)) for at in (21, 22, 23)])
        emitted += bars.clock(ms(60))
        assert {int(start): quality for _, start, _, _, quality in rows(emitted)} == {
            **{8 + second: ("clock_ahead",) for second in range(10)},
            **dict.fromkeys((20, 21, 22, 23), ()),
        }

    def test_clock_that_becomes_wrong_later(self) -> None:
        """Bars close by the bus time that passes until the hundredth trade, by times of receipt from then."""
        bars = builder("time:1s", grace=1)
        emitted = bars.apply(entry_id(0, 1), trade(0))
        emitted += bars.apply_many(self.entries(200, 1)) + bars.clock(ms(60))
        assert [(start, trades) for _, start, trades, _, _ in rows(emitted)] == [
            (0, 1),
            (8, 9),
            *[(9 + second, 10) for second in range(19)],
            (28, 1),
        ]
        assert {start for _, start, _, _, quality in rows(emitted) if not quality} == {0}

    def test_first_trade_decides_which_bars_are_partial(self) -> None:
        bars = builder("time:1s", grace=1, subscribed=0)
        emitted = bars.apply_many(self.entries(150))
        bars = builder("time:1s", grace=1, state=bars.state())
        emitted += bars.clock(ms(60))
        assert [quality for *_, quality in rows(emitted)] == [
            ("partial", "clock_ahead"),
            *[("clock_ahead",)] * 14,
        ]

    def test_quiet_stream_is_closed_by_bus_time(self) -> None:
        bars = builder("time:1s", grace=1)
        emitted = bars.apply_many(self.entries(100))
        assert rows(emitted + bars.clock(ms(50)))[-1] == (19, 17, 10, 0, ("clock_ahead",))


class TestTradesWithoutVendorTime:
    """Flag BAD_TIME: ts_event is the time of receipt."""

    def test_vendor_without_times(self) -> None:
        bars = builder("time:1s")
        emitted = bars.apply_many(
            [(entry_id(at, seq), trade(at, flags=Flag.BAD_TIME)) for seq, at in enumerate((0.5, 1.5, 5), 1)]
        )
        assert rows(emitted) == [(3, 0, 1, 0, ()), (4, 1, 1, 0, ())]

    def test_one_of_a_delayed_feed_does_not_make_the_others_late(self) -> None:
        """The vendor delays its trades by 15 minutes; one came without a time."""
        bars = builder("time:1s", grace=1)
        delayed = [(entry_id(900 + at, at + 1), trade(at, received=900 + at)) for at in range(10)]
        emitted = bars.apply_many(delayed[:5])
        emitted += bars.apply(entry_id(904.5, 6), trade(904.5, flags=Flag.BAD_TIME))
        emitted += bars.apply_many([(StreamId(id.ms, id.seq + 1), message) for id, message in delayed[5:]])
        assert bars.counters["too_late"] == 0
        assert [(start, trades) for _, start, trades, *_ in rows(emitted + bars.clock(ms(950)))] == [
            (second, 1) for second in range(10)
        ]


def test_trade_of_doubtful_id_counts_like_any_other() -> None:
    bars = builder("time:1s", "tick:2")
    emitted = bars.apply(entry_id(0.5, 1), trade(0.5)) + bars.apply(
        entry_id(0.6, 2), trade(0.6, flags=Flag.DOUBTFUL_ID)
    )
    assert rows(emitted + bars.clock(ms(9))) == [(0.6, 0.5, 2, 0, ()), (3, 0, 2, 0, ())]


class TestCountBars:
    def test_bars_may_share_their_times_and_are_never_revised(self) -> None:
        """What distinguishes them is the counter of their ID, which the writer of the stream gives."""
        bars = builder("tick:1")
        emitted = [out for seq in (1, 2, 3) for out in bars.apply(entry_id(0.5, seq), trade(0.5, str(seq)))]
        emitted += bars.apply(entry_id(9, 4), gap(0, 9))
        assert [(bar.start - T0, bar.end - T0, bar.close_text, bar.revision) for _, bar in emitted] == [
            (SECOND // 2, SECOND // 2, price, 0) for price in ("1", "2", "3")
        ]

    def test_filling_trade_belongs_to_bar(self) -> None:
        bars = builder("volume:5", "value:250", "tick:2")
        emitted = bars.apply_many(
            [
                (entry_id(at, at), trade(at, "50", size))
                for at, size in ((1, "2"), (2, "4"), (3, "5.5"), (4, "1"))
            ]
        )
        assert [
            (
                bar.spec,
                (cause - ms(0)) // 1000,
                (bar.start - T0) // SECOND,
                (bar.end - T0) // SECOND,
                bar.volume_text,
            )
            for cause, bar in emitted
        ] == [
            ("volume:5", 2, 1, 2, "6"),
            ("value:250", 2, 1, 2, "6"),
            ("tick:2", 2, 1, 2, "6"),
            ("volume:5", 3, 3, 3, "5.5"),
            ("value:250", 3, 3, 3, "5.5"),
            ("tick:2", 4, 3, 4, "6.5"),
        ]
        assert bars.open_bars == 2

    def test_first_and_last_trade_are_by_stream_order(self) -> None:
        ((_, bar),) = builder("tick:3").apply_many(
            [
                (entry_id(9, seq), trade(at, price))
                for seq, at, price in ((1, 5, "1"), (2, 7, "3"), (3, 4, "2"))
            ]
        )
        assert (bar.start, bar.end, bar.open_text, bar.close_text) == (
            T0 + 5 * SECOND,
            T0 + 4 * SECOND,
            "1",
            "2",
        )

    def test_spec_size_with_more_places_than_trades_is_exact(self) -> None:
        bars = builder("volume:0.3")
        emitted = [bars.apply(entry_id(seq, seq), trade(seq, "1", "0.1")) for seq in (1, 2, 3)]
        assert [len(out) for out in emitted] == [0, 0, 1]
        bars = builder("volume:2.5")
        assert [len(bars.apply(entry_id(seq, seq), trade(seq))) for seq in (1, 2, 3)] == [0, 0, 1]


def test_memory_is_bounded_by_horizon() -> None:
    bars = builder("time:1s", horizon=20)
    for seq in range(1, 3000):
        bars.apply(entry_id(seq, seq), trade(seq) if seq % 3 else gap(seq - 0.5, seq))
    assert len(bars.state()) < 6000


def test_day_bars_follow_local_days_of_market() -> None:
    bars = StreamBars("AAPL.US", [parse("time:1d")], 0, 0)
    start = T0 - T0 % (24 * 3600 * SECOND) + 5 * 3600 * SECOND
    bars.apply(entry_id(0, 1), trade((start - T0) / SECOND))
    bars.apply(entry_id(0, 2), trade((start - T0) / SECOND + 86399))
    bars.apply(entry_id(0, 3), trade((start - T0) / SECOND + 86400))
    ((_, bar),) = bars.clock(ms(1))
    assert (bar.start, bar.end, bar.trades) == (start, start + 86400 * SECOND, 2)


@pytest.mark.parametrize("size", [1, 20])
def test_first_trade_after_future_trade_still_sets_partial_bars(size: int) -> None:
    bars = builder("time:1s")
    bars.apply(entry_id(0.2, 7), trade(0.2, flags=int(Flag.FUTURE_TIME)))
    entries = [(entry_id(0.3 + index / 10, 8 + index), trade(0.3 + index / 10)) for index in range(20)]
    emitted = [
        bar
        for start in range(0, len(entries), size)
        for bar in bars.apply_many(entries[start : start + size])
    ]
    assert [(bar.start - T0, bar.trades, bar.quality) for _, bar in emitted + bars.clock(ms(9))] == [
        (0, 8, ("partial",)), (SECOND, 10, ()), (2 * SECOND, 3, ())
    ]  # fmt: skip
