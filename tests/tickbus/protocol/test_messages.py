from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickbus.protocol.messages import Bar, Flag, Gap, GapKind, Quote, Side, Signal, StreamKind, Trade, as_json

TRADE = Trade("A", "1.50", "0.00000001", Side.BUY, "7", 5, 6, None, "1.6", Flag.LATE | Flag.OFF_BOOK)


def test_trade_as_json() -> None:
    assert as_json(TRADE) == {
        "symbol": "A", "price": "1.50", "size": "0.00000001", "side": "buy", "trade_id": "7", "ts_event": 5,
        "ts_recv": 6, "bid": None, "ask": "1.6", "flags": ["late", "off_book"],
    }  # fmt: skip


def test_other_messages_as_json() -> None:
    assert as_json(Quote("A", "1", None, "2", "3", 5, 6)) == {
        "symbol": "A", "bid": "1", "bid_size": None, "ask": "2", "ask_size": "3", "ts_event": 5, "ts_recv": 6,
        "flags": [],
    }  # fmt: skip
    assert as_json(Gap(StreamKind.TRADE, "gateway", GapKind.DISCONNECT, 1, 2, symbol="A")) == {
        "symbol": "A", "stream": "trade", "source": "gateway", "kind": "disconnect", "from_ts": 1, "to_ts": 2,
        "from_id": None, "to_id": None, "count": None, "repairable": False, "repaired": False,
    }  # fmt: skip
    bar = as_json(Bar("time:1m", 0, 1, "1", "2", "1", "2", "3", "4", None, 5, "1", "2", 1, ("has_gap",), "A"))
    assert (bar["open"], bar["vwap"], bar["buy_volume"], bar["quality"]) == ("1", None, "1", ("has_gap",))
    assert as_json(Signal("spread", "1", "2", "1m", "wide", "A"))["threshold"] == "2"


@given(st.integers(0, 127))
def test_flags_are_listed_by_name(flags: int) -> None:
    row = as_json(msgspec.structs.replace(TRADE, flags=flags))
    assert isinstance(row["flags"], list)
    assert sum(int(Flag[name.upper()]) for name in row["flags"]) == flags


def test_row_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(as_json(TRADE))) == as_json(TRADE)


def test_prices_and_sizes_are_exact_decimals() -> None:
    assert (TRADE.price, TRADE.size, TRADE.bid, TRADE.ask) == (
        Decimal("1.50"),
        Decimal("1e-8"),
        None,
        Decimal("1.6"),
    )


def test_messages_are_frozen() -> None:
    with pytest.raises(AttributeError):
        TRADE.symbol = "B"  # type: ignore[misc]
