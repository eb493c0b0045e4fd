"""The rows of one shard buffered in memory until their commit, by stream.

One thread may add while another commits: a commit reads the first n rows of each stream and removes them
once they are in the files. So a failed commit has nothing to undo, and a list only grows at one end
and shrinks at the other.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec

from services.archive.schema import GAP, KINDS
from services.recorder.row_ids import RowIds
from tickbus.protocol.names import START, Stream, StreamId

_ROW_OVERHEAD = 66
"""Bytes per buffered row beside its payload: ID, epoch, flag, the payload's header and list slot."""


class RowType(IntEnum):
    """What the payload of a row is."""

    TICK = 0
    """A message of the stream's own kind."""
    GAP = 1
    UNKNOWN = 2
    """Of a type that this version does not know: field and payload, packed."""


def pack_unknown(field: bytes, payload: bytes) -> bytes:
    """Return an entry of a type that this version does not know as the payload of a row."""
    return msgspec.msgpack.encode((field, payload))


def pack_fields(fields: Sequence[bytes]) -> bytes:
    """Return all fields and values of an entry that has not just one field, as one payload: an array."""
    return msgspec.msgpack.encode(fields)


def unpack_unknown(packed: bytes) -> tuple[bytes, bytes]:
    """Return the field and the payload of an UNKNOWN row."""
    return _decode_unknown(packed)


_decode_unknown = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode


def is_recorded(stream: Stream) -> bool:
    return stream.kind in KINDS and stream.kind != GAP.name


class Rows(NamedTuple):
    """Rows of one stream, IDs ascending: from one read, or for one commit."""

    stream: Stream
    ids: RowIds
    gaps: bytes
    """The RowType of each row."""
    payloads: list[bytes]
    """As on the bus: a third of the memory of messages, and decoding again costs less than a microsecond."""

    def slice(self, start: int, end: int) -> "Rows":
        return Rows(self.stream, self.ids.slice(start, end), self.gaps[start:end], self.payloads[start:end])


class Run(NamedTuple):
    """Rows that were new, and the row they follow."""

    before: StreamId
    """ID of the stream's row before these, in the files or in memory; 0-0 for its first ever."""
    rows: Rows


class _StreamBuffer:
    __slots__ = ("gaps", "ids", "last_id", "payloads", "stream")

    def __init__(self, stream: Stream, last_id: StreamId) -> None:
        self.stream = stream
        self.last_id = last_id
        self.ids = RowIds()
        self.gaps = bytearray()
        self.payloads: list[bytes] = []

    def first(self, rows: int) -> Rows:
        return Rows(self.stream, self.ids.slice(0, rows), bytes(self.gaps[:rows]), self.payloads[:rows])


class Buffer:
    def __init__(self, positions: Mapping[str, StreamId]) -> None:
        """`positions`: name of a stream -> its last ID in the files."""
        self.duplicates = 0
        """Rows dropped because they had been added before."""
        self._positions = positions
        self._streams: dict[Stream, _StreamBuffer] = {}
        # two counters each, so that no two threads write the same one
        self._added_rows = self._added_bytes = 0
        self._dropped_rows = self._dropped_bytes = 0

    @property
    def rows(self) -> int:
        return self._added_rows - self._dropped_rows

    @property
    def size(self) -> int:
        """Approximate bytes of memory."""
        return self._added_bytes - self._dropped_bytes

    def add(self, rows: Rows) -> Run | None:
        """Return the rows that are new; None if there are none. Duplicates are dropped and counted.

        ValueError for a stream of a kind that is not recorded.
        """
        buffer = self._streams.get(rows.stream) or self._create(rows.stream)
        before = buffer.last_id
        ids, gaps, payloads = rows[1:]
        if payloads and (ids.ms[0], ids.seq[0]) <= before:
            known = bisect_right(range(len(payloads)), before, key=ids.id)
            self.duplicates += known
            rows = rows.slice(known, len(payloads))
            ids, gaps, payloads = rows[1:]
        if not payloads:
            return None
        buffer.last_id = ids.id(-1)
        buffer.ids.extend(ids)
        buffer.gaps += gaps
        # last: `pending` goes by its length
        buffer.payloads += payloads
        self._added_rows += len(payloads)
        self._added_bytes += sum(map(len, payloads)) + _ROW_OVERHEAD * len(payloads)
        return Run(before, rows)

    def last_id(self, stream: Stream) -> StreamId:
        """Return the ID of the newest row, in the files or here."""
        buffer = self._streams.get(stream)
        return buffer.last_id if buffer else self._positions.get(stream.name, START)

    def last_ids(self) -> dict[str, StreamId]:
        """Return the newest ID of each stream that had rows here, by stream name."""
        return {stream.name: buffer.last_id for stream, buffer in self._streams.items()}

    def pending(self) -> list[Rows]:
        """Return the rows buffered now; streams by symbol, then feed, kind and spec."""
        pending = [
            buffer.first(rows) for buffer in list(self._streams.values()) if (rows := len(buffer.payloads))
        ]
        return sorted(
            pending,
            key=lambda rows: (rows.stream.symbol, rows.stream.feed, rows.stream.kind, rows.stream.spec),
        )

    def drop(self, committed: list[Rows]) -> None:
        """Forget these rows: they are in the files."""
        for part in committed:
            buffer = self._streams[part.stream]
            rows = len(part.payloads)
            del buffer.payloads[:rows], buffer.gaps[:rows]
            buffer.ids.drop_first(rows)
            self._dropped_rows += rows
            self._dropped_bytes += sum(map(len, part.payloads)) + _ROW_OVERHEAD * rows

    def _create(self, stream: Stream) -> _StreamBuffer:
        if not is_recorded(stream):
            raise ValueError(f"{stream.name}: streams of kind {stream.kind} are not recorded")
        buffer = self._streams[stream] = _StreamBuffer(stream, self._positions.get(stream.name, START))
        return buffer
