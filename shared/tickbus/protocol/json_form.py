"""Messages as JSON objects: what `tickbus tail --json`, the relay and its HTTP API send. Pure.

Decimals are text, times are integers (ns), enums and flags are names, absent values are null.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from tickbus.protocol.messages import Flag, Gap, Message, Quote, Side, Trade, as_json
from tickbus.protocol.names import Stream

_encode = msgspec.json.Encoder().encode
_SIDES = {side: side.name.lower() for side in Side}


class _Trade(msgspec.Struct, gc=False):
    symbol: str
    price: str
    size: str
    side: str
    trade_id: str | None
    ts_event: int
    ts_recv: int
    bid: str | None
    ask: str | None
    flags: list[str]


class _Quote(msgspec.Struct, gc=False):
    symbol: str
    bid: str | None
    bid_size: str | None
    ask: str | None
    ask_size: str | None
    ts_event: int
    ts_recv: int
    flags: list[str]


def json_object(stream: Stream, id: str, message: Message, id_name: str = "id") -> bytes:
    """Return a JSON object: `type`, `stream`, `feed`, the ID, then the fields of the message.

    stream, id: where the message stands. id_name: the name under which its ID appears.

        json_object(Stream("trade", "binance", "BTC-USDT"), "1700000000123-42", trade)
    """
    fields = _FIELDS.get(type(message), _any_fields)(message)
    head = _head(stream, type(message).__name__.lower(), id_name)
    return b'%b%b",%b' % (head, id.encode(), fields[1:])


@lru_cache(maxsize=65536)
def _head(stream: Stream, type_name: str, id_name: str) -> bytes:
    return _encode({"type": type_name, "stream": stream.name, "feed": stream.feed, id_name: ""})[:-2]


@lru_cache(maxsize=4096)
def flag_names(flags: int) -> list[str]:
    """Return the names of the flags that are set. Unknown ones, of newer writers, have none."""
    return [flag.name.lower() for flag in Flag if flag.name and flag & flags]


def _trade_fields(trade: Trade) -> bytes:
    return _encode(
        _Trade(
            trade.symbol, trade.price_text, trade.size_text, _SIDES[trade.side], trade.trade_id,
            trade.ts_event, trade.ts_recv, trade.bid_text, trade.ask_text, flag_names(trade.flags),
        )
    )  # fmt: skip


def _quote_fields(quote: Quote) -> bytes:
    return _encode(
        _Quote(
            quote.symbol, quote.bid_text, quote.bid_size_text, quote.ask_text, quote.ask_size_text,
            quote.ts_event, quote.ts_recv, flag_names(quote.flags),
        )
    )  # fmt: skip


def _gap_fields(gap: Gap) -> bytes:
    # its `stream` is the first word of the stream's name, which is there already
    return _encode({name: value for name, value in as_json(gap).items() if name != "stream"})


def _any_fields(message: Message) -> bytes:
    return _encode(as_json(message))


_FIELDS: dict[type[Any], Callable[[Any], bytes]] = {
    Trade: _trade_fields,
    Quote: _quote_fields,
    Gap: _gap_fields,
}
