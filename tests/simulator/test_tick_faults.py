from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.simulator.faults import parse_faults
from services.simulator.tick import RecordedFrame, Tick, key_of
from services.simulator.tick_faults import TickFaults, render_with_fault
from services.vendors import VENDORS
from services.vendors.dialect import Dialect, VendorLimits
from tickbus.protocol.messages import Side, Trade
from tickbus.units import MILLISECOND

RECORDED = RecordedFrame("binance", "ab@trade", b"raw")


def trades(ids: Sequence[int], symbol: str = "AB") -> list[Tick]:
    message = Trade(symbol, "1.5", "2", Side.BUY, None, 1_700_000_000_123 * MILLISECOND, 0)
    return [Tick(key_of(symbol, "trade"), symbol, number, 0, message, RECORDED) for number in ids]


def apply(text: str, ticks: list[Tick]) -> list[tuple[str, int, str | None]]:
    """Return (symbol, id, fault) of what becomes of the ticks."""
    tick_faults = TickFaults()
    for fault in parse_faults(text):
        tick_faults.add(fault)
    assert tick_faults.active
    return [(tick.symbol, tick.id, tick.fault) for tick in tick_faults.apply(ticks)]


def test_drop_marks_ticks_as_dropped() -> None:
    tick_faults = TickFaults()
    (fault,) = parse_faults("drop=2")
    tick_faults.add(fault)
    out = tick_faults.apply(trades([1, 2, 3]))
    assert [(tick.id, tick.dropped, tick.fault) for tick in out] == [
        (1, True, "drop"),
        (2, True, "drop"),
        (3, False, None),
    ]
    assert not tick_faults.active


def test_duplicate_repeats_a_tick() -> None:
    assert apply("duplicate=1", trades([1, 2])) == [("AB", 1, None), ("AB", 1, "duplicate"), ("AB", 2, None)]


def test_reorder_swaps_adjacent_ticks_of_a_stream() -> None:
    ticks = [*trades([1]), *trades([7], "C"), *trades([2, 3])]
    assert apply("reorder=1 symbol=AB", ticks) == [
        ("C", 7, None),
        ("AB", 2, "reorder"),
        ("AB", 1, "reorder"),
        ("AB", 3, None),
    ]


def test_delayed_tick_is_not_lost_at_the_end() -> None:
    tick_faults = TickFaults()
    tick_faults.add(parse_faults("reorder=1")[0])
    assert tick_faults.apply(trades([1])) == []
    assert tick_faults.active
    assert [tick.id for tick in tick_faults.flush()] == [1]


def test_jump_and_reset_renumber_from_the_next_tick() -> None:
    assert [number for _, number, _ in apply("jump=10", trades([1, 2, 3]))] == [11, 12, 13]
    assert [number for _, number, _ in apply("reset=5; jump=100", trades([70, 71]))] == [105, 106]
    assert [number for _, number, _ in apply("jump=10 symbol=C", [*trades([1]), *trades([1], "C")])] == [
        1,
        11,
    ]


def test_changed_tick_has_no_recorded_frame() -> None:
    tick_faults = TickFaults()
    for fault in parse_faults("seconds=1; corrupt=1; drop=1"):
        tick_faults.add(fault)
    seconds, corrupt, dropped = tick_faults.apply(trades([1, 2, 3]))
    assert (seconds.recorded_frame, corrupt.recorded_frame, dropped.recorded_frame) == (None, None, RECORDED)


@pytest.mark.parametrize("name", VENDORS)
def test_fault_breaks_what_is_sent_but_not_the_message(name: str) -> None:
    vendor = VENDORS[name]
    assert vendor.open_dialect is not None
    dialect = vendor.open_dialect(vendor.paths[0], {"token": "t"}, VendorLimits(), vendor.server_options(), 0)
    assert isinstance(dialect, Dialect)
    (tick,) = trades([1])
    assert isinstance(tick.message, Trade)
    intact = render_with_fault(tick, tick.message, dialect)
    tick.fault = "corrupt"
    assert render_with_fault(tick, tick.message, dialect) == dialect.render(
        replace(tick.message, price_text="abc"), tick.symbol, tick.id
    )
    assert b'"abc"' in render_with_fault(tick, tick.message, dialect)
    tick.fault = "seconds"
    in_seconds = render_with_fault(tick, tick.message, dialect)
    assert in_seconds == intact.replace(b"1700000000123", b"1700000000") != intact
    assert tick.message.price_text == "1.5"


def test_frame_without_ticks_is_left_alone() -> None:
    frame = Tick("binance:ab@depth", "AB", 0, 0, None, RECORDED)
    tick_faults = TickFaults()
    for fault in parse_faults("drop=1; jump=5"):
        tick_faults.add(fault)
    assert tick_faults.apply([frame]) == [frame]


_faults = st.lists(
    st.sampled_from(["drop=2", "duplicate=3", "reorder=2", "corrupt=1", "seconds=2", "reorder=1 symbol=C"]),
    max_size=4,
)
_symbols = st.lists(st.sampled_from("ABC"), max_size=40)


@given(_faults, _symbols, st.integers(1, 40))
def test_every_tick_comes_out_regardless_of_batching(
    faults: list[str], symbols: list[str], step: int
) -> None:
    ticks = [trades([number], symbol)[0] for number, symbol in enumerate(symbols)]
    outcomes = []
    for size in (step, len(ticks) or 1):
        tick_faults = TickFaults()
        for fault in parse_faults(";".join(faults)):
            tick_faults.add(fault)
        out = [
            tick
            for start in range(0, len(ticks), size)
            for tick in tick_faults.apply(ticks[start : start + size])
        ]
        out += tick_faults.flush()
        assert sorted(tick.id for tick in out if tick.fault != "duplicate") == list(range(len(ticks)))
        outcomes.append([(tick.symbol, tick.id, tick.fault) for tick in out])
    assert outcomes[0] == outcomes[1]
