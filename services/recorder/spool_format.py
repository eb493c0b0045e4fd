"""The records of a spool file: what one round of reads brought, with a length and a checksum in front. Pure.

    file    MAGIC, then records
    record  length u32, crc32 u32 of the body; the body: MessagePack, a list of _Run; integers little-endian

Each run of rows names the row before it. So a hole is seen, wherever it comes from: what lies behind a hole is not taken, as
its position would jump over rows that are still to be read.
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
from services.recorder.row_ids import Entries
from tickbus.protocol.names import Stream, StreamId

MAGIC = b"tbspool1"
_FRONT = struct.Struct("<II")
_WORD = 8


class _Run(msgspec.Struct, array_like=True, frozen=True):
    """Rows of one stream."""

    stream: Stream
    before: StreamId
    ms: bytes
    """64 bits a row, as `seq` and `epoch`."""
    seq: bytes
    epoch: bytes
    gaps: bytes
    payloads: list[bytes]


class Damage(NamedTuple):
    """Bytes of a spool file that are no record."""

    start: int
    why: str


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(list[_Run]).decode


def pack(runs: Sequence[Run]) -> bytearray:
    """One record."""
    record = bytearray(_FRONT.size)
    # tuples in the order of _Run: on the reading path
    body = [
        (
            rows.stream,
            before,
            _bytes(rows.entries.ms),
            _bytes(rows.entries.seq),
            _bytes(rows.entries.epoch),
            rows.gaps,
            rows.payloads,
        )
        for before, rows in runs
    ]
    _encode_into(body, record, _FRONT.size)
    with memoryview(record) as view:
        _FRONT.pack_into(record, 0, len(record) - _FRONT.size, zlib.crc32(view[_FRONT.size :]))
    return record


def unpack(file: BinaryIO) -> Iterator[Run | Damage]:
    """All that can be read; what cannot be is told, the end of a file that was torn off too. Raises OSError only.

    A record whose checksum is wrong is skipped; where the length makes no sense there is nothing to go on by, and it ends.
    """
    magic = file.read(len(MAGIC))
    if not magic:
        return
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
        if zlib.crc32(body) == crc:
            yield from _runs(body, start)
        else:
            yield Damage(start, "wrong checksum")
        start += _FRONT.size + length


def _runs(body: bytes, start: int) -> Iterator[Run | Damage]:
    try:
        runs = _decode(body)
    except msgspec.MsgspecError:
        yield Damage(start, "no record of this version")
        return
    for run in runs:
        yield _checked(run) or Damage(start, "no rows that are recorded")


def _checked(run: _Run) -> Run | None:
    """None if this could not have been written here."""
    stream, before, *words, gaps, payloads = msgspec.structs.astuple(run)
    count = len(payloads)
    if (
        not is_recorded(stream)
        or not count
        or len(gaps) != count
        or any(len(word) != _WORD * count for word in words)
    ):
        return None
    entries = Entries(*map(_words, words))
    if any(
        first >= second for first, second in pairwise([before, *zip(entries.ms, entries.seq, strict=True)])
    ):
        return None
    return Run(before, Rows(stream, entries, gaps, payloads))


def _words(data: bytes) -> "array[int]":
    words = array("q", data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _swapped(words: "array[int]") -> bytes:
    copy = words[:]
    copy.byteswap()
    return copy.tobytes()


_bytes: Callable[["array[int]"], bytes] = array.tobytes if sys.byteorder == "little" else _swapped
