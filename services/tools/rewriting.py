"""Recorded messages -> entries of a replayed feed: its own streams, IDs of now, counters that go on, flagged. Pure."""

from collections.abc import Iterable, Iterator

import msgspec

from tickbus.protocol.codec import FIELDS, Head, encode
from tickbus.protocol.messages import Flag, Message, Quote, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import EMPTY_HEAD, HeadBuilder

Step = tuple[int, list[tuple[Stream, Message]]]
"""What is due together: a tick with the Gaps that were told right before it; ts_recv of the tick, ns."""


def steps(recorded: Iterable[tuple[Stream, StreamId, Message]], kinds: Iterable[str]) -> Iterator[Step]:
    """Of these kinds of stream, in order. A Gap waits for the tick after it, as it did when it was told."""
    wanted = frozenset(kinds)
    told: list[tuple[Stream, Message]] = []
    newest = 0
    for stream, _, message in recorded:
        if stream.kind not in wanted:
            continue
        if isinstance(message, Trade | Quote):
            newest = message.ts_recv
            yield newest, [*told, (stream, message)]
            told = []
        else:
            told.append((stream, message))
    if told:
        yield newest, told


class _Replayed(StreamWriter):
    """One stream of the replayed feed, going on from its head. No vendor ids: nobody looks for holes in a replay by them."""

    def __init__(self, keys: Keys, stream: Stream, head: Head, epoch: int) -> None:
        super().__init__(keys, stream)
        self.head = HeadBuilder(head)
        self.head.begin(epoch)

    def entry(self, message: Message, ms: int) -> Entry:
        replayed, recv = message, self.head.ts_recv
        if isinstance(message, Trade | Quote):
            replayed, recv = (
                msgspec.structs.replace(message, flags=message.flags | Flag.REPLAYED),
                message.ts_recv,
            )
        entry = Entry(self, ms, self.head.seq + 1, FIELDS[type(message)], encode(replayed), recv=recv)
        self.head.add(entry, message)
        return entry


class Rewriter:
    def __init__(self, keys: Keys, feed: str, heads: dict[str, Head], epoch: int) -> None:
        self._keys = keys
        self._feed = feed
        self._epoch = epoch
        self._heads = {name: head for name, head in heads.items() if Stream.parse(name).feed == feed}
        self._streams: dict[tuple[str, str], _Replayed] = {}

    @property
    def newest_ms(self) -> int:
        """Of the IDs that the feed had before; 0 if it is new."""
        return max((StreamId.parse(head.id).ms for head in self._heads.values()), default=0)

    @property
    def keys(self) -> list[bytes]:
        """Of the streams written to so far."""
        return [stream.key for stream in self._streams.values()]

    def entries(
        self, messages: Iterable[tuple[Stream, Message]], ms: int
    ) -> tuple[list[Entry], dict[StreamWriter, bytes]]:
        """-> entries under IDs of `ms`, and the heads of their streams after them."""
        entries: list[Entry] = []
        touched: dict[_Replayed, None] = {}
        for stream, message in messages:
            own = self._streams.get((stream.kind, stream.symbol)) or self._add(stream)
            entries.append(own.entry(message, ms))
            touched[own] = None
        return entries, {stream: stream.head.pack() for stream in touched}

    def _add(self, recorded: Stream) -> _Replayed:
        stream = Stream(recorded.kind, self._feed, recorded.symbol)
        own = self._streams[recorded.kind, recorded.symbol] = _Replayed(
            self._keys, stream, self._heads.get(stream.name, EMPTY_HEAD), self._epoch
        )
        return own
