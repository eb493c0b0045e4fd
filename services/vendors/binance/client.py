"""Binance spot market streams (JSON): `<symbol>@trade` and `<symbol>@bookTicker`.

Trade ids are contiguous per symbol, so every gap is detected and its ids are known. bookTicker has no time:
ts_event = ts_recv.
Source: binance-spot-api-docs, web-socket-streams.md.
"""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from services.vendors.feed import (
    NO_ID,
    Closing,
    Feed,
    FeedSetup,
    MappedTick,
    Mapper,
    Refused,
    Skipped,
    SubscribeAck,
    Topic,
    has_value,
)
from services.vendors.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import HOUR, MICROSECOND, MILLISECOND, MINUTE, SECOND, Duration, canonical, canonical_size

_MESSAGE_BYTES = 4000
"""Longer SUBSCRIBE messages are truncated by the server, at 4,096 bytes."""
_STREAMS_PER_CONNECTION = 1024
_MICROSECONDS_FROM = 100_000_000_000_000
"""A time from here on is in microseconds (?timeUnit=MICROSECOND), below it in milliseconds."""
_TIME_LIMIT = 9_000_000_000_000_000
"""A time from here on, in the year 2255, is invalid."""
_ID_LIMIT = 1 << 53
"""An id from here on is invalid: sums of missing ticks must fit 64 bits, whatever garbage is sent."""
_QUOTE_CURRENCIES = (
    "FDUSD", "USDT", "USDC", "TUSD", "BUSD", "BIDR", "IDRT", "DAI", "BTC", "ETH", "BNB", "TRY", "EUR", "GBP",
    "BRL", "JPY", "ARS", "AUD", "MXN", "PLN", "RON", "RUB", "UAH", "ZAR", "XRP", "TRX", "DOGE", "USD",
)  # fmt: skip
"""Longest first where one ends like another."""
_BUY, _SELL = Side.BUY, Side.SELL
_NO_QUOTE = (None, None)
_SUFFIXES = {"trade": "@trade", "quote": "@bookTicker"}


class _Event(msgspec.Struct, gc=False):
    """A trade and a bookTicker in one struct: a single typed decoding of the frame is twice as fast as two.

    `b` and `a` are prices in a bookTicker and order ids in older trades.
    """

    e: str | None = None
    s: str | None = None
    t: int | None = None
    p: str | None = None
    q: str | None = None
    T: int | None = None
    m: bool | None = None
    u: int | None = None
    b: Any = None
    B: str | None = None
    a: Any = None
    A: str | None = None


class _Frame(_Event, gc=False):
    """A combined frame ({"stream", "data"}), a raw event, or the answer to a request."""

    data: _Event | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    code: int | None = None
    msg: str | None = None


_decode = msgspec.json.Decoder(_Frame).decode


