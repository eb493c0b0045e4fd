"""AllTick: cmd_id / seq_id / trace / data envelopes, subscribes that replace each other, heartbeats. Pure.

The client sends the heartbeats. Where the vendor's page is silent, this is stricter than the vendor is known
to be: a heartbeat counts as a request, so that a client that works here works there.
"""

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation

import msgspec
from msgspec.structs import replace

from services.vendors.alltick.options import AllTickServerOptions
from services.vendors.dialect import Answer, Close, Dialect, HttpRefusal, Tick, VendorLimits
from services.vendors.frames import NOT_DECODED
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import MILLISECOND, SECOND, plain

_PATHS = ("/quote-b-ws-api", "/quote-stock-b-ws-api")

_HEARTBEAT, _DEPTH, _TRADES, _CANCEL = 22000, 22002, 22004, 22006
_PUSH_TRADE, _PUSH_DEPTH = 22998, 22999
_CANCELS = {0: ("trade", "quote"), 1: ("quote",), 2: ("trade",)}
_MIN_REQUEST_INTERVAL = SECOND * 9 // 10
"""One request per second; a tenth is left for network jitter."""
_MAX_FAST_REQUESTS = 3
"""This many consecutive requests that arrive too fast close the connection."""
_EXACT = Context(prec=200)
_DIRECTIONS = {Side.BUY: 1, Side.SELL: 2, Side.UNKNOWN: 0}


