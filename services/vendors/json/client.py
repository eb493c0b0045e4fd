"""The generic feed of market-data tutorials.

It sends `{"action":"subscribe","symbols":[...]}` and receives
`{"trades":[{"symbol","price","volume","time"}, ...]}`. Quotes are requested with `"quotes":true` and arrive
as `{"quotes":[{"symbol","bid","bid_size","ask","ask_size","time"}]}`.

Values are numbers or texts, times are in seconds, ms, us, ns or ISO 8601; JSON numbers keep their digits.
Field names are configurable: `--json-fields price=p,volume=v`. No ids are assumed: only a disconnect means
a gap.
"""

from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from services.vendors.feed import (
    ABSENT,
    NO_ID,
    Feed,
    FeedSetup,
    MappedTick,
    Mapper,
    Refused,
    Rejected,
    Skipped,
    Topic,
    has_value,
    raw_text,
)
from services.vendors.json.options import JsonOptions
from services.vendors.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import (
    SECOND,
    Duration,
    canonical,
    canonical_size,
    epoch_ns,
    is_plain,
    is_plain_size,
    iso_ns,
)

NAMES = (
    "trades",
    "quotes",
    "symbol",
    "price",
    "volume",
    "time",
    "side",
    "id",
    "bid",
    "bid_size",
    "ask",
    "ask_size",
)
_FIELDS = {
    "trades": ("symbol", "price", "volume", "time", "side", "id"),
    "quotes": ("symbol", "bid", "bid_size", "ask", "ask_size", "time"),
}
_NO_QUOTE = (None, None)
_SIDES = {
    "": Side.UNKNOWN,
    "buy": Side.BUY,
    "b": Side.BUY,
    "1": Side.BUY,
    "sell": Side.SELL,
    "s": Side.SELL,
    "2": Side.SELL,
}


