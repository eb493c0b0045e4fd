"""A writer for the tests of publisher and reader: dense streams of trades, and what Redis stored of them."""

from itertools import pairwise

import msgspec

from support.client import Client
from tickbus.clock import BusClock
from tickbus.protocol.codec import FIELDS, Head, decode, encode
from tickbus.protocol.messages import Message, Side, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.redis.registry import check_meta
from tickbus.redis.topology import locate
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.publisher import Publisher
from tickbus.writer.transaction import Transaction

KEYS = Keys(shards=8)


def trade(number: int, symbol: str = "A") -> Trade:
    return Trade(symbol, str(number), "1", Side.BUY, str(number), number, number)


class Writer:
    """Writes as a gateway does: dense counters, heads, one transaction after the other."""

    def __init__(self, url: str, owner: str = "test", keys: Keys = KEYS) -> None:
        self.url = url
        self.keys = keys
        self.owner = owner
        self.clock = BusClock()
        self.publisher = Publisher(locate(url), keys, owner, self.clock, home=keys.shard("A"))
        self.streams: dict[Stream, StreamWriter] = {}
        self.seqs: dict[Stream, int] = {}

    async def open(self) -> "Writer":
        link = await locate(self.url).connect()
        await check_meta(link, self.keys)
        link.close()
        await self.publisher.take_over()
        return self

    def entry(self, stream: Stream, message: Message) -> Entry:
        writer = self.streams.setdefault(stream, StreamWriter(self.keys, stream))
        seq = self.seqs[stream] = self.seqs.get(stream, 0) + 1
        return Entry(writer, self.clock.now_ms(), seq, FIELDS[type(message)], encode(message))

    def transaction(self, entries: list[Entry], ring_all: bool = False) -> Transaction:
        transaction = Transaction(self.clock.now_ms(), True)
        transaction.entries = entries
        transaction.ring_all = ring_all
        for entry in entries:
            transaction.heads[entry.stream] = encode(
                Head(str(entry.id), None, 0, msgspec.Raw(entry.payload), epochs=[(self.publisher.epoch, 1)])
            )
        return transaction

    async def write(self, *numbers: int, symbol: str = "A", kind: str = "trade") -> list[Trade]:
        """Commit one transaction of trades with these numbers and return them."""
        trades = [trade(number, symbol) for number in numbers]
        stream = self.stream(symbol, kind)
        await self.publisher.commit(self.transaction([self.entry(stream, trade) for trade in trades]))
        return trades

    async def ring(self) -> None:
        await self.publisher.commit(self.transaction([], ring_all=True))

    def stream(self, symbol: str = "A", kind: str = "trade") -> Stream:
        return Stream(kind, self.owner, symbol)

    def key(self, symbol: str = "A") -> str:
        return self.keys.stream(self.stream(symbol))

    def close(self) -> None:
        self.publisher.close()


def stored(client: Client, key: str) -> list[tuple[StreamId, Message]]:
    """Return the entries of a stream in Redis."""
    rows = client.xrange(key)
    return [(StreamId.parse(id), decode(*next(iter(fields.items())))) for id, fields in rows]


def numbers(client: Client, key: str) -> list[int]:
    """Return the numbers of the trades of a stream, after checking that its counters are dense."""
    rows = stored(client, key)
    counters = [id.seq for id, _ in rows]
    assert counters == list(range(1, len(rows) + 1)), (
        f"not dense: {[(a, b) for a, b in pairwise(counters) if b != a + 1]}"
    )
    return [int(message.price_text) for _, message in rows if isinstance(message, Trade)]
