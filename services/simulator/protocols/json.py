"""The generic feed of the market-data tutorial: subscribe by {"action":"subscribe","symbols":[...]}, no acks. Pure.

Each trade is {"symbol","price","volume","time"}, each quote {"symbol","bid","bid_size","ask","ask_size","time"}, in messages
{"trades":[...]} and {"quotes":[...]}. An absent side of a quote is null.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from services.simulator.frames import text_frames
from services.simulator.protocols.session import Answer, Session, TimeUnit, VendorLimits
from services.simulator.tick import Tick
from tickbus.units import MICROSECOND, MILLISECOND, SECOND, canonical, format_time

_UNITS = {"seconds": SECOND, "ms": MILLISECOND, "us": MICROSECOND, "ns": 1}
_TRADES, _QUOTES = b'{"trades":[', b'{"quotes":['


class Json(Session):
    protocol = "json"

    def __init__(self, terms: VendorLimits) -> None:
        self._terms = terms
        self.style = (self.protocol,)
        self._symbols: dict[str, None] = {}
        self._quotes = terms.json_quotes
        self._number: Callable[[str | None], str] = _number if terms.json_numbers else _text

    @property
    def subscribed(self) -> bool:
        return bool(self._symbols)

    def symbols(self) -> list[str]:
        return list(self._symbols)

    def wants(self, tick: Tick) -> bool:
        return tick.symbol in self._symbols and (tick.kind == "trade" or (tick.kind == "quote" and self._quotes))

    def receive(self, message: bytes, now: int) -> Answer:
        try:
            request = msgspec.json.decode(message, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _refuse('send an object like {"action":"subscribe","symbols":["AAPL"]}')
        action, symbols, quotes = request.get("action"), request.get("symbols"), request.get("quotes", self._quotes)
        if action not in ("subscribe", "unsubscribe"):
            return _refuse("action must be subscribe or unsubscribe")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            return _refuse("symbols must be a list of text")
        if not isinstance(quotes, bool):
            return _refuse("quotes must be true or false")
        self._quotes = quotes
        if action == "unsubscribe":
            for symbol in symbols:
                self._symbols.pop(symbol, None)
        else:
            wanted = self._symbols | dict.fromkeys(symbol for symbol in symbols if self._terms.knows(symbol))
            self._symbols = dict.fromkeys(list(wanted)[: self._terms.symbol_cap or None])
        return Answer(event={"event": str(action), "symbols": symbols, "quotes": quotes})

    def slow_down(self) -> Answer:
        answer = _refuse("too many requests")
        answer.close = (1008, "too many requests")
        return answer

    def render(self, tick: Tick) -> bytes:
        number = self._number
        if tick.kind == "trade":
            body = f'"price":{number(tick.price)},"volume":{number(tick.size)}'
        else:
            body = f'"bid":{number(tick.bid)},"bid_size":{number(tick.bid_size)},"ask":{number(tick.ask)},"ask_size":{number(tick.ask_size)}'
        head = _TRADES if tick.kind == "trade" else _QUOTES
        return head + f'{{"symbol":"{tick.symbol}",{body},"time":{_time(tick, self._terms.json_time)}}}'.encode()

    def pack(self, items: Sequence[bytes]) -> bytes:
        return text_frames(self._messages(items))

    def _messages(self, items: Sequence[bytes]) -> Iterator[bytes]:
        """Neighbours of one kind share a message, up to the batch size; the order is kept."""
        most, batch, head = self._terms.json_batch, list[bytes](), b""
        for item in items:
            own, body = item[: len(_TRADES)], item[len(_TRADES) :]
            if batch and (own != head or len(batch) >= most):
                yield head + b",".join(batch) + b"]}"
                batch = []
            head = own
            batch.append(body)
        if batch:
            yield head + b",".join(batch) + b"]}"


def _text(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'


def _number(value: str | None) -> str:
    """The digits as a JSON number; text that is no number (a corrupted price) stays text."""
    if value is None:
        return "null"
    try:
        return canonical(value)
    except ValueError:
        return f'"{value}"'


def _time(tick: Tick, unit: TimeUnit) -> str:
    if unit == "iso" and not tick.seconds:
        return f'"{format_time(tick.time)}"'
    return str(tick.in_unit(_UNITS.get(unit, SECOND)))


def _refuse(text: str) -> Answer:
    return Answer([msgspec.json.encode({"error": text})])