def field_names(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the vendor's name of every field, by our name. pairs: those that differ, `("price=p", ...)`."""
    names = {name: name for name in NAMES}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if ours not in names or not equals or not theirs:
            raise ConfigError(
                f"invalid --json-fields {pair}: expected ours=theirs, where ours is one of {', '.join(NAMES)}"
            )
        names[ours] = theirs
    return names


class JsonMapper(Mapper):
    def __init__(self, symbols: SymbolMap, tolerance: Duration, names: dict[str, str]) -> None:
        super().__init__(symbols, tolerance)
        self._decoder = _FrameDecoder(names)

    def map(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        try:
            outer = self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._unreadable(frame, error)
            return ()
        ticks: list[MappedTick] = []
        # quotes first: the trades of a frame carry the quote of that frame
        if outer.quotes is not None:
            self._map_all("quote", outer.quotes, self._quote, recv, ticks)
        if outer.trades is not None:
            self._map_all("trade", outer.trades, self._trade, recv, ticks)
        elif outer.quotes is None:
            self._other(outer)
        return ticks

    def _map_all(
        self,
        kind: str,
        items: Sequence[Any],
        build: "Callable[[Any, str, int], Trade | Quote]",
        recv: int,
        ticks: list[MappedTick],
    ) -> None:
        for item in items:
            symbol = None
            try:
                spelling = item.symbol if type(item.symbol) is str else _text(item.symbol)
                symbol = self.symbols.get(spelling)
                if symbol is not None:
                    ticks.append((build(item, symbol, recv + len(ticks)), NO_ID))
                elif spelling:
                    self.reject("unknown_symbol", spelling, lost=False, ticks_before=len(ticks))
                else:
                    self.reject("field", "tick without a symbol", ticks_before=len(ticks))
            except (ValueError, KeyError, UnicodeDecodeError, ArithmeticError, msgspec.MsgspecError) as error:
                known_kind = kind if symbol else None
                self.reject("field", error, kind=known_kind, symbol=symbol, ticks_before=len(ticks))
            except AttributeError:
                if item is not None:
                    raise
                self.reject("field", "null instead of a tick", lost=False, ticks_before=len(ticks))

    def _trade(self, item: Any, symbol: str, recv: int) -> Trade:
        price, size, side, id = item.price, item.volume, item.side, item.id
        # checked here to save a call each in the common case: texts that can stay as they are
        if not (type(price) is str and is_plain(price)):
            price = canonical(_text(price))
        if not (type(size) is str and is_plain_size(size)):
            size = canonical_size(_text(size))
        ts_event = _time(item.time, recv)
        bid, ask = self.best_quotes.get(symbol, _NO_QUOTE)
        flags = self.flags(ts_event, recv) if ts_event > recv else 0
        return Trade(
            symbol,
            price,
            size,
            Side.UNKNOWN if side is None else _SIDES.get(_text(side).lower(), Side.UNKNOWN),
            None if id is None else _text(id) or None,
            ts_event,
            recv,
            bid,
            ask,
            flags,
        )

    def _quote(self, item: Any, symbol: str, recv: int) -> Quote:
        bid, ask = (canonical(text) if (text := _text(value)) else None for value in (item.bid, item.ask))
        bid_size, ask_size = (
            canonical_size(text) if (text := _text(value)) else None
            for value in (item.bid_size, item.ask_size)
        )
        ts_event = _time(item.time, recv)
        self.best_quotes[symbol] = (bid, ask)
        return Quote(symbol, bid, bid_size, ask, ask_size, ts_event, recv, self.flags(ts_event, recv))

    def _other(self, outer: Any) -> None:
        """Handle welcome messages, acknowledgements and the like; an `error` is reported."""
        if has_value(outer.error):
            text = bytes(outer.error).decode(errors="replace")
            self.notices.append(
                Refused(f"the vendor answered {text[:200]}", fatal=False, wait=Duration(5 * SECOND))
            )
        else:
            self.notices.append(Skipped())

    def _unreadable(self, frame: bytes, error: Exception) -> None:
        try:
            loose = msgspec.json.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.reject("garbage", error)
            return
        self.notices.append(Skipped() if not isinstance(loose, dict) else Rejected("field", str(error)[:200]))


class _FrameDecoder:
    """Decodes frames to structs with the vendor's field names; unknown fields are skipped.

    Texts are decoded as such, a time as an integer or a text: twice as fast as keeping raw JSON. Any other
    number is kept raw, for its digits: the first time by decoding the frame again, afterwards because the
    decoder has learned it.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._numbers: set[tuple[str, str]] = set()
        """The (list, our name of the field) pairs that arrived as numbers."""
        self._decode_raw = self._build(lambda *_: (msgspec.Raw, ABSENT))
        self._decode_learned = self._build(self._learned_type)

    def decode(self, frame: bytes) -> Any:
        """Return the decoded frame.

        Raises MsgspecError, UnicodeDecodeError or RecursionError if it is not a frame of the protocol.
        """
        try:
            return self._decode_learned(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            outer = self._decode_raw(frame)
        self._learn(outer)
        return outer

    def _learn(self, outer: Any) -> None:
        known = len(self._numbers)
        for kind, fields in _FIELDS.items():
            for item in filter(None, getattr(outer, kind) or ()):
                for name in fields:
                    raw = bytes(getattr(item, name))
                    if raw[:1] in b"-0123456789" and raw and not (name == "time" and raw.isdigit()):
                        self._numbers.add((kind, name))
        if len(self._numbers) > known:
            self._decode_learned = self._build(self._learned_type)

    def _learned_type(self, kind: str, name: str) -> tuple[Any, Any]:
        if (kind, name) in self._numbers:
            return msgspec.Raw, ABSENT
        return (int | str | None if name == "time" else str | None), None

    def _build(self, type_of: "Callable[[str, str], tuple[Any, Any]]") -> Callable[[bytes], Any]:
        lists = []
        for kind, fields in _FIELDS.items():
            types = [(name, type_of(kind, name)) for name in fields]
            renamed = [
                (name, of, msgspec.field(name=self._names[name], default=default))
                for name, (of, default) in types
            ]
            item: Any = msgspec.defstruct(f"Json_{kind}", renamed, gc=False)
            items: Any = list[item | None] | None
            lists.append((kind, items, msgspec.field(name=self._names[kind], default=None)))
        frame = msgspec.defstruct(
            "JsonFrame", [*lists, ("error", msgspec.Raw, msgspec.field(default=ABSENT))]
        )
        return msgspec.json.Decoder(frame).decode


def _text(value: str | int | msgspec.Raw | None) -> str:
    """Return a decoded field as the text that the vendor wrote; '' for null and for an absent field."""
    if type(value) is str:
        return value
    return "" if value is None else raw_text(value)  # type: ignore[arg-type]  # integers are times: see _time


def _time(value: int | str | msgspec.Raw | None, recv: int) -> int:
    """Return a time in ns; `recv` if the vendor sends none.

    It is a number or a text, with or without a fraction, or ISO 8601. Raises ValueError for anything else.
    """
    if type(value) is int and value >= 0:
        return epoch_ns(value)
    text = str(value) if type(value) is int else _text(value).strip()
    if not text:
        return recv
    if text.isascii() and text.isdigit() and len(text) <= 19:
        return epoch_ns(int(text))
    try:
        number = Decimal(canonical(text))
    except ValueError:
        return iso_ns(text)
    if number < 0:
        raise ValueError(f"invalid time {text[:40]!r}")
    whole = int(number)
    unit = epoch_ns(whole) // whole if whole else SECOND
    return int(number * unit)


class Json(Feed):
    default_url = "ws://127.0.0.1:8765"
    acks_subscribe = False
    subscribe_replaces = True

    def __init__(self, setup: FeedSetup) -> None:
        super().__init__(setup)
        pairs = setup.options.json_fields if isinstance(setup.options, JsonOptions) else ()
        self._names = field_names(pairs)
        try:
            _FrameDecoder(self._names)
        except (ValueError, TypeError) as error:  # a duplicate name, or one that no JSON decoder accepts
            raise ConfigError(
                f"invalid --json-fields {','.join(pairs)}: {error}; every field needs a name of its own"
            ) from None

    def subscribe(self, topics: Collection[Topic]) -> list[str]:
        symbols = dict.fromkeys(self.setup.symbols.vendor[topic.symbol] for topic in topics)
        request: dict[str, object] = {"action": "subscribe", "symbols": list(symbols)}
        if any(topic.kind == "quote" for topic in topics):
            request["quotes"] = True
        return [msgspec.json.encode(request).decode()]

    def mapper(self, tolerance: Duration) -> JsonMapper:
        return JsonMapper(self.setup.symbols, tolerance, self._names)
