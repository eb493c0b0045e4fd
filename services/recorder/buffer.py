"""The rows of one shard that wait in memory for their commit, stream by stream.

One thread may add while another commits: a commit looks at the first n rows of each stream and takes them out when they are in
the files, so that a failed commit has nothing to put back, and a list only grows at one end and shrinks at the other.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

from services.archive.schema import GAP, KINDS
from services.recorder.row_ids import Entries
from tickbus.protocol.names import START, Stream, StreamId

_ROW_BYTES = 66
"""What a waiting row takes beside its payload: ID, epoch, flag, the payload's header and place."""


def is_recorded(stream: Stream) -> bool:
    return stream.kind in KINDS and stream.kind != GAP.name


class Rows(NamedTuple):
    """Rows of one stream, IDs ascending: what a read brought, or what a commit takes."""

    stream: Stream
    entries: Entries
    gaps: bytes
    """1 where the row is a Gap."""
    payloads: list[bytes]
    """As they stood on the bus: a third of the memory of messages, and decoding again costs less than a microsecond."""

    def part(self, start: int, end: int) -> "Rows":
        return Rows(
            self.stream, self.entries.part(start, end), self.gaps[start:end], self.payloads[start:end]
        )


class Run(NamedTuple):
    """Rows that were new, and where they follow."""

    before: StreamId
    """Of the stream's row before these, in the files or in memory; 0-0 for its first ever."""
    rows: Rows


class _Held:
    __slots__ = ("entries", "gaps", "last", "payloads", "stream")

    def __init__(self, stream: Stream, last: StreamId) -> None:
        self.stream = stream
        self.last = last
        self.entries = Entries()
        self.gaps = bytearray()
        self.payloads: list[bytes] = []

    def cut(self, rows: int) -> Rows:
        return Rows(self.stream, self.entries.part(0, rows), bytes(self.gaps[:rows]), self.payloads[:rows])


class Buffer:
    def __init__(self, positions: Mapping[str, StreamId]) -> None:
        """`positions`: name of a stream -> its last ID that is in the files."""
        self.repeated = 0
        """Rows that were dropped because they were here before."""
        self._positions = positions
        self._held: dict[Stream, _Held] = {}
        # two counters each, so that no thread writes what another one writes
        self._added_rows = self._added_bytes = 0
        self._dropped_rows = self._dropped_bytes = 0

    @property
    def rows(self) -> int:
        return self._added_rows - self._dropped_rows

    @property
    def size(self) -> int:
        """In bytes of memory, about."""
        return self._added_bytes - self._dropped_bytes

    def add(self, rows: Rows) -> Run | None:
        """-> those rows that are new; None if none is. The others are dropped and counted.

        ValueError for a stream of a kind that is not recorded.
        """
        held = self._held.get(rows.stream) or self._begin(rows.stream)
        before = held.last
        entries, gaps, payloads = rows[1:]
        if payloads and (entries.ms[0], entries.seq[0]) <= before:
            known = bisect_right(range(len(payloads)), before, key=entries.id)
            self.repeated += known
            rows = rows.part(known, len(payloads))
            entries, gaps, payloads = rows[1:]
        if not payloads:
            return None
        held.last = entries.id(-1)
        held.entries.extend(entries)
        held.gaps += gaps
        # last: its length is what `cut` goes by
        held.payloads += payloads
        self._added_rows += len(payloads)
        self._added_bytes += sum(map(len, payloads)) + _ROW_BYTES * len(payloads)
        return Run(before, rows)

    def last(self, stream: Stream) -> StreamId:
        """ID of the newest row, in the files or here."""
        held = self._held.get(stream)
        return held.last if held else self._positions.get(stream.name, START)

    def lasts(self) -> dict[str, StreamId]:
        """By name of stream, of those that had rows here."""
        return {stream.name: held.last for stream, held in self._held.items()}

    def cut(self) -> list[Rows]:
        """What waits now; streams by symbol, then feed, kind and spec."""
        cuts = [held.cut(rows) for held in list(self._held.values()) if (rows := len(held.payloads))]
        return sorted(
            cuts, key=lambda cut: (cut.stream.symbol, cut.stream.feed, cut.stream.kind, cut.stream.spec)
        )

    def drop(self, cuts: list[Rows]) -> None:
        """Forget these rows: they are in the files."""
        for cut in cuts:
            held = self._held[cut.stream]
            rows = len(cut.payloads)
            del held.payloads[:rows], held.gaps[:rows]
            held.entries.drop(rows)
            self._dropped_rows += rows
            self._dropped_bytes += sum(map(len, cut.payloads)) + _ROW_BYTES * rows

    def _begin(self, stream: Stream) -> _Held:
        if not is_recorded(stream):
            raise ValueError(f"{stream.name}: streams of kind {stream.kind} are not recorded")
        held = self._held[stream] = _Held(stream, self._positions.get(stream.name, START))
        return held
