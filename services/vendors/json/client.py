"""The generic feed of market-data tutorials.

It sends `{"action":"subscribe","symbols":[...]}` and receives
`{"trades":[{"symbol","price","volume","time"}, ...]}`. Quotes are requested with `"quotes":true` and arrive
as `{"quotes":[{"symbol","bid","bid_size","ask","ask_size","time"}]}`.

Values are numbers or texts, times are in seconds, ms, us, ns or ISO 8601; JSON numbers keep their digits.
Field names are configurable, also as paths into nested objects: `--json-fields price=p,trades=data.items`.
Lists of ticks or of such frames are read too. What ids are worth is configurable: `--json-ids`; without it
only a disconnect means a gap.
"""

from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from msgspec.structs import replace

from services.vendors.feed import (
    NO_ID,
    Feed,
    FeedSetup,
    MappedTick,
    Mapper,
    Refused,
    Request,
    Topic,
    VendorError,
)
from services.vendors.frames import (
    ABSENT,
    NOT_DECODED,
    decode_fields,
    decode_items,
    has_value,
    printable,
    raw_text,
    word,
)
from services.vendors.json.fields import field_names, has_paths
from services.vendors.json.frames import FrameDecoder, Reader
from services.vendors.json.options import JsonOptions
from services.vendors.seen_ids import Seen, SeenIds
from services.vendors.values import book_side, trade_id
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Flag, Quote, Side, Trade
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

_KINDS = {"quotes": "quote", "trades": "trade"}
_MAX_ID = 1 << 53
"""An id from here on is invalid: sums of missing ticks must fit 64 bits, whatever garbage is sent."""
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


