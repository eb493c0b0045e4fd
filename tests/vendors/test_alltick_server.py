import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors.alltick.options import AllTickServerOptions
from services.vendors.alltick.server import AllTickDialect, open_alltick
from services.vendors.dialect import HttpRefusal, VendorLimits
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import SECOND

NS = 1_751_068_801_234_567_890
TRADE = Trade("AAPL.US", "201.187000", "174", Side.BUY, None, NS, 0)
QUOTE = Quote("AAPL.US", "201.1", "5", None, None, NS, 0)


def dialect(limits: VendorLimits | None = None, **options: Any) -> AllTickDialect:
    return AllTickDialect(limits or VendorLimits(), AllTickServerOptions(**options), 0)


class Conversation:
    """Sends requests to a dialect, one every two seconds."""

    def __init__(self, **limits: Any) -> None:
        self.dialect = dialect(VendorLimits(**limits))
        self.now = 0

    def send(self, cmd_id: int, data: object, seq_id: int = 7) -> Any:
        """Return the only reply."""
        self.now += 2 * SECOND
        message = json.dumps({"cmd_id": cmd_id, "seq_id": seq_id, "trace": "t", "data": data}).encode()
        (reply,) = self.dialect.receive(message, self.now).replies
        return json.loads(reply)


def codes(*names: str) -> dict[str, object]:
    return {"symbol_list": [{"code": name} for name in names]}


def ok(cmd_id: int) -> dict[str, object]:
    return {"ret": 200, "msg": "ok", "cmd_id": cmd_id, "seq_id": 7, "trace": "t", "data": {}}


def test_subscribe_replaces_the_previous_one_of_its_kind() -> None:
    talk = Conversation()
    assert talk.send(22004, codes("AAPL.US", "B")) == ok(22005)
    assert talk.send(22002, codes("AAPL.US")) == ok(22003)
    assert talk.dialect.wants("trade", "AAPL.US")
    assert talk.dialect.wants("quote", "AAPL.US")
    assert talk.send(22004, codes("B")) == ok(22005)
    assert not talk.dialect.wants("trade", "AAPL.US")
    assert talk.dialect.wants("quote", "AAPL.US")
    assert talk.send(22006, {"cancel_type": 1}) == ok(22007)
    assert not talk.dialect.wants("quote", "AAPL.US")
    assert talk.dialect.subscribed
    assert talk.send(22006, {"cancel_type": 0}) == ok(22007)
    assert not talk.dialect.subscribed


def test_codes_over_the_cap_are_dropped_silently() -> None:
    talk = Conversation(symbol_cap=2)
    assert talk.send(22004, codes("X", "Y", "AAPL.US")) == ok(22005)
    assert talk.dialect.symbols() == ["X", "Y"]


def test_unknown_codes_are_dropped_and_refused_if_none_is_known() -> None:
    talk = Conversation(knows=lambda code: code == "AAPL.US")
    assert talk.send(22004, codes("X"))["ret"] == 600
    assert talk.send(22004, codes("X", "AAPL.US")) == ok(22005)
    assert talk.dialect.symbols() == ["AAPL.US"]


@pytest.mark.parametrize(
    ("cmd_id", "data", "ret"),
    [
        (22004, {}, 400),
        (22004, {"symbol_list": []}, 400),
        (22006, {"cancel_type": 9}, 400),
        (22006, [], 400),
        (1, {}, 400),
    ],
)
def test_invalid_data_is_refused(cmd_id: int, data: object, ret: int) -> None:
    assert Conversation().send(cmd_id, data)["ret"] == ret


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b'{"cmd_id":22000,"seq_id":1,"data":{}}',
        b'{"cmd_id":-1,"seq_id":1,"trace":"","data":{}}',
        b"\xff",
    ],
)
def test_invalid_envelope_is_refused_without_naming_a_request(message: bytes) -> None:
    (reply,) = dialect().receive(message, 0).replies
    assert json.loads(reply) == {
        "ret": 400,
        "msg": "request header param invalid",
        "cmd_id": 0,
        "seq_id": 0,
        "trace": "",
        "data": {},
    }


