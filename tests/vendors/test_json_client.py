"""What is specific to the generic feed: field names, times in every form, sides, errors."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vendors.examples import RECV, TOLERANCE, feed, mapper, setup, subscribe_frames

from services.vendors import VENDORS
from services.vendors.feed import OLDEST, MappedTick, Mapper, Refused, Rejected, Skipped, Unknown
from services.vendors.json.fields import NAMES, field_names
from services.vendors.json.options import JsonOptions
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Flag, Quote, Side, Trade
from tickbus.units import format_time

AT = 1_723_210_200_123_456_789


def trade(**fields: str) -> bytes:
    texts = {"symbol": '"AAPL"', "price": "1", "volume": "2"} | fields
    return ('{"trades":[{' + ",".join(f'"{name}":{value}' for name, value in texts.items()) + "}]}").encode()


def one_trade(**fields: str) -> Trade:
    ((tick, vendor_id),) = mapper("json").map(trade(**fields), RECV)
    assert isinstance(tick, Trade) and vendor_id == -1
    return tick


def test_subscribe_request_of_the_tutorial() -> None:
    assert [json.loads(frame) for frame in subscribe_frames(feed("json", ("trade",)))] == [
        {"action": "subscribe", "symbols": ["AAPL", "MSFT"]}
    ]
    assert [json.loads(frame) for frame in subscribe_frames(feed("json"))] == [
        {"action": "subscribe", "symbols": ["AAPL", "MSFT"], "quotes": True}
    ]
    assert not feed("json").acks_subscribe


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1723210200", AT // 10**9 * 10**9),
        ("1723210200123", AT // 10**6 * 10**6),
        ("1723210200123456", AT // 1000 * 1000),
        (str(AT), AT),
        (f'"{AT}"', AT),
        ("1723210200.123456789", AT),
        ('"1723210200.5"', AT // 10**9 * 10**9 + 5 * 10**8),
        ("1723210200123.456789", AT),
        ("1.723210200123456789e9", AT),
        ("1.7232102e9", AT // 10**9 * 10**9),
        ('"2024-08-09T13:30:00.123456789Z"', AT),
        ('"2024-08-09T15:30:00.123456789+02:00"', AT),
        ('"2024-08-09 13:30"', AT // 10**9 * 10**9),
        ("null", RECV),
        ('""', RECV),
    ],
)
def test_times_in_every_form(text: str, ns: int) -> None:
    assert one_trade(time=text).ts_event == ns


def test_missing_time_is_the_receive_time() -> None:
    tick = one_trade()
    assert tick.ts_event == tick.ts_recv == RECV
    assert tick.flags == Flag.BAD_TIME


@given(st.integers(OLDEST, RECV))
def test_iso_times_are_exact(ns: int) -> None:
    assert one_trade(time=f'"{format_time(ns)}"').ts_event == ns


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0.5",
        '"0"',
        "-1",
        '"-1.5"',
        '"soon"',
        "true",
        "[1]",
        "1e30",
        "99999999999",
        '"9999-12-31"',
        '"0001-01-01"',
        '"NaN"',
        "9" * 60,
    ],
)
def test_invalid_time_is_the_receive_time(text: str) -> None:
    one = mapper("json")
    ((tick, _),) = one.map(trade(time=text), RECV)
    assert (tick.ts_event, tick.flags, one.bad_times, one.notices) == (RECV, Flag.BAD_TIME, 1, [])


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ('"buy"', Side.BUY),
        ('"B"', Side.BUY),
        ("1", Side.BUY),
        ('"SELL"', Side.SELL),
        ('"s"', Side.SELL),
        ("2", Side.SELL),
        ("null", Side.UNKNOWN),
        ('"?"', Side.UNKNOWN),
        ("0", Side.UNKNOWN),
    ],
)
def test_sides_in_every_form(text: str, side: Side) -> None:
    assert one_trade(side=text).side is side


def test_ids_are_kept_as_text() -> None:
    assert one_trade(id="12345678901234567890").trade_id == "12345678901234567890"
    assert one_trade(id='"a\\u00e4\\n"').trade_id == "aä\n"
    assert one_trade(id="null").trade_id is None


def test_symbols_with_escapes_and_as_numbers() -> None:
    assert one_trade(symbol='"\\u0041APL"').symbol == "AAPL"
    one = mapper("json")
    one.symbols = {"700": "700.HK"}
    ((tick, _),) = one.map(trade(symbol="700"), RECV)
    assert tick.symbol == "700.HK"


def test_bad_tick_costs_no_other_tick_of_its_frame() -> None:
    items: list[Any] = [
        {"symbol": symbol, "price": price, "volume": 1}
        for symbol, price in (("AAPL", 1), ("AAPL", "x"), ("NONE", 1), ("MSFT", 2))
    ]
    one = mapper("json")
    ticks = one.map(json.dumps({"trades": items}).encode(), RECV)
    assert [(tick.symbol, tick.ts_recv) for tick, _ in ticks] == [("AAPL", RECV), ("MSFT", RECV + 1)]
    assert [(n.reason, n.symbol, n.lost) for n in one.notices if isinstance(n, Rejected)] == [
        ("field", "AAPL", True),
        ("unknown_symbol", None, False),
    ]


def test_null_among_the_ticks_costs_no_other() -> None:
    one = mapper("json")
    (only,) = one.map(b'{"trades":[null,{"symbol":"AAPL","price":1,"volume":1},null]}', RECV)
    assert only[0].symbol == "AAPL"
    assert [(n.reason, n.lost) for n in one.notices if isinstance(n, Rejected)] == [("field", False)] * 2


@pytest.mark.parametrize("error", ["null", "false", "0", '""', "{}", "[]"])
def test_empty_error_is_not_a_refusal(error: str) -> None:
    one = mapper("json")
    assert one.map(f'{{"status":"subscribed","error":{error}}}'.encode(), RECV) == []
    assert one.notices == [Skipped()]


@pytest.mark.parametrize(
    "names", [("price=volume",), ("trades=error",), ("quotes=trades",), ('price=p"x',), ("price=p\\",)]
)
def test_ambiguous_or_unusable_field_name_is_a_config_error(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--json-fields"):
        feed("json", options=JsonOptions(json_fields=names))


def test_configured_field_names_are_used() -> None:
    names = ("trades=data", "symbol=s", "price=p", "volume = v", "time=t", "quotes=q", "bid=b", "ask=a")
    one = feed("json", options=JsonOptions(json_fields=names)).mapper(TOLERANCE)
    ((tick, _),) = one.map(
        b'{"data":[{"s":"AAPL","p":7296.89,"v":0.011467,"t":1575526691134}],"trades":[{"symbol":"x"}]}', RECV
    )
    assert isinstance(tick, Trade)
    assert (tick.price_text, tick.size_text, tick.ts_event) == ("7296.89", "0.011467", 1575526691134 * 10**6)
    ((quote, _),) = one.map(b'{"q":[{"s":"AAPL","b":1,"a":2}]}', RECV)
    assert isinstance(quote, Quote) and (quote.bid_text, quote.ask_text) == ("1", "2")


@pytest.mark.parametrize("pairs", [("prize=p",), ("price",), ("price=",), ("=p",)])
def test_invalid_field_name_is_a_config_error(pairs: tuple[str, ...]) -> None:
    with pytest.raises(
        ConfigError, match="expected ours=theirs, where ours is one of trades, quotes, symbol"
    ):
        feed("json", options=JsonOptions(json_fields=pairs))


def test_field_names_default_to_ours() -> None:
    assert field_names(()) == {name: name for name in NAMES}


@pytest.mark.parametrize("frame", ['{"error":"bad token"}', '{"error":{"code":5,"text":"bad token"}}'])
def test_error_of_the_vendor_is_reported(frame: str) -> None:
    one = mapper("json")
    assert one.map(frame.encode(), RECV) == []
    (refused,) = one.notices
    assert isinstance(refused, Refused) and "bad token" in refused.text and not refused.fatal


FORMS = {
    "symbol": ('"AAPL"', '"MSFT"', '"A\\u0041PL"', '"XX"', "7", "null"),
    "price": ('"1.50"', "1.50", "150", "-0.0", "1e2", '"1e2"', '"abc"', "null", "true", '"\\u0031"', '""'),
    "volume": ('"2"', "2", "2.000", '"-2"', "[2]"),
    "time": (
        *(str(AT), f'"{AT}"', "1723210200", "1723210200.5", "1.7232102e9"),
        *('"2024-08-09T13:30:00Z"', "null", "-5", "1e400", "true"),
    ),
    "side": ('"buy"', "1", "2", "null", '"S"', "false"),
    "id": ('"a1"', "17", "17.0", "null", "1e3", "{}"),
}
ITEM = st.fixed_dictionaries({}, optional={name: st.sampled_from(forms) for name, forms in FORMS.items()})


@given(st.lists(st.lists(ITEM, min_size=1, max_size=3), min_size=1, max_size=6))
def test_earlier_frames_do_not_change_the_result(frames: list[list[dict[str, str]]]) -> None:
    """A mapper learns which fields come as numbers, to decode faster: the result is that of a new mapper."""
    used = mapper("json")
    for items in frames:
        frame = (
            '{"trades":['
            + ",".join(
                "{" + ",".join(f'"{name}":{text}' for name, text in item.items()) + "}" for item in items
            )
            + "]}"
        ).encode()
        new = mapper("json")
        assert (used.map(frame, RECV), used.notices) == (new.map(frame, RECV), new.notices)
        used.notices.clear()


@given(ITEM)
def test_fast_path_equals_raw_decoding(item: dict[str, str]) -> None:
    """An item decoded as texts equals the same item in a frame that an unreadable one keeps raw."""
    text = "{" + ",".join(f'"{name}":{value}' for name, value in item.items()) + "}"
    alone, beside = mapper("json"), mapper("json")
    found = alone.map(f'{{"trades":[{text}]}}'.encode(), RECV)
    assert found == beside.map(f'{{"trades":[{text},{{"price":[]}}]}}'.encode(), RECV)
    assert [
        *alone.notices,
        Rejected("field", "tick without a symbol", ticks_before=len(found)),
    ] == beside.notices


# paths


def with_fields(*pairs: str, **options: Any) -> Mapper:
    return feed("json", options=JsonOptions(json_fields=pairs, **options)).mapper(TOLERANCE)


def texts(ticks: Sequence[MappedTick]) -> list[tuple[str, str | None, str | None]]:
    """Return (symbol, price, size) of trades and (symbol, bid, ask) of quotes."""
    return [
        (tick.symbol, tick.price_text, tick.size_text)
        if isinstance(tick, Trade)
        else (tick.symbol, tick.bid_text, tick.ask_text)
        for tick, _ in ticks
    ]


ITEMS = '[{"code":"AAPL","px":{"value":1.10},"volume":2},{"code":"MSFT","px":{"value":"3"},"volume":"4"}]'
BOTH = [("AAPL", "1.10", "2"), ("MSFT", "3", "4")]


@pytest.mark.parametrize(
    ("trades", "frame"),
    [
        ("trades=data.items", '{"channel":"trades","data":{"items":%s}}'),
        ("trades=data.items", '[{"data":{"items":%s}}]'),
        ("trades=data.items", '{"data":[{"items":%s},{"items":[]},{"other":1}]}'),
        ("trades=data.items", '{"data.items":%s}'),
        ("trades=data.0", '{"data":[%s,"more"]}'),
        ("trades=data", '{"data":[%s]}'),
        ("trades=data", '{"data":[[%s],[]]}'),
        ("trades=.", "%s"),
        ("trades=.", "[%s]"),
        ("trades=trades", '{"trades":%s}'),
        ("trades=trades", "%s"),
    ],
)
def test_paths_lead_to_the_ticks(trades: str, frame: str) -> None:
    one = with_fields(trades, "symbol=code", "price=px.value")
    assert texts(one.map((frame % ITEMS).encode(), RECV)) == BOTH
    assert one.notices == []


def test_path_to_a_single_object() -> None:
    one = with_fields("trades=data.trade")
    frame = b'{"data":{"trade":{"symbol":"AAPL","price":"1","volume":"2"}}}'
    assert texts(one.map(frame, RECV)) == [("AAPL", "1", "2")]
    assert with_fields("trades=.").map(b'{"symbol":"AAPL","price":"1","volume":"2"}', RECV)


def test_paths_into_lists_and_several_lists() -> None:
    one = with_fields("quotes=d.book", "trades=d.prints", "bid=bids.0.0", "bid_size=bids.0.1", "ask=asks.0.0")
    frame = (
        b'{"d":{"prints":[{"symbol":"AAPL","price":"5","volume":"6"}],'
        b'"book":[{"symbol":"AAPL","bids":[["1","2"],["0.5","1"]],"asks":[[3.50,4]]}]}}'
    )
    quote, traded = (tick for tick, _ in one.map(frame, RECV))
    assert isinstance(quote, Quote) and isinstance(traded, Trade)
    assert (quote.bid_text, quote.bid_size_text, quote.ask_text, quote.ask_size_text) == (
        "1",
        "2",
        "3.50",
        None,
    )
    assert (traded.price_text, traded.bid_text, traded.ask_text) == ("5", "1", "3.50")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("price=a..b",), "expected a name, or names with dots between them"),
        (("trades=.data",), "expected a name, or names with dots between them"),
        (("trades=..",), "expected a name, or names with dots between them"),
        (("price=.",), "only trades and quotes can be the whole frame"),
        (
            ("price=p", "volume=p.size"),
            "price (p) and volume (p.size) are the same field, or one is inside the other",
        ),
        (("price=px.value", "volume=px.value"), "price (px.value) and volume (px.value) are the same field"),
        (("trades=data.items", "quotes=data.items"), "trades (data.items) and quotes (data.items)"),
        (("trades=error",), "trades (error) and error (error)"),
    ],
)
def test_path_that_cannot_work_is_a_config_error(pairs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        feed("json", options=JsonOptions(json_fields=pairs))


@given(st.lists(st.lists(ITEM, min_size=1, max_size=3), min_size=1, max_size=3))
def test_paths_give_the_same_ticks_as_names(frames: list[list[dict[str, str]]]) -> None:
    plain, paths = mapper("json"), with_fields("trades=data.trades")
    for items in frames:
        inner = ",".join(
            "{" + ",".join(f'"{name}":{text}' for name, text in item.items()) + "}" for item in items
        )
        assert plain.map(f'{{"trades":[{inner}]}}'.encode(), RECV) == paths.map(
            f'{{"data":{{"trades":[{inner}]}}}}'.encode(), RECV
        )
        assert plain.notices == paths.notices
        plain.notices.clear()
        paths.notices.clear()


# ticks in unexpected places


def test_ticks_where_nobody_named_them_are_rejected_with_their_place() -> None:
    one = mapper("json")
    assert one.map(b'{"data":{"list":[{"symbol":"AAPL","price":"1","volume":"1"}]}}', RECV) == []
    (notice,) = one.notices
    assert isinstance(notice, Rejected)
    assert (notice.reason, notice.lost) == ("field", True)
    assert notice.detail == "ticks under 'data.list': say where they are by --json-fields trades=PATH"


def test_ticks_of_other_symbols_in_other_places_are_unknown() -> None:
    one = mapper("json")
    one.map(b'{"data":[{"symbol":"XX","price":"1","volume":"1"}]}', RECV)
    assert [type(notice) for notice in one.notices] == [Unknown]


def test_what_is_no_tick_beside_ticks_is_not_lost_from_sight() -> None:
    one = mapper("json")
    ticks = one.map(b'[{"symbol":"AAPL","price":"1","volume":"1"},{"symbol":"AAPL","px":"2"}]', RECV)
    assert texts(ticks) == [("AAPL", "1", "1")]
    assert [type(notice) for notice in one.notices] == [Unknown]
    one.notices.clear()
    one.map(b'[{"symbol":"AAPL","price":"1","volume":"1"},{"price":"1","volume":"1"}]', RECV)
    (notice,) = one.notices
    assert isinstance(notice, Rejected) and (notice.detail, notice.lost) == ("tick without a symbol", True)


def test_error_beside_ticks_is_reported_too() -> None:
    one = mapper("json")
    frame = trade().replace(b'{"trades"', b'{"error":"slow down","trades"')
    assert texts(one.map(frame, RECV)) == [("AAPL", "1", "2")]
    (notice,) = one.notices
    assert isinstance(notice, Refused) and "slow down" in notice.text


# ids


def numbered(id: str, price: str = '"1"', time: str = "1723210200123") -> bytes:
    return trade(id=id, price=price, time=time)


def test_sequential_ids_are_vendor_ids() -> None:
    one = feed("json", options=JsonOptions(json_ids="sequential"))
    assert one.sequenced and not feed("json").sequenced
    ids = ("7", '"8"', "0", '""', "null", '"x8"', "9007199254740992", "9007199254740991", "-1")
    found = [one.mapper(TOLERANCE).map(numbered(id), RECV)[0] for id in ids]
    assert [vendor_id for _, vendor_id in found] == [7, 8, -1, -1, -1, -1, -1, 9007199254740991, -1]
    assert [tick.trade_id for tick, _ in found if isinstance(tick, Trade)][:6] == [
        "7",
        "8",
        None,
        None,
        None,
        "x8",
    ]


def test_rejected_trade_names_its_sequential_id() -> None:
    one = with_fields(json_ids="sequential")
    one.map(numbered("7", price='"x"'), RECV)
    (notice,) = one.notices
    assert isinstance(notice, Rejected) and (notice.symbol, notice.vendor_id) == ("AAPL", 7)


def test_unique_ids_make_repeats_known_over_connections() -> None:
    setup_ = setup("json", options=JsonOptions(json_ids="unique"))
    first, second = (VENDORS["json"].feed(setup_).mapper(TOLERANCE) for _ in range(2))
    assert len(first.map(numbered('"a"'), RECV)) == 1
    assert first.map(numbered('"a"'), RECV) == []
    assert second.map(numbered('"a"', price="1.0", time="1723210200"), RECV) == []
    assert (first.duplicates, second.duplicates) == (1, 1)
    ((other, vendor_id),) = second.map(numbered('"a"', price="1.1"), RECV)
    assert (other.flags, vendor_id) == (Flag.DOUBTFUL_ID, -1)
    assert first.notices == second.notices == []
    assert len(second.map(trade(), RECV)) == len(second.map(trade(), RECV)) == 1  # no id: never a repeat


def test_without_promises_ids_are_only_kept() -> None:
    one = mapper("json")
    assert [len(one.map(numbered('"a"'), RECV)) for _ in range(2)] == [1, 1]