class JsonMapper(Mapper):
    def __init__(
        self, setup: FeedSetup, tolerance: Duration, names: dict[str, str], ids: str, seen: SeenIds
    ) -> None:
        super().__init__(setup, tolerance)
        self._reader = Reader(names)
        self._decode = None if has_paths(names) else FrameDecoder(names).decode
        self._ids = ids
        self._has_ids = ids != "none"
        self._seen = seen

    def map(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        if self._decode is None:
            return self._map_any(frame, recv)
        try:
            outer = self._decode(frame)
        except NOT_DECODED:
            return self._map_any(frame, recv)
        ticks: list[MappedTick] = []
        # quotes first: the trades of a frame carry the quote of that frame
        if outer.quotes is not None:
            self._map_all("quote", outer.quotes, self._quote, recv, ticks)
        if outer.trades is not None:
            self._map_all("trade", outer.trades, self._trade, recv, ticks)
        if outer.error is not ABSENT and has_value(outer.error):
            self._refused(bytes(outer.error).decode(errors="replace"))
        elif not outer.trades and not outer.quotes:
            return self._map_any(frame, recv)
        return ticks

    def _map_any(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        """Map a frame of any shape; one without ticks becomes a notice."""
        found = self._reader.read(frame, self.symbols)
        ticks: list[MappedTick] = []
        for name, items in groupby(found.items, key=itemgetter(0)):
            kind = _KINDS[name]
            build = self._trade if kind == "trade" else self._quote
            self._map_all(kind, [item for _, item in items], build, recv, ticks)
        if found.error is not None:
            self._refused(found.error)
        elif found.words is not None:
            self.notices.append(VendorError(found.words))
        elif found.elsewhere:
            self.reject(
                "field", f"ticks under {found.elsewhere!r}: say where they are by --json-fields trades=PATH"
            )
        elif not found.items and not found.listed:
            self.unused(frame, documented=_is_ack(frame))
        elif found.others:
            self.unknown(frame)
        return ticks

    def _map_all(
        self,
        kind: str,
        items: Sequence[Any],
        build: "Callable[[Any, str, int], MappedTick | None]",
        recv: int,
        ticks: list[MappedTick],
    ) -> None:
        for item in items:
            symbol = None
            try:
                spelling = item.symbol if type(item.symbol) is str else _text(item.symbol)
                symbol = self.symbols.get(spelling)
                if symbol is not None:
                    if (tick := build(item, symbol, recv + len(ticks))) is not None:
                        ticks.append(tick)
                elif spelling:
                    self.reject("unknown_symbol", spelling, lost=False, ticks_before=len(ticks))
                else:
                    self.reject("field", "tick without a symbol", ticks_before=len(ticks))
            except (ValueError, KeyError, UnicodeDecodeError, ArithmeticError, msgspec.MsgspecError) as error:
                self.reject(
                    "field",
                    error,
                    kind=kind if symbol else None,
                    symbol=symbol,
                    vendor_id=self._id_of(item) if kind == "trade" else NO_ID,
                    ticks_before=len(ticks),
                )
            except AttributeError:
                if item is not None:
                    raise
                self.reject("field", "no object instead of a tick", lost=False, ticks_before=len(ticks))

    def _trade(self, item: Any, symbol: str, recv: int) -> MappedTick | None:
        price, size, side, id = item.price, item.volume, item.side, item.id
        # checked here to save a call each in the common case: texts that can stay as they are
        if not (type(price) is str and is_plain(price)):
            price = canonical(_text(price))
        if not (type(size) is str and is_plain_size(size)):
            size = canonical_size(_text(size))
        ts_event, flags = _time(item.time), 0
        if not self.oldest <= ts_event <= recv:
            ts_event, flags = self.event_time(ts_event, recv)
        if id is not None:
            id = trade_id(id if type(id) is str else _text(id))
        bid, ask = self.best_quotes.get(symbol, _NO_QUOTE)
        trade = Trade(
            symbol,
            price,
            size,
            Side.UNKNOWN if side is None else _SIDES.get(_text(side).lower(), Side.UNKNOWN),
            id,
            ts_event,
            recv,
            bid,
            ask,
            flags,
        )
        return self._with_id(trade) if self._has_ids else (trade, NO_ID)

    def _with_id(self, trade: Trade) -> MappedTick | None:
        """Return a trade whose id means something; None if it is a repeat."""
        if trade.trade_id is None:
            return trade, NO_ID
        if self._ids == "sequential":
            return trade, _whole(trade.trade_id)
        seen = self._seen.note(trade)
        if seen is Seen.REPEAT:
            self.duplicates += 1
            return None
        if seen is Seen.OTHER:
            trade = replace(trade, flags=trade.flags | Flag.DOUBTFUL_ID)
        return trade, NO_ID

    def _id_of(self, item: Any) -> int:
        """Return the vendor id of a trade that cannot be used otherwise."""
        try:
            return _whole(_text(item.id)) if self._ids == "sequential" else NO_ID
        except ValueError:
            return NO_ID

    def _quote(self, item: Any, symbol: str, recv: int) -> MappedTick:
        bid, bid_size = book_side(_text(item.bid), _text(item.bid_size))
        ask, ask_size = book_side(_text(item.ask), _text(item.ask_size))
        ts_event, flags = _time(item.time), 0
        if not self.oldest <= ts_event <= recv:
            ts_event, flags = self.event_time(ts_event, recv)
        self.best_quotes[symbol] = (bid, ask)
        return Quote(symbol, bid, bid_size, ask, ask_size, ts_event, recv, flags), NO_ID

    def _refused(self, error: str) -> None:
        text = printable(f"the vendor answered {error}", 250)
        self.notices.append(Refused(text, fatal=False, wait=Duration(5 * SECOND), symbols=True))


def _text(value: str | int | msgspec.Raw | None) -> str:
    """Return a decoded field as the text that the vendor wrote; '' for null and for an absent field."""
    if type(value) is str:
        return value
    return "" if value is None else raw_text(value)  # type: ignore[arg-type]  # integers are times: see _time


def _time(value: int | str | msgspec.Raw | None) -> int:
    """Return a time in ns; 0 if the vendor sends none that can be understood.

    It is a number or a text, with or without a fraction, or ISO 8601.
    """
    try:
        if type(value) is int and value >= 0:
            return epoch_ns(value)
        text = str(value) if type(value) is int else _text(value).strip()
        if not text:
            return 0
        if text.isascii() and text.isdigit() and len(text) <= 19:
            return epoch_ns(int(text))
        try:
            number = Decimal(canonical(text))
        except ValueError:
            return iso_ns(text)
        whole = int(number)
        unit = epoch_ns(whole) // whole if whole > 0 else SECOND
        return int(number * unit)
    except (ValueError, ArithmeticError):
        return 0


def _whole(id: str) -> int:
    """Return a sequential id; NO_ID if it is none."""
    if id.isascii() and id.isdigit() and len(id) <= 16 and int(id) < _MAX_ID:
        return int(id)
    return NO_ID


_ACKS = frozenset(
    [
        "welcome",
        "hello",
        "connected",
        "connection",
        "open",
        "opened",
        "ready",
        "info",
        "system",
        "version",
        "login",
        "logged_in",
        "auth",
        "authenticated",
        "authorized",
        "authentication",
        "subscribe",
        "subscribed",
        "subscription",
        "subscriptions",
        "subscription_succeeded",
        "subscribe_success",
        "unsubscribe",
        "unsubscribed",
        "ack",
        "acknowledged",
        "ok",
        "success",
        "confirmation",
        "confirmed",
        "listening",
    ]
)
_ACK_KEYS = ("type", "event", "status", "action", "op", "msg", "message", "result", "method", "t", "ev")
_MAX_ACK = 4096


def _is_ack(frame: bytes) -> bool:
    """Return whether a frame is a greeting or an acknowledgement, as most vendors write them."""
    if len(frame) > _MAX_ACK or (fields := decode_fields(frame)) is None:
        return False
    if any(decode_fields(item) for raw in fields.values() for item in decode_items(raw) or ()):
        return False  # a list of objects may be anything
    return any(
        name.lower() in _ACKS or (name.lower() in _ACK_KEYS and word(raw) in _ACKS)
        for name, raw in fields.items()
    )


def _has_quotes(topics: Collection[Topic]) -> bool:
    return any(topic.kind == "quote" for topic in topics)


def _request(action: str, symbols: Collection[str], quotes: bool, had_quotes: bool = False) -> str:
    request: dict[str, object] = {"action": action, "symbols": list(symbols)}
    if quotes or had_quotes:  # the tutorial's servers know no quotes, so they are named only where needed
        request["quotes"] = quotes
    return msgspec.json.encode(request).decode()


class Json(Feed):
    default_url = "ws://127.0.0.1:8765"
    acks_subscribe = False
    subscribe_replaces = True

    def __init__(self, setup: FeedSetup) -> None:
        super().__init__(setup)
        options = setup.options if isinstance(setup.options, JsonOptions) else JsonOptions()
        self._ids = options.json_ids
        self._unsubscribe = options.json_unsubscribe
        self.sequenced = self._ids == "sequential"
        self._names = field_names(options.json_fields)
        setup.seen_ids.expect(len(setup.symbols.vendor))
        if has_paths(self._names):
            return
        try:
            FrameDecoder(self._names)
        except (ValueError, TypeError) as error:  # a name that no JSON decoder accepts
            raise ConfigError(f"invalid --json-fields {','.join(options.json_fields)}: {error}") from None

    def change(self, target: Collection[Topic], acknowledged: Collection[Topic]) -> list[Request]:
        before, after = set(acknowledged), set(target)
        adds = tuple(topic for topic in target if topic not in before)
        drops = tuple(topic for topic in acknowledged if topic not in after)
        listed, held, quotes = self._spellings(target), self._spellings(acknowledged), _has_quotes(target)
        dropped = [symbol for symbol in held if symbol not in listed]
        had_quotes = _has_quotes(acknowledged)
        more = listed.keys() - held.keys() or quotes != had_quotes
        requests = []
        if dropped and self._unsubscribe:
            requests.append(Request(_request(self._unsubscribe, dropped, quotes), drops=drops))
        if listed and (more or (dropped and not self._unsubscribe)):
            requests.append(Request(_request("subscribe", listed, quotes, had_quotes), adds, drops))
        return requests

    def _spellings(self, topics: Collection[Topic]) -> dict[str, None]:
        return dict.fromkeys(self.setup.symbols.vendor[topic.symbol] for topic in topics)

    def mapper(self, tolerance: Duration) -> JsonMapper:
        return JsonMapper(self.setup, tolerance, self._names, self._ids, self.setup.seen_ids)
