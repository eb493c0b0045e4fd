"""The records of a spool file: the rows of one round of reads each, after a length and a checksum. Pure.

    file    MAGIC, then records
    record  length u32, crc32 u32 of the body; the body: MessagePack, a list of _Run; integers little-endian

Each run of rows names the row before it. So a hole is detected, whatever its cause: rows after a hole are
not used, because their position would jump over rows that are still to be read.
"""

import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import msgspec

from services.recorder.buffer import Rows, Run, is_recorded
from services.recorder.row_ids import RowIds
from tickbus.protocol.names import Stream, StreamId

MAGIC = b"tbspool1"
_HEADER = struct.Struct("<II")
_INT64_BYTES = 8


class _Run(msgspec.Struct, array_like=True, frozen=True):
    """Rows of one stream."""

    stream: Stream
    before: StreamId
    ms: bytes
    """64 bits per row, like `seq` and `epoch`."""
    seq: bytes
    epoch: bytes
    gaps: bytes
    payloads: list[bytes]


class Damage(NamedTuple):
    """Bytes of a spool file that are not a record."""

    start: int
    reason: str


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(list[_Run]).decode


def pack(runs: Sequence[Run]) -> bytearray:
    """Return one record."""
    record = bytearray(_HEADER.size)
    # tuples in the order of _Run: this is on the reading path
    body = [
        (
            rows.stream,
            before,
            _to_bytes(rows.ids.ms),
            _to_bytes(rows.ids.seq),
            _to_bytes(rows.ids.epoch),
            rows.gaps,
            rows.payloads,
        )
        for before, rows in runs
    ]
    _encode_into(body, record, _HEADER.size)
    with memoryview(record) as view:
        _HEADER.pack_into(record, 0, len(record) - _HEADER.size, zlib.crc32(view[_HEADER.size :]))
    return record


def unpack(file: BinaryIO) -> Iterator[Run | Damage]:
    """Yield all that can be read, and a Damage for the rest, a truncated end too. Raises only OSError.

    A record with a wrong checksum is skipped. An impossible length ends it: the next record cannot be found.
    """
    magic = file.read(len(MAGIC))
    if not magic:
        return
    if magic != MAGIC:
        yield Damage(0, "truncated" if MAGIC.startswith(magic) else "not a spool file of this version")
        return
    start = len(MAGIC)
    while header := file.read(_HEADER.size):
        length, crc = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, 0)
        body = file.read(length)
        # a disk that lost power returns zeros: a length of 0
        if not length or len(body) < length:
            yield Damage(start, "truncated")
            return
        if zlib.crc32(body) == crc:
            yield from _runs(body, start)
        else:
            yield Damage(start, "checksum mismatch")
        start += _HEADER.size + length


def _runs(body: bytes, start: int) -> Iterator[Run | Damage]:
    try:
        runs = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        yield Damage(start, "not a record of this version")
        return
    for run in runs:
        yield _validated(run) or Damage(start, "not rows of a recorded stream")


def _validated(run: _Run) -> Run | None:
    """Return the rows; None if `pack` cannot have written them."""
    stream, before, *columns, gaps, payloads = msgspec.structs.astuple(run)
    count = len(payloads)
    if (
        not is_recorded(stream)
        or not count
        or len(gaps) != count
        or any(len(column) != _INT64_BYTES * count for column in columns)
    ):
        return None
    ids = RowIds(*map(_from_bytes, columns))
    if any(first >= second for first, second in pairwise([before, *zip(ids.ms, ids.seq, strict=True)])):
        return None
    return Run(before, Rows(stream, ids, gaps, payloads))


def _from_bytes(data: bytes) -> "array[int]":
    values = array("q", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _swapped_bytes(values: "array[int]") -> bytes:
    copy = values[:]
    copy.byteswap()
    return copy.tobytes()


_to_bytes: Callable[["array[int]"], bytes] = array.tobytes if sys.byteorder == "little" else _swapped_bytes
