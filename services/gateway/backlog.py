"""What was received and is not yet acknowledged by Redis: a queue bounded in bytes. Pure but for its wake-up event."""

import asyncio
from collections import deque

from tickbus.streams import Entry

_OVERHEAD = 300
"""Bytes that an entry takes besides its payload: the tuple, its integers, the bytes object (measured with tracemalloc)."""


class Backlog:
    """Entries in order. `put` never refuses: the owner asks `full` before it makes an entry, as IDs must stay dense."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.bytes = 0
        self.news = asyncio.Event()
        self._waiting: deque[Entry] = deque()
        self._taken = 0
        self._taken_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting) + self._taken

    @property
    def full(self) -> bool:
        return self.bytes >= self.bound

    def put(self, entry: Entry) -> None:
        self._waiting.append(entry)
        self.bytes += _OVERHEAD + len(entry[4])

    def take(self, most: int) -> list[Entry]:
        """Up to `most` of the oldest. They count as held until `release`."""
        waiting = self._waiting
        if len(waiting) <= most:
            batch = list(waiting)
            waiting.clear()
            self.news.clear()
            self._taken_bytes = self.bytes
        else:
            batch = [waiting.popleft() for _ in range(most)]
            self._taken_bytes = sum(len(entry[4]) for entry in batch) + _OVERHEAD * most
        self._taken = len(batch)
        return batch

    def release(self) -> None:
        """What was taken last is acknowledged."""
        self.bytes -= self._taken_bytes
        self._taken = self._taken_bytes = 0

    @property
    def oldest_waiting_ms(self) -> int | None:
        """ID time of the oldest entry that is not taken."""
        return self._waiting[0][1] if self._waiting else None