class BinanceMapper(Mapper):
    """Quotes have an update id, unique per symbol: a new connection drops what the old one delivered."""

    def __init__(self, symbols: SymbolMap, tolerance: Duration) -> None:
        super().__init__(symbols, tolerance)
        self._updates: dict[str, int] = {}
        """Newest update id by symbol on this connection."""
        self._seen: dict[str, int] = {}
        """Newest update id by symbol on the connections before, until it is passed."""

    def follow(self, previous: Mapper) -> None:
        super().follow(previous)
        assert isinstance(previous, BinanceMapper)
        # the newest update of a quiet symbol may be two connections old
        self._seen = {**previous._seen, **previous._updates}

    def map(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        try:
            outer = _decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._unreadable(frame, error)
        event = outer.data or outer
        symbol = self.symbols.get(event.s)  # type: ignore[arg-type]  # None is never subscribed
        if symbol is None or event.e != "trade":
            return self._map_other(outer, event, symbol, frame, recv)
        # the hot path: one trade per frame
        try:
            vendor_id: int = event.t  # type: ignore[assignment]  # None fails below
            time: int = event.T  # type: ignore[assignment]
            price: str = event.p  # type: ignore[assignment]
            size = canonical_size(event.q)  # type: ignore[arg-type]
            ts_event = time * MILLISECOND if time < _MICROSECONDS_FROM else time * MICROSECOND
            if not 0 <= vendor_id < _ID_LIMIT or not 0 <= time < _TIME_LIMIT:
                raise ValueError(f"invalid id {vendor_id} or time {time}")
            bid, ask = self.best_quotes.get(symbol, _NO_QUOTE)
            side = _SELL if event.m else _BUY if event.m is False else Side.UNKNOWN
            flags = self.flags(ts_event, recv) if ts_event > recv else 0
            price = canonical(price)
            trade = Trade(symbol, price, size, side, str(vendor_id), ts_event, recv, bid, ask, flags)
            return ((trade, vendor_id),)
        except (ValueError, TypeError, AttributeError) as error:
            self.reject(
                "field", error, kind="trade", symbol=symbol, vendor_id=NO_ID if event.t is None else event.t
            )
            return ()

    def _quote(self, event: _Event, symbol: str, recv: int) -> Sequence[MappedTick]:
        try:
            bid, ask = canonical(event.b), canonical(event.a)
            bid_size, ask_size = canonical_size(event.B), canonical_size(event.A)  # type: ignore[arg-type]
        except (ValueError, TypeError, AttributeError) as error:
            self.reject("field", error, kind="quote", symbol=symbol)
            return ()
        update: int = event.u  # type: ignore[assignment]  # a frame without it is not a quote
        if self._seen and update <= self._seen.get(symbol, -1):
            return ()
        self._updates[symbol] = update
        self._seen.pop(symbol, None)
        self.best_quotes[symbol] = (bid, ask)
        return ((Quote(symbol, bid, bid_size, ask, ask_size, recv, recv), NO_ID),)

    def _map_other(
        self, outer: _Frame, event: _Event, symbol: str | None, frame: bytes, recv: int
    ) -> Sequence[MappedTick]:
        """Map a frame that is not a trade of a subscribed symbol."""
        if symbol is not None and event.e is None and event.u is not None:
            return self._quote(event, symbol, recv)
        if event.e == "serverShutdown":
            self.notices.append(Closing())
        elif has_value(outer.error) or outer.code is not None:
            self._vendor_error(outer, frame)
        elif outer.result:
            self.notices.append(SubscribeAck())
        elif (
            event.s is not None
            and (event.e == "trade" or event.u is not None)
            and event.s not in self.symbols
        ):
            self.reject("unknown_symbol", event.s, lost=False)
        elif event.e == "trade":
            self.reject("field", "trade without a symbol")
        else:
            self.notices.append(Skipped())
        return ()

    def _vendor_error(self, outer: _Frame, frame: bytes) -> None:
        text = frame.decode(errors="replace")[:200]
        over_limit = outer.code == 4 or b"Too many" in frame
        wait = Duration(30 * SECOND if over_limit else 5 * SECOND)
        self.notices.append(Refused(f"Binance answered {text}", fatal=False, wait=wait))

    def _unreadable(self, frame: bytes, error: Exception) -> Sequence[MappedTick]:
        """Reject a frame that is not JSON or has a field of the wrong type; name the stream if known."""
        try:
            loose = msgspec.json.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.reject("garbage", error)
            return ()
        event = loose.get("data", loose) if isinstance(loose, dict) else None
        if not isinstance(event, dict):
            self.notices.append(Skipped())
        elif event.get("e") not in ("trade", None):
            self.notices.append(Skipped())  # another event type, whose fields have other types
        else:
            symbol = self.symbols.get(event["s"]) if isinstance(event.get("s"), str) else None
            kind = "trade" if event.get("e") == "trade" else "quote"
            vendor_id = event["t"] if kind == "trade" and type(event.get("t")) is int else NO_ID
            self.reject("field", error, kind=kind if symbol else None, symbol=symbol, vendor_id=vendor_id)
        return ()


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

    def subscribe(self, topics: Collection[Topic]) -> list[str]:
        return self._requests("SUBSCRIBE", topics)

    def unsubscribe(self, topics: Collection[Topic]) -> list[str]:
        return self._requests("UNSUBSCRIBE", topics)

    def _requests(self, method: str, topics: Collection[Topic]) -> list[str]:
        frames = []
        piece: list[str] = []
        for topic in topics:
            stream = self.setup.symbols.vendor[topic.symbol].lower() + _SUFFIXES[topic.kind]
            if (
                piece
                and sum(len(name.encode()) + 3 for name in piece) + len(stream.encode()) + 60 > _MESSAGE_BYTES
            ):
                frames.append(self._request(method, piece))
                piece = []
            piece.append(stream)
        return [*frames, self._request(method, piece)] if piece else frames

    def _request(self, method: str, streams: list[str]) -> str:
        self.requests += 1
        return msgspec.json.encode({"method": method, "params": streams, "id": self.requests}).decode()

    def mapper(self, tolerance: Duration) -> BinanceMapper:
        return BinanceMapper(self.setup.symbols, tolerance)

    def __init__(self, setup: FeedSetup) -> None:
        super().__init__(setup)
        wanted = len(self.topics)
        if wanted > _STREAMS_PER_CONNECTION and self.setup.url is None:
            raise ConfigError(
                f"too many streams: {wanted}, Binance allows {_STREAMS_PER_CONNECTION} per connection; "
                "split the symbols over several gateways with different --name"
            )
