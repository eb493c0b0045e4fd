"""One stream that the relay follows, with its newest entries, on which clients that catch up join. Pure."""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from services.relay.conflation import Recent
from tickbus.protocol.names import START, Stream, StreamId
from tickbus.reader.reads import Cursor

_ENTRY_BYTES = 240
"""Python's own bytes for an entry, beside its payload."""


class FollowedStream:
    """`ring` holds the entries after `floor` up to `position`, without a hole."""

    __slots__ = (
        "cursor",
        "floor",
        "name",
        "position",
        "previous",
        "recent",
        "ring",
        "stream",
        "takers",
        "users",
    )

    def __init__(self, stream: Stream, position: StreamId = START, cursor: Cursor | None = None) -> None:
        """cursor: of the reader; None for a stream that it found by itself."""
        self.stream = stream
        self.name = stream.name
        self.cursor = cursor
        self.position = position
        """ID of the newest entry delivered."""
        self.previous = position
        """`position` before the newest round."""
        self.floor = position
        self.ring: deque[Any] = deque()
        self.users: set[Any] = set()
        """The groups that have it."""
        self.takers: tuple[Any, ...] | None = None
        """The channels of these groups; None: to be looked up again."""
        self.recent: Recent | None = None
        """For those who conflate it; None if nobody does."""

    def append(self, entries: Sequence[Any], lost: bool) -> int:
        """Append new entries. Return their size in bytes, less that of entries that a loss made useless."""
        freed = 0
        self.previous = self.position
        if lost:
            freed = self.clear()
            first = StreamId.parse(entries[0][0])
            self.floor = first._replace(seq=first.seq - 1)
        self.ring.extend(entries)
        self.position = StreamId.parse(entries[-1][0])
        return sum([len(entry[1][1]) for entry in entries]) + len(entries) * _ENTRY_BYTES - freed

    def drop_oldest(self, size: int) -> int:
        """Forget the oldest entries, at least `size` bytes of them, but the newer half. Return their size."""
        dropped, goal, entry = 0, len(self.ring) // 2, None
        while dropped < size and len(self.ring) > goal:
            entry = self.ring.popleft()
            dropped += _size(entry)
        if entry is not None:
            self.floor = StreamId.parse(entry[0])
        return dropped

    def clear(self) -> int:
        """Forget all entries. Return their size."""
        size = sum(map(_size, self.ring))
        self.ring.clear()
        return size

    def has(self, position: StreamId) -> bool:
        """Whether everything after `position` is in the ring, as far as it was delivered."""
        return self.floor <= position <= self.position

    def after(self, position: StreamId) -> list[Any]:
        """Return the entries after a position that `has` accepts."""
        # counters are dense within the ring
        return list(islice(self.ring, max(0, position.seq - self.floor.seq), None))


def _size(entry: Any) -> int:
    return len(entry[1][1]) + _ENTRY_BYTES
