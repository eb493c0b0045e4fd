"""Ledgers of a healthy run, made by hand: for the tests of the checker."""

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from faults.bars import undisturbed
from faults.checker import METRICS, facts
from faults.ledgers import FEED, Entry, Ledgers, Sent
from tickbus.protocol.codec import FIELDS, NIL, Head, encode
from tickbus.protocol.messages import Gap, GapKind, Message, Quote, Side, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import MILLISECOND, SECOND

SYMBOL = "A-USDT"
TRADES, QUOTES = (Stream(kind, FEED, SYMBOL).name for kind in ("trade", "quote"))
SPEC = "time:1s"
BARS = Stream("bar", FEED, SYMBOL, SPEC).name
GRACE, HORIZON = SECOND, 60 * SECOND
BASE_MS = 1_700_000_000_000
STEP_MS = 100


def at_ms(number: int) -> int:
    return BASE_MS + number * STEP_MS


def trade(number: int) -> Trade:
    """Return trade `number`; its id is that number."""
    at = at_ms(number) * MILLISECOND
    return Trade(SYMBOL, f"{100 + number}.5", "2", Side.BUY, str(number), at, at + 1)


def quote(number: int) -> Quote:
    at = at_ms(number) * MILLISECOND + 2
    return Quote(SYMBOL, f"{number}.1", "1", f"{number}.2", "3", at, at)


def sent(number: int, kind: str, **changes: Any) -> Sent:
    values = (
        (f"{100 + number}.5", "2", "buy") if kind == "trade" else (f"{number}.1", "1", f"{number}.2", "3")
    )
    at = at_ms(number) * MILLISECOND
    return replace(
        Sent(2 * number + (kind == "quote"), kind, SYMBOL, number, values, at, at, True, None), **changes
    )


def hole(first: int, last: int, **changes: Any) -> Gap:
    """Return the Gap for trades `first` to `last`."""
    count = last - first + 1
    from_ts, to_ts = at_ms(first - 1) * MILLISECOND, at_ms(last + 1) * MILLISECOND
    gap = Gap(
        StreamKind.TRADE,
        "gateway",
        GapKind.DISCONNECT,
        from_ts,
        to_ts,
        str(first),
        str(last),
        count,
        symbol=SYMBOL,
    )
    return msgspec.structs.replace(gap, **changes)


def quote_hole(first: int, last: int) -> Gap:
    return hole(first, last, stream=StreamKind.QUOTE, from_id=None, to_id=None, count=None)


def stream(*messages: Message) -> list[Entry]:
    """Return entries with dense counters at the receive time of the tick; a Gap has that of the next tick."""
    entries: list[Entry] = []
    for number, message in enumerate(messages, 1):
        after = next((tick for tick in messages[number - 1 :] if isinstance(tick, Trade | Quote)), None)
        ms = after.ts_recv // MILLISECOND if after else entries[-1].id.ms
        entries.append(Entry(StreamId(ms, number), message, zlib.crc32(encode(message))))
    return entries


def ledgers_of(lines: list[Sent], published: dict[str, list[Entry]]) -> Ledgers:
    """Return all ledgers as they must be if `lines` were sent and `published` is in the streams."""
    published = dict(published)
    emitted = undisturbed(SYMBOL, published[TRADES], SPEC, GRACE, HORIZON)
    published[BARS] = [
        Entry(StreamId(ms, seq), bar, zlib.crc32(encode(bar))) for seq, (ms, bar) in enumerate(emitted, 1)
    ]
    ledgers = Ledgers(lines, published)
    kinds: Counter[str] = Counter()
    repaired = missing = 0
    for name, entries in published.items():
        gaps = [entry.message for entry in entries if isinstance(entry.message, Gap)]
        by_kind = Counter(gap.kind.name.lower() for gap in gaps if not gap.repaired)
        counted = sum((gap.count or 0) * (-1 if gap.repaired else 1) for gap in gaps)
        repairs = sum(gap.repaired for gap in gaps)
        ledgers.heads[name] = Head(
            str(entries[-1].id), None, 0, NIL, gaps=dict(by_kind), repaired=repairs, missing=counted
        )
        kinds, repaired, missing = kinds + by_kind, repaired + repairs, missing + counted + repairs
    ledgers.metrics = dict(
        zip(
            METRICS,
            (dict(map(_float, kinds.items())), {"": float(repaired)}, {"": float(missing)}),
            strict=True,
        )
    )
    ledgers.delivered = [
        [name, str(entry.id), FIELDS[type(entry.message)].decode(), entry.crc]
        for name, entries in published.items()
        for entry in entries
    ]
    ledgers.recorded = [
        (name, entry.id.ms, entry.id.seq, 1, _texts(facts(entry.message)))
        for name, entries in published.items()
        for entry in entries
    ]
    return ledgers


def _texts(values: Iterable[object]) -> tuple[str | None, ...]:
    return tuple(None if value is None else str(value) for value in values)


def _float(item: tuple[str, int]) -> tuple[str, float]:
    return item[0], float(item[1])


def healthy(missing: range = range(0)) -> Ledgers:
    """Return a run of thirty trades and quotes; those in `missing` were lost, and reported."""
    numbers = range(1, 31)
    trades: list[Message] = [trade(number) for number in numbers if number not in missing]
    quotes: list[Message] = [quote(number) for number in numbers if number not in missing]
    if missing:
        trades.insert(missing[0] - 1, hole(missing[0], missing[-1]))
        quotes.insert(missing[0] - 1, quote_hole(missing[0], missing[-1]))
    lines = [sent(number, kind) for number in numbers for kind in ("trade", "quote")]
    return ledgers_of(lines, {TRADES: stream(*trades), QUOTES: stream(*quotes)})
