"""Subscription from several masters at once: on a cluster a blocked XREAD serves one slot, so each shard has a reader of its own.

Their rounds are merged. A shard reads on only when what it brought before was taken, so a slow consumer stops the reading, and
what is held is bounded. A shard whose master is away latency only itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from tickbus.protocol.codec import Head
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.reader.reader import PER_READ, Reader
from tickbus.reader.reads import NOW, Cursor, Poll
from tickbus.redis.topology import Redis

_LEAST_PER_READ = 500
_EMPTY_SECONDS = 1.0
_PAUSED_SECONDS = 0.1


class MergedReader:
    """The same to the outside as a Reader."""

    def __init__(self, readers: Mapping[int, Reader], paused: Callable[[], Collection[int]] = tuple) -> None:
        """`readers`: by shard; `paused`: shards of which nothing is given out for now."""
        self._readers = dict(readers)
        self._paused = paused
        self._brought: dict[int, Poll] = {}
        """Rounds that are not given out yet, one of a shard at most."""
        self._news = asyncio.Event()
        self._taken: dict[int, asyncio.Event] = {}
        self._positions: dict[str, StreamId] = {}
        self.heads: dict[str, Head] = {}
        """As of the last sweep of their shard: who wrote what."""
        for reader in self._readers.values():
            reader.heads = self.heads

    @property
    def positions(self) -> dict[str, StreamId]:
        """Stream name -> ID of the last entry given out, or where it begins."""
        return dict(self._positions)

    @property
    def resumable(self) -> dict[str, StreamId]:
        """As that of a Reader."""
        waiting = {read.stream.name for result in self._brought.values() for read in result.reads}
        found = {
            name: at
            for reader in self._readers.values()
            for name, at in reader.resumable.items()
            if name not in waiting
        }
        return found | {name: at for name, at in self._positions.items() if name in waiting}

    @property
    def cursors(self) -> Sequence[Cursor]:
        """As those of a Reader."""
        return [cursor for reader in self._readers.values() for cursor in reader.cursors]

    @property
    def reconnects(self) -> int:
        return sum(reader.reconnects for reader in self._readers.values())

    async def prepare(self) -> None:
        """Connect all and find out where everything stands. RedisError if one of them cannot."""
        await asyncio.gather(*[reader.prepare() for reader in self._readers.values()])
        for reader in self._readers.values():
            self._positions |= reader.positions

    async def polls(self) -> AsyncIterator[Poll]:
        """For ever, over reconnects. An empty round is given at least each second, more often while a shard is paused."""
        pulling = [asyncio.create_task(self._pull(shard, reader)) for shard, reader in self._readers.items()]
        try:
            while True:
                merged = await self._merge(pulling)
                for read in merged.reads:
                    self._positions[read.stream.name] = read.last
                yield merged
        finally:
            for task in pulling:
                task.cancel()
            await asyncio.gather(*pulling, return_exceptions=True)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    async def _pull(self, shard: int, reader: Reader) -> None:
        taken = self._taken[shard] = asyncio.Event()
        async for result in reader.polls():
            if result.reads or result.clocks:
                taken.clear()
                self._brought[shard] = result
                self._news.set()
                await taken.wait()

    async def _merge(self, pulling: "list[asyncio.Task[None]]") -> Poll:
        """What all shards have brought by now, as one round."""
        if not self._news.is_set():
            with suppress(TimeoutError):
                # nobody tells when a shard is paused no longer
                async with asyncio.timeout(_PAUSED_SECONDS if self._paused() else _EMPTY_SECONDS):
                    await self._news.wait()
        for task in pulling:
            if task.done():  # its reader never ends but by a bug
                task.result()
        self._news.clear()
        merged = Poll()
        paused = self._paused()
        for shard in [shard for shard in self._brought if shard not in paused]:
            result = self._brought.pop(shard)
            merged.reads += result.reads
            merged.clocks |= result.clocks
            self._taken[shard].set()
        return merged


AnyReader = Reader | MergedReader


def open_reader(
    redis: Redis, keys: Keys, wanted: Callable[[Stream], bool],
    start: str | StreamId = NOW, positions: Mapping[str, StreamId] | None = None, shards: Iterable[int] | None = None,
    paused: Callable[[], Collection[int]] = tuple, clocks: bool = True,
) -> AnyReader:  # fmt: skip
    """A reader of some shards (None: all). `paused`: on a cluster, shards of which nothing is given out for now; the other arguments are
    those of Reader. Connects to nothing yet."""
    asked = sorted(range(keys.shards) if shards is None else shards)
    if not redis.sharded:
        return Reader(partial(redis.link, keys.meta), keys, wanted, start, positions, asked, clocks=clocks)
    own: dict[int, dict[str, StreamId]] = {shard: {} for shard in asked}
    for name, position in (positions or {}).items():
        if (shard := keys.shard(Stream.parse(name).symbol)) in own:
            own[shard][name] = position
    per_read = max(_LEAST_PER_READ, PER_READ // max(1, len(asked)))
    readers = {
        shard: Reader(
            partial(redis.link, keys.bell(shard)), keys, wanted, start, own[shard], (shard,), per_read, clocks
        )
        for shard in asked
    }
    return MergedReader(readers, paused)
