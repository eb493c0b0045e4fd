"""AllTick (alltick.co): stocks, forex, crypto, metals.

22998 are trades; 22999 is the order book, whose top is a quote. A subscribe replaces the whole previous set;
codes over the plan's cap are dropped silently; one request per second. `seq` has no documented rule, so it is
kept as trade_id and never used to detect a gap or to drop a tick. Fields are texts or numbers, times are in
seconds or milliseconds. Source: the vendor's repository alltick-realtime-..., websocket_interface.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from urllib.parse import SplitResult, quote

import msgspec

from services.vendors.alltick.options import AllTickOptions
from services.vendors.feed import (
    NO_ID,
    Cap,
    Feed,
    FeedSetup,
    HeartbeatAck,
    MappedTick,
    Mapper,
    Refused,
    Request,
    SubscribeAck,
    Topic,
)
from services.vendors.frames import ABSENT, NOT_DECODED, decode_fields, decode_items, printable, raw_text
from services.vendors.values import NO_SIDE, book_side, trade_id
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import SECOND, Duration, canonical, canonical_size, epoch_ns

_HEARTBEAT, _HEARTBEAT_ACK = 22000, 22001
_DEPTH, _DEPTH_ACK = 22002, 22003
_TRADES, _TRADES_ACK = 22004, 22005
_CANCEL, _CANCEL_ACK = 22006, 22007
_CANCEL_TYPES = {"quote": 1, "trade": 2}
_TRADE_PUSH, _DEPTH_PUSH = 22998, 22999
_PUSHES = {_TRADE_PUSH: "trade", _DEPTH_PUSH: "quote"}
_OK = 200
_FATAL = {
    401: "the token is not valid",
    603: "the plan does not include this",
    604: "the plan does not include one of the codes",
}
_WRONG_CODE = 600
_ABOUT_CODES = (600, 603, 604)
_ADVICE = (
    "check --token, --url (stocks and their indices: /quote-stock-b-ws-api, all others: /quote-b-ws-api) "
    "and --symbols"
)
_SLOW_DOWN = (429, 605, 606)
_PLANS = {
    "free": (5, Duration(10 * SECOND)),
    "basic": (100, Duration(3 * SECOND)),
    "premium": (200, Duration(3 * SECOND)),
    "pro": (3000, Duration(3 * SECOND)),
}
"""Codes per connection and kind, and the minimum time between two connections."""

_Raw = msgspec.Raw


class _Level(msgspec.Struct, gc=False):
    price: _Raw = ABSENT
    volume: _Raw = ABSENT


class _Data(msgspec.Struct, gc=False):
    code: str | None = None
    seq: _Raw = ABSENT
    tick_time: _Raw = ABSENT
    price: _Raw = ABSENT
    volume: _Raw = ABSENT
    volumn: _Raw = ABSENT  # spelled like this in a table of the vendor's manual
    trade_direction: _Raw = ABSENT
    bids: list[_Level] | None = None
    asks: list[_Level] | None = None


class _Frame(msgspec.Struct, gc=False):
    cmd_id: int | None = None
    ret: int | None = None
    msg: str | None = None
    seq_id: int | None = None
    data: _Data | None = None


_decode = msgspec.json.Decoder(_Frame).decode
_SIDES = {"": Side.UNKNOWN, "0": Side.UNKNOWN, "1": Side.BUY, "2": Side.SELL}


class AllTickMapper(Mapper):
    def map(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        if b"\n" not in frame or _is_single_object(frame):
            if frame.lstrip()[:1] == b"[" and (items := decode_items(frame)):
                return self._map_each([bytes(item) for item in items], recv)
            return self._map_one(frame, recv)
        return self._map_each([line for line in frame.split(b"\n") if line.strip()] or [frame], recv)

    def _map_each(self, frames: Sequence[bytes], recv: int) -> Sequence[MappedTick]:
        """Return the ticks of several objects in one frame."""
        ticks: list[MappedTick] = []
        before = len(self.notices)
        for frame in frames:
            self.ticks_before = len(ticks)
            ticks += self._map_one(frame, recv + len(ticks))
        self.ticks_before = 0
        self.merge_unused(before)
        return ticks

    def _map_one(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        """Return the tick of one object."""
        try:
            outer = _decode(frame)
        except NOT_DECODED as error:
            self._unreadable(frame, error)
            return ()
        data = outer.data
        if outer.cmd_id not in _PUSHES or data is None:
            self._answer(outer, frame)
            return ()
        symbol = self.symbols.get(data.code)  # type: ignore[arg-type]  # None is never subscribed
        kind = _PUSHES[outer.cmd_id]
        if symbol is None:
            if data.code is None:
                self.reject("field", "tick without a code")
            else:
                self.reject("unknown_symbol", data.code, lost=False)
            return ()
        try:
            tick: Trade | Quote = (
                self._trade(data, symbol, recv) if kind == "trade" else self._quote(data, symbol, recv)
            )
        except (ValueError, KeyError, UnicodeDecodeError, msgspec.MsgspecError) as error:
            self.reject("field", error, kind=kind, symbol=symbol)
            return ()
        return ((tick, NO_ID),)

    def _trade(self, data: _Data, symbol: str, recv: int) -> Trade:
        ts_event, flags = _time(data.tick_time), 0
        if not self.oldest <= ts_event <= recv:
            ts_event, flags = self.event_time(ts_event, recv)
        size = canonical_size(raw_text(data.volume) or raw_text(data.volumn))
        bid, ask = self.best_quotes.get(symbol, NO_SIDE)
        return Trade(
            symbol,
            canonical(raw_text(data.price)),
            size,
            _SIDES.get(raw_text(data.trade_direction), Side.UNKNOWN),
            trade_id(raw_text(data.seq)),
            ts_event,
            recv,
            bid,
            ask,
            flags,
        )

    def _quote(self, data: _Data, symbol: str, recv: int) -> Quote:
        bid, bid_size = _top(data.bids)
        ask, ask_size = _top(data.asks)
        ts_event, flags = _time(data.tick_time), 0
        if not self.oldest <= ts_event <= recv:
            ts_event, flags = self.event_time(ts_event, recv)
        self.best_quotes[symbol] = (bid, ask)
        return Quote(symbol, bid, bid_size, ask, ask_size, ts_event, recv, flags)

    def _answer(self, outer: _Frame, frame: bytes) -> None:
        if outer.ret is not None and outer.ret != _OK:
            text = printable(f"AllTick answered {outer.ret} {outer.msg or ''}".strip(), 200)
            fatal = outer.ret in _FATAL
            wait = Duration(0 if fatal else (10 if outer.ret in _SLOW_DOWN else 5) * SECOND)
            more = f"; {_ADVICE}" if outer.ret == _WRONG_CODE else ""
            if fatal:
                more = f": {_FATAL[outer.ret]}; {_ADVICE}"
            # an error may have a seq_id of 0: it then answers any request
            self.notices.append(
                Refused(
                    text + more, fatal, wait, request=outer.seq_id or None, symbols=outer.ret in _ABOUT_CODES
                )
            )
        elif outer.cmd_id in (_TRADES_ACK, _DEPTH_ACK, _CANCEL_ACK):
            self.notices.append(SubscribeAck(outer.seq_id))
        elif outer.cmd_id == _HEARTBEAT_ACK:
            self.notices.append(HeartbeatAck())
        else:
            self.unused(frame)

    def _unreadable(self, frame: bytes, error: Exception) -> None:
        """Report an object that is not JSON or has a field of the wrong type; name the stream if known."""
        fields = decode_fields(frame)
        if fields is None:
            self.unused(frame) if decode_items(frame) is not None else self.undecodable(frame, error)
            return
        command = bytes(fields.get("cmd_id", b"null"))
        kind = _PUSHES.get(int(command)) if command.isdigit() and len(command) < 10 else None
        if kind is None:
            try:  # not a tick: its data may be anything
                answer = _decode(
                    _object(
                        {name: fields[name] for name in ("cmd_id", "ret", "msg", "seq_id") if name in fields}
                    )
                )
            except NOT_DECODED:
                if "data" in fields:
                    self.reject("field", error)
                else:
                    self.unused(frame)
            else:
                self._answer(answer, frame)
            return
        data = decode_fields(fields.get("data", ABSENT)) or {}
        try:
            symbol = self.symbols.get(raw_text(data.get("code", ABSENT)))
        except ValueError:
            symbol = None
        self.reject("field", error, kind=kind if symbol else None, symbol=symbol)


def _object(fields: Mapping[str, msgspec.Raw]) -> bytes:
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), bytes(raw)) for name, raw in fields.items()) + b"}"


def _is_single_object(frame: bytes) -> bool:
    """Return whether a frame of several lines is one object."""
    try:
        msgspec.json.decode(frame, type=_Raw)
    except NOT_DECODED:
        return False
    return True


def _time(raw: _Raw) -> int:
    """Return the vendor's time in ns; 0 if it sends none that can be understood."""
    try:
        text = raw_text(raw)
        return epoch_ns(int(text)) if text.isascii() and text.isdigit() and len(text) <= 19 else 0
    except ValueError:
        return 0


