"""Binance spot market streams (JSON): `<symbol>@trade` and `<symbol>@bookTicker`.

Trade ids are contiguous per symbol, so every gap is detected and its ids are known. bookTicker has no time:
ts_event = ts_recv.
Source: binance-spot-api-docs, web-socket-streams.md.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult

import msgspec

from services.vendors.feed import (
    NO_ID,
    Cap,
    Closing,
    Feed,
    FeedSetup,
    MappedTick,
    Mapper,
    Refused,
    Request,
    SubscribeAck,
    Topic,
)
from services.vendors.frames import (
    ABSENT,
    NOT_DECODED,
    decode_fields,
    decode_items,
    has_value,
    printable,
    raw_text,
)
from services.vendors.values import NO_SIDE, book_side
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import HOUR, MICROSECOND, MILLISECOND, MINUTE, SECOND, Duration, canonical, canonical_size

_MESSAGE_BYTES = 4000
"""Longer SUBSCRIBE messages are truncated by the server, at 4,096 bytes."""
_REQUEST_BYTES = 60
"""What such a message takes besides the names."""
_STREAMS_PER_CONNECTION = 1024
_MICROSECONDS_FROM = 100_000_000_000_000
"""A time from here on is in microseconds (?timeUnit=MICROSECOND), below it in milliseconds."""
_ID_LIMIT = 1 << 53
"""An id from here on is invalid: sums of missing ticks must fit 64 bits, whatever garbage is sent."""
_QUOTE_CURRENCIES = (
    "FDUSD", "USDT", "USDC", "TUSD", "BUSD", "BIDR", "IDRT", "DAI", "BTC", "ETH", "BNB", "TRY", "EUR", "GBP",
    "BRL", "JPY", "ARS", "AUD", "MXN", "PLN", "RON", "RUB", "UAH", "ZAR", "XRP", "TRX", "DOGE", "USD",
)  # fmt: skip
"""Longest first where one ends like another."""
_BUY, _SELL = Side.BUY, Side.SELL
_SUFFIXES = {"trade": "@trade", "quote": "@bookTicker"}


_has_trade = re.compile(rb'"e"\s*:\s*"trade"').search
_NO_T = -(1 << 62)
"""Default of a trade's id: the vendor gives none."""
_DOCUMENTED = frozenset(
    [
        "aggTrade",
        "blockTrade",
        "depthUpdate",
        "kline",
        "avgPrice",
        "referencePrice",
        "24hrTicker",
        "24hrMiniTicker",
        "1hTicker",
        "4hTicker",
        "1dTicker",
        "outboundAccountPosition",
        "balanceUpdate",
        "executionReport",
        "listStatus",
        "listenKeyExpired",
        "externalLockUpdate",
        "eventStreamTerminated",
        "serverShutdown",
    ]
)
"""Events of the spot streams; those without ticks of ours are skipped."""
_BOOK_SNAPSHOT = {"lastUpdateId", "bids", "asks"}
_SPOT = "wss://stream.binance.com:9443, wss://data-stream.binance.vision or a proxy of them"
_OTHER_FAMILY = (
    "this address sends {what}: not supported yet, the binance feed speaks the JSON streams of spot; "
    f"point --url at {_SPOT}"
)


class _Event(msgspec.Struct, gc=False):
    """A trade and a bookTicker in one struct: a single typed decoding of the frame is twice as fast as two.

    `b` and `a` are prices in a bookTicker and order ids in older trades.
    """

    e: str | None = None
    s: str | None = None
    t: int = _NO_T
    p: str | None = None
    q: str | None = None
    T: int = 0
    m: bool | None = None
    u: int | None = None
    b: Any = None
    B: str | None = None
    a: Any = None
    A: str | None = None
    X: None = None
    """Why a futures trade was made. A frame that has it cannot be decoded, so that spot need not check."""


class _Frame(_Event, gc=False):
    """A combined frame ({"stream", "data"}), a raw event, or the answer to a request."""

    data: _Event | None = None
    result: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    code: int | None = None
    msg: str | None = None
    id: int | str | None = None

    @property
    def request(self) -> int | None:
        """The id of the request that it answers; ours are numbers."""
        return self.id if isinstance(self.id, int) else None


_decode = msgspec.json.Decoder(_Frame).decode


