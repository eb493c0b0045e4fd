"""AllTick: cmd_id / seq_id / trace / data envelopes, subscribe sets that replace each other, a heartbeat of the client's. Pure.

Stricter than the vendor is known to be where the vendor's page is silent: a heartbeat counts as a request, so that a client
that is fine here is fine there.
"""

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation

import msgspec

from services.simulator.frames import text_frames
from services.simulator.protocols.session import Answer, Session, VendorLimits
from services.simulator.tick import Tick
from tickbus.units import MILLISECOND, SECOND, plain

PATHS = ("/quote-b-ws-api", "/quote-stock-b-ws-api")

_HEARTBEAT, _DEPTH, _TRADES, _CANCEL = 22000, 22002, 22004, 22006
_PUSH_TRADE, _PUSH_DEPTH = 22998, 22999
_CANCELS = {0: ("trade", "quote"), 1: ("quote",), 2: ("trade",)}
_PACE = SECOND * 9 // 10
"""One request a second; a tenth is left for the network's jitter."""
_PATIENCE = 3
"""So many requests in a row that come too fast close the connection."""
_EXACT = Context(prec=200)
_DIRECTIONS = {"buy": 1, "sell": 2, None: 0}


class Alltick(Session):
    protocol = "alltick"

    def __init__(self, terms: VendorLimits, now: int) -> None:
        self._terms = terms
        self._numbers = terms.alltick_numbers
        self.style = (self.protocol,)
        self._codes: dict[str, dict[str, None]] = {"trade": {}, "quote": {}}
        self._last_request = now - SECOND
        self._too_fast = 0
        self._heartbeat = now

    @property
    def subscribed(self) -> bool:
        return any(self._codes.values())

    def symbols(self) -> list[str]:
        return list(self._codes["trade"] | self._codes["quote"])

    def wants(self, tick: Tick) -> bool:
        return tick.kind != "other" and tick.symbol in self._codes[tick.kind]

    def receive(self, message: bytes, now: int) -> Answer:
        try:
            request = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _refuse(400, "request header param invalid")
        if not _is_request(request):
            return _refuse(400, "request header param invalid")
        if (refusal := self._pace(request, now)) is not None:
            return refusal
        command, data = request["cmd_id"], request["data"]
        if command == _HEARTBEAT:
            self._heartbeat = now
            return _reply(request)
        if command == _CANCEL:
            return self._cancel(request, data)
        if command in (_TRADES, _DEPTH):
            return self._subscribe(request, data, "trade" if command == _TRADES else "quote")
        return _refuse(400, "request header param invalid")

    def beat(self, now: int) -> Answer:
        silent = now - self._heartbeat >= self._terms.heartbeat_timeout
        return Answer(close=(1000, "heartbeat timeout")) if silent else Answer()

    def slow_down(self) -> Answer:
        answer = _refuse(606, "too many requests, the connection will be closed")
        answer.close = (1008, "too many requests")
        return answer

    def render(self, tick: Tick) -> bytes:
        quote = "" if self._numbers else '"'
        head = f'"code":"{tick.symbol}","seq":{quote}{tick.id}{quote},"tick_time":{quote}{tick.in_unit(MILLISECOND)}{quote}'
        if tick.kind == "trade":
            body = f'"price":"{tick.price}","volume":"{tick.size}","turnover":"{_turnover(tick)}","trade_direction":{_DIRECTIONS[tick.side]}'
            return f'{{"cmd_id":{_PUSH_TRADE},"data":{{{head},{body}}}}}'.encode()
        bids, asks = _level(tick.bid, tick.bid_size), _level(tick.ask, tick.ask_size)
        return f'{{"cmd_id":{_PUSH_DEPTH},"data":{{{head},"bids":[{bids}],"asks":[{asks}]}}}}'.encode()

    def pack(self, items: Sequence[bytes]) -> bytes:
        step = self._terms.alltick_join
        if step == 1:
            return text_frames(items)
        return text_frames([b"\n".join(items[start : start + step]) for start in range(0, len(items), step)])

    def _pace(self, request: dict[str, object], now: int) -> Answer | None:
        """605 for a request that comes too soon, 606 and the end for a client that does not stop."""
        if now - self._last_request >= _PACE:
            self._last_request = now
            self._too_fast = 0
            return None
        self._too_fast += 1
        if self._too_fast >= _PATIENCE:
            return self.slow_down()
        return _reply(request, 605, "too many requests")

    def _subscribe(self, request: dict[str, object], data: object, kind: str) -> Answer:
        """The new set replaces the old one; codes over the plan's cap are left out without a word, as the vendor does."""
        listed = data.get("symbol_list") if isinstance(data, dict) else None
        if not isinstance(listed, list) or not listed:
            return _reply(request, 400, "request data param invalid")
        codes = [entry.get("code") if isinstance(entry, dict) else None for entry in listed]
        known = dict.fromkeys(code for code in codes if isinstance(code, str) and self._terms.knows(code))
        if not known:
            return _reply(request, 600, "code invalid")
        kept = list(known)[: self._terms.symbol_cap or None]
        self._codes[kind] = dict.fromkeys(kept)
        answer = _reply(request)
        answer.event = {"event": "subscribe", "kind": kind, "symbols": kept}
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


def refusal(query: Mapping[str, str], terms: VendorLimits) -> bytes | None:
    """The body of the 401 that this token is answered with before the handshake; None lets it in."""
    token = query.get("token")
    if not token:
        return _encode({"msg": "token is required", "ret": 401})
    if terms.token is not None and token != terms.token:
        return _encode({"msg": "token invalid", "ret": 401})
    return None


def _is_request(value: object) -> bool:
    """All four fields are required; the ids are uint32."""
    if not isinstance(value, dict) or not {"cmd_id", "seq_id", "trace", "data"} <= value.keys():
        return False
    ids = (value["cmd_id"], value["seq_id"])
    return all(type(number) is int and 0 <= number < 1 << 32 for number in ids) and isinstance(value["trace"], str) and len(value["trace"]) <= 64


def _reply(request: Mapping[str, object], ret: int = 200, text: str = "ok") -> Answer:
    command = request["cmd_id"]
    assert isinstance(command, int)
    return Answer([_encode({"ret": ret, "msg": text, "cmd_id": command + 1, "seq_id": request["seq_id"], "trace": request["trace"], "data": {}})])


def _refuse(ret: int, text: str) -> Answer:
    """An error that names no request."""
    return Answer([_encode({"ret": ret, "msg": text, "cmd_id": 0, "seq_id": 0, "trace": "", "data": {}})])


def _turnover(tick: Tick) -> str:
    try:
        return plain(_EXACT.multiply(Decimal(tick.price), Decimal(tick.size)))
    except InvalidOperation:
        return ""  # a corrupted price


def _level(price: str | None, size: str | None) -> str:
    return "" if price is None else f'{{"price":"{price}","volume":"{size or "0"}"}}'


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)