class AllTickDialect(Dialect):
    vendor = "alltick"

    def __init__(self, limits: VendorLimits, options: AllTickServerOptions, now: int) -> None:
        self._limits = limits
        self._options = options
        self.style = (self.vendor,)
        self._codes: dict[str, dict[str, None]] = {"trade": {}, "quote": {}}
        self._last_request = now - SECOND
        self._too_fast = 0
        self._last_heartbeat = now

    @property
    def subscribed(self) -> bool:
        return any(self._codes.values())

    def symbols(self) -> list[str]:
        return list(self._codes["trade"] | self._codes["quote"])

    def wants(self, kind: str, symbol: str) -> bool:
        return symbol in self._codes[kind]

    def receive(self, message: bytes, now: int) -> Answer:
        try:
            request = msgspec.json.decode(message)
        except NOT_DECODED:
            return _refuse(400, "request header param invalid")
        if not _is_request(request):
            return _refuse(400, "request header param invalid")
        if (refusal := self._check_rate(request, now)) is not None:
            return refusal
        command, data = request["cmd_id"], request["data"]
        if command == _HEARTBEAT:
            self._last_heartbeat = now
            return _reply(request)
        if command == _CANCEL:
            return self._cancel(request, data)
        if command in (_TRADES, _DEPTH):
            return self._subscribe(request, data, "trade" if command == _TRADES else "quote")
        return _refuse(400, "request header param invalid")

    def on_timer(self, now: int) -> Answer:
        silent = now - self._last_heartbeat >= self._options.heartbeat_timeout
        return Answer(close=Close(1000, "heartbeat timeout")) if silent else Answer()

    def slow_down(self) -> Answer:
        answer = _refuse(606, "too many requests, the connection will be closed")
        answer.close = Close(1008, "too many requests")
        return answer

    def over_connection_cap(self) -> Close:
        return Close(1008, "connection limit of this token reached")

    def render(self, message: Trade | Quote, symbol: str, id: int) -> bytes:
        quote = "" if self._options.alltick_numbers else '"'
        time = self.time_text(message.ts_event)
        head = f'"code":"{symbol}","seq":{quote}{id}{quote},"tick_time":{quote}{time}{quote}'
        if isinstance(message, Trade):
            price, size = message.price_text, message.size_text
            turnover, direction = _turnover(price, size), _DIRECTIONS[message.side]
            body = (
                f'"price":"{price}","volume":"{size}","turnover":"{turnover}","trade_direction":{direction}'
            )
            return f'{{"cmd_id":{_PUSH_TRADE},"data":{{{head},{body}}}}}'.encode()
        bids = _level(message.bid_text, message.bid_size_text)
        asks = _level(message.ask_text, message.ask_size_text)
        return f'{{"cmd_id":{_PUSH_DEPTH},"data":{{{head},"bids":[{bids}],"asks":[{asks}]}}}}'.encode()

    def time_text(self, ts_event: int) -> str:
        return str(ts_event // MILLISECOND)

    def project(self, message: Tick, id: int) -> Tick:
        """Times are truncated to milliseconds; a level always has a size."""
        ts_event = message.ts_event // MILLISECOND * MILLISECOND
        if isinstance(message, Trade):
            return replace(
                message, trade_id=str(id), ts_event=ts_event, bid_text=None, ask_text=None, flags=0
            )
        bid_size, ask_size = message.bid_size_text or "0", message.ask_size_text or "0"
        return replace(
            message,
            bid_size_text=bid_size if message.bid_text else None,
            ask_size_text=ask_size if message.ask_text else None,
            ts_event=ts_event,
            flags=0,
        )

    def pack(self, items: Sequence[bytes]) -> Sequence[bytes]:
        step = self._options.alltick_join
        return (
            items
            if step == 1
            else [b"\n".join(items[start : start + step]) for start in range(0, len(items), step)]
        )

    def _check_rate(self, request: dict[str, object], now: int) -> Answer | None:
        """Return 605 for a request that is too early, 606 and a close for a client that keeps doing it."""
        if now - self._last_request >= _MIN_REQUEST_INTERVAL:
            self._last_request = now
            self._too_fast = 0
            return None
        self._too_fast += 1
        if self._too_fast >= _MAX_FAST_REQUESTS:
            return self.slow_down()
        return _reply(request, 605, "too many requests")

    def _subscribe(self, request: dict[str, object], data: object, kind: str) -> Answer:
        """Replace the set of a kind. Codes over the plan's cap are dropped silently, as the vendor does."""
        listed = data.get("symbol_list") if isinstance(data, dict) else None
        if not isinstance(listed, list) or not listed:
            return _reply(request, 400, "request data param invalid")
        codes = [entry.get("code") if isinstance(entry, dict) else None for entry in listed]
        known = dict.fromkeys(code for code in codes if isinstance(code, str) and self._limits.knows(code))
        if not self._limits.refused.isdisjoint(known):
            return _reply(request, 604, "unauthorized code")
        if not known:
            return _reply(request, 600, "code invalid")
        accepted = list(known)[: self._limits.symbol_cap or None]
        self._codes[kind] = dict.fromkeys(accepted)
        answer = _reply(request)
        answer.event = {"event": "subscribe", "kind": kind, "symbols": accepted}
        return answer

    def _cancel(self, request: dict[str, object], data: object) -> Answer:
        choice = data.get("cancel_type") if isinstance(data, dict) else None
        if type(choice) is not int or choice not in _CANCELS:
            return _reply(request, 400, "request data param invalid")
        for kind in _CANCELS[choice]:
            self._codes[kind] = {}
        answer = _reply(request)
        answer.event = {"event": "unsubscribe", "kinds": list(_CANCELS[choice])}
        return answer


def open_alltick(
    path: str, query: Mapping[str, str], limits: VendorLimits, options: AllTickServerOptions, now: int
) -> AllTickDialect | HttpRefusal | None:
    if path not in _PATHS:
        return None
    token = query.get("token")
    if not token:
        return HttpRefusal(401, _encode({"msg": "token is required", "ret": 401}))
    if limits.token is not None and token != limits.token:
        return HttpRefusal(401, _encode({"msg": "token invalid", "ret": 401}))
    return AllTickDialect(limits, options, now)


def _is_request(value: object) -> bool:
    """Return whether it is a request: all four fields are required, the ids are uint32."""
    if not isinstance(value, dict) or not {"cmd_id", "seq_id", "trace", "data"} <= value.keys():
        return False
    ids = (value["cmd_id"], value["seq_id"])
    return (
        all(type(number) is int and 0 <= number < 1 << 32 for number in ids)
        and isinstance(value["trace"], str)
        and len(value["trace"]) <= 64
    )


def _reply(request: Mapping[str, object], ret: int = 200, text: str = "ok") -> Answer:
    command = request["cmd_id"]
    assert isinstance(command, int)
    return Answer(
        [
            _encode(
                {
                    "ret": ret,
                    "msg": text,
                    "cmd_id": command + 1,
                    "seq_id": request["seq_id"],
                    "trace": request["trace"],
                    "data": {},
                }
            )
        ]
    )


def _refuse(ret: int, text: str) -> Answer:
    """Return an error that refers to no request."""
    return Answer([_encode({"ret": ret, "msg": text, "cmd_id": 0, "seq_id": 0, "trace": "", "data": {}})])


def _turnover(price: str, size: str) -> str:
    try:
        return plain(_EXACT.multiply(Decimal(price), Decimal(size)))
    except InvalidOperation:
        return ""  # a corrupted price


def _level(price: str | None, size: str | None) -> str:
    return "" if price is None else f'{{"price":"{price}","volume":"{size or "0"}"}}'


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)
