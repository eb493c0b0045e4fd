"""The generic feed of the market-data tutorial: {"action":"subscribe","symbols":[...]}, without acks. Pure.

Each trade is {"symbol","price","volume","time","id","side"}, without the side if it is unknown, each quote
{"symbol","bid","bid_size","ask","ask_size","time"}, in messages {"trades":[...]} and {"quotes":[...]}. An
absent side of a quote is null.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from services.vendors.dialect import Answer, Close, Dialect, Tick, VendorLimits
from services.vendors.frames import NOT_DECODED
from services.vendors.json.options import JsonServerOptions
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import MICROSECOND, MILLISECOND, SECOND, canonical, format_time

_UNITS = {"seconds": SECOND, "ms": MILLISECOND, "us": MICROSECOND, "ns": 1}
_SIDES = {Side.BUY: ',"side":"buy"', Side.SELL: ',"side":"sell"', Side.UNKNOWN: ""}
_MAX_SYMBOLS = 20_000
"""Of one client; more are left out."""
_TRADES, _QUOTES = b'{"trades":[', b'{"quotes":['


class JsonDialect(Dialect):
    vendor = "json"

    def __init__(self, limits: VendorLimits, options: JsonServerOptions) -> None:
        self._limits = limits
        self._options = options
        self.style = (self.vendor,)
        self._symbols: dict[str, None] = {}
        self._quotes = options.json_quotes
        self._number: Callable[[str | None], str] = _number if options.json_numbers else _text

    @property
    def subscribed(self) -> bool:
        return bool(self._symbols)

    def symbols(self) -> list[str]:
        return list(self._symbols)

    def wants(self, kind: str, symbol: str) -> bool:
        return symbol in self._symbols and (kind == "trade" or self._quotes)

    def receive(self, message: bytes, now: int) -> Answer:
        try:
            request = msgspec.json.decode(message, type=dict[str, object])
        except NOT_DECODED:
            return _refuse('send an object like {"action":"subscribe","symbols":["AAPL"]}')
        action, symbols = request.get("action"), request.get("symbols")
        quotes = request.get("quotes", self._quotes)
        if action not in ("subscribe", "unsubscribe"):
            return _refuse("action must be subscribe or unsubscribe")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            return _refuse("symbols must be a list of text")
        if not isinstance(quotes, bool):
            return _refuse("quotes must be true or false")
        if action == "subscribe" and (
            bad := [symbol for symbol in symbols if symbol in self._limits.refused]
        ):
            return _refuse(f"unknown symbol {bad[0]}")
        self._quotes = quotes
        if action == "unsubscribe":
            for symbol in symbols:
                self._symbols.pop(symbol, None)
        else:
            wanted = self._symbols | dict.fromkeys(symbol for symbol in symbols if self._limits.knows(symbol))
            self._symbols = dict.fromkeys(list(wanted)[: self._limits.symbol_cap or _MAX_SYMBOLS])
        return Answer(event={"event": str(action), "symbols": symbols, "quotes": quotes})

    def slow_down(self) -> Answer:
        answer = _refuse("too many requests")
        answer.close = Close(1008, "too many requests")
        return answer

    def render(self, message: Trade | Quote, symbol: str, id: int) -> bytes:
        number, time = self._number, self.time_text(message.ts_event)
        if isinstance(message, Trade):
            side = _SIDES[message.side]
            price, size = number(message.price_text), number(message.size_text)
            body = f'"price":{price},"volume":{size},"time":{time},"id":"{id}"{side}'
            return _TRADES + f'{{"symbol":"{symbol}",{body}}}'.encode()
        bid, bid_size = number(message.bid_text), number(message.bid_size_text)
        ask, ask_size = number(message.ask_text), number(message.ask_size_text)
        body = f'"bid":{bid},"bid_size":{bid_size},"ask":{ask},"ask_size":{ask_size},"time":{time}'
        return _QUOTES + f'{{"symbol":"{symbol}",{body}}}'.encode()

    def time_text(self, ts_event: int) -> str:
        unit = self._options.json_time
        return f'"{format_time(ts_event)}"' if unit == "iso" else str(ts_event // _UNITS[unit])

    def project(self, message: Tick, id: int) -> Tick:
        """Times are truncated to the unit."""
        unit = _UNITS.get(self._options.json_time, 1)
        ts_event = message.ts_event // unit * unit
        if isinstance(message, Trade):
            return replace(
                message, trade_id=str(id), ts_event=ts_event, bid_text=None, ask_text=None, flags=0
            )
        return replace(message, ts_event=ts_event, flags=0)

    def pack(self, items: Sequence[bytes]) -> Sequence[bytes]:
        return list(self._messages(items))

    def _messages(self, items: Sequence[bytes]) -> Iterator[bytes]:
        """Yield messages that merge consecutive items of one kind, up to the batch size, in order."""
        max_batch, batch, head = self._options.json_batch, list[bytes](), b""
        for item in items:
            item_head, body = item[: len(_TRADES)], item[len(_TRADES) :]
            if batch and (item_head != head or len(batch) >= max_batch):
                yield head + b",".join(batch) + b"]}"
                batch = []
            head = item_head
            batch.append(body)
        if batch:
            yield head + b",".join(batch) + b"]}"


def _text(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'


def _number(value: str | None) -> str:
    """Return the digits as a JSON number; text that is not a number (a corrupted price) stays text."""
    if value is None:
        return "null"
    try:
        return canonical(value)
    except ValueError:
        return f'"{value}"'


def open_json(
    path: str, query: Mapping[str, str], limits: VendorLimits, options: JsonServerOptions, now: int
) -> JsonDialect:
    """Return a dialect for any path: the tutorials' servers differ in it."""
    return JsonDialect(limits, options)


def _refuse(text: str) -> Answer:
    return Answer([msgspec.json.encode({"error": text})])
