"""The bytes of a spill segment. Pure.

    segment   `TICKBUS-SPILL-1\\n`, a record with its Header, then records of entries
    record    mark (4 bytes); four big-endian u32: length of the body, entries in it, crc32 of the body,
              crc32 of these three; body
    body      MessagePack [[stream name, ...],
              [[index of the name, ms, counter, field, payload, vendor id, receive time], ...]]

An intact record head says where the next record begins, so entries are counted without decoding them. The
mark begins with a byte that MessagePack never uses: behind damage, it shows whether more was written.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

import msgspec

from tickbus.errors import TickbusError
from tickbus.writer.entry import Entry, StreamWriter

MAGIC = b"TICKBUS-SPILL-1\n"
_MARK = b"\xc1tbs"
_HEAD = struct.Struct(">4sIIII")
HEAD_BYTES = _HEAD.size
_RECORD_ENTRIES = 4_096
_RECORD_BYTES = 4 << 20
"""Payload in one record, unless a single entry has more: a reader keeps a record in memory."""

Data = bytes | memoryview


class SpillError(TickbusError):
    """A spill that cannot be read, or that another process has locked."""


class Bus(NamedTuple):
    """Which bus a spill is for."""

    id: str = ""
    """Empty if no recorder has given it one."""
    address: str = ""
    """Where it is, without secrets, and its prefix; empty in spills of older versions."""

    def may_be(self, other: "Bus") -> bool:
        """Whether this can be the same bus: by the ids, or by the addresses where one has no id."""
        if self.id and other.id:
            return self.id == other.id
        return "" in (self.address, other.address) or self.address == other.address


class Owner(msgspec.Struct, array_like=True, frozen=True):
    """Whose entries are in a spill."""

    feed: str
    epoch: int
    holder: str
    """Token of the process that raised the fences to this epoch."""
    lane: str = ""
    """Which of several connections of one gateway; empty if there is only one."""
    bus: Bus = Bus()


class Header(msgspec.Struct, array_like=True, frozen=True):
    owner: Owner
    first: int
    """Entries appended before this segment: shows if one is missing, and how far the previous one counts."""


class Record(NamedTuple):
    entries: int
    start: int
    """Where its body begins."""
    end: int


class Survey(NamedTuple):
    """What a segment contains, up to the first byte that is not intact."""

    header: Header | None
    """None: not even the header can be read."""
    start: int
    """Where the first record of entries begins."""
    entries: int
    end: int
    damaged: bool
    """What is behind `end` is not a torn last record: more was written after it, or the format is another."""


_Body = tuple[list[str], list[tuple[int, int, int, bytes, bytes, int, int]]]
_encode = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(_Body).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode


def encode_header(header: Header) -> bytes:
    """Return the first bytes of a segment."""
    return MAGIC + _record(0, _encode(header))


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """Return the entries as one or more records."""
    return b"".join(_record(len(part), _encode_body(part)) for part in _parts(entries))


def _parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    for at in range(0, len(entries), _RECORD_ENTRIES):
        yield from _halved(entries[at : at + _RECORD_ENTRIES])


def _halved(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    if len(entries) > 1 and sum(len(entry.payload) for entry in entries) > _RECORD_BYTES:
        middle = len(entries) // 2
        yield from _halved(entries[:middle])
        yield from _halved(entries[middle:])
    else:
        yield entries


def _encode_body(entries: Sequence[Entry]) -> bytes:
    index: dict[StreamWriter, int] = {}
    number = index.setdefault
    rows = [
        (number(it.stream, len(index)), it.ms, it.seq, it.field, it.payload, it.vendor_id, it.recv)
        for it in entries
    ]
    return _encode(([stream.name for stream in index], rows))


def _record(entries: int, body: bytes) -> bytes:
    length, checksum = len(body), crc32(body)
    return _HEAD.pack(_MARK, length, entries, checksum, _head_checksum(length, entries, checksum)) + body


def _head_checksum(length: int, entries: int, checksum: int) -> int:
    return crc32(struct.pack(">III", length, entries, checksum))


def record_at(data: Data, offset: int) -> Record | None:
    """Return the complete, intact record that begins at `offset`; None if there is none."""
    start = offset + HEAD_BYTES
    if start > len(data):
        return None
    mark, length, entries, checksum, head_checksum = _HEAD.unpack_from(data, offset)
    end = start + length
    intact = mark == _MARK and head_checksum == _head_checksum(length, entries, checksum) and end <= len(data)
    return Record(entries, start, end) if intact and crc32(memoryview(data)[start:end]) == checksum else None


def body_length(head: bytes) -> int:
    """Return the body length of a record, given its first HEAD_BYTES. SpillError if they are damaged."""
    if len(head) == HEAD_BYTES:
        mark, length, entries, checksum, head_checksum = _HEAD.unpack(head)
        if mark == _MARK and head_checksum == _head_checksum(length, entries, checksum):
            return int(length)
    raise SpillError("not the beginning of a spill record")


def decode_entries(record: Data, resolve: Callable[[str], StreamWriter]) -> list[Entry]:
    """Return the entries of a record (head and body); `resolve` returns a stream by name.

    SpillError if the record is incomplete or damaged.
    """
    found = record_at(record, 0)
    if found is None or found.end != len(record):
        raise SpillError("spill record is damaged")
    try:
        names, rows = _decode_body(memoryview(record)[found.start :])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SpillError(f"spill record is not of this version: {error}") from None
    if len(rows) != found.entries or any(not 0 <= row[0] < len(names) for row in rows):
        raise SpillError("spill record is not of this version: its numbers do not agree")
    streams = [resolve(name) for name in names]
    return [Entry(streams[row[0]], *row[1:]) for row in rows]


def read_header(data: Data) -> tuple[Header, int]:
    """Return the header, and where the entries begin. SpillError if there is none of this version."""
    if data[: len(MAGIC)] != MAGIC:
        raise SpillError("not a spill segment of this version")
    record = record_at(data, len(MAGIC))
    if record is None:
        raise SpillError("segment header is damaged")
    try:
        return _decode_header(memoryview(data)[record.start : record.end]), record.end
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SpillError(f"segment header is not of this version: {error}") from None


def survey(data: bytes, until: int | None = None) -> Survey:
    """Check all of a segment.

    `until` is the `first` of the next segment: anything written beyond that count had failed.
    """
    try:
        header, start = read_header(data)
    except SpillError:
        started = len(data) < len(MAGIC) or data[: len(MAGIC)] == MAGIC or not any(data)
        return Survey(None, 0, 0, 0, not started or _has_record_behind(data, len(MAGIC)))
    entries, end = 0, start
    while until is None or header.first + entries < until:
        record = record_at(data, end)
        if record is None:
            break
        entries, end = entries + record.entries, record.end
    if until is not None:
        return Survey(header, start, entries, end, header.first + entries != until)
    return Survey(header, start, entries, end, _has_record_behind(data, end))


def _has_record_behind(data: bytes, offset: int) -> bool:
    """Whether an intact record begins anywhere behind `offset`."""
    at = data.find(_MARK, offset + 1)
    while at >= 0:
        if record_at(data, at) is not None:
            return True
        at = data.find(_MARK, at + 1)
    return False
