"""What the relay asks of Redis besides following streams: heads, pages of history. One connection, reopened
when it is lost; a bounded number of requests at once."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tickbus.errors import RedisError, RedisUnavailable, WireError
from tickbus.protocol.codec import Head, read_head
from tickbus.protocol.names import Keys, Stream, StreamId, is_stream
from tickbus.redis.link import Connection
from tickbus.redis.resp import Command, pairs
from tickbus.redis.topology import Redis

PAGE_ENTRIES = 1_000
_CONCURRENT = 16
ROWS_AT_ONCE = 200
"""So many rows are looked at before others get their turn: a bus of thousands of streams takes many ms."""
_RETRY_SECONDS = 0.2
_YIELD_EVERY = 500


@dataclass(frozen=True)
class KnownStream:
    """A stream of the bus, as `last` names it."""

    stream: Stream
    head: Head
    history: str | None
    """ID of the history of its shard."""

    @property
    def position(self) -> StreamId:
        return StreamId.parse(self.head.id)


class BusAccess:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self.keys = keys
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(_CONCURRENT)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def ask_all(self, commands: Collection[Command]) -> list[Any]:
        """Return the replies. RedisError if Redis does not answer now."""
        async with self._slots:
            async with self._opening:
                if self._connection is None or self._connection.closed:
                    self._connection = await self._redis.connect()
            return await self._connection.ask_all(commands)

    async def patiently(self, commands: Collection[Command]) -> list[Any]:
        """Return the replies, however long Redis is away."""
        while True:
            try:
                return await self.ask_all(commands)
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_SECONDS)

    async def find(self, wanted: Callable[[Stream], bool], symbols: Collection[str]) -> list[KnownStream]:
        """Return the streams that exist and are wanted, each with the head of this moment.

        symbols: those that can match; empty: any. RedisError if Redis does not answer.
        """
        keys = self.keys
        shards = sorted({keys.shard(symbol) for symbol in symbols}) or range(keys.shards)
        commands: list[Command] = []
        for shard in shards:
            commands += [("GET", keys.era(shard)), ("HGETALL", keys.last(shard))]
        replies = await self.ask_all(commands)
        found = []
        for at in range(0, len(replies), 2):
            history = None if replies[at] is None else replies[at].decode(errors="replace")
            for number, (raw, value) in enumerate(pairs(replies[at + 1])):
                if number % ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                name = raw.decode(errors="replace")
                if is_stream(name) and wanted(stream := Stream.parse(name)):
                    try:
                        head = read_head(name, value)
                        StreamId.parse(head.id)
                    except (WireError, ValueError):
                        continue  # its writer repairs it, and tells
                    found.append(KnownStream(stream, head, history))
        return found

    async def head(self, stream: Stream) -> StreamId | None:
        """Return the ID of the newest entry; None if the stream does not exist."""
        shard = self.keys.shard(stream.symbol)
        (value,) = await self.patiently([("HGET", self.keys.last(shard), stream.name)])
        try:
            return None if value is None else StreamId.parse(read_head(stream.name, value).id)
        except (WireError, ValueError):
            return None

    async def page(
        self, stream: Stream, after: StreamId, count: int = PAGE_ENTRIES, patient: bool = True
    ) -> list[Any]:
        """Return the entries after an ID, oldest first, as Redis returns them.

        patient: whether to wait while Redis is away; else RedisError.
        """
        ask = self.patiently if patient else self.ask_all
        (entries,) = await ask([("XRANGE", self.keys.stream(stream), f"({after}", "+", "COUNT", count)])
        return list(entries)

    async def oldest(self, stream: Stream) -> StreamId | None:
        """Return the ID of the oldest entry that is kept; None if there is none. RedisError if Redis does not
        answer."""
        (entries,) = await self.ask_all([("XRANGE", self.keys.stream(stream), "-", "+", "COUNT", 1)])
        return StreamId.parse(entries[0][0]) if entries else None

    async def page_before(self, stream: Stream, before: str, count: int) -> list[Any]:
        """Return the entries up to an ID (`+`: the newest; `(ID`: without it), newest first."""
        (entries,) = await self.patiently(
            [("XREVRANGE", self.keys.stream(stream), before, "-", "COUNT", count)]
        )
        return list(entries)


__all__ = ["PAGE_ENTRIES", "BusAccess", "KnownStream", "RedisError"]
