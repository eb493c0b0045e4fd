import msgspec
import pytest
from bars.factories import SYMBOL, builder, entry_id, streams, trade
from bars.reference import Entry, numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bars.builder import StreamBars
from tickbus.errors import WireError
from tickbus.protocol.bar_specs import parse
from tickbus.units import SECOND

SPECS = [parse(text) for text in ("time:1s", "tick:3", "time:1d")]


@given(st.binary(max_size=60) | st.lists(st.integers(0, 3), max_size=9).map(msgspec.msgpack.encode))
def test_invalid_bytes_raise_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        StreamBars(SYMBOL, SPECS, SECOND, SECOND, data)


@settings(max_examples=50, deadline=None)
@given(streams(), st.data())
def test_damaged_state_is_rejected_or_loaded(entries: list[Entry], data: st.DataObject) -> None:
    bars = StreamBars(SYMBOL, SPECS, SECOND, SECOND)
    bars.apply_many(entries)
    state = bytearray(bars.state())
    state[data.draw(st.integers(0, len(state) - 1))] = data.draw(st.integers(0, 255))
    try:
        StreamBars(SYMBOL, SPECS, SECOND, SECOND, bytes(state))
    except WireError as error:
        assert "\n" not in str(error)


def test_error_names_unsupported_version() -> None:
    state = msgspec.msgpack.decode(builder("time:1s").state())
    with pytest.raises(WireError, match="version 2, this program reads 1"):
        builder("time:1s", state=msgspec.msgpack.encode([2, *state[1:]]))


def test_bars_of_removed_specs_are_dropped() -> None:
    bars = builder("time:1s", "tick:9")
    bars.apply(entry_id(0.5, 1), trade(0.5))
    assert builder("time:1s", state=bars.state()).open_bars == 1


def test_sums_beyond_64_bits_survive() -> None:
    bars = builder("tick:2")
    trades = [trade(0.5, "123456789012345678.123456789", "987654321098765432.123456789"), trade(0.6)]
    bars.apply(entry_id(0.5, 1), trades[0])
    bars = builder("tick:2", state=bars.state())
    ((_, bar),) = bars.apply(entry_id(0.6, 2), trades[1])
    assert bar.value == numbers(trades)["value"]
    assert len(bar.value_text) > 50
