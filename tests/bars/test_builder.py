"""The builder against the slow reference: every bar, its revisions and causes, and the order of all."""

from collections.abc import Iterator

import pytest
from bars.factories import (
    SYMBOL,
    T0,
    T0_MS,
    builder,
    calm_streams,
    entry_id,
    gap,
    streams,
    subscriptions,
    trade,
)
from bars.reference import Entry, Reference, as_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bars import watermark
from services.bars.builder import Emitted, StreamBars
from tickbus.protocol.bar_specs import Spec, parse
from tickbus.protocol.messages import Trade
from tickbus.units import MILLISECOND, SECOND

SPECS = [parse(text) for text in ("time:1s", "tick:3", "time:2s", "volume:25.5", "value:1000", "time:5s")]
spec_lists = st.lists(st.sampled_from(SPECS), min_size=1, max_size=5, unique=True)
graces = st.sampled_from([0, 1, 300 * MILLISECOND, 2 * SECOND])
horizons = st.sampled_from([0, 500 * MILLISECOND, 3 * SECOND])
AHEAD_TRADES = 3


@pytest.fixture(scope="module", autouse=True)
def few_ahead_trades() -> Iterator[None]:
    """Streams of the tests are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watermark, "AHEAD_TRADES", AHEAD_TRADES)
        yield


def build_with_interruptions(
    entries: list[Entry],
    until_ms: int,
    data: st.DataObject,
    specs: list[Spec],
    grace: int,
    horizon: int,
    subscribed: int,
) -> list[Emitted]:
    """Return the bars, with clock calls at any allowed time, restarts at any point, batches of any size."""
    bars = StreamBars(SYMBOL, specs, grace, horizon, subscribed=subscribed)
    emitted: list[Emitted] = []
    position, clock = 0, T0_MS - 1
    while position < len(entries):
        match data.draw(st.sampled_from(["apply", "apply", "apply", "clock", "restart"])):
            case "apply":
                batch = entries[position : position + data.draw(st.sampled_from([1, 2, 6, 20, 60]))]
                emitted += bars.apply_many(batch) if len(batch) > 1 else bars.apply(*batch[0])
                position, clock = position + len(batch), batch[-1][0].ms
            case "clock":
                clock = data.draw(st.integers(clock, entries[position][0].ms))
                emitted += bars.clock(clock)
            case "restart":
                # before its first entry a stream has no state
                bars = StreamBars(
                    SYMBOL, specs, grace, horizon, bars.state() if position else None, subscribed
                )
    return emitted + bars.clock(until_ms)


@settings(max_examples=150, deadline=None)
@given(streams() | calm_streams(), spec_lists, graces, horizons, subscriptions, st.data())
def test_bars_match_reference_despite_clock_calls_and_restarts(
    entries: list[Entry], specs: list[Spec], grace: int, horizon: int, subscribed: int, data: st.DataObject
) -> None:
    until_ms = (entries[-1][0].ms if entries else T0_MS) + 15_000
    expected = Reference(specs, grace, horizon, subscribed, AHEAD_TRADES).run(entries, until_ms)
    emitted = build_with_interruptions(entries, until_ms, data, specs, grace, horizon, subscribed)
    assert as_rows(emitted) == expected
    causes = [cause for cause, _ in emitted]
    assert causes == sorted(causes)


def test_newest_event_is_zero_before_the_first_trade() -> None:
    """A Gap for trimmed entries takes its range from there: it must not begin before the calendar."""
    bars = builder("time:1s")
    assert bars.newest_event == 0
    bars.apply(entry_id(0, 1), gap(-1, 0))
    assert bars.newest_event == 0
    bars.apply(entry_id(1, 2), trade(1))
    assert bars.newest_event == T0 + SECOND


@settings(max_examples=60, deadline=None)
@given(streams(), spec_lists, graces, horizons)
def test_ignored_trades_are_counted(
    entries: list[Entry], specs: list[Spec], grace: int, horizon: int
) -> None:
    reference = Reference(specs, grace, horizon, ahead_trades=AHEAD_TRADES)
    reference.run(entries, entries[-1][0].ms + 1 if entries else 1)
    bars = StreamBars(SYMBOL, specs, grace, horizon)
    bars.apply_many(entries)
    trades = [message for _, message in entries if isinstance(message, Trade)]
    cancelled = [t for t in trades if t.flags & 16]
    off_book = [t for t in trades if t.flags & 4 and not t.flags & 16]
    zero = [t for t in trades if not t.flags & 20 and (not t.price or not t.size)]
    assert bars.counters == {
        "too_late": reference.too_late,
        "off_book": len(off_book),
        "zero": len(zero),
        "cancelled": len(cancelled),
    }


@settings(max_examples=40, deadline=None)
@given(streams(), spec_lists)
def test_state_survives_reload_unchanged(entries: list[Entry], specs: list[Spec]) -> None:
    bars = StreamBars(SYMBOL, specs, SECOND, SECOND)
    bars.apply_many(entries)
    state = bars.state()
    assert StreamBars(SYMBOL, specs, SECOND, SECOND, state).state() == state
    assert bars.state() == state


@settings(max_examples=40, deadline=None)
@given(streams())
def test_additional_spec_does_not_affect_others(entries: list[Entry]) -> None:
    def bars_of(specs: list[Spec], spec: Spec) -> list[Emitted]:
        emitted = StreamBars(SYMBOL, specs, SECOND, SECOND)
        out = emitted.apply_many(entries) + emitted.clock(T0_MS + 1_000_000)
        return [(cause, bar) for cause, bar in out if bar.spec == spec.text]

    for spec in SPECS:
        assert bars_of(SPECS, spec) == bars_of([spec], spec)


@settings(max_examples=80, deadline=None)
@given(calm_streams(), spec_lists, graces)
def test_batch_equals_entries_one_by_one(entries: list[Entry], specs: list[Spec], grace: int) -> None:
    batched, one_by_one = (StreamBars(SYMBOL, specs, grace, SECOND) for _ in range(2))
    assert batched.apply_many(entries) == [
        emitted for entry in entries for emitted in one_by_one.apply(*entry)
    ]
    assert batched.state() == one_by_one.state()
