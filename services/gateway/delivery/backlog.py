"""What was received and is not yet acknowledged by Redis: a queue bounded in bytes. Pure but for its wake-up event."""

import asyncio
from collections.abc import Mapping, Sequence
from operator import attrgetter

from services.gateway.batching import keep_pairs
from tickbus.writer.entry import Entry

_OVERHEAD = 300
"""Bytes that an entry takes besides its payload: the object, its integers, the bytes object (measured with tracemalloc)."""

_payload = attrgetter("payload")


class Backlog:
    """Entries in order. `put` never refuses: the owner asks `full` before it makes an entry, as IDs must stay dense."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.bytes = 0
        """As of the last `settle`; what was taken and not released included."""
        self.news = asyncio.Event()
        self._waiting: list[Entry] = []
        self._settled = 0
        self._taken = 0
        self._taken_bytes = 0
        self.put = self._waiting.append
        """Add an entry. The list's own method: it is called for every tick."""

    def __len__(self) -> int:
        return len(self._waiting) + self._taken

    @property
    def waiting(self) -> int:
        """Entries that are not taken."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return self.bytes >= self.bound

    def settle(self) -> None:
        """Count what was put since the last time, and wake the publisher: once per read from the socket."""
        added = self._waiting[self._settled :]
        self._settled += len(added)
        self.bytes += _size(added)
        self.news.set()

    def take(self, most: int) -> list[Entry]:
        """Up to `most` of the oldest, or one more (services.gateway.batching). They count as held until `release`."""
        self.settle()
        most = keep_pairs(self._waiting, most)
        batch = self._waiting[:most]
        del self._waiting[:most]
        self._settled -= len(batch)
        self._taken, self._taken_bytes = len(batch), _size(batch)
        if not self._waiting:
            self.news.clear()
        return batch

    def release(self) -> None:
        """What was taken last is acknowledged."""
        self.bytes -= self._taken_bytes
        self._taken = self._taken_bytes = 0

    def oldest(self, most: int) -> list[Entry]:
        """A look at what is not taken, to be put elsewhere; then `drop` it."""
        return self._waiting[: keep_pairs(self._waiting, most)]

    def drop(self, entries: Sequence[Entry]) -> None:
        """The oldest, as `oldest` showed them, are held elsewhere now."""
        self.settle()
        del self._waiting[: len(entries)]
        self._settled -= len(entries)
        self.bytes -= _size(entries)

    @property
    def oldest_waiting_ms(self) -> int | None:
        """ID time of the oldest entry that is not taken."""
        return self._waiting[0].ms if self._waiting else None


class Backlogs:
    """Several backlogs as the intake sees them: one bound, each entry in that of its shard."""

    def __init__(self, by_shard: Mapping[int, Backlog], bound: int) -> None:
        self.bound = bound
        self._by_shard = by_shard
        self._all = list({id(backlog): backlog for backlog in by_shard.values()}.values())
        self._touched: set[int] = set()

    def put(self, entry: Entry) -> None:
        shard = entry.stream.shard
        self._touched.add(shard)
        self._by_shard[shard].put(entry)

    def __len__(self) -> int:
        return sum(map(len, self._all))

    @property
    def bytes(self) -> int:
        return sum(backlog.bytes for backlog in self._all)

    @property
    def full(self) -> bool:
        return self.bytes >= self.bound

    def settle(self) -> None:
        for shard in self._touched:
            self._by_shard[shard].settle()
        self._touched.clear()


def _size(entries: Sequence[Entry]) -> int:
    return sum(map(len, map(_payload, entries))) + _OVERHEAD * len(entries)
