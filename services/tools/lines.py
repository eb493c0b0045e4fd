"""One message as one line: for programs as JSON, for people aligned. Pure."""

from collections.abc import Callable
from typing import Any

import msgspec

from tickbus.protocol.messages import Bar, Flag, Gap, Message, Quote, Side, Signal, Trade, as_json
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import MILLISECOND, SECOND, format_time

_encode = msgspec.json.Encoder().encode
_GREEN, _RED, _YELLOW, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
_SIDES = {Side.BUY: ("buy", _GREEN), Side.SELL: ("sell", _RED), Side.UNKNOWN: ("-", "")}


def json_line(stream: Stream, id: StreamId, message: Message) -> str:
    """`type`, `stream`, `feed`, `id`, then the message's own fields."""
    row: dict[str, object] = {
        "type": type(message).__name__.lower(),
        "stream": stream.name,
        "feed": stream.feed,
        "id": str(id),
    }
    # a Gap's own `stream` is the first word of the stream's name, which stays
    return _encode(
        {**row, **{name: value for name, value in as_json(message).items() if name != "stream"}}
    ).decode()


def human_line(stream: Stream, id: StreamId, message: Message, colour: bool = False) -> str:
    """Time of the event (UTC), feed, symbol, type, then what the type has."""
    words, paint = _WORDS[type(message)](message)
    start = f"{readable(_time(message, id))}  {stream.feed:10} {message.symbol:12} {type(message).__name__.lower():6} "
    return f"{start}{paint}{words}{_PLAIN}" if colour and paint else f"{start}{words}"


def readable(ns: int) -> str:
    """`2024-08-09 13:30:00.123456`: to the microsecond, which every vendor's clock fits in."""
    return format_time(ns)[:26].replace("T", " ")


def _time(message: Message, id: StreamId) -> int:
    if isinstance(message, Bar):
        return message.start
    if isinstance(message, Gap):
        return message.from_ts
    return message.ts_event or id.ms * MILLISECOND


def _trade(trade: Trade) -> tuple[str, str]:
    side, paint = _SIDES[Side(trade.side)]
    number = f"#{trade.trade_id}" if trade.trade_id else ""
    return (
        f"{trade.price_text:>14} {trade.size_text:>14} {side:4} {number:14} {_flags(trade.flags)}".rstrip(),
        paint,
    )


def _quote(quote: Quote) -> tuple[str, str]:
    bid, ask = (f"{price or '-':>14}" for price in (quote.bid_text, quote.ask_text))
    return (
        f"{quote.bid_size_text or '-':>14} {bid} |{ask} {quote.ask_size_text or '-':>14} {_flags(quote.flags)}".rstrip(),
        "",
    )


def _bar(bar: Bar) -> tuple[str, str]:
    prices = " ".join(
        f"{name} {text:>12}"
        for name, text in zip(
            "OHLC", (bar.open_text, bar.high_text, bar.low_text, bar.close_text), strict=True
        )
    )
    revision = f"revision {bar.revision} " if bar.revision else ""
    paint = _GREEN if bar.close > bar.open else _RED if bar.close < bar.open else ""
    return (
        f"{bar.spec:9} {prices} V {bar.volume_text:>12} n {bar.trades:<5} {revision}{','.join(bar.quality)}".rstrip(),
        paint,
    )


def _gap(gap: Gap) -> tuple[str, str]:
    count = "an unknown number of" if gap.count is None else str(gap.count)
    ids = f" (ids {gap.from_id} to {gap.to_id})" if gap.from_id is not None else ""
    span = (gap.to_ts - gap.from_ts) / SECOND
    what = "were missing and are here now" if gap.repaired else "missing"
    return (
        f"{gap.kind.name.lower()}: {count} {gap.stream.name.lower()}s {what}{ids} in {span:.3f} s, told by {gap.source}",
        _YELLOW,
    )


def _signal(signal: Signal) -> tuple[str, str]:
    return (
        f"{signal.name} {signal.value_text} (threshold {signal.threshold_text}, window {signal.window}) {signal.message}".rstrip(),
        _YELLOW,
    )


def _flags(flags: int) -> str:
    return ",".join(flag.name.lower() for flag in Flag if flag.name and flags & flag)


_WORDS: dict[type[Message], Callable[[Any], tuple[str, str]]] = {
    Trade: _trade,
    Quote: _quote,
    Bar: _bar,
    Gap: _gap,
    Signal: _signal,
}
