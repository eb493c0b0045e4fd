import msgspec
import pytest
from bars.factories import SYMBOL, T0, builder, entry_id, streams, trade
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


def test_state_of_an_older_version_is_read() -> None:
    """Written before the fields at the ends of the arrays existed: a bar with a repaired hole, one without,
    one open; a minute that is open; a count bar of four trades just closed."""
    state = bytes.fromhex(
        "9701cf17979cff24952800cf0000018bcfe577a0020182a774696d653a31739591dc0013cf17979cff24952800cf17979c"
        "ff602ff20000ff0201cf17979cff24952800cf17979cff24952800a736313833392e35a736313833392e35a73631383339"
        "2e35a736313833392e35a736313833393530a73631383339353001a23130a83631383339353030a130a13092dc0013cf17"
        "979cfe362a0000cf17979cfe71c4ca0006020201cf17979cfe53f76500cf17979cfe5fe32700a836313833372e3633a836"
        "313833372e3633a3313030a3313030a736313833373633a5313030303002a23330a9313233373735323630a130a130dc00"
        "13cf17979cfe71c4ca00cf17979cfead5f940000000201cf17979cfe7db08c00cf17979cfe7db08c00a53631383430a536"
        "31383430a53631383430a53631383430a736313834303030a73631383430303001a135a83330393230303030a135a13091"
        "92cf17979cfe362a0000cf17979cfe71c4ca009192cf17979cfe362a0000cf17979cfe71c4ca00d3c000000000000000a7"
        "74696d653a316d9591dc0013cf17979cf98e123800cf17979d078659900006ff0201cf17979cfe53f76500cf17979cfe5f"
        "e32700a836313833372e3633a53631383430a3313030a3313030a736313834303030a5313030303004a23435a932313635"
        "3334373630a135a130909192cf17979cf98e123800cf17979d07865990009192cf17979cf98e123800cf17979d07865990"
        "00d3c00000000000000081a67469636b3a34939000c3"
    )
    bars = builder("time:1s", "time:1m", "tick:4", state=state, subscribed=0)
    assert (bars.open_bars, bars.clock_ahead, bars.newest_event) == (2, False, T0 + 4 * SECOND)
    emitted = bars.apply(entry_id(4.5, 7), trade(0.8)) + bars.clock(entry_id(100).ms)
    assert [(bar.spec, bar.start - T0, bar.trades, bar.revision, bar.quality) for _, bar in emitted] == [
        ("time:1s", 0, 3, 3, ("has_gap", "repaired")),
        ("time:1s", 4 * SECOND, 1, 0, ()),
        ("time:1m", -20 * SECOND, 5, 0, ("has_gap", "repaired")),
    ]
    assert (
        builder("time:1s", state=bars.state(), subscribed=0).state()
        == builder("time:1s", state=builder("time:1s", state=bars.state()).state()).state()
    )


def test_stream_that_awaited_its_first_trade_keeps_what_an_older_version_decided() -> None:
    state = bytes.fromhex(
        "9701d3c00000000000000000000081a774696d653a31739590909192cf17979cfdfa8f3600cf17979cfe71c4ca0090d3c0"
        "0000000000000080"
    )
    bars = builder("time:1s", state=state, subscribed=0)
    bars.apply(entry_id(1.5, 2), trade(1.5))
    assert [bar.quality for _, bar in bars.clock(entry_id(9).ms)] == [()]


@given(streams(), st.data())
def test_damaged_state_that_is_loaded_goes_on(entries: list[Entry], data: st.DataObject) -> None:
    """Scales and qualities are used as indices."""
    bars = StreamBars(SYMBOL, SPECS, SECOND, SECOND)
    bars.apply_many(entries)
    fields = msgspec.msgpack.decode(bars.state())
    number = data.draw(st.integers(-(1 << 63), (1 << 63) - 1))
    match data.draw(st.sampled_from(["scale", "quality", "bar"])):
        case "scale":
            fields[data.draw(st.sampled_from([3, 4]))] = number
        case "quality":
            fields[6].get("tick:3", [0, 0])[1] = number
        case "bar":
            for state in fields[5].values():
                for bar in state[0] + state[1]:
                    bar[data.draw(st.sampled_from([2, 4, 5, 19]))] = number
    try:
        damaged = StreamBars(SYMBOL, SPECS, SECOND, SECOND, msgspec.msgpack.encode(fields))
    except WireError:
        return
    for id, message in entries:
        damaged.apply(id, message)
    damaged.clock(entry_id(10_000).ms)
