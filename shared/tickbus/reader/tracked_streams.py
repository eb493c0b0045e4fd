"""What a reader keeps of each stream and of each shard that it follows. Pure."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.reader.reads import Cursor, Lost


class TrackedStream(Cursor):
    """One stream that is read."""

    __slots__ = (
        "abandoned_at",
        "epoch",
        "from_old_era",
        "is_entry",
        "key",
        "name",
        "read_to",
        "rewound",
        "seq",
        "shard",
    )

    def __init__(self, keys: Keys, stream: Stream, position: StreamId, is_entry: bool) -> None:
        super().__init__(stream)
        self.name = stream.name
        self.shard = keys.shard(stream.symbol)
        self.key = keys.stream(stream).encode()
        self.read_to: bytes = str(position).encode()
        """The position, as Redis writes it."""
        self.seq = position.seq
        """Its counter."""
        self.is_entry = is_entry
        """Whether that counter is ours: what is missing after it was lost. Not so for a time, or the oldest entry."""
        self.rewound = False
        """Whether its head was seen below the position, and nothing new has come since."""
        self.from_old_era = False
        """Whether the position is from before the shard's present era."""
        self.epoch = 0
        """The newest that was heard to write it, or that its head names."""
        self.abandoned_at: StreamId | None = None
        """The position that was given up, until that is told."""

    @property
    def position(self) -> StreamId:
        return StreamId.parse(self.read_to)

    def lower(self, position: StreamId) -> None:
        self.abandoned_at = self.abandoned_at or self.position
        self.read_to, self.seq = str(position).encode(), position.seq

    def missing(self, entries: list[Any]) -> Lost | None:
        """What is missing between the position and these entries, which follow it."""
        first = StreamId.parse(entries[0][0])
        if self.abandoned_at is not None:
            abandoned_at, self.abandoned_at = self.abandoned_at, None
            return Lost(0, abandoned_at, first, reset=True)
        if not self.is_entry:
            return None
        if first.seq <= self.seq:
            return Lost(0, self.position, first, reset=True)
        return Lost(StreamId.parse(entries[-1][0]).seq - self.seq - len(entries), self.position, first)


@dataclass(slots=True)
class Shard:
    """One shard that is listened to."""

    number: int
    bell: str
    at: int
    """Which of the bells that are asked for is its own."""
    rings: dict[str, int] = field(default_factory=dict)
    """Writer -> its last counter seen."""
    clocks: dict[str, int] = field(default_factory=dict)
    """Feed -> bus ms, from bells whose news is not all read yet."""
    era: bytes | None = None
    known: bool = False
    bell_id: bytes = b"0-0"
    below: dict[str, list[tuple[TrackedStream, StreamId, StreamId]]] = field(default_factory=dict)
    """Feed -> its streams whose head was below our position at the newest sweep, that head and that position."""
    swept_at: bytes = b"0-0"
    """The newest bell at that sweep."""


@lru_cache(maxsize=1024)
def author(writer: str) -> tuple[str, int]:
    """Who rings, and under which epoch."""
    owner, _, epoch = writer.partition("#")
    return owner, int(epoch) if epoch.isdecimal() else 0
