"""One conformance suite for every feed in the registry: exact ticks, or a notice of what is wrong."""

import copy
import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.paths import DATA
from vendors.examples import EXAMPLES, RECV, TOLERANCE, feed, mapper, setup, subscribe_frames
from vendors.test_frames import HOSTILE, JSON_BYTES

from services.vendors import VENDORS
from services.vendors.feed import (
    NO_ID,
    OLDEST,
    Mapper,
    Notice,
    Rejected,
)
from tickbus.errors import ConfigError
from tickbus.protocol.codec import FIELDS, decode, encode
from tickbus.protocol.messages import Flag, Quote, Trade
from tickbus.units import DAY

vendors = pytest.mark.parametrize("vendor", VENDORS)

EXACT = {  # JSON text of a number -> the expected digits
    "0.1": "0.1",
    "0.10": "0.10",
    "1e-8": "0.00000001",
    "1E+5": "100000",
    "123456789012345678.123456789012345678": "123456789012345678.123456789012345678",
    "0.100000000000000005": "0.100000000000000005",
    "0.50000000000000000000": "0.500000000000000000",
    "9007199254740993": "9007199254740993",
    "99999999999999999999.999999999999999999": "99999999999999999999.999999999999999999",
}
_NOT_NUMBERS = (
    """"NaN" "Infinity" "-Infinity" "sNaN" "" "1,5" "0x10" "1_000" "١" "1e999999" null true [] {}"""
)
OUT_OF_RANGE = ["1e20", "100000000000000000000", "1e64", "1e-19", "0.1000000000000000055511151231257827"]
"""Numbers that decimal128(38, 18) does not hold."""
NOT_NUMBERS = [*_NOT_NUMBERS.split(), '" "', *(f'"{text}"' for text in OUT_OF_RANGE)]


def trade_frame(vendor: str, price: str = '"1"', size: str = '"1"') -> bytes:
    return (EXAMPLES[vendor].trade % {"price": price, "size": size}).encode()


def quote_frame(vendor: str, **fields: str) -> bytes:
    return (
        EXAMPLES[vendor].quote % ({"bid": '"1"', "bid_size": '"5"', "ask": '"2"', "ask_size": '"6"'} | fields)
    ).encode()


def assert_only_rejected(one: Mapper, kind: str) -> None:
    """Assert that the only notice is about a tick that is known to be lost."""
    (notice,) = one.notices
    assert isinstance(notice, Rejected)
    assert (notice.reason, notice.kind, notice.lost) == ("field", kind, True)
    assert notice.symbol in one.symbols.values()


def test_suite_covers_the_registry() -> None:
    assert EXAMPLES.keys() == VENDORS.keys()


# documented frames


@pytest.mark.parametrize(
    ("vendor", "at"),
    [(vendor, at) for vendor, examples in EXAMPLES.items() for at in range(len(examples.golden))],
)
def test_golden_frames(vendor: str, at: int) -> None:
    frame, ticks, ids = EXAMPLES[vendor].golden[at]
    one = mapper(vendor)
    assert list(one.map(frame.encode(), RECV)) == list(zip(ticks, ids, strict=True))
    assert one.notices == []


@pytest.mark.parametrize(
    ("vendor", "frame", "notice"),
    [(vendor, *pair) for vendor, examples in EXAMPLES.items() for pair in examples.notices],
)
def test_frame_without_ticks_yields_the_documented_notice(vendor: str, frame: str, notice: type[Any]) -> None:
    one = mapper(vendor)
    assert list(one.map(frame.encode(), RECV)) == []
    assert [type(seen) for seen in one.notices] == [notice]


@vendors
def test_trades_carry_the_newest_quote(vendor: str) -> None:
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
def test_fresh_mapper_has_no_quotes_until_it_follows_another(vendor: str) -> None:
    one = feed(vendor)
    first, second = one.mapper(TOLERANCE), one.mapper(TOLERANCE)
    first.map(quote_frame(vendor), RECV)
    assert second.best_quotes == {}
    second.follow(first)
    assert second.best_quotes == first.best_quotes != {}


