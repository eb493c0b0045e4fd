"""Turns the rows of a commit into its files: one per kind and UTC day, complete in memory. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from typing import NamedTuple

import msgspec

from services.archive.schema import GAP, KINDS, Kind, Unrepresentable
from services.recorder import quarantine
from services.recorder.buffer import Rows, RowType, unpack_unknown
from services.recorder.parquet_writer import BATCH, ParquetBuilder, QuarantinedEntry, day_name
from services.recorder.row_ids import RowIds
from tickbus.errors import WireError
from tickbus.protocol.codec import DECODE, TICK_FIELD, decode
from tickbus.protocol.messages import Message
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY
from tickbus.version import VERSION

QUARANTINE = "aside"
"""Kind of the file of messages that do not fit their columns."""


@dataclass(frozen=True)
class PendingFile:
    """A file to be written."""

    kind: str
    name: str
    """Relative to the data folder."""
    data: memoryview
    rows: int
    streams: dict[str, tuple[StreamId, StreamId]]
    """Name of each stream in the file -> its first and last ID there."""


def pending_files(
    streams: Sequence[Rows], shard: str, number: int
) -> tuple[list[PendingFile], list[QuarantinedEntry]]:
    """Return the files of commit `number`, and the entries that went to its quarantine file."""
    stem = f"s{shard}-{number:08d}"
    about = {"tickbus.version": VERSION, "tickbus.shard": shard, "tickbus.number": str(number)}
    builders: dict[tuple[str, int], ParquetBuilder] = {}
    quarantined: list[QuarantinedEntry] = []
    for batch in _batches(streams, quarantined):
        builder = builders.get((batch.kind.name, batch.day))
        if builder is None:
            builder = builders[batch.kind.name, batch.day] = ParquetBuilder(
                batch.kind, about | {"tickbus.kind": batch.kind.name}
            )
        builder.add(batch.stream, batch.ids, batch.messages)
    pending: list[PendingFile] = []
    for (kind_name, day), builder in builders.items():
        data = builder.finish()
        quarantined += builder.quarantined
        # a day outside the calendar, from a time beyond 64 bits, never gets here: none of its rows fit
        if builder.rows:
            pending.append(
                PendingFile(
                    kind_name,
                    f"{kind_name}/date={day_name(day)}/{stem}.parquet",
                    data,
                    builder.rows,
                    builder.streams,
                )
            )
    if quarantined:
        pending.append(_quarantine_file(quarantined, stem))
    return pending, quarantined


def _quarantine_file(entries: list[QuarantinedEntry], stem: str) -> PendingFile:
    entries.sort(key=lambda entry: (entry.stream, entry.id))
    streams = {}
    for stream, group in groupby(entries, key=lambda entry: entry.stream):
        ids = [entry.id for entry in group]
        streams[stream.name] = (ids[0], ids[-1])
    data = memoryview(quarantine.lines(entries))
    return PendingFile(QUARANTINE, f"_aside/{stem}.jsonl", data, len(entries), streams)


class _Batch(NamedTuple):
    """Decoded rows of one stream, kind and day, in stream order."""

    kind: Kind
    day: int
    """Since the epoch."""
    stream: Stream
    ids: RowIds
    messages: list[Message]


def _batches(streams: Sequence[Rows], quarantined: list[QuarantinedEntry]) -> Iterator[_Batch]:
    for stream, ids, gaps, payloads in streams:
        for start in range(0, len(payloads), BATCH):
            end = start + BATCH
            part, mask, bodies = ids.slice(start, end), gaps[start:end], payloads[start:end]
            kind = KINDS[stream.kind]
            if not any(mask):
                yield from _days(kind, stream, part, bodies, quarantined)
                continue
            for type, as_kind in ((RowType.TICK, kind), (RowType.GAP, GAP)):
                chosen = [mark == type for mark in mask]
                yield from _days(
                    as_kind, stream, part.where(chosen), list(compress(bodies, chosen)), quarantined
                )
            quarantined += [
                _unknown(stream, part.id(row), part.epoch[row], bodies[row])
                for row, mark in enumerate(mask)
                if mark == RowType.UNKNOWN
            ]


def _unknown(stream: Stream, id: StreamId, epoch: int, packed: bytes) -> QuarantinedEntry:
    field, payload = unpack_unknown(packed)
    reason = Unrepresentable("unreadable", f"unknown field {field!r}, from a newer writer")
    return QuarantinedEntry(stream, id, epoch, field, payload, None, reason)


def _days(
    kind: Kind, stream: Stream, ids: RowIds, payloads: list[bytes], quarantined: list[QuarantinedEntry]
) -> Iterator[_Batch]:
    ids, messages = _decode(kind, stream, ids, payloads, quarantined)
    times = list(map(kind.day_of, messages))
    if times and min(times) // DAY == max(times) // DAY:
        yield _Batch(kind, times[0] // DAY, stream, ids, messages)
        return
    days = [time // DAY for time in times]
    for day in sorted(set(days)):
        on_day = [other == day for other in days]
        yield _Batch(kind, day, stream, ids.where(on_day), list(compress(messages, on_day)))


def _decode(
    kind: Kind, stream: Stream, ids: RowIds, payloads: list[bytes], quarantined: list[QuarantinedEntry]
) -> tuple[RowIds, list[Message]]:
    """Return messages and IDs. A payload that is not a message of this kind goes to `quarantined`."""
    field = b"g" if kind is GAP else TICK_FIELD[kind.name]
    decode_one = DECODE[field]
    try:
        return ids, [decode_one(payload) for payload in payloads]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    # rare, so it may be slow: once more, one by one
    messages, readable = [], []
    for number, payload in enumerate(payloads):
        try:
            messages.append(decode(field, payload))
            readable.append(True)
        except WireError as error:
            readable.append(False)
            id, epoch = ids.id(number), ids.epoch[number]
            reason = Unrepresentable("unreadable", str(error))
            quarantined.append(QuarantinedEntry(stream, id, epoch, field, payload, None, reason))
    return ids.where(readable), messages
