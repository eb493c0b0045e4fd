"""Heads that some other program overwrote, rebuilt from the entries of their streams before a writer starts.

A head and the entries it speaks of are stored together, so at rest its ID is the last one of its stream. If
it is not, either the head is not ours, or the newest entries of the stream are not, or a transaction was
stored without entries that Redis refused. Gaps, and the ticks that they report missing, are counted again
from the entries that are retained.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from tickbus.errors import WireError
from tickbus.protocol.codec import NIL, Head, decode
from tickbus.protocol.foreign import flatten, split
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, Quote, Trade
from tickbus.protocol.names import START, Keys, StreamId
from tickbus.redis.link import Connection
from tickbus.redis.registry import read_heads_of
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import EMPTY_HEAD, HeadBuilder, newest_tick
from tickbus.writer.lane import Ends, stream_ends_or_none
from tickbus.writer.quarantine import Fault, top_fault, type_fault

log = logging.getLogger("tickbus.publisher")

_PER_READ = 1_000
_MAX_AHEAD_MS = 300_000


class Repairs(NamedTuple):
    """What was found wrong with the streams of a writer."""

    heads: dict[StreamWriter, Head]
    """Heads to store instead of what `last` has."""
    faults: dict[StreamWriter, Fault]
    """Streams that take no entries until somebody mends them."""


async def find_repairs(
    link: Connection, keys: Keys, streams: Sequence[StreamWriter],
    has_ids: Callable[[StreamWriter], bool], now_ms: int,
) -> Repairs:  # fmt: skip
    """Compare the heads of these streams with their entries.

    has_ids: whether the ids of a stream's trades are contiguous numbers. now_ms: bus time.
    """
    heads = await read_heads_of(link, keys, [stream.stream for stream in streams])
    ends = await stream_ends_or_none(link, [stream.key for stream in streams])
    repairs = Repairs({}, {})
    for stream, end in zip(streams, ends, strict=True):
        stored = heads.get(stream.name)
        head = stored if stored is not None and _is_usable(stored, stream) else None
        id = START if head is None else StreamId.parse(head.id)
        if end is None:
            repairs.faults[stream] = type_fault(stream.key.decode(), "stream", id)
        elif id != end.last or (stored is not None and head is None):
            if id > end.last and (end.last > START or id.ms > now_ms + _MAX_AHEAD_MS):
                head = None
            if head is not None and id > end.last:
                continue  # the stream was deleted: it goes on behind what its head says
            await _repair(link, stream, head, stored is not None, end, repairs, has_ids(stream), now_ms)
    return repairs


def _is_usable(head: Head, stream: StreamWriter) -> bool:
    try:
        newest_tick(head, stream.stream.kind)
    except WireError:
        return False
    return True


async def _repair(
    link: Connection, stream: StreamWriter, head: Head | None, is_stored: bool, end: Ends, repairs: Repairs,
    has_ids: bool, now_ms: int,
) -> None:  # fmt: skip
    """`head`: None if it is not to be relied on; `is_stored`: whether there is one at all."""
    rebuilt = await _rebuild(link, stream, head or EMPTY_HEAD, has_ids, now_ms)
    id = StreamId.parse(rebuilt.id)
    if id == START and end.last.ms <= now_ms + _MAX_AHEAD_MS and end.first > end.last > START:
        # all entries were trimmed: only the counter is left
        rebuilt = Head(str(end.last), None, 0, NIL)
        id = end.last
    if end.last > id:
        repairs.faults[stream] = top_fault(stream.key.decode(), id, f"its last ID {end.last}")
    if (is_stored or id > START) and (head is None or head.id != rebuilt.id):
        repairs.heads[stream] = rebuilt
        log.error(
            "%s: its head did not fit its entries: some other program wrote one of them; rebuilt up to %s",
            stream.name,
            id,
        )


async def _rebuild(link: Connection, stream: StreamWriter, head: Head, has_ids: bool, now_ms: int) -> Head:
    """Return the head after all entries of ours that follow it."""
    builder = HeadBuilder(head)
    after = head.id
    while True:
        rows = await link.ask("XRANGE", stream.key, f"({after}", "+", "COUNT", _PER_READ)
        ours, _ = split(rows, builder.seq, stream.stream.kind)
        for id, (field, payload) in flatten(ours):
            at = StreamId.parse(id)
            if at.ms > now_ms + _MAX_AHEAD_MS:
                break
            message: Message | None = None
            with suppress(WireError):  # of a newer version: it counts all the same
                message = decode(field, payload)
            entry = _entry(builder, stream, at, field, payload, message, has_ids)
            if message is None:
                builder.advance(entry)
            else:
                builder.add(entry, message)
        if len(rows) < _PER_READ:
            return builder.build()
        after = rows[-1][0].decode()


def _entry(
    builder: HeadBuilder, stream: StreamWriter, id: StreamId, field: bytes, payload: bytes,
    message: Message | None, has_ids: bool,
) -> Entry:  # fmt: skip
    """Return a stored entry as its writer made it: with what it knew after it."""
    vendor_id, recv = builder.vendor_id, builder.ts_recv
    newest: str | None = None
    if isinstance(message, Gap):
        newest = message.to_id
        if message.kind is GapKind.RESET:
            vendor_id = -1
    elif isinstance(message, Trade | Quote):
        recv = message.ts_recv
        if isinstance(message, Trade) and not message.flags & Flag.LATE:
            newest = message.trade_id
    if has_ids and newest is not None and newest.isascii() and newest.isdecimal():
        vendor_id = max(vendor_id, int(newest))
    return Entry(stream, id.ms, id.seq, field, payload, vendor_id, recv)
