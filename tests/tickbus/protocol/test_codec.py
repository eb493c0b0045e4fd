"""Bytes on the bus: messages round-trip, old and new versions are compatible, a few messages byte by byte."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tickbus.errors import WireError
from tickbus.protocol.codec import (
    DECODE,
    FIELDS,
    NIL,
    Bell,
    Head,
    Hole,
    decode,
    decode_bell,
    decode_head,
    encode,
)
from tickbus.protocol.messages import Bar, Flag, Gap, GapKind, Message, Quote, Side, Signal, StreamKind, Trade

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
DIGITS = st.decimals(allow_nan=False, allow_infinity=False).map(lambda value: format(value, "f"))
TIMES = st.integers(-(1 << 63), (1 << 63) - 1)
COUNTS = st.integers(0, (1 << 63) - 1)
FLAGS = st.integers(0, 127)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Trade, TEXT, DIGITS, DIGITS, st.sampled_from(Side), maybe(TEXT), TIMES, TIMES, maybe(DIGITS),
        maybe(DIGITS), FLAGS,
    ),
    st.builds(Quote, TEXT, maybe(DIGITS), maybe(DIGITS), maybe(DIGITS), maybe(DIGITS), TIMES, TIMES, FLAGS),
    st.builds(
        Gap, st.sampled_from(StreamKind), TEXT, st.sampled_from(GapKind), TIMES, TIMES, maybe(TEXT),
        maybe(TEXT), maybe(COUNTS), st.booleans(), st.booleans(), TEXT,
    ),
    st.builds(
        Bar, TEXT, TIMES, TIMES, DIGITS, DIGITS, DIGITS, DIGITS, DIGITS, DIGITS, maybe(DIGITS), COUNTS,
        DIGITS, DIGITS, COUNTS, st.lists(TEXT, max_size=3).map(tuple), TEXT,
    ),
    st.builds(Signal, TEXT, TEXT, DIGITS, DIGITS, TEXT, TEXT, TIMES),
)  # fmt: skip


@given(MESSAGES)
def test_messages_round_trip(message: Message) -> None:
    assert decode(FIELDS[type(message)], encode(message)) == message


@given(MESSAGES)
def test_messages_of_newer_and_older_versions_decode(message: Message) -> None:
    field = FIELDS[type(message)]
    values = msgspec.msgpack.decode(encode(message))
    assert decode(field, msgspec.msgpack.encode([*values, "new", 7])) == message
    fields = msgspec.structs.fields(type(message))
    required = sum(
        one.default is msgspec.NODEFAULT and one.default_factory is msgspec.NODEFAULT for one in fields
    )
    short = decode(field, msgspec.msgpack.encode(values[:required]))
    assert msgspec.msgpack.decode(encode(short))[:required] == values[:required]


@given(st.sampled_from(sorted(DECODE)), st.binary(max_size=60))
def test_any_bytes_decode_or_raise_wire_error(field: bytes, payload: bytes) -> None:
    try:
        assert decode(field, payload) is not None
    except WireError as error:
        assert "\n" not in str(error)


@given(MESSAGES, st.data())
def test_damaged_messages_decode_or_raise_wire_error(message: Message, data: st.DataObject) -> None:
    payload = bytearray(encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(FIELDS[type(message)], bytes(payload))
    except WireError as error:
        assert "\n" not in str(error)


def test_unknown_field_asks_for_an_upgrade() -> None:
    with pytest.raises(WireError, match="upgrade this reader"):
        decode(b"z", b"\xc0")


@given(
    st.builds(
        Head, TEXT, maybe(COUNTS), TIMES, st.just(NIL), TIMES,
        st.lists(st.builds(Hole, COUNTS, COUNTS), max_size=5), st.dictionaries(TEXT, COUNTS, max_size=4),
        COUNTS, COUNTS, st.lists(st.tuples(COUNTS, COUNTS), max_size=4),
    )
)  # fmt: skip
def test_heads_round_trip(head: Head) -> None:
    assert decode_head(encode(head)) == head


@given(st.builds(Bell, TEXT, COUNTS, COUNTS, maybe(st.booleans()), st.lists(TEXT, max_size=5)))
def test_bells_round_trip(bell: Bell) -> None:
    assert decode_bell(encode(bell)) == bell


# byte by byte, according to the MessagePack specification

TRADE = Trade(
    "BTC-USDT",
    "60000.10",
    "0.5",
    Side.SELL,
    "3735683259",
    1723161600000000000,
    1723161600001000001,
    None,
    "60000.2",
    Flag.LATE | Flag.REPLAYED,
)


def test_trade_byte_by_byte() -> None:
    assert encode(TRADE) == (
        b"\x9a\xa8BTC-USDT\xa860000.10\xa30.5\x02\xaa3735683259\xcf"
        + (1723161600000000000).to_bytes(8, "big") + b"\xcf"
        + (1723161600001000001).to_bytes(8, "big") + b"\xc0\xa760000.2\x03"
    )  # fmt: skip


def test_gap_byte_by_byte() -> None:
    gap = Gap(StreamKind.QUOTE, "gateway", GapKind.TRIMMED, 1, 2, None, None, 300, False, True, "A")
    assert encode(gap) == b"\x9b\x01\xa7gateway\x06\x01\x02\xc0\xc0\xcd\x01\x2c\xc2\xc3\xa1A"


def test_quote_and_bar_byte_by_byte() -> None:
    assert encode(Quote("A", "1", None, None, "2", 0, -1)) == b"\x98\xa1A\xa11\xc0\xc0\xa12\x00\xff\x00"
    bar = Bar("time:1m", 0, 1, "1", "2", "1", "2", "3", "4", None, 5, "1", "2", 1, ("has_gap",), "A")
    assert encode(bar) == (
        b"\xdc\x00\x10\xa7time:1m\x00\x01\xa11\xa12\xa11\xa12\xa13\xa14\xc0\x05\xa11\xa12\x01"
        b"\x91\xa7has_gap\xa1A"
    )


def test_gap_kinds_of_newer_writers_are_unknown() -> None:
    gap = Gap(StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, 2, "5", "9", 5, False, False, "A")
    fields = msgspec.msgpack.decode(encode(gap))
    for kind in (9, 10, 99):
        fields[2] = kind
        assert decode(b"g", msgspec.msgpack.encode(fields)) == replace(gap, kind=GapKind.UNKNOWN)


def test_enum_values_never_change() -> None:
    assert {one.name: int(one) for one in Side} == {"UNKNOWN": 0, "BUY": 1, "SELL": 2}
    assert {one.name: int(one) for one in StreamKind} == {"TRADE": 0, "QUOTE": 1, "BAR": 2, "SIGNAL": 3}
    assert {one.name: int(one) for one in GapKind} == {
        "DISCONNECT": 0, "SEQUENCE": 1, "RESET": 2, "STALE": 3, "OVERFLOW": 4, "REJECTED": 5, "TRIMMED": 6,
        "VOID": 7, "UNSUBSCRIBED": 8, "UNKNOWN": 255,
    }  # fmt: skip
    assert {one.name: int(one) for one in Flag} == {
        "LATE": 1, "REPLAYED": 2, "OFF_BOOK": 4, "CORRECTED": 8, "CANCELLED": 16, "FUTURE_TIME": 32,
        "BACKFILLED": 64, "BAD_TIME": 128, "DOUBTFUL_ID": 256,
    }  # fmt: skip
