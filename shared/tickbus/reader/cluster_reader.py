"""Reading from several masters: on a cluster a blocked XREAD serves one slot; each shard has its own reader.

Their polls are merged. A shard reads on only after its previous poll was delivered, so a slow consumer causes
backpressure, and buffering is bounded. A shard whose master is unavailable delays only itself.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from tickbus.protocol.codec import Head
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.reader.reader import PER_READ, Reader
from tickbus.reader.reads import NOW, Cursor, Poll
from tickbus.redis.topology import Redis

_MIN_PER_READ = 500
_EMPTY_SECONDS = 1.0
_PAUSED_SECONDS = 0.1


class MergedReader:
    """Has the interface of a Reader."""

    def __init__(
        self,
        keys: Keys,
        readers: Mapping[int, Reader],
        paused: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """`readers`: by shard; `paused`: shards of which nothing is delivered for now."""
        self._keys = keys
        self._readers = dict(readers)
        self._paused = paused
        self._buffered: dict[int, Poll] = {}
        """Polls that are not delivered yet, at most one per shard."""
        self._arrived = asyncio.Event()
        self._delivered: dict[int, asyncio.Event] = {}
        self._positions: dict[str, StreamId] = {}
        self.heads: dict[str, Head] = {}
        """Who wrote what, as of the last sweep of the shard."""
        for reader in self._readers.values():
            reader.heads = self.heads

    @property
    def positions(self) -> dict[str, StreamId]:
        """Stream name -> ID of the last entry delivered, or where reading begins."""
        return dict(self._positions)

    @property
    def resumable(self) -> dict[str, StreamId]:
        """As `Reader.resumable`."""
        waiting = {read.stream.name for poll in self._buffered.values() for read in poll.reads}
        found = {
            name: position
            for reader in self._readers.values()
            for name, position in reader.resumable.items()
            if name not in waiting
        }
        return found | {name: position for name, position in self._positions.items() if name in waiting}

    @property
    def cursors(self) -> Sequence[Cursor]:
        """As `Reader.cursors`."""
        return [cursor for reader in self._readers.values() for cursor in reader.cursors]

    @property
    def reconnects(self) -> int:
        return sum(reader.reconnects for reader in self._readers.values())

    @property
    def foreign(self) -> Counter[str]:
        """As `Reader.foreign`."""
        return sum((reader.foreign for reader in self._readers.values()), Counter())

    async def prepare(self) -> None:
        """Connect all readers and look up all heads. RedisError if one of them cannot."""
        await asyncio.gather(*[reader.prepare() for reader in self._readers.values()])
        for reader in self._readers.values():
            self._positions |= reader.positions

    async def polls(self) -> AsyncGenerator[Poll, None]:
        """Yield polls forever, over reconnects; at least one a second, more often while a shard is paused."""
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

    def follow(self, stream: Stream, position: StreamId) -> Cursor:
        """As `Reader.follow`."""
        return self._readers[self._keys.shard(stream.symbol)].follow(stream, position)

    def unfollow(self, stream: Stream) -> None:
        """As `Reader.unfollow`."""
        self._readers[self._keys.shard(stream.symbol)].unfollow(stream)

    def history(self, shard: int) -> str | None:
        """As `Reader.history`."""
        return self._readers[shard].history(shard)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    async def _pull(self, shard: int, reader: Reader) -> None:
        delivered = self._delivered[shard] = asyncio.Event()
        async for poll in reader.polls():
            if poll.reads or poll.clocks:
                delivered.clear()
                self._buffered[shard] = poll
                self._arrived.set()
                await delivered.wait()

    async def _merge(self, pulling: "list[asyncio.Task[None]]") -> Poll:
        """Return what all shards have buffered by now as one poll."""
        if not self._arrived.is_set():
            with suppress(TimeoutError):
                # nothing signals that a shard is no longer paused
                async with asyncio.timeout(_PAUSED_SECONDS if self._paused() else _EMPTY_SECONDS):
                    await self._arrived.wait()
        for task in pulling:
            if task.done():  # its reader ends only because of a bug
                task.result()
        self._arrived.clear()
        merged = Poll()
        paused = self._paused()
        for shard in [shard for shard in self._buffered if shard not in paused]:
            poll = self._buffered.pop(shard)
            merged.reads += poll.reads
            merged.clocks |= poll.clocks
            self._delivered[shard].set()
        return merged


AnyReader = Reader | MergedReader


def open_reader(
    redis: Redis, keys: Keys, wanted: Callable[[Stream], bool], start: str | StreamId = NOW,
    positions: Mapping[str, StreamId] | None = None, shards: Iterable[int] | None = None,
    paused: Callable[[], Collection[int]] = tuple, clocks: bool = True,
) -> AnyReader:  # fmt: skip
    """Return a reader of some shards (None: all); it is not connected yet.

    `paused`: on a cluster, shards of which nothing is delivered for now; the other arguments: as for Reader.
    """
    selected = sorted(range(keys.shards) if shards is None else shards)
    if not redis.sharded:
        return Reader(partial(redis.link, keys.meta), keys, wanted, start, positions, selected, clocks=clocks)
    own: dict[int, dict[str, StreamId]] = {shard: {} for shard in selected}
    for name, position in (positions or {}).items():
        if (shard := keys.shard(Stream.parse(name).symbol)) in own:
            own[shard][name] = position
    per_read = max(_MIN_PER_READ, PER_READ // max(1, len(selected)))
    readers = {
        shard: Reader(
            partial(redis.link, keys.bell(shard)), keys, wanted, start, own[shard], (shard,), per_read, clocks
        )
        for shard in selected
    }
    return MergedReader(keys, readers, paused)