def _top(levels: list[_Level] | None) -> tuple[str | None, str | None]:
    """Return the best price and its size; a side may be empty, and forex sends no sizes."""
    return book_side(raw_text(levels[0].price), raw_text(levels[0].volume)) if levels else NO_SIDE


_is_vendor = re.compile(r"(?:[a-z0-9-]+\.)*(?:alltick\.(?:co|io)|tradeswitcher\.com)").fullmatch
_is_rest = re.compile(r"/quote-(?:stock-)?b-api(?:/.*)?").fullmatch


class AllTick(Feed):
    default_url = "wss://quote.alltick.co/quote-b-ws-api"
    default_path = "/quote-b-ws-api"
    request_interval = Duration(1_100_000_000)
    reconnect_interval = Duration(3 * SECOND)
    takeover_delay = Duration(30 * SECOND)
    heartbeat_interval = Duration(10 * SECOND)
    acks_heartbeat = True
    subscribe_replaces = True

    def __init__(self, setup: FeedSetup) -> None:
        super().__init__(setup)
        if isinstance(setup.options, AllTickOptions) and (plan := setup.options.alltick_plan) is not None:
            cap, self.reconnect_interval = _PLANS[plan]
            self.cap = Cap(cap, "symbols")
            if len(setup.fixed) > cap:
                raise ConfigError(
                    f"too many symbols: {len(setup.fixed)}, plan {plan} allows {cap} per connection "
                    "(--alltick-plan); leave some out of --symbols"
                )

    def unsuitable(self, parts: SplitResult) -> str:
        is_http = parts.scheme in ("http", "https") and _is_vendor(parts.hostname or "")
        if not is_http and not _is_rest(parts.path):
            return ""
        return (
            "an address of AllTick's REST API, and the alltick feed reads its WebSocket: use "
            "wss://quote.alltick.co/quote-stock-b-ws-api for stocks and their indices, "
            "wss://quote.alltick.co/quote-b-ws-api for all others"
        )

    def query(self) -> str:
        return f"token={quote(self.setup.token)}" if self.setup.token else ""

    def change(self, target: Collection[Topic], acknowledged: Collection[Topic]) -> list[Request]:
        requests = []
        for kind in ("trade", "quote"):
            wanted = dict.fromkeys(topic for topic in target if topic.kind == kind)
            held = dict.fromkeys(topic for topic in acknowledged if topic.kind == kind)
            if wanted.keys() != held.keys():
                request = self._list(kind, wanted) if wanted else self._cancel(kind)
                adds = tuple(topic for topic in wanted if topic not in held)
                requests.append(
                    request._replace(adds=adds, drops=tuple(topic for topic in held if topic not in wanted))
                )
        return requests

    def _list(self, kind: str, topics: Collection[Topic]) -> Request:
        """Return the request for the whole set of a kind."""
        codes = [self.setup.symbols.vendor[topic.symbol] for topic in topics]
        if kind == "trade":
            return self._request(_TRADES, {"symbol_list": [{"code": code} for code in codes]})
        return self._request(_DEPTH, {"symbol_list": [{"code": code, "depth_level": 1} for code in codes]})

    def _cancel(self, kind: str) -> Request:
        """Return the request that ends a kind: a list must not be empty."""
        return self._request(_CANCEL, {"cancel_type": _CANCEL_TYPES[kind]})

    def heartbeat(self) -> str:
        return self._request(_HEARTBEAT, {}).frame

    def _request(self, command: int, data: dict[str, object]) -> Request:
        self.requests += 1
        number = self.requests
        frame = {"cmd_id": command, "seq_id": number, "trace": f"tickbus-{number}", "data": data}
        return Request(msgspec.json.encode(frame).decode(), id=number)

    def mapper(self, tolerance: Duration) -> AllTickMapper:
        return AllTickMapper(self.setup, tolerance)
