"""The builder against the slow reference: every bar, its revisions, its cause, the order of all of them."""

from bars.factories import SYMBOL, T0_MS, calm_streams, streams
from bars.reference import Entry, Reference, shown
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bars.builder import Emitted, StreamBars
from tickbus.protocol.bar_specs import parse
from tickbus.units import MILLISECOND, SECOND

SPECS = [parse(text) for text in ("time:1s", "tick:3", "time:2s", "volume:25.5", "value:1000", "time:5s")]
spec_lists = st.lists(st.sampled_from(SPECS), min_size=1, max_size=5, unique=True)
graces = st.sampled_from([0, 1, 300 * MILLISECOND, 2 * SECOND])
horizons = st.sampled_from([0, 500 * MILLISECOND, 3 * SECOND])


def build_with_interruptions(
    entries: list[Entry], until_ms: int, data: st.DataObject, make: "type[StreamBars]", *args: object
) -> list[Emitted]:
    """Clock calls at any allowed time, restarts at any point, batches of any size."""
    bars = make(SYMBOL, *args)
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
                bars = make(SYMBOL, *args, bars.state())
    return emitted + bars.clock(until_ms)


@settings(max_examples=150, deadline=None)
@given(streams() | calm_streams(), spec_lists, graces, horizons, st.data())
def test_bars_are_those_of_the_reference_whenever_clock_and_restarts_come(
    entries, specs, grace, horizon, data
):
    until_ms = (entries[-1][0].ms if entries else T0_MS) + 5000
    expected = Reference(specs, grace, horizon).run(entries, until_ms)
    emitted = build_with_interruptions(entries, until_ms, data, StreamBars, specs, grace, horizon)
    assert shown(emitted) == expected
    causes = [cause for cause, _ in emitted]
    assert causes == sorted(causes)


@settings(max_examples=60, deadline=None)
@given(streams(), spec_lists, graces, horizons)
def test_ignored_trades_are_counted(entries, specs, grace, horizon):
    reference = Reference(specs, grace, horizon)
    reference.run(entries, entries[-1][0].ms + 1 if entries else 1)
    bars = StreamBars(SYMBOL, specs, grace, horizon)
    bars.apply_many(entries)
    trades = [message for _, message in entries if hasattr(message, "flags")]
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
def test_the_state_of_the_state_is_the_state(entries, specs):
    bars = StreamBars(SYMBOL, specs, SECOND, SECOND)
    bars.apply_many(entries)
    state = bars.state()
    assert StreamBars(SYMBOL, specs, SECOND, SECOND, state).state() == state
    assert bars.state() == state


@settings(max_examples=40, deadline=None)
@given(streams())
def test_a_further_spec_changes_nothing_for_the_others(entries):
    def bars_of(specs, spec):
        emitted = StreamBars(SYMBOL, specs, SECOND, SECOND)
        out = emitted.apply_many(entries) + emitted.clock(T0_MS + 1_000_000)
        return [(cause, bar) for cause, bar in out if bar.spec == spec.text]

    for spec in SPECS:
        assert bars_of(SPECS, spec) == bars_of([spec], spec)


@settings(max_examples=80, deadline=None)
@given(calm_streams(), spec_lists, graces)
def test_a_batch_is_its_entries_one_by_one(entries, specs, grace):
    at_once, one_by_one = (StreamBars(SYMBOL, specs, grace, SECOND) for _ in range(2))
    assert at_once.apply_many(entries) == [
        emitted for entry in entries for emitted in one_by_one.apply(*entry)
    ]
    assert at_once.state() == one_by_one.state()
