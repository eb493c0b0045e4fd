"""One conformance suite for every feed in the registry: whatever a vendor sends, its mapper gives exact ticks or says why not."""

import copy
import json
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vendors.examples import EXAMPLES, RECV, TOLERANCE, feed, mapper, setup, subscribed

from services.vendors import VENDORS
from services.vendors.feed import (
    NO_ID,
    Closing,
    HeartbeatAck,
    Mapper,
    Refused,
    Rejected,
    Skipped,
    SubscribeAck,
)
from tickbus.errors import ConfigError
from tickbus.protocol.codec import FIELDS, decode, encode
from tickbus.protocol.messages import Flag, Quote, Trade
from tickbus.units import DAY

vendors = pytest.mark.parametrize("vendor", VENDORS)

EXACT = {  # JSON text of a number -> the digits that must be on the wire
    "0.1": "0.1",
    "0.10": "0.10",
    "1e-8": "0.00000001",
    "1E+5": "100000",
    "123456789012345678.123456789012345678": "123456789012345678.123456789012345678",
    "0.1000000000000000055511151231257827": "0.1000000000000000055511151231257827",
    "9007199254740993": "9007199254740993",
    "0": "0",
}
_NO_NUMBERS = """"NaN" "Infinity" "-Infinity" "sNaN" "" "1,5" "0x10" "1_000" "١" "1e999999" null true [] {}"""
NO_NUMBERS = [*_NO_NUMBERS.split(), '" "']


def trade_frame(vendor: str, price: str = '"1"', size: str = '"1"') -> bytes:
    return (EXAMPLES[vendor].trade % {"price": price, "size": size}).encode()


def quote_frame(vendor: str, **fields: str) -> bytes:
    return (
        EXAMPLES[vendor].quote % ({"bid": '"1"', "bid_size": '"5"', "ask": '"2"', "ask_size": '"6"'} | fields)
    ).encode()


def only_rejected(one: Mapper, kind: str) -> None:
    """Exactly one notice, of a tick that is known to be lost."""
    (notice,) = one.notices
    assert isinstance(notice, Rejected)
    assert (notice.reason, notice.kind, notice.lost) == ("field", kind, True)
    assert notice.symbol in one.symbols.values()


def test_the_suite_covers_the_registry() -> None:
    assert EXAMPLES.keys() == VENDORS.keys()


# what is documented


@pytest.mark.parametrize(
    ("vendor", "at"), [(vendor, at) for vendor, it in EXAMPLES.items() for at in range(len(it.golden))]
)
def test_golden_frames(vendor: str, at: int) -> None:
    frame, ticks, ids = EXAMPLES[vendor].golden[at]
    one = mapper(vendor)
    assert list(one.map(frame.encode(), RECV)) == list(zip(ticks, ids, strict=True))
    assert one.notices == []


@pytest.mark.parametrize(
    ("vendor", "frame", "notice"), [(vendor, *pair) for vendor, it in EXAMPLES.items() for pair in it.notices]
)
def test_frames_without_ticks_are_told_apart_and_never_rejected(
    vendor: str, frame: str, notice: type[Any]
) -> None:
    one = mapper(vendor)
    assert list(one.map(frame.encode(), RECV)) == []
    assert [type(told) for told in one.notices] == [notice]


@vendors
def test_trades_carry_the_quote_known_at_that_moment(vendor: str) -> None:
    frames = EXAMPLES[vendor].golden
    quotes = [frame for frame, ticks, _ in frames if any(isinstance(tick, Quote) for tick in ticks)]
    one = mapper(vendor)
    symbol = next(tick.symbol for tick, _ in one.map(quotes[0].encode(), RECV) if isinstance(tick, Quote))
    assert set(one.best_quotes) == {symbol}
    spelling = next(theirs for theirs, ours in one.symbols.items() if ours == symbol)
    example = mapper(vendor).map(trade_frame(vendor), RECV)[0][0].symbol
    other = next(theirs for theirs, ours in one.symbols.items() if ours == example)
    ((trade, _),) = one.map(
        trade_frame(vendor).replace(f'"{other}"'.encode(), f'"{spelling}"'.encode()), RECV
    )
    assert isinstance(trade, Trade)
    assert (trade.symbol, trade.bid_text, trade.ask_text) == (symbol, *one.best_quotes[symbol])


