"""A stream as its writer sees it: its packed key, and the entries to add. Pure."""

import msgspec

from tickbus.protocol.names import Keys, Stream, StreamId


class StreamWriter:
    """A stream of a writer, with its names packed for commands."""

    __slots__ = ("key", "name", "name_packed", "shard", "stream", "xadd")

    def __init__(self, keys: Keys, stream: Stream) -> None:
        self.stream = stream
        self.name = stream.name
        self.shard = keys.shard(stream.symbol)
        self.key = keys.stream(stream).encode()
        self.xadd = b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$" % (len(self.key), self.key)
        """The command up to the length of the ID."""
        self.name_packed = b"$%d\r\n%b\r\n$" % (len(self.name), self.name.encode())
        """The name as a field of a hash, up to the length of its value."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An entry to add.

    Hundreds of thousands are created per second, and those of the last half minute are retained: the garbage
    collector must not walk over them, or it would pause the process for tens of milliseconds
    (docs/decisions/0013).
    """

    stream: StreamWriter
    ms: int
    seq: int
    """The two halves of its ID."""
    field: bytes
    payload: bytes
    vendor_id: int = -1
    """For the head of its stream: the highest contiguous vendor id so far; -1 for none."""
    recv: int = 0
    """For the head: receive time."""
    newest: bool = True
    """For the head: whether a tick follows all before it in the vendor's order. Not stored anywhere."""

    @property
    def id(self) -> StreamId:
        return StreamId(self.ms, self.seq)
