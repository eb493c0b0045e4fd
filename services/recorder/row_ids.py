"""What a row takes from its stream entry: ID and epoch, as arrays of 64-bit integers. Eight bytes each, and
nothing for the garbage collector to traverse.
"""

from array import array
from collections.abc import Iterable
from itertools import compress
from typing import Any

import pyarrow as pa

from tickbus.protocol.names import StreamId


class RowIds:
    __slots__ = ("epoch", "ms", "seq")

    def __init__(self, ms: Iterable[int] = (), seq: Iterable[int] = (), epoch: Iterable[int] = ()) -> None:
        self.ms = array("q", ms)
        self.seq = array("q", seq)
        self.epoch = array("q", epoch)

    def __len__(self) -> int:
        return len(self.ms)

    def id(self, row: int) -> StreamId:
        return StreamId(self.ms[row], self.seq[row])

    def extend(self, more: "RowIds") -> None:
        self.ms.extend(more.ms)
        self.seq.extend(more.seq)
        self.epoch.extend(more.epoch)

    def slice(self, start: int, end: int) -> "RowIds":
        return RowIds(self.ms[start:end], self.seq[start:end], self.epoch[start:end])

    def where(self, mask: Iterable[object]) -> "RowIds":
        mask = list(mask)
        return RowIds(compress(self.ms, mask), compress(self.seq, mask), compress(self.epoch, mask))

    def drop_first(self, rows: int) -> None:
        del self.ms[:rows], self.seq[:rows], self.epoch[:rows]

    def columns(self) -> list["pa.Array[Any]"]:
        """Return the columns id_ms, seq and epoch."""
        return [
            pa.Array.from_buffers(pa.int64(), len(self), [None, pa.py_buffer(values.tobytes())])
            for values in (self.ms, self.seq, self.epoch)
        ]
