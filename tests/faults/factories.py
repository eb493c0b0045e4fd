"""Ledgers of a run in which all is well, made by hand: for the tests of the checker."""

import zlib
from collections import Counter
from dataclasses import replace

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
    """Trade `number`, which is also its id."""
    at = at_ms(number) * MILLISECOND
    return Trade(SYMBOL, f"{100 + number}.5", "2", Side.BUY, str(number), at, at + 1)


def quote(number: int) -> Quote:
    at = at_ms(number) * MILLISECOND + 2
    return Quote(SYMBOL, f"{number}.1", "1", f"{number}.2", "3", at, at)


def sent(number: int, kind: str, **changes: object) -> Sent:
    values = (
        (f"{100 + number}.5", "2", "buy") if kind == "trade" else (f"{number}.1", "1", f"{number}.2", "3")
    )
    at = at_ms(number) * MILLISECOND
    return replace(
        Sent(2 * number + (kind == "quote"), kind, SYMBOL, number, values, at, at, True, None), **changes
    )


def hole(first: int, last: int, **changes: object) -> Gap:
    """The Gap for the trades first to last."""
    count = last - first + 1
    gap = Gap(
        StreamKind.TRADE, "gateway", GapKind.DISCONNECT, at_ms(first - 1) * MILLISECOND, at_ms(last + 1) * MILLISECOND,
        str(first), str(last), count, symbol=SYMBOL,
    )  # fmt: skip
    return msgspec.structs.replace(gap, **changes)


def quote_hole(first: int, last: int) -> Gap:
    return hole(first, last, stream=StreamKind.QUOTE, from_id=None, to_id=None, count=None)


def stream(*messages: Message) -> list[Entry]:
    """Entries with dense counters, at the receive time of their ticks; a Gap at that of the tick after it."""
    entries: list[Entry] = []
    for number, message in enumerate(messages, 1):
        after = next((tick for tick in messages[number - 1 :] if isinstance(tick, Trade | Quote)), None)
        ms = after.ts_recv // MILLISECOND if after else entries[-1].id.ms
        entries.append(Entry(StreamId(ms, number), message, zlib.crc32(encode(message))))
    return entries


def books(lines: list[Sent], published: dict[str, list[Entry]]) -> Ledgers:
    """All other ledgers as they must be if this was sent and that is in the streams."""
    published = dict(published)
    emitted = undisturbed(SYMBOL, published[TRADES], SPEC, GRACE, HORIZON)
    published[BARS] = [
        Entry(StreamId(ms, seq), bar, zlib.crc32(encode(bar))) for seq, (ms, bar) in enumerate(emitted, 1)
    ]
    made = Ledgers(lines, published)
    kinds: Counter[str] = Counter()
    repaired = missing = 0
    for name, entries in published.items():
        gaps = [entry.message for entry in entries if isinstance(entry.message, Gap)]
        of_stream = Counter(gap.kind.name.lower() for gap in gaps if not gap.repaired)
        counted = sum((gap.count or 0) * (-1 if gap.repaired else 1) for gap in gaps)
        mended = sum(gap.repaired for gap in gaps)
        made.heads[name] = Head(
            str(entries[-1].id), None, 0, NIL, gaps=dict(of_stream), repaired=mended, missing=counted
        )
        kinds, repaired, missing = kinds + of_stream, repaired + mended, missing + counted + mended
    made.metrics = dict(
        zip(
            METRICS,
            (dict(map(_float, kinds.items())), {"": float(repaired)}, {"": float(missing)}),
            strict=True,
        )
    )
    made.delivered = [
        [name, str(entry.id), FIELDS[type(entry.message)].decode(), entry.crc]
        for name, entries in published.items()
        for entry in entries
    ]
    made.recorded = [
        (name, entry.id.ms, entry.id.seq, 1, tuple(None if fact is None else str(fact) for fact in facts(entry.message)))
        for name, entries in published.items() for entry in entries
    ]  # fmt: skip
    return made


def _float(item: tuple[str, int]) -> tuple[str, float]:
    return item[0], float(item[1])


def well(missing: range = range(0)) -> Ledgers:
    """Thirty trades and quotes; those of `missing` were lost, and told."""
    numbers = range(1, 31)
    trades: list[Message] = [trade(number) for number in numbers if number not in missing]
    quotes: list[Message] = [quote(number) for number in numbers if number not in missing]
    if missing:
        trades.insert(missing[0] - 1, hole(missing[0], missing[-1]))
        quotes.insert(missing[0] - 1, quote_hole(missing[0], missing[-1]))
    lines = [sent(number, kind) for number in numbers for kind in ("trade", "quote")]
    return books(lines, {TRADES: stream(*trades), QUOTES: stream(*quotes)})