@vendors
def test_a_fresh_connection_knows_no_quote_and_one_that_follows_does(vendor: str) -> None:
    one = feed(vendor)
    first, second = one.mapper(TOLERANCE), one.mapper(TOLERANCE)
    first.map(quote_frame(vendor), RECV)
    assert second.best_quotes == {}
    second.follow(first)
    assert second.best_quotes == first.best_quotes != {}


@vendors
def test_symbols_that_nobody_asked_for_are_counted_and_are_no_hole(vendor: str) -> None:
    one = mapper(vendor)
    one.symbols = {"OTHER": "OTHER"}
    for frame in (trade_frame(vendor), quote_frame(vendor)):
        assert list(one.map(frame, RECV)) == []
    assert [(type(told), told.reason, told.lost) for told in one.notices if isinstance(told, Rejected)] == [
        (Rejected, "unknown_symbol", False)
    ] * 2


@vendors
def test_a_tick_without_its_symbol_may_have_been_ours(vendor: str) -> None:
    one = mapper(vendor)
    symbol = one.map(trade_frame(vendor), RECV)[0][0].symbol
    spelling = next(theirs for theirs, ours in one.symbols.items() if ours == symbol)
    frame = json.loads(trade_frame(vendor))
    for holder, key in list(_places(frame)):
        if holder[key] == spelling:
            del holder[key]
            break
    assert list(one.map(json.dumps(frame).encode(), RECV)) == []
    (notice,) = one.notices
    assert isinstance(notice, Rejected)
    assert (notice.reason, notice.lost) == ("field", True)


@vendors
def test_a_time_ahead_of_the_clock_is_flagged(vendor: str) -> None:
    one = mapper(vendor)
    ((trade, _),) = one.map(trade_frame(vendor), RECV)
    # the same frame, received long before it was sent, and just within the tolerance
    ((early, _),) = one.map(trade_frame(vendor), trade.ts_event - DAY)
    ((close, _),) = one.map(trade_frame(vendor), trade.ts_event - TOLERANCE)
    assert (trade.flags, early.flags, close.flags) == (0, Flag.FUTURE_TIME, 0)


# exact numbers


@vendors
@pytest.mark.parametrize("text", EXACT)
def test_numbers_keep_their_digits(vendor: str, text: str) -> None:
    forms = [f'"{text}"', text] if EXAMPLES[vendor].takes_numbers else [f'"{text}"']
    for form in forms:
        ((trade, _),) = mapper(vendor).map(trade_frame(vendor, form, form), RECV)
        assert isinstance(trade, Trade)
        assert (trade.price_text, trade.size_text) == (EXACT[text], EXACT[text])
        ((quote, _),) = mapper(vendor).map(
            quote_frame(vendor, bid=form, bid_size=form, ask=form, ask_size=form), RECV
        )
        assert isinstance(quote, Quote)
        assert (quote.bid_text, quote.bid_size_text, quote.ask_text, quote.ask_size_text) == (
            EXACT[text],
        ) * 4


@vendors
@given(
    value=st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**18), max_value=10**18)
)
def test_every_price_is_the_vendors_number(vendor: str, value: Decimal) -> None:
    ((trade, _),) = mapper(vendor).map(trade_frame(vendor, f'"{value}"'), RECV)
    assert isinstance(trade, Trade)
    assert trade.price == value
    assert "E" not in trade.price_text.upper()


