"""Turns recorded messages into entries of a replayed feed. Pure.

They get streams of their own, current IDs, counters that continue, and the flag `replayed`.
"""

from collections.abc import Iterable, Iterator

import msgspec

from tickbus.protocol.codec import FIELDS, Head, encode
from tickbus.protocol.messages import Flag, Message, Quote, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import EMPTY_HEAD, HeadBuilder

Step = tuple[int, list[tuple[Stream, Message]]]
"""What is due together: ts_recv of a tick in ns, and the Gaps reported right before it, then the tick."""


def steps(recorded: Iterable[tuple[Stream, StreamId, Message]], kinds: Iterable[str]) -> Iterator[Step]:
    """Yield the steps of these kinds of stream in order. A Gap waits for the next tick, as it did live."""
    selected = frozenset(kinds)
    gaps: list[tuple[Stream, Message]] = []
    newest = 0
    for stream, _, message in recorded:
        if stream.kind not in selected:
            continue
        if isinstance(message, Trade | Quote):
            newest = message.ts_recv
            yield newest, [*gaps, (stream, message)]
            gaps = []
        else:
            gaps.append((stream, message))
    if gaps:
        yield newest, gaps


class _ReplayedStream(StreamWriter):
    """One stream of the replayed feed, continued from its head.

    Its head has no vendor ids: nobody uses them to look for gaps in a replay.
    """

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
        self._streams: dict[tuple[str, str], _ReplayedStream] = {}

    @property
    def newest_ms(self) -> int:
        """The newest time in the feed's existing IDs; 0 if the feed is new."""
        return max((StreamId.parse(head.id).ms for head in self._heads.values()), default=0)

    def entries(
        self, messages: Iterable[tuple[Stream, Message]], ms: int
    ) -> tuple[list[Entry], dict[StreamWriter, bytes]]:
        """Return the entries, with IDs at `ms`, and the heads of their streams after them."""
        entries: list[Entry] = []
        written: dict[_ReplayedStream, None] = {}
        for stream, message in messages:
            replayed = self._streams.get((stream.kind, stream.symbol)) or self._add(stream)
            entries.append(replayed.entry(message, ms))
            written[replayed] = None
        return entries, {stream: stream.head.pack() for stream in written}

    def _add(self, recorded: Stream) -> _ReplayedStream:
        stream = Stream(recorded.kind, self._feed, recorded.symbol)
        replayed = self._streams[recorded.kind, recorded.symbol] = _ReplayedStream(
            self._keys, stream, self._heads.get(stream.name, EMPTY_HEAD), self._epoch
        )
        return replayed