@vendors
def test_unsubscribed_symbols_are_rejected_but_not_lost(vendor: str) -> None:
    one = mapper(vendor)
    one.symbols = {"OTHER": "OTHER"}
    for frame in (trade_frame(vendor), quote_frame(vendor)):
        assert list(one.map(frame, RECV)) == []
    assert [(type(n), n.reason, n.lost) for n in one.notices if isinstance(n, Rejected)] == [
        (Rejected, "unknown_symbol", False)
    ] * 2


@vendors
def test_tick_without_symbol_counts_as_lost(vendor: str) -> None:
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
def test_time_ahead_of_the_clock_is_flagged(vendor: str) -> None:
    one = mapper(vendor)
    ((trade, _),) = one.map(trade_frame(vendor), RECV)
    # the same frame, received long before its time, and just within the tolerance
    ((early, _),) = one.map(trade_frame(vendor), trade.ts_event - DAY)
    ((close, _),) = one.map(trade_frame(vendor), trade.ts_event - TOLERANCE)
    assert (trade.flags, early.flags, close.flags) == (0, Flag.FUTURE_TIME, 0)


# exact numbers


@vendors
@pytest.mark.parametrize("text", EXACT)
def test_numbers_keep_their_digits(vendor: str, text: str) -> None:
    forms = [f'"{text}"', text] if EXAMPLES[vendor].accepts_numbers else [f'"{text}"']
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
def test_every_price_equals_the_number_sent(vendor: str, value: Decimal) -> None:
    ((trade, _),) = mapper(vendor).map(trade_frame(vendor, f'"{value}"'), RECV)
    assert isinstance(trade, Trade)
    assert trade.price == value
    assert "E" not in trade.price_text.upper()


@vendors
@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_invalid_number_is_rejected(vendor: str, text: str) -> None:
    for frame in (trade_frame(vendor, text), trade_frame(vendor, '"1"', text)):
        one = mapper(vendor)
        assert list(one.map(frame, RECV)) == []
        assert_only_rejected(one, "trade")


@vendors
def test_negative_size_is_rejected_but_negative_price_is_not(vendor: str) -> None:
    for frame, kind in (
        (trade_frame(vendor, size='"-1"'), "trade"),
        (quote_frame(vendor, bid_size='"-1"'), "quote"),
        (quote_frame(vendor, ask_size='"-0.1"'), "quote"),
    ):
        one = mapper(vendor)
        assert list(one.map(frame, RECV)) == []
        assert_only_rejected(one, kind)
    ((trade, _),) = mapper(vendor).map(trade_frame(vendor, price='"-37.63"'), RECV)  # oil, April 2020
    assert isinstance(trade, Trade)
    assert trade.price == Decimal("-37.63")


@vendors
def test_rejected_quote_keeps_the_previous_best_quote(vendor: str) -> None:
    one = mapper(vendor)
    one.map(quote_frame(vendor), RECV)
    before = dict(one.best_quotes)
    one.map(quote_frame(vendor, bid='"x"', ask='"9"'), RECV)
    assert one.best_quotes == before


# none is not zero


@dataclass(frozen=True)
class Place:
    """Where a vendor writes a value of a trade."""

    time: str
    id: str


PLACES = {"alltick": Place("tick_time", "seq"), "binance": Place("T", "t"), "json": Place("time", "id")}


def changed_trade(vendor: str, name: str, text: str | None) -> bytes:
    """Return the trade frame with another value of a field, or without it."""
    frame = json.loads(trade_frame(vendor))
    holder = next(holder for holder, key in _places(frame) if "price" in holder or "p" in holder)
    holder[name] = "\0here"
    if text is None:
        del holder[name]
    return json.dumps(frame).replace('"\\u0000here"', text or "").encode()