class BinanceMapper(Mapper):
    """Quotes have an update id, unique per symbol: a new connection drops what the old one delivered."""

    def __init__(self, setup: FeedSetup, tolerance: Duration) -> None:
        super().__init__(setup, tolerance)
        self._updates: dict[str, int] = {}
        """Newest update id by symbol on this connection."""
        self._seen: dict[str, int] = {}
        """Newest update id by symbol on the connections before, until it is passed."""
        self._in_list = False
        """Whether an event in a list is being mapped: lists in lists are not read."""

    def follow(self, previous: Mapper) -> None:
        super().follow(previous)
        assert isinstance(previous, BinanceMapper)
        # the newest update of a quiet symbol may be two connections old
        self._seen = {**previous._seen, **previous._updates}

    def map(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        try:
            outer = _decode(frame)
        except NOT_DECODED as error:
            return self._map_loose(frame, error, recv)
        event = outer.data or outer
        symbol = self.symbols.get(event.s)  # type: ignore[arg-type]  # None is never subscribed
        if symbol is None or event.e != "trade":
            return self._map_other(outer, event, symbol, frame, recv)
        # the hot path: one trade per frame
        try:
            vendor_id, time = event.t, event.T
            price: str = event.p  # type: ignore[assignment]  # None fails below
            size = canonical_size(event.q)  # type: ignore[arg-type]
            ts_event = time * MILLISECOND if time < _MICROSECONDS_FROM else time * MICROSECOND  # as _ns
            flags = 0
            if not self.oldest <= ts_event <= recv:
                ts_event, flags = self.event_time(ts_event, recv)
            trade_id: str | None = str(vendor_id)
            if not 0 <= vendor_id < _ID_LIMIT:
                vendor_id, trade_id = _absent_id(vendor_id)
            bid, ask = self.best_quotes.get(symbol, NO_SIDE)
            side = _SELL if event.m else _BUY if event.m is False else Side.UNKNOWN
            price = canonical(price)
            trade = Trade(symbol, price, size, side, trade_id, ts_event, recv, bid, ask, flags)
            return ((trade, vendor_id),)
        except (ValueError, TypeError, AttributeError) as error:
            vendor_id = event.t if 0 <= event.t < _ID_LIMIT else NO_ID
            self.reject("field", error, kind="trade", symbol=symbol, vendor_id=vendor_id)
            return ()

    def _quote(self, event: _Event, symbol: str, recv: int) -> Sequence[MappedTick]:
        try:
            bid, bid_size = book_side(event.b, event.B)
            ask, ask_size = book_side(event.a, event.A)
            if event.b is None and event.a is None:
                raise ValueError("a bookTicker without prices")
        except (ValueError, TypeError, AttributeError) as error:
            self.reject("field", error, kind="quote", symbol=symbol)
            return ()
        update: int = event.u  # type: ignore[assignment]  # a frame without it is not a quote
        if self._seen and update <= self._seen.get(symbol, -1):
            return ()
        self._updates[symbol] = update
        self._seen.pop(symbol, None)
        self.best_quotes[symbol] = (bid, ask)
        ts_event, flags = self.event_time(_ns(event.T), recv) if event.T else (recv, 0)
        return ((Quote(symbol, bid, bid_size, ask, ask_size, ts_event, recv, flags), NO_ID),)

    def _map_other(
        self, outer: _Frame, event: _Event, symbol: str | None, frame: bytes, recv: int
    ) -> Sequence[MappedTick]:
        """Map a frame that is not a trade of a subscribed symbol."""
        if symbol is not None and event.e is None and event.u is not None:
            return self._quote(event, symbol, recv)
        if event.e == "serverShutdown":
            self.notices.append(Closing())
        elif event.e == "bookTicker":
            self._refuse_family("futures or options quotes (bookTicker with an event type)")
        elif has_value(outer.error) or outer.code is not None:
            self._vendor_error(outer, frame)
        elif outer.result:
            self.notices.append(SubscribeAck(outer.request))
        elif (
            event.s is not None
            and (event.e == "trade" or event.u is not None)
            and event.s not in self.symbols
        ):
            self.reject("unknown_symbol", event.s, lost=False)
        elif event.e == "trade":
            self.reject("field", "trade without a symbol")
        elif _has_trade(frame):
            self.reject("field", "a trade where the vendor documents none")
        else:
            self.unused(frame, documented=event.e in _DOCUMENTED or _is_book(frame))
        return ()

    def _refuse_family(self, what: str) -> None:
        self.notices.append(Refused(_OTHER_FAMILY.replace("{what}", what), fatal=True, wrong_data=True))

    def _vendor_error(self, outer: _Frame, frame: bytes) -> None:
        text = printable(frame, 200)
        over_limit = outer.code == 4 or b"Too many" in frame
        # of streams: what is over the cap is found by name, and the rest goes on
        about_streams = not over_limit or b"Too many subscriptions" in frame
        wait = Duration(30 * SECOND if over_limit else 5 * SECOND)
        refused = Refused(
            f"Binance answered {text}", fatal=False, wait=wait, request=outer.request, symbols=about_streams
        )
        self.notices.append(refused)

    def _map_loose(self, frame: bytes, error: Exception, recv: int) -> Sequence[MappedTick]:
        """Map a frame of another shape: a list of events, or one with fields of other types."""
        fields = decode_fields(frame)
        data = frame if fields is None else fields.get("data", ABSENT)
        if data is not ABSENT and not self._in_list and (events := decode_items(data)):
            return self._map_list(events, recv)
        event = fields if data is ABSENT else decode_fields(data)
        if fields is None:
            self.undecodable(frame, error) if decode_items(frame) is None else self.unused(frame)
        elif event is None:
            self.unused(frame)
        else:
            return self._map_event(frame, event, error, recv)
        return ()

    def _map_list(self, events: Sequence[msgspec.Raw], recv: int) -> Sequence[MappedTick]:
        ticks: list[MappedTick] = []
        before = len(self.notices)
        self._in_list = True
        for event in events:
            self.ticks_before = len(ticks)
            ticks += self.map(bytes(event), recv + len(ticks))
        self.ticks_before, self._in_list = 0, False
        self.merge_unused(before)
        return ticks

    def _map_event(
        self, frame: bytes, event: Mapping[str, msgspec.Raw], error: Exception, recv: int
    ) -> Sequence[MappedTick]:
        """Map an event with fields of other types; without a usable time it is a tick all the same."""
        kind = _text(event.get("e"))
        if kind == "bookTicker":
            self._refuse_family("futures or options quotes (bookTicker with an event type)")
        elif kind == "trade" and has_value(event.get("X", ABSENT)):
            self._refuse_family("futures trades (with a field X)")
        elif kind not in ("", "trade") or not (kind or {"s", "u"} & event.keys()):
            self.unused(frame, documented=kind in _DOCUMENTED)
        else:
            usable = {name: raw for name, raw in event.items() if not _is_absent(name, raw)}
            if usable != event:
                whole = _object(usable)
                try:
                    _decode(whole)
                except NOT_DECODED:
                    pass
                else:
                    return self.map(whole, recv)
            symbol = self.symbols.get(_text(event.get("s")))
            id = _text(event.get("t")) if kind else ""
            known = id.isascii() and id.isdigit() and len(id) <= 16
            self.reject(
                "field",
                error,
                kind=("trade" if kind else "quote") if symbol else None,
                symbol=symbol,
                vendor_id=int(id) if known else NO_ID,
            )
        return ()


def _ns(time: int) -> int:
    return time * MILLISECOND if time < _MICROSECONDS_FROM else time * MICROSECOND


def _absent_id(vendor_id: int) -> tuple[int, None]:
    """Return NO_ID and no text where the vendor gives no id; ValueError if it gives an impossible one.

    0 is an id: that of a symbol's first trade.
    """
    if vendor_id != _NO_T:
        raise ValueError(f"invalid id {vendor_id}")
    return NO_ID, None


def _is_absent(name: str, raw: msgspec.Raw) -> bool:
    """Return whether a field is as good as not there: a time that is no number, an id that is null."""
    text = bytes(raw)
    return (name == "T" and not text.isdigit()) or (name == "t" and text in (b"null", b'""'))


def _object(fields: Mapping[str, msgspec.Raw]) -> bytes:
    return (
        b"{" + b",".join(msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in fields.items()) + b"}"
    )


def _text(raw: msgspec.Raw | None) -> str:
    """Return a field as text; '' if it is absent or neither a text nor a number."""
    try:
        return "" if raw is None else raw_text(raw)
    except ValueError:
        return ""


def _is_book(frame: bytes) -> bool:
    """Return whether a frame is the beginning of an order book, which has no event type."""
    fields = decode_fields(frame) or {}
    book = fields if "data" not in fields else decode_fields(fields["data"])
    return book is not None and book.keys() >= _BOOK_SNAPSHOT


_OTHER_HOST = re.compile(
    # fstream, dstream, vstream, pstream: futures, coin futures, options, portfolio margin
    r"(?P<what>(?:[a-z0-9-]+\.)*(?:[fdvp]stream|nbstream|ws-[fd]api|[a-z-]*eoptions)[a-z0-9-]*\..*"
    r"|.*binancefuture.*)|(?P<api>(?:[a-z0-9-]+\.)*ws-api\..*)|(?P<sbe>(?:[a-z0-9-]+\.)*stream-sbe\..*)"
    r"|(?P<rest>(?:[fd]?api[0-9]?|data-api|api-gcp)\.(?:testnet\.)?binance\..*)"
).fullmatch
_OTHER_PATH = re.compile(
    r"/(?:(?:market|public|private)/(?:ws|stream)|eoptions|[fd]api|ws-[fd]?api|pm|(?P<rest>s?api/v[0-9]+))(?:/.*)?"
).fullmatch


class Binance(Feed):
    default_url = "wss://stream.binance.com:9443"
    default_path = "/stream"
    sequenced = True
    repairable = True
    allows_overlap = True
    lifetime = Duration(23 * HOUR + 30 * MINUTE)
    request_interval = Duration(300 * MILLISECOND)
    reconnect_interval = Duration(SECOND)  # 300 attempts in 5 minutes are allowed, more end in a ban

    @staticmethod
    def to_vendor_symbol(symbol: str) -> str:
        return symbol.replace("-", "")

    @staticmethod
    def from_vendor_symbol(spelling: str) -> str:
        for currency in _QUOTE_CURRENCIES:
            base = spelling.removesuffix(currency)
            if base and base != spelling:
                return f"{base}-{currency}"
        return spelling

    @staticmethod
    def canonical_vendor_symbol(spelling: str) -> str:
        return spelling.upper()

    def unsuitable(self, parts: SplitResult) -> str:
        host = _OTHER_HOST(parts.hostname or "")
        path = _OTHER_PATH(parts.path)
        if host is None and path is None:
            return ""
        what = "futures or options"
        if host is not None and host["what"] is None:
            what = "binary SBE streams" if host["sbe"] else "trading API" if host["api"] else "REST API"
        elif host is None and path is not None and path["rest"]:
            what = "REST API"
        return (
            f"an address of Binance's {what}, and the binance feed speaks the JSON streams of spot: "
            f"use {_SPOT}"
        )

    def change(self, target: Collection[Topic], acknowledged: Collection[Topic]) -> list[Request]:
        wanted, held = set(target), set(acknowledged)
        drops = [topic for topic in acknowledged if topic not in wanted]
        adds = [topic for topic in target if topic not in held]
        # first those, so that the cap is never passed
        return [
            *(self._request("UNSUBSCRIBE", piece)._replace(drops=piece) for piece in self._pieces(drops)),
            *(self._request("SUBSCRIBE", piece)._replace(adds=piece) for piece in self._pieces(adds)),
        ]

    def _stream(self, topic: Topic) -> str:
        return self.setup.symbols.vendor[topic.symbol].lower() + _SUFFIXES[topic.kind]

    def _pieces(self, topics: Collection[Topic]) -> Iterator[tuple[Topic, ...]]:
        """Return topics in pieces that fit into one message each."""
        piece: list[Topic] = []
        size = _REQUEST_BYTES
        for topic in topics:
            more = len(self._stream(topic).encode()) + 3
            if piece and size + more > _MESSAGE_BYTES:
                yield tuple(piece)
                piece, size = [], _REQUEST_BYTES
            piece.append(topic)
            size += more
        if piece:
            yield tuple(piece)

    def _request(self, method: str, topics: Collection[Topic]) -> Request:
        self.requests += 1
        params = [self._stream(topic) for topic in topics]
        frame = msgspec.json.encode({"method": method, "params": params, "id": self.requests}).decode()
        return Request(frame, id=self.requests)

    def mapper(self, tolerance: Duration) -> BinanceMapper:
        return BinanceMapper(self.setup, tolerance)

    def __init__(self, setup: FeedSetup) -> None:
        super().__init__(setup)
        if setup.url is None:
            self.cap = Cap(_STREAMS_PER_CONNECTION, "streams")
        wanted = len(self.topics)
        if self.cap is not None and wanted > self.cap.most:
            raise ConfigError(
                f"too many streams: {wanted}, Binance allows {_STREAMS_PER_CONNECTION} per connection; "
                "split the symbols over several gateways with different --name"
            )
