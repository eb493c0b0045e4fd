"""Recorded messages -> entries of a replayed feed: its own streams, IDs of now, counters that go on, flagged. Pure."""

from collections.abc import Iterable, Iterator

import msgspec

from tickbus.messages import Flag, Gap, Message, Quote, Trade
from tickbus.names import Keys, Stream, StreamId
from tickbus.streams import Entry, StreamWriter
from tickbus.wire import FIELDS, NIL, Head, encode, pack_epochs, pack_head, pack_holes

Step = tuple[int, list[tuple[Stream, Message]]]
"""What is due together: a tick with the Gaps that were told right before it; ts_recv of the tick, ns."""

_EPOCHS = 16


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
    """One stream of the replayed feed, going on from its head."""

    def __init__(self, keys: Keys, stream: Stream, head: Head | None, epoch: int) -> None:
        super().__init__(keys, stream)
        head = head or Head("0-0", None, 0, NIL)
        self.last = StreamId.parse(head.id)
        self.tick, self.ts_recv, self.ts_event = bytes(head.tick), head.ts_recv, head.ts_event
        self.gaps, self.repaired, self.missing = dict(head.gaps), head.repaired, head.missing
        self.epochs = [*head.epochs, (epoch, self.last.seq + 1)][-_EPOCHS:]

    def entry(self, message: Message, ms: int) -> Entry:
        if isinstance(message, Gap):
            self._count(message)
            payload = encode(message)
        else:
            assert isinstance(message, Trade | Quote)
            if message.ts_event > self.ts_event and not message.flags:
                self.ts_event = message.ts_event
            self.ts_recv = message.ts_recv
            self.tick = payload = encode(msgspec.structs.replace(message, flags=message.flags | Flag.REPLAYED))
        self.last = StreamId(ms, self.last.seq + 1)
        return Entry(self, ms, self.last.seq, FIELDS[type(message)], payload, recv=self.ts_recv)

    def _count(self, gap: Gap) -> None:
        if gap.repaired:
            self.repaired += 1
            self.missing -= gap.count or 0
        else:
            kind = gap.kind.name.lower()
            self.gaps[kind] = self.gaps.get(kind, 0) + 1
            self.missing += gap.count or 0

    def head(self) -> bytes:
        # no vendor id: nobody looks for holes in a replay by it
        holes, epochs = pack_holes([], self.gaps, self.repaired, self.missing), pack_epochs(self.epochs)
        return pack_head(str(self.last), None, self.ts_recv, self.tick, self.ts_event, holes, epochs)


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

    def entries(self, messages: Iterable[tuple[Stream, Message]], ms: int) -> tuple[list[Entry], dict[StreamWriter, bytes]]:
        """-> entries under IDs of `ms`, and the heads of their streams after them."""
        entries: list[Entry] = []
        touched: dict[_Replayed, None] = {}
        for stream, message in messages:
            own = self._streams.get((stream.kind, stream.symbol)) or self._add(stream)
            entries.append(own.entry(message, ms))
            touched[own] = None
        return entries, {stream: stream.head() for stream in touched}

    def _add(self, recorded: Stream) -> _Replayed:
        stream = Stream(recorded.kind, self._feed, recorded.symbol)
        own = self._streams[recorded.kind, recorded.symbol] = _Replayed(self._keys, stream, self._heads.get(stream.name), self._epoch)
        return own
