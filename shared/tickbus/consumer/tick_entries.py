"""The entries of trade and quote streams in a gateway's canonical form, whoever wrote them.

A service that computes with numbers and times cannot take what some other program wrote as it is: an entry
that is none of ours, or whose numbers no gateway would store, becomes a Gap of kind `rejected` and is logged.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from tickbus.protocol.codec import DECODE
from tickbus.protocol.messages import Flag, Gap, GapKind, Quote, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reads import Read
from tickbus.units import MILLISECOND, canonical, canonical_size, in_64_bits

_LOGGED = 5
"""Entries of one stream that are logged when they cannot be read; the others are counted."""
_FUTURE = int(Flag.FUTURE_TIME)
_UNREADABLE = (msgspec.MsgspecError, KeyError, ValueError, TypeError, RecursionError)
"""What decoding raises for an entry that no gateway wrote."""

T = TypeVar("T", Trade, Quote)


class TickEntries:
    """Decodes reads, and says what it cannot take."""

    def __init__(self, service: str, log: logging.Logger, effect: str) -> None:
        """effect: what becomes of an entry that cannot be taken, for the log."""
        self._service = service
        self._log = log
        self._effect = effect
        self._unreadable: Counter[Stream] = Counter()

    @property
    def unreadable(self) -> int:
        """Number of entries that could not be taken."""
        return sum(self._unreadable.copy().values())

    def trades(self, read: Read) -> list[tuple[StreamId, Trade | Gap]]:
        """Return the entries of a trade stream."""
        return self._decoded(read, b"t", Trade)

    def quotes(self, read: Read) -> list[tuple[StreamId, Quote | Gap]]:
        """Return the entries of a quote stream."""
        return self._decoded(read, b"q", Quote)

    def _decoded(self, read: Read, tick_field: bytes, kind: type[T]) -> list[tuple[StreamId, T | Gap]]:
        entries: list[tuple[StreamId, T | Gap]] = []
        for id, fields in read.entries:
            at, message = StreamId.parse(id), None
            try:
                field, payload = fields
                if field not in (tick_field, b"g"):
                    raise KeyError(field)
                message = DECODE[field](payload)
                entries.append((at, canonical_tick(message)))
            except _UNREADABLE as error:
                self._note(read.stream, at, kind, error)
                entries.append((at, self._rejected(at, message, kind)))
        return entries

    def _note(self, stream: Stream, at: StreamId, kind: type[T], error: Exception) -> None:
        self._unreadable[stream] += 1
        if self._unreadable[stream] <= _LOGGED:
            more = "" if self._unreadable[stream] < _LOGGED else "; further ones are only counted"
            self._log.error(
                "%s %s: skipping entry, %s: not a %s or Gap that %s can take: %s%s",
                stream.name, at, self._effect, kind.__name__, self._service,
                error if str(error) else type(error).__name__, more,
            )  # fmt: skip

    def _rejected(self, at: StreamId, message: object, kind: type[T]) -> Gap:
        """Return an entry that cannot be taken as a hole, by the vendor's clock where it can be read."""
        ts = at.ms * MILLISECOND
        if isinstance(message, kind) and abs(message.ts_event) < 1 << 63:
            ts = message.ts_event
        stream = StreamKind.TRADE if kind is Trade else StreamKind.QUOTE
        return Gap(stream, self._service, GapKind.REJECTED, ts, ts, count=1)


def canonical_tick(message: Any) -> Any:
    """Return a message with digits without exponent and times in 64 bits. ValueError if that cannot be."""
    if isinstance(message, Gap):
        in_64_bits(message.from_ts)
        in_64_bits(message.to_ts)
        return message
    in_64_bits(message.ts_event)
    if isinstance(message, Quote):
        return _canonical_quote(message)
    if message.flags & _FUTURE:
        # it may become the watermark
        in_64_bits(message.ts_recv)
    price, size = canonical(message.price_text), canonical_size(message.size_text)
    return (
        message
        if (price, size) == (message.price_text, message.size_text)
        else msgspec.structs.replace(message, price_text=price, size_text=size)
    )


def _canonical_quote(quote: Quote) -> Quote:
    bid, ask = (None if text is None else canonical(text) for text in (quote.bid_text, quote.ask_text))
    return (
        quote
        if (bid, ask) == (quote.bid_text, quote.ask_text)
        else msgspec.structs.replace(quote, bid_text=bid, ask_text=ask)
    )


def at_event_time(gap: Gap, newest: int, read: Read) -> Gap:
    """Return a Gap with the range between the ticks around it: its IDs carry bus time, another clock.

    newest: the newest ts_event before it; 0 if there is none. read: what follows it.
    """
    after = next(filter(None, map(_event_time, read.entries)), 0)
    if newest and after:
        return msgspec.structs.replace(gap, from_ts=min(newest, after), to_ts=max(newest, after))
    return gap


def _event_time(entry: Sequence[Any]) -> int:
    """Return the ts_event of an entry; 0 if it is not a tick."""
    try:
        field, payload = entry[1]
        return in_64_bits(DECODE[field](payload).ts_event) if field in (b"t", b"q") else 0
    except _UNREADABLE:
        return 0
