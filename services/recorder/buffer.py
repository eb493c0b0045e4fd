"""The rows of one shard that wait in memory for their commit, stream by stream.

One thread may add while another commits: a commit looks at the first n rows of each stream and takes them out when they are in
the files, so that a failed commit has nothing to put back, and a list only grows at one end and shrinks at the other.
"""

from collections.abc import Mapping
from typing import NamedTuple

from services.recorded.columns import GAP, KINDS
from services.recorder.entries import Entries
from tickbus.messages import Gap, Message
from tickbus.names import START, Stream, StreamId

_ROW_BYTES = 66
"""What a waiting row takes beside its payload: ID, epoch, flag, the payload's header and place."""


class Cut(NamedTuple):
    """The rows of one stream that a commit takes: all that waited when it began. Never empty."""

    stream: Stream
    entries: Entries
    gaps: bytes
    """1 where the row is a Gap."""
    payloads: list[bytes]


class _Held:
    __slots__ = ("entries", "gaps", "last", "payloads", "stream")

    def __init__(self, stream: Stream, last: StreamId) -> None:
        self.stream = stream
        self.last = last
        self.entries = Entries()
        self.gaps = bytearray()
        self.payloads: list[bytes] = []

    def cut(self, rows: int) -> Cut:
        return Cut(self.stream, self.entries.part(0, rows), bytes(self.gaps[:rows]), self.payloads[:rows])


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

    def add(self, stream: Stream, id: StreamId, epoch: int, message: Message, payload: bytes) -> None:
        """Keeps the payload, not the message: that is a third of the memory, and decoding again costs less than a microsecond."""
        held = self._held.get(stream) or self._begin(stream)
        if id <= held.last:
            self.repeated += 1
            return
        held.last = id
        ms, seq = id
        entries = held.entries
        entries.ms.append(ms)
        entries.seq.append(seq)
        entries.epoch.append(epoch)
        held.gaps.append(message.__class__ is Gap)
        # last: its length is what `cut` goes by
        held.payloads.append(payload)
        self._added_rows += 1
        self._added_bytes += len(payload) + _ROW_BYTES

    def cut(self) -> list[Cut]:
        """What waits now; streams by symbol, then feed, kind and spec."""
        cuts = [held.cut(rows) for held in list(self._held.values()) if (rows := len(held.payloads))]
        return sorted(cuts, key=lambda cut: (cut.stream.symbol, cut.stream.feed, cut.stream.kind, cut.stream.spec))

    def drop(self, cuts: list[Cut]) -> None:
        """Forget these rows: they are in the files."""
        for cut in cuts:
            held = self._held[cut.stream]
            rows = len(cut.payloads)
            del held.payloads[:rows], held.gaps[:rows]
            held.entries.drop(rows)
            self._dropped_rows += rows
            self._dropped_bytes += sum(map(len, cut.payloads)) + _ROW_BYTES * rows

    def _begin(self, stream: Stream) -> _Held:
        if stream.kind not in KINDS or stream.kind == GAP.name:
            raise ValueError(f"{stream.name}: streams of kind {stream.kind} are not recorded")
        held = self._held[stream] = _Held(stream, self._positions.get(stream.name, START))
        return held
