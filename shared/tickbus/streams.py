"""A stream as its writer sees it: the key, packed, and the entries to add. Pure."""

from tickbus.names import Keys, Stream


class StreamWriter:
    """What a writer keeps of one of its streams, ready for packing."""

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


Entry = tuple[StreamWriter, int, int, bytes, bytes, int, int]
"""An entry to add: stream, ms and counter of its ID, name of its field, payload; then what its head needs: highest vendor id
(-1: none) and receive time. A plain tuple: hundreds of thousands are made each second."""
