"""The stores of the shards that this recorder works: opened when a shard is won, left when it is lost.

All replicas write into one folder. The fences in Redis say whose a shard is; the manifests hold even if Redis should err: a
store that was replaced commits nothing more (services.recorder.shard_store).
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from services.recorder.shard_store import Committed, ShardStore
from tickbus.protocol.names import Keys, Stream, StreamId

log = logging.getLogger("tickbus.recorder")

_RETRY_SECONDS = 1.0
_AT_ONCE = 8
"""Shards that are looked through at the same time: it is mostly waiting for the disk."""


class ShardStores:
    def __init__(self, data_dir: Path, keys: Keys) -> None:
        self.epochs: Mapping[int, int] = {}
        """Shard -> the epoch under which it is held."""
        self.positions: dict[str, StreamId] = {}
        """What the manifests of our shards say: committed to disk."""
        self._data_dir = data_dir
        self._keys = keys
        self._open: dict[int, ShardStore] = {}
        self._syncing = asyncio.Lock()
        self._running: dict[int, asyncio.Task[Committed | None]] = {}

    def __getitem__(self, shard: int) -> ShardStore:
        return self._open[shard]

    def get(self, shard: int) -> ShardStore | None:
        return self._open.get(shard)

    def values(self) -> Iterable[ShardStore]:
        return list(self._open.values())

    def items(self) -> Iterable[tuple[int, ShardStore]]:
        return list(self._open.items())

    async def recover(self, shards: Collection[int]) -> dict[str, StreamId]:
        """Take these shards over: finish or set aside what their last writer left -> where to read on, by name of stream."""
        limit = asyncio.Semaphore(_AT_ONCE)
        positions: dict[str, StreamId] = {}
        for found in await asyncio.gather(*(self._recover(shard, limit) for shard in shards)):
            positions |= found
        log.info("%d shards, %d streams with a position in the manifests", len(shards), len(self.positions))
        return positions

    async def _recover(self, shard: int, limit: asyncio.Semaphore) -> dict[str, StreamId]:
        said = False
        while True:
            store = ShardStore(self._data_dir, self._keys.tag(shard), epoch=self.epochs.get(shard, 0))
            try:
                async with limit:
                    begin = await asyncio.to_thread(store.recover)
            except OSError as error:
                if not said:
                    log.error(
                        "shard %s: its files cannot be looked through: %s; trying again",
                        self._keys.tag(shard),
                        error,
                    )
                    said = True
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._open[shard] = store
                self.positions |= store.committed
                return begin

    async def commit(self, shard: int, store: ShardStore) -> Committed | None:
        """`store.commit` in a thread; raises what it raises."""
        self._running[shard] = running = asyncio.create_task(asyncio.to_thread(store.commit))
        try:
            return await asyncio.shield(running)
        finally:
            if self._running.get(shard) is running and running.done():
                del self._running[shard]

    async def sync(self) -> None:
        """What was spooled goes to the disk itself. OSError as of `ShardStore.sync`."""
        for shard, store in self.items():
            async with self._syncing:
                if self._open.get(shard) is store:
                    await asyncio.to_thread(store.sync)

    async def leave(self, shards: Collection[int]) -> None:
        """Close these stores; a commit under way is waited for. What waits in them is in the spool, for who works them next."""
        for shard in shards:
            store = self._open.pop(shard, None)
            if (running := self._running.get(shard)) is not None:
                await asyncio.wait((running,))
            if store is not None:
                async with self._syncing:
                    await asyncio.to_thread(store.close)
        gone = [name for name in self.positions if self._keys.shard(Stream.parse(name).symbol) in shards]
        for name in gone:
            del self.positions[name]
