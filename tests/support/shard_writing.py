"""A writer on one shard of a cluster: what a gateway's lane does there, in short.

One transaction is in flight at a time and is repeated until it is stored.
"""

import asyncio

import msgspec

from support.writing import trade
from tickbus.clock import BusClock
from tickbus.errors import RedisUnavailable
from tickbus.protocol.codec import Bell, Head, encode
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.redis.link import Link, ReplyError
from tickbus.redis.resp import pack
from tickbus.redis.topology import Redis


class ShardWriter:
    def __init__(self, redis: Redis, keys: Keys, symbol: str) -> None:
        self._redis, self._keys, self.symbol = redis, keys, symbol
        self.stream = Stream("trade", "test", symbol)
        self.shard = keys.shard(symbol)
        self._key = keys.stream(self.stream)
        self._clock = BusClock()
        self._link: Link | None = None
        self.seq = 0

    async def write(self, count: int) -> None:
        """Store the next `count` trades; they are numbered from 1."""
        ids = [StreamId(self._clock.now_ms(), self.seq + number) for number in range(1, count + 1)]
        self.seq += count
        while True:
            try:
                if await self._store(ids):
                    return
            except (RedisUnavailable, ReplyError):
                if self._link is not None:
                    self._link.close()
            await asyncio.sleep(0.05)

    async def _store(self, ids: list[StreamId]) -> bool:
        if self._link is None or self._link.closed:
            self._link = await self._redis.link(self._key)
        newest = await self._link.ask("XREVRANGE", self._key, "+", "-", "COUNT", 1)
        if newest and StreamId.parse(newest[0][0]) >= ids[-1]:
            return True
        payloads = {id: encode(trade(id.seq, self.symbol)) for id in ids}
        head = Head(str(ids[-1]), None, 0, msgspec.Raw(payloads[ids[-1]]))
        bell = Bell("test#1", ids[-1].seq, ids[-1].ms, True, [self.stream.name])
        commands = [
            ("MULTI",),
            ("SET", self._keys.era(self.shard), "era", "NX"),
            *[("XADD", self._key, str(id), "t", payloads[id]) for id in ids],
            ("HSET", self._keys.last(self.shard), self.stream.name, encode(head)),
            ("XADD", self._keys.bell(self.shard), "MAXLEN", "~", 512, "*", "d", encode(bell)),
            ("EXEC",),
        ]
        *_, result = await self._link.send(b"".join(map(pack, commands)), len(commands))
        if isinstance(result, ReplyError) or result is None:
            raise RedisUnavailable(str(result))
        return True

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
