from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.simulator.faults import parse_faults
from services.simulator.tick import RecordedFrame, Tick, key_of
from services.simulator.tick_faults import TickFaults, rendered
from services.vendors import VENDORS
from services.vendors.dialect import Dialect, VendorLimits
from tickbus.protocol.messages import Side, Trade
from tickbus.units import MILLISECOND

RECORDED = RecordedFrame("binance", "ab@trade", b"raw")


def trades(ids: Sequence[int], symbol: str = "AB") -> list[Tick]:
    message = Trade(symbol, "1.5", "2", Side.BUY, None, 1_700_000_000_123 * MILLISECOND, 0)
    return [Tick(key_of(symbol, "trade"), symbol, number, 0, message, RECORDED) for number in ids]


def told(text: str, ticks: list[Tick]) -> list[tuple[str, int, str | None]]:
    tampering = TickFaults()
    for fault in parse_faults(text):
        tampering.add(fault)
    assert tampering.active
    return [(tick.symbol, tick.id, tick.fault) for tick in tampering.apply(ticks)]


def test_drop_withholds() -> None:
    tampering = TickFaults()
    (fault,) = parse_faults("drop=2")
    tampering.add(fault)
    out = tampering.apply(trades([1, 2, 3]))
    assert [(tick.id, tick.withheld, tick.fault) for tick in out] == [
        (1, True, "drop"),
        (2, True, "drop"),
        (3, False, None),
    ]
    assert not tampering.active


def test_duplicate_sends_the_same_again() -> None:
    assert told("duplicate=1", trades([1, 2])) == [("AB", 1, None), ("AB", 1, "duplicate"), ("AB", 2, None)]


def test_reorder_swaps_neighbours_of_a_stream() -> None:
    ticks = [*trades([1]), *trades([7], "C"), *trades([2, 3])]
    assert told("reorder=1 symbol=AB", ticks) == [
        ("C", 7, None),
        ("AB", 2, "reorder"),
        ("AB", 1, "reorder"),
        ("AB", 3, None),
    ]


def test_a_tick_without_a_neighbour_is_not_lost() -> None:
    tampering = TickFaults()
    tampering.add(parse_faults("reorder=1")[0])
    assert tampering.apply(trades([1])) == []
    assert tampering.active
    assert [tick.id for tick in tampering.flush()] == [1]


def test_jump_and_reset_renumber_from_the_next_tick_on() -> None:
    assert [number for _, number, _ in told("jump=10", trades([1, 2, 3]))] == [11, 12, 13]
    assert [number for _, number, _ in told("reset=5; jump=100", trades([70, 71]))] == [105, 106]
    assert [number for _, number, _ in told("jump=10 symbol=C", [*trades([1]), *trades([1], "C")])] == [1, 11]


def test_a_changed_tick_has_no_recorded_frame_left() -> None:
    tampering = TickFaults()
    for fault in parse_faults("seconds=1; corrupt=1; drop=1"):
        tampering.add(fault)
    seconds, corrupt, dropped = tampering.apply(trades([1, 2, 3]))
    assert (seconds.recorded, corrupt.recorded, dropped.recorded) == (None, None, RECORDED)


@pytest.mark.parametrize("name", VENDORS)
def test_what_is_sent_is_broken_and_what_the_ledger_keeps_is_not(name: str) -> None:
    dialect = VENDORS[name].open_dialect(
        VENDORS[name].paths[0], {"token": "t"}, VendorLimits(), VENDORS[name].server_options(), 0
    )  # type: ignore[misc]
    assert isinstance(dialect, Dialect)
    (tick,) = trades([1])
    assert isinstance(tick.message, Trade)
    whole = rendered(tick, tick.message, dialect)
    tick.fault = "corrupt"
    assert rendered(tick, tick.message, dialect) == dialect.render(
        replace(tick.message, price_text="abc"), tick.symbol, tick.id
    )
    assert b'"abc"' in rendered(tick, tick.message, dialect)
    tick.fault = "seconds"
    assert rendered(tick, tick.message, dialect) == whole.replace(b"1700000000123", b"1700000000") != whole
    assert tick.message.price_text == "1.5"


def test_frames_that_are_no_ticks_are_left_alone() -> None:
    frame = Tick("binance:ab@depth", "AB", 0, 0, None, RECORDED)
    tampering = TickFaults()
    for fault in parse_faults("drop=1; jump=5"):
        tampering.add(fault)
    assert tampering.apply([frame]) == [frame]


_faults = st.lists(
    st.sampled_from(["drop=2", "duplicate=3", "reorder=2", "corrupt=1", "seconds=2", "reorder=1 symbol=C"]),
    max_size=4,
)
_symbols = st.lists(st.sampled_from("ABC"), max_size=40)


@given(_faults, _symbols, st.integers(1, 40))
def test_every_tick_comes_out_however_the_batches_fall(
    faults: list[str], symbols: list[str], step: int
) -> None:
    ticks = [trades([number], symbol)[0] for number, symbol in enumerate(symbols)]
    outcomes = []
    for size in (step, len(ticks) or 1):
        tampering = TickFaults()
        for fault in parse_faults(";".join(faults)):
            tampering.add(fault)
        out = [
            tick
            for start in range(0, len(ticks), size)
            for tick in tampering.apply(ticks[start : start + size])
        ]
        out += tampering.flush()
        assert sorted(tick.id for tick in out if tick.fault != "duplicate") == list(range(len(ticks)))
        outcomes.append([(tick.symbol, tick.id, tick.fault) for tick in out])
    assert outcomes[0] == outcomes[1]
