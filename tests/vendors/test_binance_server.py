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
    dialect = open_binance(path, query, VendorLimits(), BinanceServerOptions(), 0)
    assert dialect is not None
    return dialect


def send(dialect: BinanceDialect, message: object, now: int = 0) -> Any:
    text = message if isinstance(message, bytes) else json.dumps(message).encode()
    (reply,) = dialect.receive(text, now).replies
    return json.loads(reply)


def test_subscribe_unsubscribe_and_list() -> None:
    dialect = opened("/ws")
    assert not dialect.subscribed
    assert send(dialect, {"method": "SUBSCRIBE", "params": ["btcusdt@trade", "a@trade"], "id": 1}) == {
        "result": None,
        "id": 1,
    }
    assert send(dialect, {"method": "SUBSCRIBE", "params": ["b@trade"], "id": "x"}) == {
        "result": None,
        "id": "x",
    }
    assert send(dialect, {"method": "UNSUBSCRIBE", "params": ["a@trade"], "id": None}) == {
        "result": None,
        "id": None,
    }
    assert send(dialect, {"method": "LIST_SUBSCRIPTIONS", "id": 3}) == {
        "result": ["btcusdt@trade", "b@trade"],
        "id": 3,
    }
    assert dialect.wants("trade", "BTC-USDT")
    assert not dialect.wants("quote", "BTCUSDT")
    assert dialect.symbols() == ["BTCUSDT", "B"]


def test_streams_in_the_path_and_in_the_query() -> None:
    assert opened("/ws/btcusdt@trade").wants("trade", "BTC-USDT")
    assert opened("/stream", streams="x@trade/btcusdt@bookTicker").wants("quote", "BTCUSDT")
    assert open_binance("/other", {}, VendorLimits(), BinanceServerOptions(), 0) is None
    assert open_binance("/stream/x", {}, VendorLimits(), BinanceServerOptions(), 0) is None


def test_ticks_are_wrapped_on_stream_bare_on_ws_and_a_property_switches() -> None:
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
    dialect = opened("/ws")
    assert json.loads(dialect.render(TRADE, "BTC-USDT", 5)) == bare
    assert send(dialect, {"method": "GET_PROPERTY", "params": ["combined"], "id": 1}) == {
        "result": False,
        "id": 1,
    }
    assert send(dialect, {"method": "SET_PROPERTY", "params": ["combined", True], "id": 2}) == {
        "result": None,
        "id": 2,
    }
    assert json.loads(dialect.render(TRADE, "BTC-USDT", 5))["data"] == bare


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


def test_times_in_microseconds() -> None:
    dialect = opened("/ws", timeUnit="MICROSECOND")
    assert json.loads(dialect.render(TRADE, "BTC-USDT", 5))["T"] == 1_700_000_000_123_456


def test_recorded_frame_is_sent_unchanged() -> None:
    raw = b'{"stream":"btcusdt@trade","data":{"t":5, "odd":[] }}'
    assert channel_of(raw) == ("btcusdt@trade", "BTCUSDT")
    assert opened("/stream").adapt_recorded(raw) is raw
    assert opened("/ws").adapt_recorded(raw) == b'{"t":5, "odd":[] }'
    assert opened("/ws", timeUnit="MICROSECOND").adapt_recorded(raw) is None


@pytest.mark.parametrize(
    ("message", "code", "text", "request_id"),
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
def test_invalid_request_is_refused(message: object, code: int, text: str, request_id: int | None) -> None:
    reply = send(opened(), message)
    assert reply["error"]["code"] == code
    assert text in reply["error"]["msg"]
    assert reply["id"] == request_id


def test_stream_1025_is_refused() -> None:
    dialect = opened()
    for start in range(0, 1024, 128):
        names = [f"s{number}@trade" for number in range(start, start + 128)]
        assert send(dialect, {"method": "SUBSCRIBE", "params": names, "id": start}, start * SECOND) == {
            "result": None,
            "id": start,
        }
    assert (
        send(dialect, {"method": "SUBSCRIBE", "params": ["one@trade"], "id": 9}, 10**13)["error"]["code"] == 4
    )


def test_sixth_message_within_a_second_closes() -> None:
    fast = opened()
    answers = [fast.receive(b"{}", number) for number in range(4)]
    answers += [fast.on_ping(5), fast.on_pong(b"", 6)]
    assert [answer.close for answer in answers] == [None] * 5 + [(1008, "Too many requests")]
    slow = opened()
    assert all(slow.receive(b"{}", number * SECOND // 5).close is None for number in range(50))


def test_ping_without_its_pong_closes() -> None:
    unanswered = opened()
    assert unanswered.on_timer(19 * SECOND).ping is None
    ping = unanswered.on_timer(20 * SECOND).ping
    assert ping
    unanswered.on_pong(b"unsolicited", 21 * SECOND)
    assert unanswered.on_timer(80 * SECOND).close == (1008, "Pong timeout")
    answered = opened()
    payload = answered.on_timer(20 * SECOND).ping
    assert payload
    answered.on_pong(payload, 21 * SECOND)
    assert answered.on_timer(80 * SECOND).close is None


def test_connection_closes_after_a_day() -> None:
    assert opened().on_timer(24 * HOUR).close == (1001, "24 hours are over")


def test_shutdown_notice_is_wrapped_on_stream_and_bare_on_ws() -> None:
    time = 1_700_000_000_000
    event = {"e": "serverShutdown", "E": time}
    (bare,) = opened("/ws").shutdown_notice(time * 10**6).replies
    assert json.loads(bare) == event
    (wrapped,) = opened("/stream").shutdown_notice(time * 10**6).replies
    assert json.loads(wrapped) == {"stream": "!serverShutdown", "data": event}


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
def test_any_message_gets_exactly_one_answer(messages: list[bytes]) -> None:
    dialect = opened()
    for second, message in enumerate(messages):
        (reply,) = dialect.receive(message, second * SECOND).replies
        assert set(json.loads(reply)) in ({"result", "id"}, {"error", "id"})
