import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors.binance.options import BinanceServerOptions
from services.vendors.binance.server import BinanceDialect, channel_of, open_binance
from services.vendors.dialect import VendorLimits
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import HOUR, SECOND

TRADE = Trade("BTC-USDT", "1.50", "2", Side.SELL, None, 1_700_000_000_123_456_789, 0)
QUOTE = Quote("BTCUSDT", "1.4", "3", "1.6", "4", 0, 0)


def opened(path: str = "/stream", **query: str) -> BinanceDialect:
    session = open_binance(path, query, VendorLimits(), BinanceServerOptions(), 0)
    assert session is not None
    return session


def say(session: BinanceDialect, message: object, now: int = 0) -> Any:
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    (reply,) = session.receive(text, now).replies
    return json.loads(reply)


def test_subscribe_unsubscribe_list() -> None:
    session = opened("/ws")
    assert not session.subscribed
    assert say(session, {"method": "SUBSCRIBE", "params": ["btcusdt@trade", "a@trade"], "id": 1}) == {
        "result": None,
        "id": 1,
    }
    assert say(session, {"method": "SUBSCRIBE", "params": ["b@trade"], "id": "x"}) == {
        "result": None,
        "id": "x",
    }
    assert say(session, {"method": "UNSUBSCRIBE", "params": ["a@trade"], "id": None}) == {
        "result": None,
        "id": None,
    }
    assert say(session, {"method": "LIST_SUBSCRIPTIONS", "id": 3}) == {
        "result": ["btcusdt@trade", "b@trade"],
        "id": 3,
    }
    assert session.wants("trade", "BTC-USDT")
    assert not session.wants("quote", "BTCUSDT")
    assert session.symbols() == ["BTCUSDT", "B"]


def test_streams_of_the_path_and_the_query() -> None:
    assert opened("/ws/btcusdt@trade").wants("trade", "BTC-USDT")
    assert opened("/stream", streams="x@trade/btcusdt@bookTicker").wants("quote", "BTCUSDT")
    assert open_binance("/other", {}, VendorLimits(), BinanceServerOptions(), 0) is None
    assert open_binance("/stream/x", {}, VendorLimits(), BinanceServerOptions(), 0) is None


def test_wrapped_on_stream_bare_on_ws_and_a_property_to_switch() -> None:
    bare = {
        "e": "trade",
        "E": 1_700_000_000_123,
        "s": "BTCUSDT",
        "t": 5,
        "p": "1.50",
        "q": "2",
        "T": 1_700_000_000_123,
        "m": True,
        "M": True,
    }
    assert json.loads(opened("/stream").render(TRADE, "BTC-USDT", 5)) == {
        "stream": "btcusdt@trade",
        "data": bare,
    }
    session = opened("/ws")
    assert json.loads(session.render(TRADE, "BTC-USDT", 5)) == bare
    assert say(session, {"method": "GET_PROPERTY", "params": ["combined"], "id": 1}) == {
        "result": False,
        "id": 1,
    }
    assert say(session, {"method": "SET_PROPERTY", "params": ["combined", True], "id": 2}) == {
        "result": None,
        "id": 2,
    }
    assert json.loads(session.render(TRADE, "BTC-USDT", 5))["data"] == bare


def test_quotes_have_no_time_and_absent_sides_are_zero() -> None:
    assert json.loads(opened("/ws").render(QUOTE, "BTCUSDT", 9)) == {
        "u": 9,
        "s": "BTCUSDT",
        "b": "1.4",
        "B": "3",
        "a": "1.6",
        "A": "4",
    }
    lone = Quote("A", "1", "2", None, None, 0, 0)
    assert json.loads(opened("/ws").render(lone, "A", 1))["a"] == "0.00000000"


def test_microseconds() -> None:
    session = opened("/ws", timeUnit="MICROSECOND")
    assert json.loads(session.render(TRADE, "BTC-USDT", 5))["T"] == 1_700_000_000_123_456


