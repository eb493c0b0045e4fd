"""Entries not yet acknowledged by Redis: a queue bounded in bytes. Pure but for its wake-up event."""

import asyncio
from collections.abc import Mapping, Sequence
from operator import attrgetter

from services.gateway.batching import keep_pairs
from tickbus.writer.entry import Entry

_OVERHEAD = 300
"""Bytes per entry besides its payload: the object, its integers, the bytes object (by tracemalloc)."""

_payload = attrgetter("payload")


class Backlog:
    """Entries in order. `put` never refuses: check `full` before making an entry, as IDs must stay dense."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        """As of the last `settle`, including what was taken and not released, and what is reserved."""
        self.wakeup = asyncio.Event()
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
        """Number of entries not taken."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return self.bytes >= self.max_bytes

    def reserve(self, size: int) -> None:
        """Count bytes of what will be put later; negative: of what is put now, or no longer will be."""
        self.bytes += size

    def settle(self) -> None:
        """Count what was put since the last call, and wake the sender: once per read from the socket."""
        added = self._waiting[self._settled :]
        self._settled += len(added)
        self.bytes += _size(added)
        self.wakeup.set()

    def take(self, limit: int) -> list[Entry]:
        """Take up to `limit` of the oldest, or one more (services.gateway.batching).

        They still count towards `bytes` until `release`.
        """
        self.settle()
        limit = keep_pairs(self._waiting, limit)
        batch = self._waiting[:limit]
        del self._waiting[:limit]
        self._settled -= len(batch)
        self._taken, self._taken_bytes = len(batch), _size(batch)
        if not self._waiting:
            self.wakeup.clear()
        return batch

    def release(self) -> None:
        """Forget what was taken last: it is acknowledged."""
        self.bytes -= self._taken_bytes
        self._taken = self._taken_bytes = 0

    def oldest(self, limit: int) -> list[Entry]:
        """Return the oldest that are not taken, to be moved elsewhere; then `drop` them."""
        return self._waiting[: keep_pairs(self._waiting, limit)]

    def drop(self, entries: Sequence[Entry]) -> None:
        """Forget the oldest, as returned by `oldest`: they are stored elsewhere now."""
        self.settle()
        del self._waiting[: len(entries)]
        self._settled -= len(entries)
        self.bytes -= _size(entries)

    @property
    def oldest_waiting_ms(self) -> int | None:
        """ID time of the oldest entry not taken."""
        return self._waiting[0].ms if self._waiting else None


class Backlogs:
    """Several backlogs as the intake sees them: one limit in bytes, each entry in its shard's backlog."""

    def __init__(self, by_shard: Mapping[int, Backlog], max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._by_shard = by_shard
        self._all = list({id(backlog): backlog for backlog in by_shard.values()}.values())
        self._touched: set[int] = set()
        self._reserved = 0

    def put(self, entry: Entry) -> None:
        shard = entry.stream.shard
        self._touched.add(shard)
        self._by_shard[shard].put(entry)

    def __len__(self) -> int:
        return sum(map(len, self._all))

    @property
    def bytes(self) -> int:
        return self._reserved + sum(backlog.bytes for backlog in self._all)

    @property
    def full(self) -> bool:
        return self.bytes >= self.max_bytes

    def reserve(self, size: int) -> None:
        self._reserved += size

    def settle(self) -> None:
        for shard in self._touched:
            self._by_shard[shard].settle()
        self._touched.clear()


def _size(entries: Sequence[Entry]) -> int:
    return sum(map(len, map(_payload, entries))) + _OVERHEAD * len(entries)
