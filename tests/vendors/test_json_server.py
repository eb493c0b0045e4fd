import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors.dialect import VendorLimits
from services.vendors.json.options import JsonServerOptions
from services.vendors.json.server import JsonDialect
from tickbus.protocol.messages import Quote, Side, Trade

NS = 1_751_068_801_234_567_890
TRADE = Trade("AAPL", "201.187000", "174", Side.BUY, None, NS, 0)
QUOTE = Quote("AAPL", "201.10", "5", None, None, NS, 0)


def dialect(limits: VendorLimits | None = None, **options: Any) -> JsonDialect:
    return JsonDialect(limits or VendorLimits(), JsonServerOptions(**options))


def send(one: JsonDialect, **message: Any) -> list[Any]:
    return [json.loads(reply) for reply in one.receive(json.dumps(message).encode(), 0).replies]


def messages(one: JsonDialect, *ticks: Trade | Quote) -> list[Any]:
    return [
        json.loads(payload, parse_float=Decimal)
        for payload in one.pack([one.render(tick, tick.symbol, 1) for tick in ticks])
    ]


def test_subscribe_adds_and_is_not_answered() -> None:
    one = dialect()
    assert send(one, action="subscribe", symbols=["MSFT"]) == []
    assert send(one, action="subscribe", symbols=["AAPL"]) == []
    assert one.wants("trade", "AAPL")
    assert not one.wants("quote", "AAPL")
    assert send(one, action="subscribe", symbols=[], quotes=True) == []
    assert one.wants("quote", "AAPL")
    assert send(one, action="unsubscribe", symbols=["AAPL"]) == []
    assert one.symbols() == ["MSFT"]


def test_symbols_over_the_cap_are_dropped() -> None:
    one = dialect(VendorLimits(symbol_cap=1))
    send(one, action="subscribe", symbols=["A", "B"])
    assert one.symbols() == ["A"]


@pytest.mark.parametrize(
    "message",
    [
        {"action": "dance"},
        {"action": "subscribe"},
        {"action": "subscribe", "symbols": [1]},
        {"action": "subscribe", "symbols": [], "quotes": 1},
    ],
)
def test_invalid_request_is_answered_with_an_error(message: dict[str, Any]) -> None:
    (reply,) = send(dialect(), **message)
    assert list(reply) == ["error"]


def test_texts_and_numbers_have_the_same_digits() -> None:
    assert messages(dialect(), TRADE) == [
        {
            "trades": [
                {
                    "symbol": "AAPL",
                    "price": "201.187000",
                    "volume": "174",
                    "time": 1751068801234,
                    "id": "1",
                    "side": "buy",
                }
            ]
        }
    ]
    (message,) = messages(dialect(json_numbers=True), TRADE)
    assert str(message["trades"][0]["price"]) == "201.187000"
    (message,) = messages(dialect(json_numbers=True), QUOTE)
    assert message == {
        "quotes": [
            {
                "symbol": "AAPL",
                "bid": Decimal("201.10"),
                "bid_size": 5,
                "ask": None,
                "ask_size": None,
                "time": 1751068801234,
            }
        ]
    }


@pytest.mark.parametrize(
    ("unit", "time"),
    [
        ("seconds", 1751068801),
        ("ms", 1751068801234),
        ("us", 1751068801234567),
        ("ns", NS),
        ("iso", "2025-06-28T00:00:01.234567890Z"),
    ],
)
def test_times_are_sent_in_the_configured_unit(unit: Any, time: object) -> None:
    (message,) = messages(dialect(json_time=unit), TRADE)
    assert message["trades"][0]["time"] == time


def test_corrupted_price_stays_text() -> None:
    (message,) = messages(dialect(json_numbers=True), Trade("A", "abc", "1", Side.UNKNOWN, None, NS, 0))
    assert message["trades"][0]["price"] == "abc"


def test_batches_keep_the_order_of_ticks() -> None:
    batches = messages(dialect(json_batch=2), TRADE, TRADE, TRADE, QUOTE, TRADE)
    assert [(key, len(rows)) for message in batches for key, rows in message.items()] == [
        ("trades", 2),
        ("trades", 1),
        ("quotes", 1),
        ("trades", 1),
    ]


@given(st.binary())
def test_any_message_is_accepted_or_answered_with_an_error(message: bytes) -> None:
    for reply in dialect().receive(message, 0).replies:
        assert list(json.loads(reply)) == ["error"]
