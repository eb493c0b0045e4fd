"""One message as one line: JSON for programs, aligned text for people. Pure."""

from collections.abc import Callable
from typing import Any

from tickbus.protocol.json_form import flag_names, json_object
from tickbus.protocol.messages import Bar, Gap, Message, Quote, Side, Signal, SignalState, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.sanitize import clean, escape, json_safe
from tickbus.units import MILLISECOND, SECOND, format_time

_GREEN, _RED, _YELLOW, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
_MAX_DETAILS = 1000
_SIDES = {Side.BUY: ("buy", _GREEN), Side.SELL: ("sell", _RED), Side.UNKNOWN: ("-", "")}


def json_line(stream: Stream, id: StreamId, message: Message) -> str:
    """Return a JSON object: `type`, `stream`, `feed`, `id`, then the fields of the message."""
    return json_safe(json_object(stream, str(id), message).decode())


def human_line(stream: Stream, id: StreamId, message: Message, colour: bool = False) -> str:
    """Return the event time (UTC), feed, symbol, type, then the details of the type."""
    details, paint = _DETAILS[type(message)](message)
    type_name = type(message).__name__.lower()
    # whoever wrote the message also chose its texts
    prefix = escape(f"{readable(_time(message, id))}  {stream.feed:10} {message.symbol:12} {type_name:6} ")
    details = clean(details, _MAX_DETAILS)
    return f"{prefix}{paint}{details}{_PLAIN}" if colour and paint else f"{prefix}{details}"


def readable(ns: int) -> str:
    """Return `2024-08-09 13:30:00.123456`: microseconds, fine enough for the clock of every vendor."""
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
    text = f"{trade.price_text:>14} {trade.size_text:>14} {side:4} {number:14} {_flags(trade.flags)}"
    return text.rstrip(), paint


def _quote(quote: Quote) -> tuple[str, str]:
    bid, ask, bid_size, ask_size = (
        f"{text or '-':>14}"
        for text in (quote.bid_text, quote.ask_text, quote.bid_size_text, quote.ask_size_text)
    )
    return f"{bid_size} {bid} |{ask} {ask_size} {_flags(quote.flags)}".rstrip(), ""


def _bar(bar: Bar) -> tuple[str, str]:
    texts = (bar.open_text, bar.high_text, bar.low_text, bar.close_text)
    prices = " ".join(f"{name} {text:>12}" for name, text in zip("OHLC", texts, strict=True))
    revision = f"revision {bar.revision} " if bar.revision else ""
    paint = _GREEN if bar.close > bar.open else _RED if bar.close < bar.open else ""
    totals = f"V {bar.volume_text:>12} n {bar.trades:<5}"
    return f"{bar.spec:9} {prices} {totals} {revision}{','.join(bar.quality)}".rstrip(), paint


def _gap(gap: Gap) -> tuple[str, str]:
    count = "an unknown number of" if gap.count is None else str(gap.count)
    ids = f" (ids {gap.from_id} to {gap.to_id})" if gap.from_id is not None else ""
    span = (gap.to_ts - gap.from_ts) / SECOND
    ticks = f"{count} {gap.stream.name.lower()}s {'recovered' if gap.repaired else 'missing'}"
    return f"{gap.kind.name.lower()}: {ticks}{ids} in {span:.3f} s, reported by {gap.source}", _YELLOW


def _signal(signal: Signal) -> tuple[str, str]:
    limits = f"(threshold {signal.threshold_text}, window {signal.window})"
    state = "" if signal.state is SignalState.INDICATOR else f" {signal.state.name.lower()}"
    value = f"{signal.value_text} {signal.unit}".rstrip()
    text = f"{signal.name}{state} {value} {limits} {signal.message}".rstrip()
    return f"{text} {','.join(signal.quality)}".rstrip(), _YELLOW


def _flags(flags: int) -> str:
    return ",".join(flag_names(flags))


_DETAILS: dict[type[Message], Callable[[Any], tuple[str, str]]] = {
    Trade: _trade,
    Quote: _quote,
    Bar: _bar,
    Gap: _gap,
    Signal: _signal,
}
