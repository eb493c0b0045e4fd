"""The stores of the shards that this recorder owns: opened when a shard is won, released when it is lost.

All replicas write into one folder. The fences in Redis say who owns a shard; the manifests protect the
files even if Redis is wrong: a store that was replaced commits nothing more
(services.recorder.shard_store).
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from services.recorder.shard_store import CommitSummary, ShardStore
from tickbus.protocol.names import Keys, Stream, StreamId

log = logging.getLogger("tickbus.recorder")

_RETRY_SECONDS = 1.0
_AT_ONCE = 8
"""Shards recovered concurrently: it is mostly waiting for the disk."""


class ShardStores:
    def __init__(self, data_dir: Path, keys: Keys) -> None:
        self.epochs: Mapping[int, int] = {}
        """Shard -> the epoch under which it is owned."""
        self.positions: dict[str, StreamId] = {}
        """Positions in the manifests of the owned shards: committed to disk."""
        self._data_dir = data_dir
        self._keys = keys
        self._open: dict[int, ShardStore] = {}
        self._syncing = asyncio.Lock()
        self._commits: dict[int, asyncio.Task[CommitSummary | None]] = {}

    def __getitem__(self, shard: int) -> ShardStore:
        return self._open[shard]

    def get(self, shard: int) -> ShardStore | None:
        return self._open.get(shard)

    def values(self) -> Iterable[ShardStore]:
        return list(self._open.values())

    def items(self) -> Iterable[tuple[int, ShardStore]]:
        return list(self._open.items())

    async def recover(self, shards: Collection[int]) -> dict[str, StreamId]:
        """Take these shards over: finish or quarantine what their last writer left. Return the IDs to
        resume reading from, by stream name.
        """
        limit = asyncio.Semaphore(_AT_ONCE)
        positions: dict[str, StreamId] = {}
        for recovered in await asyncio.gather(*(self._recover(shard, limit) for shard in shards)):
            positions |= recovered
        log.info("recovered %d shards, %d streams have a position", len(shards), len(self.positions))
        return positions

    async def _recover(self, shard: int, limit: asyncio.Semaphore) -> dict[str, StreamId]:
        logged = False
        while True:
            store = ShardStore(self._data_dir, self._keys.tag(shard), epoch=self.epochs.get(shard, 0))
            try:
                async with limit:
                    positions = await asyncio.to_thread(store.recover)
            except OSError as error:
                if not logged:
                    log.error(
                        "shard %s: cannot recover its files: %s; retrying", self._keys.tag(shard), error
                    )
                    logged = True
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._open[shard] = store
                self.positions |= store.committed
                return positions

    async def commit(self, shard: int, store: ShardStore) -> CommitSummary | None:
        """Run `store.commit` in a thread; raises what it raises."""
        self._commits[shard] = commit = asyncio.create_task(asyncio.to_thread(store.commit))
        try:
            return await asyncio.shield(commit)
        finally:
            if self._commits.get(shard) is commit and commit.done():
                del self._commits[shard]

    async def sync(self) -> None:
        """Run `ShardStore.sync` on all stores. OSError as there."""
        for shard, store in self.items():
            async with self._syncing:
                if self._open.get(shard) is store:
                    await asyncio.to_thread(store.sync)

    async def release(self, shards: Collection[int]) -> None:
        """Close these stores, after any running commit. Uncommitted rows stay spooled for the next owner."""
        for shard in shards:
            store = self._open.pop(shard, None)
            if (commit := self._commits.get(shard)) is not None:
                await asyncio.wait((commit,))
            if store is not None:
                async with self._syncing:
                    await asyncio.to_thread(store.close)
        released = [name for name in self.positions if self._keys.shard(Stream.parse(name).symbol) in shards]
        for name in released:
            del self.positions[name]