@vendors
@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_rejected(vendor: str, text: str) -> None:
    for frame in (trade_frame(vendor, text), trade_frame(vendor, '"1"', text)):
        one = mapper(vendor)
        assert list(one.map(frame, RECV)) == []
        only_rejected(one, "trade")


@vendors
def test_negative_sizes_are_rejected_and_negative_prices_are_not(vendor: str) -> None:
    for frame, kind in (
        (trade_frame(vendor, size='"-1"'), "trade"),
        (quote_frame(vendor, bid_size='"-1"'), "quote"),
        (quote_frame(vendor, ask_size='"-0.1"'), "quote"),
    ):
        one = mapper(vendor)
        assert list(one.map(frame, RECV)) == []
        only_rejected(one, kind)
    ((trade, _),) = mapper(vendor).map(trade_frame(vendor, price='"-37.63"'), RECV)  # oil, April 2020
    assert isinstance(trade, Trade)
    assert trade.price == Decimal("-37.63")


@vendors
def test_a_rejected_quote_leaves_the_one_before_known(vendor: str) -> None:
    one = mapper(vendor)
    one.map(quote_frame(vendor), RECV)
    before = dict(one.best_quotes)
    one.map(quote_frame(vendor, bid='"x"', ask='"9"'), RECV)
    assert one.best_quotes == before


# fuzz


def check(vendor: str, frame: bytes) -> None:
    """Whatever the frame: it does not raise, gives ticks that the bus can hold, or notices, and leaves the mapper working."""
    one = mapper(vendor)
    ticks = one.map(frame, RECV)
    for number, (tick, vendor_id) in enumerate(ticks):
        assert tick.symbol in one.symbols.values()
        assert tick.ts_recv == RECV + number
        assert -(1 << 63) <= tick.ts_event < 1 << 63  # what a Parquet timestamp holds
        assert vendor_id == NO_ID or 0 <= vendor_id < 1 << 63
        assert decode(FIELDS[type(tick)], encode(tick)) == tick
        if isinstance(tick, Trade):
            assert tick.price.is_finite() and tick.size.is_finite() and tick.size >= 0
    for notice in one.notices:
        assert isinstance(notice, SubscribeAck | HeartbeatAck | Skipped | Rejected | Refused | Closing)
        if isinstance(notice, Rejected):
            assert len(notice.detail) <= 200 and (
                notice.symbol is None or notice.symbol in one.symbols.values()
            )
            assert notice.reason in ("garbage", "field", "unknown_symbol")
    golden, wanted, _ = EXAMPLES[vendor].golden[0]
    one.notices.clear()
    assert [replace_quote(tick) for tick, _ in one.map(golden.encode(), RECV)] == wanted


def replace_quote(tick: Trade | Quote) -> Trade | Quote:
    """Without the quote that the fuzzed frame may have brought."""
    if isinstance(tick, Trade):
        return Trade(
            tick.symbol,
            tick.price_text,
            tick.size_text,
            tick.side,
            tick.trade_id,
            tick.ts_event,
            tick.ts_recv,
            flags=tick.flags,
        )
    return tick


@vendors
@given(frame=st.binary(max_size=200))
def test_any_bytes(vendor: str, frame: bytes) -> None:
    check(vendor, frame)


ODD_VALUES = """
    null true 0 -0 -1 1.5 1e5 1e400 -1e-400 1e30 [] {} [[]] "" "x" "\\u0000" "\\ud800" "😀" "NaN" "-1" "1e30" "9999-12-31T23:59:59Z" "0001-01-01"
    99999999999 9999999999999 99999999999999999 9223372036854775808 18446744073709551616 "18446744073709551616"
"""
LONG_VALUES = [
    "9" * 400,
    '"' + "9" * 400 + '"',
    "9" * 5000,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 2000 + "1" + "}" * 2000,
]
JSON_TEXTS = st.sampled_from([*ODD_VALUES.split(), *LONG_VALUES])


