"""Every message is one line."""

import json

from hypothesis import given
from hypothesis import strategies as st

from services.tools.lines import human_line, json_line
from tickbus.protocol.messages import (
    Bar,
    Gap,
    GapKind,
    Message,
    Quote,
    Side,
    Signal,
    StreamKind,
    Trade,
    as_json,
)
from tickbus.protocol.names import Stream, StreamId

DIGITS = st.decimals(0, 10**12, places=6).map(str)
MAYBE = st.none() | DIGITS
TIMES = st.integers(0, 4 * 10**18)
TEXT = st.none() | st.text("0123456789abc", min_size=1, max_size=12)
SYMBOL = st.just("BTC-USDT")
MESSAGES = st.one_of(
    st.builds(
        Trade, SYMBOL, DIGITS, DIGITS, st.sampled_from(Side), TEXT, TIMES, TIMES, MAYBE, MAYBE,
        st.integers(0, 127),
    ),
    st.builds(Quote, SYMBOL, MAYBE, MAYBE, MAYBE, MAYBE, TIMES, TIMES, st.integers(0, 127)),
    st.builds(
        Gap, st.sampled_from(StreamKind), st.just("gateway"), st.sampled_from(GapKind), TIMES, TIMES,
        TEXT, TEXT, st.none() | st.integers(1, 10**9), st.booleans(), st.booleans(), SYMBOL,
    ),
    st.builds(
        Bar, st.just("time:1m"), TIMES, TIMES, DIGITS, DIGITS, DIGITS, DIGITS, DIGITS, DIGITS, MAYBE,
        st.integers(0, 10**6), DIGITS, DIGITS, st.integers(0, 9),
        st.sampled_from([(), ("partial",), ("has_gap", "repaired")]), SYMBOL,
    ),
    st.builds(Signal, st.just("move"), DIGITS, DIGITS, st.just("5m"), st.just("up"), SYMBOL, TIMES),
)  # fmt: skip
STREAM, ID = Stream("trade", "binance", "BTC-USDT"), StreamId(1_723_100_000_000, 7)


@given(MESSAGES)
def test_json_line_has_type_stream_and_every_field(message: Message) -> None:
    line = json_line(STREAM, ID, message)
    row = json.loads(line)
    assert "\n" not in line
    assert {name: row.pop(name) for name in ("type", "stream", "feed", "id")} == {
        "type": type(message).__name__.lower(), "stream": "trade:binance:BTC-USDT", "feed": "binance",
        "id": "1723100000000-7",
    }  # fmt: skip
    assert row == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in as_json(message).items()
        if name != "stream"
    }


@given(MESSAGES)
def test_human_line_is_one_line_and_colour_changes_no_word(message: Message) -> None:
    plain = human_line(STREAM, ID, message)
    assert len(plain.splitlines()) == 1
    assert "\x1b" not in plain
    painted = human_line(STREAM, ID, message, colour=True)
    for code in (32, 31, 33, 0):
        painted = painted.replace(f"\x1b[{code}m", "")
    assert painted == plain


def test_human_lines_are_aligned() -> None:
    trade = Trade("BTC-USDT", "61837.63", "0.02", Side.SELL, "3735683259", 1_723_123_456_789_000_000, 0)
    assert human_line(STREAM, ID, trade) == (
        "2024-08-08 13:24:16.789000  binance    BTC-USDT     trade "
        "       61837.63           0.02 sell #3735683259"
    )
    gap = Gap(
        StreamKind.TRADE,
        "gateway",
        GapKind.SEQUENCE,
        1_723_123_456_789_000_000,
        1_723_123_457_289_000_000,
        "5",
        "7",
        3,
        symbol="BTC-USDT",
    )
    assert human_line(STREAM, ID, gap).endswith(
        "gap    sequence: 3 trades missing (ids 5 to 7) in 0.500 s, reported by gateway"
    )