def test_a_recorded_frame_goes_out_as_it_stands() -> None:
    raw = b'{"stream":"btcusdt@trade","data":{"t":5, "odd":[] }}'
    assert channel_of(raw) == ("btcusdt@trade", "BTCUSDT")
    assert opened("/stream").recorded(raw) is raw
    assert opened("/ws").recorded(raw) == b'{"t":5, "odd":[] }'
    assert opened("/ws", timeUnit="MICROSECOND").recorded(raw) is None


@pytest.mark.parametrize(
    ("message", "code", "text", "number"),
    [
        (b"nonsense", 3, "Invalid JSON: expected value", None),
        (
            b'{"method":"SUBSCRIBE","params":["' + b"x" * 5000 + b'"],"id":1}',
            3,
            "EOF while parsing a string at line 1 column 4096",
            None,
        ),
        ({"method": "DANCE", "id": 1}, 2, "unknown variant `DANCE`", 1),
        ({"method": "SUBSCRIBE", "params": "a", "id": 1}, 2, "must be an array", 1),
        ({"method": "SUBSCRIBE", "params": [1], "id": 1}, 2, "expected a string", 1),
        ({"method": "SUBSCRIBE", "params": [], "id": 1.5}, 2, "request ID", None),
        ([], 2, "expected an object", None),
        ({"method": "SET_PROPERTY", "params": ["other", True], "id": 1}, 0, "Unknown property", 1),
        ({"method": "SET_PROPERTY", "params": ["combined", 1], "id": 1}, 1, "expected Boolean", 1),
    ],
)
def test_errors(message: object, code: int, text: str, number: int | None) -> None:
    reply = say(opened(), message)
    assert reply["error"]["code"] == code
    assert text in reply["error"]["msg"]
    assert reply["id"] == number


def test_1024_streams_and_no_more() -> None:
    session = opened()
    for start in range(0, 1024, 128):
        names = [f"s{number}@trade" for number in range(start, start + 128)]
        assert say(session, {"method": "SUBSCRIBE", "params": names, "id": start}, start * SECOND) == {
            "result": None,
            "id": start,
        }
    assert (
        say(session, {"method": "SUBSCRIBE", "params": ["one@trade"], "id": 9}, 10**13)["error"]["code"] == 4
    )


def test_the_sixth_message_within_a_second_closes() -> None:
    session = opened()
    answers = [session.receive(b"{}", number) for number in range(4)]
    answers += [session.ping(5), session.pong(b"", 6)]
    assert [answer.close for answer in answers] == [None] * 5 + [(1008, "Too many requests")]
    calm = opened()
    assert all(calm.receive(b"{}", number * SECOND // 5).close is None for number in range(50))


def test_pings_want_their_pong() -> None:
    session = opened()
    assert session.beat(19 * SECOND).ping is None
    ping = session.beat(20 * SECOND).ping
    assert ping
    session.pong(b"unasked", 21 * SECOND)
    assert session.beat(80 * SECOND).close == (1008, "Pong timeout")
    answered = opened()
    payload = answered.beat(20 * SECOND).ping
    assert payload
    answered.pong(payload, 21 * SECOND)
    assert answered.beat(80 * SECOND).close is None


def test_a_day_is_the_longest_life() -> None:
    assert opened().beat(24 * HOUR).close == (1001, "24 hours are over")


def test_server_shutdown_in_both_wrappings() -> None:
    event = {"e": "serverShutdown", "E": 1_700_000_000_000}
    assert [
        json.loads(reply) for reply in opened("/ws").shutdown_notice(1_700_000_000_000 * 10**6).replies
    ] == [event]
    assert [
        json.loads(reply) for reply in opened("/stream").shutdown_notice(1_700_000_000_000 * 10**6).replies
    ] == [{"stream": "!serverShutdown", "data": event}]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_requests = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["SUBSCRIBE", "UNSUBSCRIBE", "SET_PROPERTY", "GET_PROPERTY"]) | _json,
        "params": _json,
        "id": _json,
    },
)


@given(st.lists(st.binary() | _requests.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_whatever_is_said_gets_one_answer(messages: list[bytes]) -> None:
    session = opened()
    for second, message in enumerate(messages):
        (reply,) = session.receive(message, second * SECOND).replies
        assert set(json.loads(reply)) in ({"result", "id"}, {"error", "id"})
