import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.errors import ConfigError
from tickbus.protocol.names import KINDS, START, Keys, Stream, StreamId, check_name, check_symbol

SYMBOLS = st.from_regex(r"[A-Z0-9._-]{1,64}", fullmatch=True)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True)
STREAMS = st.one_of(
    st.builds(
        Stream, st.sampled_from([kind for kind in KINDS if kind != "bar"]), NAMES, SYMBOLS, st.just("")
    ),
    st.builds(
        Stream,
        st.just("bar"),
        NAMES,
        SYMBOLS,
        st.sampled_from(["time:1m", "tick:100", "volume:0.5", "value:1000"]),
    ),
)


@given(STREAMS)
def test_stream_names_round_trip(stream: Stream) -> None:
    assert Stream.parse(stream.name) == stream
    assert check_symbol(stream.symbol) == stream.symbol
    assert check_name(stream.feed) == stream.feed


@given(st.text(max_size=40))
def test_any_text_parses_as_stream_or_raises_value_error(text: str) -> None:
    try:
        assert Stream.parse(text).name == text
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    "name", ["", "trade", "trade:binance", "ticks:binance:A", "bar:binance:A", "trade:time:1m:binance:A"]
)
def test_invalid_stream_name_is_rejected(name: str) -> None:
    with pytest.raises(ValueError):
        Stream.parse(name)


@given(st.integers(0, 1 << 63), st.integers(0, 1 << 63), st.integers(0, 1 << 63), st.integers(0, 1 << 63))
def test_ids_round_trip_and_sort_as_in_redis(ms: int, seq: int, other_ms: int, other_seq: int) -> None:
    one, other = StreamId(ms, seq), StreamId(other_ms, other_seq)
    assert StreamId.parse(str(one)) == StreamId.parse(str(one).encode()) == one
    assert (one < other) == (ms < other_ms or (ms == other_ms and seq < other_seq))
    assert one >= START


@given(SYMBOLS, st.integers(1, 1000))
def test_shard_of_a_symbol_is_its_crc(symbol: str, shards: int) -> None:
    assert Keys(shards=shards).shard(symbol) == zlib.crc32(symbol.encode()) % shards


def test_keys_match_the_contract() -> None:
    """See docs/wire-format.md."""
    keys = Keys()
    shard = zlib.crc32(b"BTC-USDT") % 64
    assert (
        keys.stream(Stream("trade", "binance", "BTC-USDT"))
        == f"tickbus:{{{shard:02d}}}:trade:binance:BTC-USDT"
    )
    assert (
        keys.stream(Stream("bar", "binance", "BTC-USDT", "time:1m"))
        == f"tickbus:{{{shard:02d}}}:bar:time:1m:binance:BTC-USDT"
    )
    assert [keys.bell(7), keys.last(7), keys.era(7)] == [
        "tickbus:{07}:bell",
        "tickbus:{07}:last",
        "tickbus:{07}:era",
    ]
    assert [keys.fence(7, "binance"), keys.position(7, "bars"), keys.state(7, "bars")] == [
        "tickbus:{07}:fence:binance",
        "tickbus:{07}:position:bars",
        "tickbus:{07}:state:bars",
    ]
    assert [keys.meta, keys.lease("x"), keys.members("x")] == [
        "tickbus:meta",
        "tickbus:lease:x",
        "tickbus:members:x",
    ]
    assert Keys("mine", 500).bell(7) == "mine:{07}:bell" and Keys("mine", 500).bell(123) == "mine:{123}:bell"


@pytest.mark.parametrize("symbol", ["", "a", "A B", "A:B", "A/B", "A" * 65, "Ä", "{A}", "A\n"])
def test_invalid_symbol_is_rejected(symbol: str) -> None:
    with pytest.raises(ConfigError, match="expected A-Z 0-9"):
        check_symbol(symbol)


@pytest.mark.parametrize("name", ["", "-a", "A", "a:b", "a b", "a" * 33, "a\n"])
def test_invalid_name_is_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a-z 0-9"):
        check_name(name)
