"""The records of a spool file: rows of one stream each, with a length and a checksum in front. Pure.

    file    MAGIC, then records
    record  length u32, crc32 u32 of the body; the body: MessagePack, _Body below; integers little-endian

A record names the row before it. So a hole is seen, wherever it comes from: what lies behind a hole is not taken, as its
position would jump over rows that are still to be read.
"""

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import msgspec

from services.recorder.buffer import Rows, is_recorded
from services.recorder.entries import Entries
from tickbus.names import Stream, StreamId

MAGIC = b"tbspool1"
_FRONT = struct.Struct("<II")
_WORD = 8


class _Body(msgspec.Struct, array_like=True, frozen=True):
    stream: str
    before: tuple[int, int]
    """ID of the stream's row before these: in the files, or in a record before; 0-0 for the first ever."""
    ms: bytes
    """64 bits a row, as `seq` and `epoch`."""
    seq: bytes
    epoch: bytes
    gaps: bytes
    payloads: list[bytes]


class Record(NamedTuple):
    before: StreamId
    rows: Rows


class Damage(NamedTuple):
    """Bytes of a spool file that are no record."""

    start: int
    why: str


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(_Body).decode


def pack(before: StreamId, rows: Rows) -> bytearray:
    """One record. `before`: ID of the row before the first of these."""
    entries = rows.entries
    record = bytearray(_FRONT.size)
    body = _Body(rows.stream.name, before, _bytes(entries.ms), _bytes(entries.seq), _bytes(entries.epoch), rows.gaps, rows.payloads)
    _encode_into(body, record, _FRONT.size)
    with memoryview(record) as view:
        _FRONT.pack_into(record, 0, len(record) - _FRONT.size, zlib.crc32(view[_FRONT.size :]))
    return record


def unpack(file: BinaryIO) -> Iterator[Record | Damage]:
    """All that can be read; what cannot be is told, the end of a file that was torn off too. Raises OSError only.

    A record whose checksum is wrong is skipped; where the length makes no sense there is nothing to go on by, and it ends.
    """
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        yield Damage(0, "torn off" if MAGIC.startswith(magic) else "no spool file of this version")
        return
    start = len(MAGIC)
    while front := file.read(_FRONT.size):
        length, crc = _FRONT.unpack(front) if len(front) == _FRONT.size else (0, 0)
        body = file.read(length)
        # a length of 0 is what a disk shows that lost power: zeros
        if not length or len(body) < length:
            yield Damage(start, "torn off")
            return
        yield _record(body) or Damage(start, "no record") if zlib.crc32(body) == crc else Damage(start, "wrong checksum")
        start += _FRONT.size + length


def _record(body: bytes) -> Record | None:
    """None if these are no rows that could have been written here: of a foreign version, or of an attacker."""
    try:
        name, before, *words, gaps, payloads = msgspec.structs.astuple(_decode(body))
        stream = Stream.parse(name)
    except (msgspec.MsgspecError, ValueError):
        return None
    count = len(payloads)
    if not is_recorded(stream) or not count or len(gaps) != count or any(len(word) != _WORD * count for word in words):
        return None
    entries = Entries(*map(_words, words))
    ids = [before, *zip(entries.ms, entries.seq, strict=True)]
    if any(first >= second for first, second in pairwise(ids)):
        return None
    return Record(StreamId(*before), Rows(stream, entries, gaps, payloads))


def _bytes(words: "array[int]") -> bytes:
    return _little(words).tobytes()


def _words(data: bytes) -> "array[int]":
    return _little(array("q", data))


def _little(words: "array[int]") -> "array[int]":
    if sys.byteorder == "little":
        return words
    swapped = words[:]
    swapped.byteswap()
    return swapped
