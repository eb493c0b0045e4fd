"""What Redis has acknowledged recently, to be resent if Redis loses it. Pure.

A failover drops acknowledged entries without an error, and a killed server the last second of its file:
always the tail of what was written. So the newest entries are retained until they are old enough, with the
newest head of each stream and the newest value of each hash field, which may be lost with them.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from tickbus.protocol.names import StreamId
from tickbus.units import SECOND, Duration, Size
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.transaction import Field, Transaction

OVERHEAD = 250
"""Approximate bytes per entry besides its payload."""
_CHUNK = 100
"""Inherited entries that are retained or dropped together."""


class Window(NamedTuple):
    """How much is retained: the maximum age and size."""

    age: Duration = Duration(30 * SECOND)
    bytes: Size = Size(64 << 20)


DEFAULT_WINDOW = Window()


class ReplayBuffer:
    """The recently acknowledged entries of one lane, with its heads and fields."""

    def __init__(self, window: Window) -> None:
        self.heads: dict[StreamWriter, bytes] = {}
        """The newest acknowledged head of every stream, packed, however old."""
        self.bytes = 0
        self._fields: dict[tuple[str, str], Field] = {}
        """The newest acknowledged value of every hash field."""
        self._window = window
        self._batches: deque[tuple[int, int, Sequence[Entry]]] = deque()
        """(monotonic ns of the acknowledgement, bytes, entries), oldest first."""

    def __len__(self) -> int:
        return sum(len(entries) for _, _, entries in self._batches)

    def add(self, transaction: Transaction, size: int, now: int) -> None:
        """Add an acknowledged transaction. `size`: bytes of its commands; `now`: monotonic ns."""
        self.heads.update(transaction.heads)
        for field in transaction.fields:
            self._fields[field.key, field.name] = field
        batches, (max_age, max_bytes) = self._batches, self._window
        if transaction.entries:
            size += OVERHEAD * len(transaction.entries)
            batches.append((now, size, transaction.entries))
            self.bytes += size
        while batches and (batches[0][0] < now - max_age or self.bytes > max_bytes):
            self.bytes -= batches.popleft()[1]

    def inherit(self, written: Transaction, now: int) -> None:
        """Add what another process stored, before our own entries; its oldest are dropped if out of room."""
        self.heads.update(written.heads)
        for field in written.fields:
            self._fields[field.key, field.name] = field
        entries = sorted(written.entries, key=attrgetter("id"))
        for first in reversed(range(0, len(entries), _CHUNK)):
            chunk = entries[first : first + _CHUNK]
            size = sum(len(entry.payload) + OVERHEAD for entry in chunk)
            if self.bytes + size > self._window.bytes:
                break
            self._batches.appendleft((now, size, chunk))
            self.bytes += size

    @property
    def entries(self) -> list[Entry]:
        """All entries, in the order in which they were written."""
        return list(chain.from_iterable(entries for _, _, entries in self._batches))

    def after(self, ends: Mapping[StreamWriter, StreamId]) -> list[Entry]:
        """Return the entries after the ends of their streams, without those of streams that have none."""
        return [entry for entry in self.entries if entry.stream in ends and entry.id > ends[entry.stream]]

    def recovery(
        self, entries: Sequence[Entry], bus_ms: int, rewritten: Collection[StreamWriter] = ()
    ) -> Transaction:
        """Return the transaction that recovers a loss: these entries, and all acknowledged heads and fields.

        `rewritten`: streams whose head in Redis is newer than ours: they have another writer by now.
        """
        transaction = Transaction(bus_ms)
        transaction.entries = entries
        transaction.heads = {stream: head for stream, head in self.heads.items() if stream not in rewritten}
        transaction.fields = list(self._fields.values())
        return transaction

    def forget(self, shards: Collection[int]) -> None:
        """Drop everything of these shards: they have another writer now."""
        self._batches = deque(
            (at, size, kept)
            for at, size, entries in self._batches
            if (kept := [entry for entry in entries if entry.stream.shard not in shards])
        )
        self.bytes = sum(size for _, size, _ in self._batches)
        self.heads = {stream: head for stream, head in self.heads.items() if stream.shard not in shards}
        self._fields = {name: field for name, field in self._fields.items() if field.shard not in shards}


def streams_of(entries: Iterable[Entry]) -> list[StreamWriter]:
    return list({entry.stream: None for entry in entries})
