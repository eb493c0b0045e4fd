"""Binance spot market streams: /ws and /stream, JSON control messages, one event per frame. Pure.

A recorded frame is sent unchanged to the clients of its stream; to clients of /ws without the wrapper. The
vendor's page leaves the wire form of an error open; here it is the nested one that clients have seen.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from services.vendors.binance.options import BinanceServerOptions
from services.vendors.dialect import Answer, Close, Dialect, Tick, VendorLimits
from services.vendors.frames import NOT_DECODED
from services.vendors.values import book_side
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import MICROSECOND, MILLISECOND, SECOND

_MAX_REQUEST_BYTES = 4096
_MAX_STREAMS = 1024
_MAX_MESSAGES_PER_SECOND = 5
_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_HEAD, _DATA = b'{"stream":"', b'","data":'
_NO_SIZE = "0.00000000"
"""Price and size of an absent side of the book."""


class _Refused(Exception):
    """A control message that is refused: (code, text, request id)."""


class BinanceDialect(Dialect):
    vendor = "binance"

    def __init__(
        self,
        limits: VendorLimits,
        options: BinanceServerOptions,
        now: int,
        *,
        combined: bool,
        streams: Sequence[str] = (),
        microseconds: bool = False,
    ) -> None:
        self._limits = limits
        self._options = options
        self._combined = combined
        self._unit = MICROSECOND if microseconds else MILLISECOND
        # a dict, not a set: LIST_SUBSCRIPTIONS keeps the order
        self._streams: dict[str, None] = dict.fromkeys(streams)
        self._recent_messages: list[int] = []
        self._opened_at = now
        self._last_ping = now
        self._pending_pings: list[tuple[int, bytes]] = []

    @property
    def style(self) -> tuple[str, bool, int]:  # type: ignore[override]  # SET_PROPERTY changes it
        return (self.vendor, self._combined, self._unit)

    @property
    def subscribed(self) -> bool:
        return bool(self._streams)

    def symbols(self) -> list[str]:
        return list(dict.fromkeys(stream.partition("@")[0].upper() for stream in self._streams))

    def wants(self, kind: str, symbol: str) -> bool:
        return _stream(kind, symbol) in self._streams

    def wants_recorded(self, channel: str) -> bool:
        return channel in self._streams

    def receive(self, message: bytes, now: int) -> Answer:
        if closing := self._check_rate(now):
            return closing
        try:
            return self._execute(*_request(message))
        except _Refused as refused:
            code, text, request_id = refused.args
            return Answer([_encode({"error": {"code": code, "msg": text}, "id": request_id})])

    def on_ping(self, now: int) -> Answer:
        return self._check_rate(now) or Answer()

    def on_pong(self, payload: bytes, now: int) -> Answer:
        # an empty, unsolicited pong is allowed but keeps nothing alive
        if any(payload == sent for _, sent in self._pending_pings):
            self._pending_pings.clear()
        return self._check_rate(now) or Answer()

    def on_timer(self, now: int) -> Answer:
        if now - self._opened_at >= self._options.lifetime:
            return Answer(close=Close(1001, "24 hours are over"))
        if self._pending_pings and now - self._pending_pings[0][0] >= 3 * self._options.ping_interval:
            return Answer(close=Close(1008, "Pong timeout"))
        if now - self._last_ping < self._options.ping_interval:
            return Answer()
        self._last_ping = now
        payload = str(now // MILLISECOND).encode()
        self._pending_pings.append((now, payload))
        return Answer(ping=payload)

    def slow_down(self) -> Answer:
        refusal = _encode({"error": {"code": -1003, "msg": "Too many requests"}, "id": None})
        return Answer([refusal], close=Close(1008, "Too many requests"))

    def shutdown_notice(self, time_ns: int) -> Answer:
        event = {"e": "serverShutdown", "E": time_ns // self._unit}
        return Answer([_encode({"stream": "!serverShutdown", "data": event} if self._combined else event)])

    def adapt_recorded(self, frame: bytes) -> bytes | None:
        """Recorded frames are wrapped and their times are in ms; a frame without a time suits any unit."""
        if (
            self._unit != MILLISECOND
            and (channel := channel_of(frame)) is not None
            and channel[0].endswith("@trade")
        ):
            return None
        return frame if self._combined else frame[frame.index(_DATA) + len(_DATA) : -1]

    def render(self, message: Trade | Quote, symbol: str, id: int) -> bytes:
        code = symbol.replace("-", "") if "-" in symbol else symbol  # Binance's symbols have no dash
        if isinstance(message, Trade):
            time = message.ts_event // self._unit
            # m: the buyer is the maker, so the aggressor sold; Binance always knows, an unknown side is
            # sent as a buy
            maker = "true" if message.side is Side.SELL else "false"
            values = f'"p":"{message.price_text}","q":"{message.size_text}","T":{time},"m":{maker},"M":true'
            data = f'"e":"trade","E":{time},"s":"{code}","t":{id},{values}'
            kind = "trade"
        else:
            bid, bid_size = message.bid_text or _NO_SIZE, message.bid_size_text or _NO_SIZE
            ask, ask_size = message.ask_text or _NO_SIZE, message.ask_size_text or _NO_SIZE
            data = f'"u":{id},"s":"{code}","b":"{bid}","B":"{bid_size}","a":"{ask}","A":"{ask_size}"'
            kind = "quote"
        return (
            f'{{"stream":"{_stream(kind, symbol)}","data":{{{data}}}}}'.encode()
            if self._combined
            else f"{{{data}}}".encode()
        )

    def time_text(self, ts_event: int) -> str:
        return str(ts_event // self._unit)

    def project(self, message: Tick, id: int) -> Tick:
        """Times are truncated to the unit; a trade always has a side, a price of the book always a size."""
        if isinstance(message, Trade):
            side = message.side if message.side is Side.SELL else Side.BUY
            ts_event = message.ts_event // self._unit * self._unit
            return replace(
                message, side=side, trade_id=str(id), ts_event=ts_event, bid_text=None, ask_text=None, flags=0
            )
        bid, bid_size = book_side(message.bid_text, message.bid_size_text or _NO_SIZE)
        ask, ask_size = book_side(message.ask_text, message.ask_size_text or _NO_SIZE)
        return replace(
            message,
            bid_text=bid,
            bid_size_text=bid_size,
            ask_text=ask,
            ask_size_text=ask_size,
            ts_event=message.ts_recv,
            flags=0,
        )

    def _check_rate(self, now: int) -> Answer | None:
        self._recent_messages = [earlier for earlier in self._recent_messages if now - earlier < SECOND]
        self._recent_messages.append(now)
        too_many = len(self._recent_messages) > _MAX_MESSAGES_PER_SECOND
        return Answer(close=Close(1008, "Too many requests")) if too_many else None

    def _execute(self, method: str, params: list[object], request_id: int | str | None) -> Answer:
        result: object = None
        event: dict[str, object] | None = None
        if method == "LIST_SUBSCRIPTIONS":
            result = list(self._streams)
        elif method in ("SET_PROPERTY", "GET_PROPERTY"):
            result = self._property(method, params, request_id)
            event = (
                {"event": "set_property", "combined": self._combined} if method == "SET_PROPERTY" else None
            )
        else:
            names = [name for name in params if isinstance(name, str)]
            if len(names) != len(params):
                raise _Refused(2, "Invalid request: invalid type: expected a string", request_id)
            self._change(method, names, request_id)
            event = {"event": method.lower(), "streams": names}
        return Answer([_encode({"result": result, "id": request_id})], event=event)

    def _change(self, method: str, names: list[str], request_id: int | str | None) -> None:
        if method == "UNSUBSCRIBE":
            for name in names:
                self._streams.pop(name, None)
            return
        if any(name.partition("@")[0].upper() in self._limits.refused for name in names):
            raise _Refused(-1121, "Invalid symbol.", request_id)
        wanted = self._streams | dict.fromkeys(names)
        if len(wanted) > (self._limits.symbol_cap or _MAX_STREAMS):
            raise _Refused(4, "Too many subscriptions", request_id)
        self._streams = wanted

    def _property(self, method: str, params: list[object], request_id: int | str | None) -> object:
        if not params or params[0] != "combined":
            raise _Refused(0, "Unknown property", request_id)
        if method == "GET_PROPERTY":
            return self._combined
        if len(params) != 2 or not isinstance(params[1], bool):
            raise _Refused(1, "Invalid value type: expected Boolean", request_id)
        self._combined = params[1]
        return None


def open_binance(
    path: str, query: Mapping[str, str], limits: VendorLimits, options: BinanceServerOptions, now: int
) -> BinanceDialect | None:
    microseconds = query.get("timeUnit", "").upper() == "MICROSECOND"
    head, _, tail = path.removeprefix("/").partition("/")
    if head == "ws":
        names = tail
    elif head == "stream" and not tail:
        names = query.get("streams", "")
    else:
        return None
    streams = [name for name in names.split("/") if name][: limits.symbol_cap or _MAX_STREAMS]
    return BinanceDialect(
        limits, options, now, combined=head == "stream", streams=streams, microseconds=microseconds
    )


def answer_get(path: str, symbols: Collection[str], time_ns: int) -> bytes | None:
    """Return what clients ask before they connect: is it there, what time is it, which symbols are there."""
    now = time_ns // MILLISECOND
    if path == "/api/v3/ping":
        return b"{}"
    if path == "/api/v3/time":
        return _encode({"serverTime": now})
    if path != "/api/v3/exchangeInfo":
        return None
    rows = [
        {"symbol": base + currency, "status": "TRADING", "baseAsset": base, "quoteAsset": currency}
        for base, _, currency in (symbol.partition("-") for symbol in sorted(symbols))
    ]
    return _encode(
        {"timezone": "UTC", "serverTime": now, "rateLimits": [], "exchangeFilters": [], "symbols": rows}
    )


def channel_of(frame: bytes) -> tuple[str, str] | None:
    """Return the stream of a recorded frame, wrapped as on /stream, and the symbol in its name; else None."""
    if not frame.startswith(_HEAD):
        return None
    stream = frame[len(_HEAD) : frame.find(b'"', len(_HEAD))].decode()
    return stream, stream.partition("@")[0].upper()


def _stream(kind: str, symbol: str) -> str:
    """Return the stream name of a symbol's ticks: `btcusdt@trade` for trades of `BTC-USDT`."""
    return f"{symbol.replace('-', '').lower()}@{'trade' if kind == 'trade' else 'bookTicker'}"


def _request(message: bytes) -> tuple[str, list[object], int | str | None]:
    """Return method, params and id of a control message."""
    try:
        request = msgspec.json.decode(message[:_MAX_REQUEST_BYTES])
    except NOT_DECODED:
        why = (
            f"EOF while parsing a string at line 1 column {_MAX_REQUEST_BYTES}"
            if len(message) > _MAX_REQUEST_BYTES
            else "expected value at line 1 column 1"
        )
        raise _Refused(3, f"Invalid JSON: {why}", None) from None
    if not isinstance(request, dict):
        raise _Refused(2, "Invalid request: expected an object", None)
    request_id = request.get("id")
    if not (request_id is None or isinstance(request_id, str) or type(request_id) is int):
        raise _Refused(2, "Invalid request: request ID must be an integer, a string or null", None)
    method, params = request.get("method"), request.get("params", [])
    if method not in _METHODS:
        raise _Refused(
            2,
            f"Invalid request: unknown variant `{method}`, expected one of `{'`, `'.join(_METHODS)}`",
            request_id,
        )
    if not isinstance(params, list):
        raise _Refused(2, "Invalid request: params must be an array", request_id)
    return method, params, request_id


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)
