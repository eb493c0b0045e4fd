"""From the rows of a commit to the files of that commit: one per kind and UTC day, complete in memory. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from typing import NamedTuple

import msgspec

from services.archive.schema import GAP, KINDS, Kind, Unrepresentable
from services.recorder import quarantine as aside
from services.recorder.buffer import Rows
from services.recorder.parquet_writer import BATCH, ParquetBuilder, Row, day_name
from services.recorder.row_ids import Entries
from tickbus.errors import WireError
from tickbus.protocol.codec import DECODE, TICK_FIELD, decode
from tickbus.protocol.messages import Message
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY
from tickbus.version import VERSION

ASIDE = "aside"
"""Kind of the file of messages that no row can hold."""


@dataclass(frozen=True)
class PendingFile:
    """A file that is to be written."""

    kind: str
    name: str
    """Relative to the data folder."""
    data: memoryview
    rows: int
    streams: dict[str, tuple[StreamId, StreamId]]
    """Name of each stream in the file -> its first and last ID there."""


def pending_files(cuts: Sequence[Rows], shard: str, number: int) -> tuple[list[PendingFile], list[Row]]:
    """The files of commit `number` -> them, and the rows that are not in the Parquet files but in the one of kind aside."""
    stem = f"s{shard}-{number:08d}"
    about = {"tickbus.version": VERSION, "tickbus.shard": shard, "tickbus.number": str(number)}
    builders: dict[tuple[str, int], ParquetBuilder] = {}
    unfit: list[Row] = []
    for batch in _batches(cuts, unfit):
        builder = builders.get((batch.kind.name, batch.day))
        if builder is None:
            builder = builders[batch.kind.name, batch.day] = ParquetBuilder(
                batch.kind, about | {"tickbus.kind": batch.kind.name}
            )
        builder.add(batch.stream, batch.entries, batch.messages)
    made: list[PendingFile] = []
    for (kind_name, day), builder in builders.items():
        data = builder.finish()
        unfit += builder.unfit
        # a day that no calendar has, from a time beyond 64 bits, never gets here: none of its rows fit
        if builder.rows:
            made.append(
                PendingFile(
                    kind_name,
                    f"{kind_name}/date={day_name(day)}/{stem}.parquet",
                    data,
                    builder.rows,
                    builder.streams,
                )
            )
    if unfit:
        made.append(_aside(unfit, stem))
    return made, unfit


def _aside(rows: list[Row], stem: str) -> PendingFile:
    rows.sort(key=lambda row: (row.stream, row.id))
    streams = {}
    for stream, group in groupby(rows, key=lambda row: row.stream):
        ids = [row.id for row in group]
        streams[stream.name] = (ids[0], ids[-1])
    return PendingFile(ASIDE, f"_aside/{stem}.jsonl", memoryview(aside.lines(rows)), len(rows), streams)


class _Batch(NamedTuple):
    """Decoded rows of one stream, kind and day, in stream order."""

    kind: Kind
    day: int
    """Since the epoch."""
    stream: Stream
    entries: Entries
    messages: list[Message]


def _batches(cuts: Sequence[Rows], unreadable: list[Row]) -> Iterator[_Batch]:
    for stream, entries, gaps, payloads in cuts:
        for start in range(0, len(payloads), BATCH):
            end = start + BATCH
            part, mask, bodies = entries.part(start, end), gaps[start:end], payloads[start:end]
            kind = KINDS[stream.kind]
            if not any(mask):
                yield from _days(kind, stream, part, bodies, unreadable)
                continue
            ticks = [not gap for gap in mask]
            yield from _days(kind, stream, part.where(ticks), list(compress(bodies, ticks)), unreadable)
            yield from _days(GAP, stream, part.where(mask), list(compress(bodies, mask)), unreadable)


def _days(
    kind: Kind, stream: Stream, entries: Entries, payloads: list[bytes], unreadable: list[Row]
) -> Iterator[_Batch]:
    entries, messages = _decode(kind, stream, entries, payloads, unreadable)
    times = list(map(kind.day_of, messages))
    if times and min(times) // DAY == max(times) // DAY:
        yield _Batch(kind, times[0] // DAY, stream, entries, messages)
        return
    days = [time // DAY for time in times]
    for day in sorted(set(days)):
        mine = [other == day for other in days]
        yield _Batch(kind, day, stream, entries.where(mine), list(compress(messages, mine)))


def _decode(
    kind: Kind, stream: Stream, entries: Entries, payloads: list[bytes], unreadable: list[Row]
) -> tuple[Entries, list[Message]]:
    """The messages, and the entries that they belong to. A payload that is no message of this kind goes to `unreadable`."""
    field = b"g" if kind is GAP else TICK_FIELD[kind.name]
    decode_one = DECODE[field]
    try:
        return entries, [decode_one(payload) for payload in payloads]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    # rare, so it may cost: once more, one by one
    messages, readable = [], []
    for number, payload in enumerate(payloads):
        try:
            messages.append(decode(field, payload))
            readable.append(True)
        except WireError as error:
            readable.append(False)
            id, epoch = entries.id(number), entries.epoch[number]
            unreadable.append(
                Row(stream, id, epoch, field, payload, None, Unrepresentable("unreadable", str(error)))
            )
    return entries.where(readable), messages
