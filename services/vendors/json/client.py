"""The generic feed of market-data tutorials: `{"action":"subscribe","symbols":[...]}` out, `{"trades":[{"symbol","price",
"volume","time"}, ...]}` in.

Numbers or texts, times in seconds, ms, us, ns or ISO 8601; JSON numbers are taken as their digits. Names of the fields can be
changed (`--json-fields price=p,volume=v`). Quotes come as `{"quotes":[{"symbol","bid","bid_size","ask","ask_size","time"}]}`,
asked for with `"quotes":true`. No ids are assumed: a hole is a disconnect.
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
    Mapped,
    Mapper,
    Refused,
    Rejected,
    Skipped,
    Topic,
    raw_text,
    says_something,
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


def field_names(given: tuple[str, ...]) -> dict[str, str]:
    """`("price=p", ...)` -> our name: the vendor's name, for all fields."""
    names = {name: name for name in NAMES}
    for pair in given:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if ours not in names or not equals or not theirs:
            raise ConfigError(f"--json-fields {pair}: write ours=theirs; ours is one of {', '.join(NAMES)}")
        names[ours] = theirs
    return names


class JsonMapper(Mapper):
    def __init__(self, symbols: SymbolMap, tolerance: Duration, names: dict[str, str]) -> None:
        super().__init__(symbols, tolerance)
        self._decoder = _FrameDecoder(names)

    def map(self, frame: bytes, recv: int) -> Sequence[Mapped]:
        try:
            outer = self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._unreadable(frame, error)
            return ()
        ticks: list[Mapped] = []
        # quotes first: the trades of a frame bear the quote of that frame
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
        ticks: list[Mapped],
    ) -> None:
        for item in items:
            symbol = None
            try:
                spelling = item.symbol if type(item.symbol) is str else _text(item.symbol)
                symbol = self.symbols.get(spelling)
                if symbol is not None:
                    ticks.append((build(item, symbol, recv + len(ticks)), NO_ID))
                elif spelling:
                    self.reject("unknown_symbol", spelling, lost=False, after=len(ticks))
                else:
                    self.reject("field", "a tick without symbol", after=len(ticks))
            except (ValueError, KeyError, UnicodeDecodeError, ArithmeticError, msgspec.MsgspecError) as error:
                self.reject("field", error, kind=kind if symbol else None, symbol=symbol, after=len(ticks))
            except AttributeError:
                if item is not None:
                    raise
                self.reject("field", "null in the place of a tick", lost=False, after=len(ticks))

    def _trade(self, item: Any, symbol: str, recv: int) -> Trade:
        price, size, side, id = item.price, item.volume, item.side, item.id
        # asked here, a call less for each, for what nearly all trades bring: texts that can stay as they are
        if not (type(price) is str and is_plain(price)):
            price = canonical(_text(price))
        if not (type(size) is str and is_plain_size(size)):
            size = canonical_size(_text(size))
        ts_event = _time(item.time, recv)
        bid, ask = self.best_quotes.get(symbol, _NO_QUOTE)
        flags = self.flags(ts_event, recv) if ts_event > recv else 0
        return Trade(
            symbol, price, size, Side.UNKNOWN if side is None else _SIDES.get(_text(side).lower(), Side.UNKNOWN),
            None if id is None else _text(id) or None, ts_event, recv, bid, ask, flags,
        )  # fmt: skip

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
        """Welcome messages, acknowledgements and the like; an `error` is told."""
        if says_something(outer.error):
            text = bytes(outer.error).decode(errors="replace")
            self.notices.append(
                Refused(f"the vendor answers {text[:200]}", fatal=False, wait=Duration(5 * SECOND))
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
    """Frames -> structs with the vendor's field names; unknown fields are skipped.

    Texts are decoded as such, a time as an integer or a text: that is twice as fast as keeping raw JSON. What comes as another
    number is kept raw, for its digits: at first by decoding the frame again, from the next one on by what was learned.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._numbers: set[tuple[str, str]] = set()
        """(list, our name of the field) that came as numbers."""
        self._decode_raw = self._build(lambda *_: (msgspec.Raw, ABSENT))
        self._decode_usual = self._build(self._usual)

    def decode(self, frame: bytes) -> Any:
        """MsgspecError, UnicodeDecodeError or RecursionError if it is no frame of the protocol."""
        try:
            return self._decode_usual(frame)
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
            self._decode_usual = self._build(self._usual)

    def _usual(self, kind: str, name: str) -> tuple[Any, Any]:
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
    """A decoded field, as the text that the vendor wrote; '' for null and for what was absent."""
    if type(value) is str:
        return value
    return "" if value is None else raw_text(value)  # type: ignore[arg-type]  # an integer is a time, and has its own way


def _time(value: int | str | msgspec.Raw | None, recv: int) -> int:
    """Number or text, whole or with a fraction, or ISO 8601 -> ns; ours where the vendor sends none."""
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
        raise ValueError(f"time {text[:40]}")
    whole = int(number)
    unit = epoch_ns(whole) // whole if whole else SECOND
    return int(number * unit)


class Json(Feed):
    default_url = "ws://127.0.0.1:8765"
    acknowledged = False
    replaces = True

    def __init__(self, setup: FeedSetup) -> None:
        super().__init__(setup)
        given = setup.options.json_fields if isinstance(setup.options, JsonOptions) else ()
        self._names = field_names(given)
        try:
            _FrameDecoder(self._names)
        except (ValueError, TypeError) as error:  # a name twice, or one that no JSON decoder takes
            raise ConfigError(
                f"--json-fields {','.join(given)}: {error}; every field needs a name of its own"
            ) from None

    def subscribe(self, topics: Collection[Topic]) -> list[str]:
        symbols = dict.fromkeys(self.setup.symbols.vendor[topic.symbol] for topic in topics)
        request: dict[str, object] = {"action": "subscribe", "symbols": list(symbols)}
        if any(topic.kind == "quote" for topic in topics):
            request["quotes"] = True
        return [msgspec.json.encode(request).decode()]

    def mapper(self, tolerance: Duration) -> JsonMapper:
        return JsonMapper(self.setup.symbols, tolerance, self._names)