NO_TIMES = [
    None,
    "0",
    '"0"',
    "null",
    '""',
    "-1",
    '"soon"',
    "1.5",
    "true",
    "[]",
    "{}",
    "1e999",
    "9" * 30,
    "99999999999999999999",
]


@vendors
@pytest.mark.parametrize("time", NO_TIMES)
def test_absent_or_unreadable_time_is_the_receive_time(vendor: str, time: str | None) -> None:
    one = mapper(vendor)
    ((trade, _),) = one.map(changed_trade(vendor, PLACES[vendor].time, time), RECV)
    assert (trade.ts_event, trade.ts_recv, trade.flags, one.notices) == (RECV, RECV, Flag.BAD_TIME, [])
    assert one.bad_times == 1


@vendors
@pytest.mark.parametrize(
    ("ns", "flags"),
    [
        (OLDEST - 10**9, Flag.BAD_TIME),
        (OLDEST, 0),
        (RECV // 10**9 * 10**9, 0),
        (RECV // 10**9 * 10**9 + DAY, Flag.FUTURE_TIME),
        (RECV // 10**9 * 10**9 + 2 * DAY, Flag.FUTURE_TIME),
        (RECV // 10**9 * 10**9 + 2 * DAY + 10**9, Flag.BAD_TIME),
    ],
)
def test_implausible_time_is_the_receive_time(vendor: str, ns: int, flags: int) -> None:
    one = mapper(vendor)
    text = str(ns // 1000) if vendor == "binance" and ns > OLDEST else str(ns // 10**6)
    ((trade, _),) = one.map(changed_trade(vendor, PLACES[vendor].time, text), RECV)
    assert (trade.ts_event, trade.flags) == (RECV if flags == Flag.BAD_TIME else ns, flags)
    assert (one.bad_times, one.notices) == (int(flags == Flag.BAD_TIME), [])


@vendors
def test_oldest_time_is_an_option_and_recordings_have_none(vendor: str) -> None:
    for oldest, year in ((0, 1971), (-(1 << 63), 1971), (OLDEST + 366 * DAY, 2001)):
        one = VENDORS[vendor].feed(setup(vendor, oldest=oldest)).mapper(TOLERANCE)
        at = (datetime(year, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
        text = str(at * (1000 if vendor == "binance" or year > 1971 else 1))
        ((trade, _),) = one.map(changed_trade(vendor, PLACES[vendor].time, text), RECV)
        assert (trade.ts_event, trade.flags) == (at * 10**9, 0)


@vendors
@pytest.mark.parametrize("id", [None, "null", '""'])
def test_absent_id_is_none(vendor: str, id: str | None) -> None:
    one = mapper(vendor)
    ((trade, vendor_id),) = one.map(changed_trade(vendor, PLACES[vendor].id, id), RECV)
    assert isinstance(trade, Trade)
    assert (trade.trade_id, vendor_id, one.notices) == (None, NO_ID, [])


@vendors
def test_id_0_is_none_except_where_ids_begin_at_0(vendor: str) -> None:
    ((trade, vendor_id),) = mapper(vendor).map(changed_trade(vendor, PLACES[vendor].id, "0"), RECV)
    assert isinstance(trade, Trade)
    assert (trade.trade_id, vendor_id) == (("0", 0) if vendor == "binance" else (None, NO_ID))


@vendors
@pytest.mark.parametrize("price", ['"0"', '"0.00000000"', '""', "null"])
@pytest.mark.parametrize("size", ['"0"', '"0.00"', '""', "null"])
def test_empty_side_of_the_book_is_none(vendor: str, price: str, size: str) -> None:
    one = mapper(vendor)
    ((quote, _),) = one.map(quote_frame(vendor, bid=price, bid_size=size), RECV)
    assert isinstance(quote, Quote)
    assert (quote.bid, quote.bid_size, quote.ask_text, quote.ask_size_text) == (None, None, "2", "6")
    assert (one.best_quotes[quote.symbol], one.notices) == ((None, "2"), [])
    ((quote, _),) = one.map(quote_frame(vendor, ask=price, ask_size=size), RECV)
    assert isinstance(quote, Quote)
    assert (quote.bid_text, quote.bid_size_text, quote.ask, quote.ask_size) == ("1", "5", None, None)


@vendors
def test_trade_at_price_0_is_a_trade(vendor: str) -> None:
    ((trade, _),) = mapper(vendor).map(trade_frame(vendor, '"0"', '"0"'), RECV)
    assert isinstance(trade, Trade)
    assert (trade.price_text, trade.size_text) == ("0", "0")


# fuzz


def check(vendor: str, frame: bytes) -> None:
    """Assert that a frame raises nothing, yields valid ticks or notices, and leaves the mapper usable."""
    one = mapper(vendor)
    ticks = one.map(frame, RECV)
    for number, (tick, vendor_id) in enumerate(ticks):
        assert tick.symbol in one.symbols.values()
        assert tick.ts_recv == RECV + number
        assert -(1 << 63) <= tick.ts_event < 1 << 63  # the range of a Parquet timestamp
        assert vendor_id == NO_ID or 0 <= vendor_id < 1 << 63
        assert decode(FIELDS[type(tick)], encode(tick)) == tick
        if isinstance(tick, Trade):
            assert tick.price.is_finite() and tick.size.is_finite() and tick.size >= 0
    for notice in one.notices:
        assert isinstance(notice, Notice)
        for shown in (getattr(notice, name, "") for name in ("detail", "text", "head", "shape")):
            assert shown.isprintable() and len(shown) < 700
        if isinstance(notice, Rejected):
            assert len(notice.detail) <= 200 and (
                notice.symbol is None or notice.symbol in one.symbols.values()
            )
            assert notice.reason in ("garbage", "field", "unknown_symbol")
    golden, expected, _ = EXAMPLES[vendor].golden[0]
    one.notices.clear()
    assert [without_quote(tick) for tick, _ in one.map(golden.encode(), RECV)] == expected


def without_quote(tick: Trade | Quote) -> Trade | Quote:
    """Return the tick without the best quote, which the fuzzed frame may have set."""
    return replace(tick, bid_text=None, ask_text=None) if isinstance(tick, Trade) else tick


@vendors
@given(frame=st.binary(max_size=200))
def test_any_bytes_are_handled(vendor: str, frame: bytes) -> None:
    check(vendor, frame)


ODD_VALUES = """
    null true 0 -0 -1 1.5 1e5 1e400 -1e-400 1e30 [] {} [[]] "" "x" "\\u0000" "\\ud800" "😀" "NaN" "-1" "1e30"
    99999999999 9999999999999 99999999999999999 9223372036854775808 18446744073709551616
    "18446744073709551616" "9999-12-31T23:59:59Z" "0001-01-01"
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
def test_valid_frame_with_one_field_replaced_or_removed(vendor: str, data: st.DataObject) -> None:
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
    """Yield (container, key) of everything in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


@vendors
@given(data=st.data())
def test_valid_frame_with_changed_bytes(vendor: str, data: st.DataObject) -> None:
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
    [
        pytest.param(b"[" * 100_000, id="deep list"),
        pytest.param(b'{"a":' * 100_000, id="deep object"),
        pytest.param(b'{"data":' + b"[" * 100_000, id="deep data"),
        pytest.param(b'{"cmd_id":[1],"data":{}}', id="list as a command"),
        pytest.param(b'{"cmd_id":{},"data":{}}', id="object as a command"),
        pytest.param(b"\xff" * 10, id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
    ],
)
def test_malicious_frames_are_handled(vendor: str, frame: bytes) -> None:
    check(vendor, frame)


@vendors
@given(data=st.data())
def test_structure_around_valid_frames(vendor: str, data: st.DataObject) -> None:
    """Frames in lists, in objects, in each other's fields, and hostile values everywhere."""
    frames = st.sampled_from([json.dumps(value).encode() for value in EXAMPLES[vendor].mutable])
    parts = data.draw(st.lists(frames | JSON_BYTES | st.sampled_from(HOSTILE), min_size=1, max_size=4))
    frame = data.draw(
        st.sampled_from(
            [
                b"[" + b",".join(parts) + b"]",
                b"[[" + b",".join(parts) + b"]]",
                b'{"data":[' + b",".join(parts) + b"]}",
                b'{"data":' + parts[0] + b',"error":' + parts[-1] + b"}",
                b'{"trades":[' + b",".join(parts) + b'],"type":' + parts[0] + b"}",
                b'{"stream":' + parts[-1] + b',"data":' + parts[0] + b"}",
                b'{"cmd_id":22998,"data":' + parts[0] + b',"ret":' + parts[-1] + b"}",
                b"\n".join(parts),
            ]
        )
    )
    check(vendor, frame)


@vendors
@pytest.mark.parametrize("value", [*ODD_VALUES.split(), *LONG_VALUES])
def test_error_with_any_value(vendor: str, value: str) -> None:
    check(vendor, f'{{"error":{value}}}'.encode())
    check(vendor, f'{{"type":"error","msg":{value},"code":{value}}}'.encode())


@vendors
@pytest.mark.parametrize("frame", HOSTILE)
def test_hostile_value_in_an_error(vendor: str, frame: bytes) -> None:
    check(vendor, b'{"error":' + frame + b"}")
    check(vendor, frame)


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="captures not found")
@given(data=st.data())
def test_captured_frames_with_changed_bytes(data: st.DataObject) -> None:
    frame = bytearray(data.draw(st.sampled_from(captured_frames(DATA))))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    for vendor in VENDORS:
        check(vendor, bytes(frame))


@cache
def captured_frames(data: Path) -> list[bytes]:
    """Return the first frames of a capture."""
    with gzip.open(data / "spot_btcusdt_20240808.gz") as file:
        return [line.partition(b" ")[2].strip() for line in islice(file, 300)]


# addresses and subscriptions


@vendors
def test_address_has_the_vendors_path_and_hides_the_token(vendor: str) -> None:
    one = feed(vendor, url="ws://127.0.0.1:8080", token="s3cret/&")
    assert one.url().startswith(f"ws://127.0.0.1:8080{VENDORS[vendor].feed.default_path}")
    assert "s3cret" not in one.address() and urlsplit(one.address()).netloc == "127.0.0.1:8080"
    assert urlsplit(feed(vendor, url="wss://host/own/path?x=1").url())[1:3] == ("host", "/own/path")
    assert "x=1" in feed(vendor, url="wss://host/own/path?x=1", token="t").url()
    assert feed(vendor).url().startswith(VENDORS[vendor].feed.default_url)


@vendors
@pytest.mark.parametrize("url", ["http://host", "host:80", "ws://", "ws://host:port", "ws://host:99999"])
def test_invalid_url_is_a_config_error(vendor: str, url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        feed(vendor, url=url).url()


@vendors
def test_subscribe_frames_are_json_and_name_every_symbol_once(vendor: str) -> None:
    one = feed(vendor, ("trade",))
    text = "".join(subscribe_frames(one))
    for frame in subscribe_frames(one):
        json.loads(frame)
    for spelling in setup(vendor).symbols.vendor.values():
        assert text.lower().count(f'"{spelling.lower()}') == 1


@vendors
def test_unsupported_kind_is_a_config_error(vendor: str) -> None:
    with pytest.raises(ConfigError, match="invalid --kinds depth: this feed has trade, quote"):
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
def test_http_status_decides_whether_a_refusal_is_fatal(vendor: str, status: int, fatal: bool) -> None:
    refused = feed(vendor).refused(status, "why")
    assert refused.fatal is fatal
    assert "why" in refused.text
    assert (refused.wait > 0) is (status in (418, 429))
