"""Turns the rows of a commit into its files: one per kind and UTC day, complete in memory. Pure."""

from collections.abc import Iterable, Iterator, Sequence
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
from tickbus.units import DAY, MILLISECOND
from tickbus.version import VERSION

MAX_DAYS = 16
"""Days of one kind that a commit of a shard writes: wrong times must not open thousands of files at once."""
_CALENDAR = range(-(1 << 63) // DAY, (1 << 63) // DAY + 1)
_LAST_TIME = (1 << 63) - 1
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


@dataclass(frozen=True)
class Pending:
    """What one commit writes."""

    files: list[PendingFile]
    quarantined: list[QuarantinedEntry]
    """Entries in the quarantine file."""
    taken: list[Rows]
    """The rows in these files: all, or of each stream the first ones."""
    is_cut: bool
    """Whether rows were left for the next commit, because they are of too many days."""


def pending_files(streams: Sequence[Rows], shard: str, number: int) -> Pending:
    """Return what commit `number` writes of these rows: at most MAX_DAYS days of each kind."""
    stem = f"s{shard}-{number:08d}"
    about = {"tickbus.version": VERSION, "tickbus.shard": shard, "tickbus.number": str(number)}
    builders: dict[tuple[str, int], ParquetBuilder] = {}
    quarantined: list[QuarantinedEntry] = []
    taken: list[Rows] = []
    days = _Days()
    for rows in streams:
        used = 0
        for start in range(0, len(rows.payloads), BATCH):
            part = rows.slice(start, start + BATCH)
            batches, count = _take(part, days, quarantined)
            for batch in batches:
                builder = builders.get((batch.kind.name, batch.day))
                if builder is None:
                    builder = builders[batch.kind.name, batch.day] = ParquetBuilder(
                        batch.kind, about | {"tickbus.kind": batch.kind.name}
                    )
                builder.add(batch.stream, batch.ids, batch.messages)
            used += count
            if count < len(part.payloads):
                break
        if used:
            taken.append(rows.slice(0, used))
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
    is_cut = sum(len(rows.payloads) for rows in taken) < sum(len(rows.payloads) for rows in streams)
    return Pending(pending, quarantined, taken, is_cut)


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


class _Days:
    """The days of each kind that a commit writes."""

    def __init__(self) -> None:
        self._open: dict[str, set[int]] = {}

    def admit(self, keys: Iterable[tuple[str, int]]) -> bool:
        """Open these days as well, unless that makes too many. Return whether they are open."""
        wanted: dict[str, set[int]] = {}
        for kind, day in keys:
            if day in _CALENDAR:  # else there will be no file
                wanted.setdefault(kind, set(self._open.get(kind, ()))).add(day)
        if any(len(days) > MAX_DAYS for days in wanted.values()):
            return False
        self._open |= wanted
        return True


def _take(part: Rows, days: _Days, quarantined: list[QuarantinedEntry]) -> tuple[list[_Batch], int]:
    """Return rows from the start of this part, as many as the days permit, and their number."""
    unreadable: list[QuarantinedEntry] = []
    batches = list(_batches(part, unreadable))
    if days.admit((batch.kind.name, batch.day) for batch in batches):
        quarantined += unreadable
        return batches, len(part.payloads)
    # rare, so it may be slow: one by one up to the first row of a day too many
    count = 0
    for row in range(len(part.payloads)):
        if not days.admit((batch.kind.name, batch.day) for batch in _batches(part.slice(row, row + 1), [])):
            break
        count += 1
    return (list(_batches(part.slice(0, count), quarantined)) if count else []), count


def _batches(part: Rows, quarantined: list[QuarantinedEntry]) -> Iterator[_Batch]:
    stream, ids, mask, payloads = part
    kind = KINDS[stream.kind]
    if not any(mask):
        yield from _days(kind, stream, ids, payloads, quarantined)
        return
    for type, as_kind in ((RowType.TICK, kind), (RowType.GAP, GAP)):
        chosen = [mark == type for mark in mask]
        yield from _days(as_kind, stream, ids.where(chosen), list(compress(payloads, chosen)), quarantined)
    quarantined += [
        _unknown(stream, ids.id(row), ids.epoch[row], payloads[row])
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
    if kind.may_lack_time:
        times = [time or min(ms * MILLISECOND, _LAST_TIME) for time, ms in zip(times, ids.ms, strict=True)]
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