@vendors
@given(data=st.data())
def test_valid_frames_with_one_field_of_another_kind(vendor: str, data: st.DataObject) -> None:
    frame = copy.deepcopy(data.draw(st.sampled_from(EXAMPLES[vendor].mutable)))
    places = list(_places(frame))
    if not places:
        return
    holder, key = data.draw(st.sampled_from(places))
    if data.draw(st.booleans()):
        holder[key] = "\0here"
        text = json.dumps(frame).replace('"\\u0000here"', data.draw(JSON_TEXTS))
    else:
        del holder[key]
        text = json.dumps(frame)
    check(vendor, text.encode())


def _places(value: Any) -> Any:
    """(container, key) of everything in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


@vendors
@given(data=st.data())
def test_valid_frames_with_bytes_changed(vendor: str, data: st.DataObject) -> None:
    frame = bytearray(json.dumps(data.draw(st.sampled_from(EXAMPLES[vendor].mutable))).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["set", "cut", "drop", "double"])):
            case "set":
                frame[at] = data.draw(st.integers(0, 255))
            case "cut":
                del frame[at + 1 :]
            case "drop":
                del frame[at]
            case "double":
                frame[at:at] = frame[at : at + 20]
        if not frame:
            break
    check(vendor, bytes(frame))


@vendors
@pytest.mark.parametrize(
    "frame",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"data":' + b"[" * 100_000, b'{"cmd_id":[1],"data":{}}', b'{"cmd_id":{},"data":{}}', b"\xff" * 10, b"\xef\xbb\xbf{}"],
    ids=["deep list", "deep object", "deep data", "list for a command", "object for a command", "no UTF-8", "byte order mark"],
)  # fmt: skip
def test_nasty_frames(vendor: str, frame: bytes) -> None:
    check(vendor, frame)


# addresses and subscriptions


@vendors
def test_the_address_takes_the_vendors_path_and_hides_the_token(vendor: str) -> None:
    one = feed(vendor, url="ws://127.0.0.1:8080", token="s3cret/&")
    assert one.url().startswith(f"ws://127.0.0.1:8080{VENDORS[vendor].feed.default_path}")
    assert "s3cret" not in one.address() and urlsplit(one.address()).netloc == "127.0.0.1:8080"
    assert urlsplit(feed(vendor, url="wss://host/own/path?x=1").url())[1:3] == ("host", "/own/path")
    assert "x=1" in feed(vendor, url="wss://host/own/path?x=1", token="t").url()
    assert feed(vendor).url().startswith(VENDORS[vendor].feed.default_url)


@vendors
@pytest.mark.parametrize("url", ["http://host", "host:80", "ws://", "ws://host:port", "ws://host:99999"])
def test_addresses_that_are_none(vendor: str, url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        feed(vendor, url=url).url()


@vendors
def test_each_subscribe_frame_is_json_and_names_every_symbol_once(vendor: str) -> None:
    one = feed(vendor, ("trade",))
    text = "".join(subscribed(one))
    for frame in subscribed(one):
        json.loads(frame)
    for spelling in setup(vendor).symbols.vendor.values():
        assert text.lower().count(f'"{spelling.lower()}') == 1


@vendors
def test_kinds_that_no_feed_has(vendor: str) -> None:
    with pytest.raises(ConfigError, match="--kinds depth: this feed has trade, quote"):
        feed(vendor, ("depth",))


@vendors
@pytest.mark.parametrize(
    ("status", "fatal"),
    [
        (301, True),
        (401, True),
        (403, True),
        (404, True),
        (429, False),
        (418, False),
        (500, False),
        (503, False),
        (0, False),
    ],
)
def test_http_answers(vendor: str, status: int, fatal: bool) -> None:
    refused = feed(vendor).refused(status, "why")
    assert refused.fatal is fatal
    assert "why" in refused.text
    assert (refused.wait > 0) is (status in (418, 429))
