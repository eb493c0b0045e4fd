"""The attacker passes everything on, but for what it was told to do."""

import io
import json
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from support.attacker import FALL, LAST_ID, OTHER_MS, OTHER_PRICE, Attacker, text_frame

TRADE = {"e": "trade", "s": "AUSDT", "t": 7_000_000, "p": "1.5", "q": "2", "T": 1_000, "m": True}
QUOTE = {"u": 1, "s": "AUSDT", "b": "1", "B": "2", "a": "3", "A": "4"}


def packed(data: dict[str, Any]) -> bytes:
    return json.dumps({"stream": "x", "data": data}).encode()


def attacked(what: str, data: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the data of the frames sent in place of one, and the rows of the ledger."""
    ledger = io.StringIO()
    attacker = Attacker("127.0.0.1", 1, ledger)
    attacker.planned[what] = 1
    sent = attacker.around(packed(data))
    assert attacker.around(packed(data)) == [packed(data)], "it does so once"
    return [json.loads(frame)["data"] for frame in sent], [
        json.loads(row) for row in ledger.getvalue().split("\n")[:-1]
    ]


@pytest.mark.parametrize("length", [0, 5, 125, 126, 65_535, 65_536])
def test_frames_are_those_of_a_server(length: int) -> None:
    assert text_frame(b"x" * length) == Frame(Opcode.TEXT, b"x" * length).serialize(mask=False)


def test_made_up_trades_come_behind_the_original_and_are_in_the_ledger() -> None:
    row = {"behind": 7_000_000, "symbol": "AUSDT", "size": "2", "side": "sell"}
    assert attacked("jump", TRADE) == (
        [TRADE, TRADE | {"t": LAST_ID}],
        [row | {"how": "jump", "id": LAST_ID, "price": "1.5", "ms": 1_000}],
    )
    other = {"p": OTHER_PRICE, "T": 1_000 + OTHER_MS}
    assert attacked("repeats", TRADE) == (
        [TRADE, TRADE | other],
        [row | {"how": "repeats", "id": 7_000_000, "price": OTHER_PRICE, "ms": 1_000 + OTHER_MS}],
    )
    assert attacked("fallen", TRADE) == (
        [TRADE, TRADE | other | {"t": 7_000_000 - FALL}],
        [row | {"how": "fallen", "id": 7_000_000 - FALL, "price": OTHER_PRICE, "ms": 1_000 + OTHER_MS}],
    )


def test_time_of_a_trade_is_zero_null_or_not_there() -> None:
    attacker = Attacker("127.0.0.1", 1, io.StringIO())
    seen = set()
    for _ in range(50):
        attacker.planned["timeless"] = 1
        (sent,) = attacker.around(packed(TRADE))
        data = json.loads(sent)["data"]
        seen.add(data.pop("T", "absent"))
        assert data == {name: value for name, value in TRADE.items() if name != "T"}
    assert seen == {0, None, "absent"}
    _, (row,) = attacked("timeless", TRADE)
    assert (row["how"], row["id"], row["ms"]) == ("timeless", 7_000_000, 1_000)


def test_quotes_are_left_alone_by_what_is_for_trades() -> None:
    attacker = Attacker("127.0.0.1", 1, io.StringIO())
    attacker.planned["jump"] = 1
    assert attacker.around(packed(QUOTE)) == [packed(QUOTE)]
    assert attacker.around(b'{"result":null,"id":1}') == [b'{"result":null,"id":1}']
    assert attacker.planned["jump"] == 1


@pytest.mark.parametrize("what", ["garbage", "errors", "damaged"])
def test_originals_are_sent_whatever_is_put_beside_them(what: str) -> None:
    for number in range(50):
        attacker = Attacker("127.0.0.1", 1, io.StringIO())
        attacker._chance.seed(number)
        attacker.planned[what] = 1
        sent = attacker.around(packed(TRADE))
        assert len(sent) == 2 and sent.count(packed(TRADE)) == 1