def test_third_fast_request_in_a_row_closes() -> None:
    one = dialect()
    heartbeat = json.dumps({"cmd_id": 22000, "seq_id": 7, "trace": "t", "data": {}}).encode()
    answers = [one.receive(heartbeat, now) for now in (0, SECOND, SECOND + 1, SECOND + 2, SECOND + 3)]
    assert [json.loads(answer.replies[0])["ret"] for answer in answers] == [200, 200, 605, 605, 606]
    assert [answer.close is not None for answer in answers] == [False] * 4 + [True]


def test_missing_heartbeats_close() -> None:
    talk = Conversation()
    assert talk.send(22000, {}) == ok(22001)
    assert talk.dialect.on_timer(talk.now + 29 * SECOND).close is None
    talk.send(22004, codes("A"))  # no heartbeat
    assert talk.dialect.on_timer(talk.now + 29 * SECOND).close == (1000, "heartbeat timeout")


def test_pushes_with_texts_and_with_numbers() -> None:
    pushed = {
        "code": "AAPL.US",
        "seq": "27755950",
        "tick_time": "1751068801234",
        "price": "201.187000",
        "volume": "174",
        "turnover": "35006.538000",
        "trade_direction": 1,
    }
    assert json.loads(dialect().render(TRADE, "AAPL.US", 27755950)) == {"cmd_id": 22998, "data": pushed}
    numbers = dialect(alltick_numbers=True)
    assert json.loads(numbers.render(TRADE, "AAPL.US", 27755950))["data"] == pushed | {
        "seq": 27755950,
        "tick_time": 1751068801234,
    }
    assert json.loads(numbers.render(QUOTE, "AAPL.US", 3)) == {
        "cmd_id": 22999,
        "data": {
            "code": "AAPL.US",
            "seq": 3,
            "tick_time": 1751068801234,
            "bids": [{"price": "201.1", "volume": "5"}],
            "asks": [],
        },
    }


def test_corrupted_price_can_be_rendered() -> None:
    data = json.loads(dialect().render(Trade("A", "abc", "1", Side.UNKNOWN, None, NS, 0), "A", 1))["data"]
    assert (data["price"], data["turnover"], data["trade_direction"]) == ("abc", "", 0)


def test_objects_can_be_joined_in_a_frame() -> None:
    assert dialect(alltick_join=2).pack([b"1", b"2", b"3"]) == [b"1\n2", b"3"]


def test_missing_or_wrong_token_is_refused() -> None:
    def opened(query: dict[str, str], token: str | None = None) -> object:
        result = open_alltick("/quote-b-ws-api", query, VendorLimits(token), AllTickServerOptions(), 0)
        return json.loads(result.body) if isinstance(result, HttpRefusal) else type(result)

    assert opened({}) == {"msg": "token is required", "ret": 401}
    assert opened({"token": "any"}) is AllTickDialect
    assert opened({"token": "any"}, "right") == {"msg": "token invalid", "ret": 401}
    assert opened({"token": "right"}, "right") is AllTickDialect


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_data = _json | st.fixed_dictionaries(
    {},
    optional={"symbol_list": st.lists(st.fixed_dictionaries({"code": _json})) | _json, "cancel_type": _json},
)
_request = st.fixed_dictionaries(
    {
        "cmd_id": st.sampled_from([22000, 22002, 22004, 22006]) | _json,
        "seq_id": st.just(1),
        "trace": st.text(max_size=3),
        "data": _data,
    }
)


@given(st.binary() | _request.map(lambda value: json.dumps(value).encode()))
def test_any_message_gets_exactly_one_answer(message: bytes) -> None:
    (reply,) = dialect().receive(message, 0).replies
    assert json.loads(reply)["ret"] in (200, 400, 600)
