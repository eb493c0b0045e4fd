"""The generic feed of market-data tutorials: `{"action":"subscribe","symbols":[...]}` out, `{"trades":[{"symbol","price",
"volume","time"}, ...]}` in.

Numbers or texts, times in seconds, ms, us, ns or ISO 8601; JSON numbers are taken as their digits. Names of the fields can be
changed (`--json-fields price=p,volume=v`). Quotes come as `{"quotes":[{"symbol","bid","bid_size","ask","ask_size","time"}]}`,
asked for with `"quotes":true`. No ids are assumed: a hole is a disconnect.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, ClassVar

import msgspec

from services.gateway.feeds.base import ABSENT, NO_ID, Feed, Ignored, Mapped, Mapper, Refused, Rejected, raw_text
from services.gateway.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.messages import Quote, Side, Trade
from tickbus.units import SECOND, Duration, canonical, canonical_size, epoch_ns, iso_ns

NAMES = ("trades", "quotes", "symbol", "price", "volume", "time", "side", "id", "bid", "bid_size", "ask", "ask_size")
_SIDES = {"": Side.UNKNOWN, "buy": Side.BUY, "b": Side.BUY, "1": Side.BUY, "sell": Side.SELL, "s": Side.SELL, "2": Side.SELL}


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
        self._decode_frame = _frame_decoder(names)

    def map(self, frame: bytes, recv: int) -> Sequence[Mapped]:
        try:
            outer = self._decode_frame(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._unreadable(frame, error)
            return ()
        ticks: list[Mapped] = []
        # quotes first: the trades of a frame bear the quote of that frame
        if outer.quotes is not None:
            for item in outer.quotes:
                self._map_item("quote", item, self._quote, recv, ticks)
        if outer.trades is not None:
            for item in outer.trades:
                self._map_item("trade", item, self._trade, recv, ticks)
        elif outer.quotes is None:
            self._other(outer)
        return ticks

    def _map_item(self, kind: str, item: Any, build: "Callable[[Any, str, int], Trade | Quote]", recv: int, ticks: list[Mapped]) -> None:
        symbol = None
        try:
            spelling = raw_text(item.symbol)
            symbol = self.symbols.get(spelling)
            if not spelling:
                self.reject("field", "a tick without symbol")
            elif symbol is None:
                self.reject("unknown_symbol", spelling, lost=False)
            else:
                ticks.append((build(item, symbol, recv + len(ticks)), NO_ID))
        except (ValueError, KeyError, UnicodeDecodeError, ArithmeticError, msgspec.MsgspecError) as error:
            self.reject("field", error, kind=kind if symbol else None, symbol=symbol)

    def _trade(self, item: Any, symbol: str, recv: int) -> Trade:
        price, size = canonical(raw_text(item.price)), canonical_size(raw_text(item.volume))
        ts_event = _time(item.time, recv)
        side = Side.UNKNOWN if item.side is ABSENT else _SIDES.get(raw_text(item.side).lower(), Side.UNKNOWN)
        bid, ask = self.tops.get(symbol, (None, None))
        flags = self.flags(ts_event, recv) if ts_event > recv else 0
        return Trade(symbol, price, size, side, raw_text(item.id) or None, ts_event, recv, bid, ask, flags)

    def _quote(self, item: Any, symbol: str, recv: int) -> Quote:
        bid, ask = (canonical(text) if (text := raw_text(raw)) else None for raw in (item.bid, item.ask))
        bid_size, ask_size = (canonical_size(text) if (text := raw_text(raw)) else None for raw in (item.bid_size, item.ask_size))
        ts_event = _time(item.time, recv)
        self.tops[symbol] = (bid, ask)
        return Quote(symbol, bid, bid_size, ask, ask_size, ts_event, recv, self.flags(ts_event, recv))

    def _other(self, outer: Any) -> None:
        """Welcome messages, acknowledgements and the like; an `error` is told."""
        if outer.error:
            text = bytes(outer.error).decode(errors="replace")
            self.notices.append(Refused(f"the vendor answers {text[:200]}", fatal=False, wait=Duration(5 * SECOND)))
        else:
            self.notices.append(Ignored())

    def _unreadable(self, frame: bytes, error: Exception) -> None:
        try:
            loose = msgspec.json.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.reject("garbage", error)
            return
        self.notices.append(Ignored() if not isinstance(loose, dict) else Rejected("field", str(error)[:200]))


def _frame_decoder(names: dict[str, str]) -> Callable[[bytes], Any]:
    """A typed decoder for the vendor's field names; unknown fields are skipped, wanted ones kept as raw JSON."""

    def struct(name: str, *fields: str) -> Any:
        return msgspec.defstruct(name, [(ours, msgspec.Raw, msgspec.field(name=names[ours], default=ABSENT)) for ours in fields], gc=False)

    trade = struct("JsonTrade", "symbol", "price", "volume", "time", "side", "id")
    quote = struct("JsonQuote", "symbol", "bid", "bid_size", "ask", "ask_size", "time")
    frame = msgspec.defstruct(
        "JsonFrame",
        [
            ("trades", list[trade] | None, msgspec.field(name=names["trades"], default=None)),  # type: ignore[valid-type]
            ("quotes", list[quote] | None, msgspec.field(name=names["quotes"], default=None)),  # type: ignore[valid-type]
            ("error", msgspec.Raw, msgspec.field(default=ABSENT)),
        ],
    )
    return msgspec.json.Decoder(frame).decode


def _time(raw: msgspec.Raw, recv: int) -> int:
    """Number or text, whole or with a fraction, or ISO 8601 -> ns; ours where the vendor sends none."""
    text = raw_text(raw).strip()
    if not text:
        return recv
    if text.isascii() and text.isdigit() and len(text) <= 19:
        return epoch_ns(int(text))
    try:
        value = Decimal(canonical(text))
    except ValueError:
        return iso_ns(text)
    if value < 0:
        raise ValueError(f"time {text[:40]}")
    whole = int(value)
    unit = epoch_ns(whole) // whole if whole else SECOND
    return int(value * unit)


class Json(Feed):
    default_url: ClassVar[str] = "ws://127.0.0.1:8765"
    acknowledged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._names = field_names(self.setup.json_fields)

    def subscribe(self) -> list[str]:
        request: dict[str, object] = {"action": "subscribe", "symbols": list(self.setup.symbols.vendor.values())}
        if "quote" in self.setup.kinds:
            request["quotes"] = True
        return [msgspec.json.encode(request).decode()]

    def mapper(self, tolerance: Duration) -> JsonMapper:
        return JsonMapper(self.setup.symbols, tolerance, self._names)
