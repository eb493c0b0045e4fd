"""What a reader keeps for each stream and each shard that it follows. Pure."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tickbus.protocol.names import START, Keys, Stream, StreamId
from tickbus.reader.reads import Cursor, Lost


class TrackedStream(Cursor):
    """One stream being read."""

    __slots__ = (
        "abandoned_at",
        "epoch",
        "foreign_to",
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
        """The counter of the position."""
        self.is_entry = is_entry
        """Whether that counter is that of an entry we know: what is missing after it was lost. False for a
        time, or for the oldest entry."""
        self.rewound = False
        """Whether its head was seen below the position, and no new entry has arrived since."""
        self.from_old_era = False
        """Whether the position dates from before the current history of the shard."""
        self.epoch = 0
        """The newest epoch that a bell announced for it or that its head names."""
        self.abandoned_at: StreamId | None = None
        """The position that was given up, until that is reported."""
        self.foreign_to = START
        """The highest ID that some other program wrote, as far as that is reported."""

    @property
    def position(self) -> StreamId:
        return StreamId.parse(self.read_to)

    def advance(self, last: bytes, seq: int) -> None:
        """Everything up to this entry is read."""
        self.read_to, self.seq = last, seq
        self.is_entry, self.from_old_era, self.rewound = True, False, False

    def lower(self, position: StreamId) -> None:
        """Give the position up and continue from this one."""
        self.abandoned_at = self.abandoned_at or self.position
        self.read_to, self.seq = str(position).encode(), position.seq

    def missing(self, entries: list[Any]) -> Lost | None:
        """Return what is missing between the position and these entries, which follow it."""
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
    """One shard whose bell is followed."""

    number: int
    bell: str
    index: int
    """Position of its bell among those that the reader polls."""
    counters: dict[str, int] = field(default_factory=dict)
    """Writer -> the last counter it rang with."""
    clocks: dict[str, int] = field(default_factory=dict)
    """Feed -> bus ms, from bells whose announced entries are not all read yet."""
    history: bytes | None = None
    """ID of the history that the shard had at the last sweep."""
    swept: bool = False
    bell_id: bytes = b"0-0"
    below: dict[str, list[tuple[TrackedStream, StreamId, StreamId]]] = field(default_factory=dict)
    """Feed -> (stream, head, our position) of its streams whose head was below it at the last sweep."""
    swept_at: bytes = b"0-0"
    """The newest bell at the last sweep."""
    is_broken: bool = False
    """Whether some other program stored something else under the key of its bell."""


@lru_cache(maxsize=1024)
def parse_writer(writer: str) -> tuple[str, int]:
    """Return the owner that rings, and its epoch."""
    owner, _, epoch = writer.partition("#")
    return owner, int(epoch) if epoch.isascii() and epoch.isdecimal() and len(epoch) < 19 else 0
