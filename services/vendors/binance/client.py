"""Binance spot market streams (JSON): `<symbol>@trade` and `<symbol>@bookTicker`.

Trade ids are contiguous per symbol, so every hole is seen and named. bookTicker carries no time: ts_event = ts_recv.
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
    Mapped,
    Mapper,
    Refused,
    Skipped,
    SubscribeAck,
    Topic,
    says_something,
)
from services.vendors.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import HOUR, MICROSECOND, MILLISECOND, MINUTE, SECOND, Duration, canonical, canonical_size

_MESSAGE_BYTES = 4000
"""Longer SUBSCRIBE messages are cut by the server at 4,096 bytes."""
_STREAMS_PER_CONNECTION = 1024
_MICROSECONDS = 100_000_000_000_000
"""A time from here on is in microseconds (?timeUnit=MICROSECOND), below it in milliseconds."""
_TOO_LATE = 9_000_000_000_000_000
"""And from here on, in the year 2255, it is none."""
_TOO_HIGH = 1 << 53
"""No id: sums of missing ticks must fit 64 bits, whatever nonsense is sent."""
_BUY, _SELL = Side.BUY, Side.SELL
_NO_QUOTE = (None, None)
_SUFFIXES = {"trade": "@trade", "quote": "@bookTicker"}


class _Event(msgspec.Struct, gc=False):
    """trade and bookTicker at once: one typed decoding of the frame is twice as fast as looking twice.

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
    """A combined frame ({"stream", "data"}), a raw event, or an answer to a request."""

    data: _Event | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    code: int | None = None
    msg: str | None = None


_decode = msgspec.json.Decoder(_Frame).decode


class BinanceMapper(Mapper):
    """Quotes carry an update id, unique per symbol: after a change of connections those that the old one brought are dropped."""

    def __init__(self, symbols: SymbolMap, tolerance: Duration) -> None:
        super().__init__(symbols, tolerance)
        self._updates: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def follow(self, previous: Mapper) -> None:
        super().follow(previous)
        assert isinstance(previous, BinanceMapper)
        self._seen = {
            **previous._seen,
            **previous._updates,
        }  # a quiet symbol's newest may be two connections old

    def map(self, frame: bytes, recv: int) -> Sequence[Mapped]:
        try:
            outer = _decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._unreadable(frame, error)
        event = outer.data or outer
        symbol = self.symbols.get(event.s)  # type: ignore[arg-type]  # None is no symbol of ours
        if symbol is None or event.e != "trade":
            return self._no_trade(outer, event, symbol, frame, recv)
        # the hot path: one trade a frame
        try:
            vendor_id: int = event.t  # type: ignore[assignment]  # None fails below
            time: int = event.T  # type: ignore[assignment]
            price: str = event.p  # type: ignore[assignment]
            size = canonical_size(event.q)  # type: ignore[arg-type]
            ts_event = time * MILLISECOND if time < _MICROSECONDS else time * MICROSECOND
            if not 0 <= vendor_id < _TOO_HIGH or not 0 <= time < _TOO_LATE:
                raise ValueError(f"id {vendor_id}, time {time}")
            bid, ask = self.best_quotes.get(symbol, _NO_QUOTE)
            side = _SELL if event.m else _BUY if event.m is False else Side.UNKNOWN
            flags = self.flags(ts_event, recv) if ts_event > recv else 0
            return (
                (
                    Trade(
                        symbol, canonical(price), size, side, str(vendor_id), ts_event, recv, bid, ask, flags
                    ),
                    vendor_id,
                ),
            )
        except (ValueError, TypeError, AttributeError) as error:
            self.reject(
                "field", error, kind="trade", symbol=symbol, vendor_id=NO_ID if event.t is None else event.t
            )
            return ()

    def _quote(self, event: _Event, symbol: str, recv: int) -> Sequence[Mapped]:
        try:
            bid, ask = canonical(event.b), canonical(event.a)
            bid_size, ask_size = canonical_size(event.B), canonical_size(event.A)  # type: ignore[arg-type]
        except (ValueError, TypeError, AttributeError) as error:
            self.reject("field", error, kind="quote", symbol=symbol)
            return ()
        update: int = event.u  # type: ignore[assignment]  # a frame without it is no quote
        if self._seen and update <= self._seen.get(symbol, -1):
            return ()
        self._updates[symbol] = update
        self._seen.pop(symbol, None)
        self.best_quotes[symbol] = (bid, ask)
        return ((Quote(symbol, bid, bid_size, ask, ask_size, recv, recv), NO_ID),)

    def _no_trade(
        self, outer: _Frame, event: _Event, symbol: str | None, frame: bytes, recv: int
    ) -> Sequence[Mapped]:
        if symbol is not None and event.e is None and event.u is not None:
            return self._quote(event, symbol, recv)
        if event.e == "serverShutdown":
            self.notices.append(Closing())
        elif says_something(outer.error) or outer.code is not None:
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
            self.reject("field", "a trade without symbol")
        else:
            self.notices.append(Skipped())
        return ()

    def _vendor_error(self, outer: _Frame, frame: bytes) -> None:
        text = frame.decode(errors="replace")[:200]
        slow = outer.code == 4 or b"Too many" in frame
        self.notices.append(
            Refused(
                f"Binance answers {text}", fatal=False, wait=Duration(30 * SECOND if slow else 5 * SECOND)
            )
        )

    def _unreadable(self, frame: bytes, error: Exception) -> Sequence[Mapped]:
        """Not JSON, or a field of the wrong type: say for which stream, where that can be told."""
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
    overlaps = True
    lifetime = Duration(23 * HOUR + 30 * MINUTE)
    request_interval = Duration(300 * MILLISECOND)
    reconnect_interval = Duration(SECOND)  # 300 attempts in 5 minutes are allowed, more end in a ban

    @staticmethod
    def to_vendor_symbol(symbol: str) -> str:
        return symbol.replace("-", "")

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
                f"{wanted} streams asked for, Binance allows {_STREAMS_PER_CONNECTION} on a connection; "
                "split the symbols over several gateways with different --name"
            )
