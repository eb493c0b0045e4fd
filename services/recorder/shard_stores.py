"""The stores of the shards that this recorder owns: opened when a shard is won, released when it is lost.

All replicas write into one folder. The fences in Redis say who owns a shard; the manifests protect the
files even if Redis is wrong: a store that was replaced commits nothing more
(services.recorder.shard_store).
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from services.recorder.blocked import BlockedShards
from services.recorder.shard_store import CommitSummary, ShardStore
from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import ConfigError
from tickbus.protocol.names import Keys, Stream, StreamId

log = logging.getLogger("tickbus.recorder")

_RETRY_SECONDS = (1.0, 10.0)
"""After a failed recovery: at first, and at most."""
_AT_ONCE = 8
"""Shards recovered concurrently: it is mostly waiting for the disk."""


class ShardStores:
    def __init__(self, data_dir: Path, keys: Keys) -> None:
        self.blocked = BlockedShards(keys.tag)
        """Owned shards whose files cannot be read or written now."""
        self.missing_files = 0
        """Files that a newest manifest names and that somebody removed, ever."""
        self.positions: dict[str, StreamId] = {}
        """Positions in the manifests of the owned shards: committed to disk."""
        self._data_dir = data_dir
        self._keys = keys
        self._consumer: ShardConsumer | None = None
        self._open: dict[int, ShardStore] = {}
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._recovering: dict[int, asyncio.Task[None]] = {}
        """Recoveries that failed and are repeated."""
        self._syncing = asyncio.Lock()
        self._commits: dict[int, asyncio.Task[CommitSummary | None]] = {}

    def attach(self, consumer: ShardConsumer) -> None:
        """Name the consumer that owns the shards. Call before the first recovery."""
        self._consumer = consumer

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

        A shard whose files do not permit that is blocked: it is not read, and tried again until they do.
        """
        positions: dict[str, StreamId] = {}
        for recovered in await asyncio.gather(*(self._recover(shard) for shard in shards)):
            positions |= recovered or {}
        log.info(
            "recovered %d shards, %d streams have a position",
            sum(shard in self._open for shard in shards),
            len(self.positions),
        )
        return positions

    async def _recover(self, shard: int) -> dict[str, StreamId] | None:
        """Return the positions; None if it failed: then it is tried again in the background."""
        positions = await self._try_to_recover(shard)
        if positions is None:
            self._recovering[shard] = asyncio.create_task(self._recover_later(shard))
        return positions

    async def _try_to_recover(self, shard: int) -> dict[str, StreamId] | None:
        assert self._consumer is not None
        epoch = self._consumer.epochs.get(shard, 0)
        store = ShardStore(self._data_dir, self._keys.tag(shard), epoch=epoch)
        async with self._limit:
            recovery = asyncio.create_task(asyncio.to_thread(store.recover))
            try:
                positions = await asyncio.shield(recovery)
            except asyncio.CancelledError:
                # its thread goes on: the next owner must not begin before it has ended
                await asyncio.wait((recovery,))
                raise
            except (OSError, ConfigError, ValueError) as error:
                self.block(shard, error)
                return None
        self._open[shard] = store
        self.positions |= store.committed
        self.missing_files += store.missing_files
        return positions

    async def _recover_later(self, shard: int) -> None:
        wait, longest = _RETRY_SECONDS
        while True:
            await asyncio.sleep(wait)
            positions = await self._try_to_recover(shard)
            if positions is not None:
                self.unblock(shard, positions)
                return
            wait = min(2 * wait, longest)

    def block(self, shard: int, error: Exception) -> None:
        """Read this shard no more until `unblock`: its files cannot be read or written."""
        assert self._consumer is not None
        self.blocked.block(shard, error)
        self._consumer.withhold(shard)

    def unblock(self, shard: int, positions: Mapping[str, StreamId] | None = None) -> None:
        """Read it again, from where reading stopped or after these positions."""
        assert self._consumer is not None
        self.blocked.unblock(shard)
        self._consumer.resume(shard, positions)

    def raise_bugs(self) -> None:
        """Raise the error of a background recovery that ended with one."""
        for task in self._recovering.values():
            if task.done():
                task.result()

    async def commit(self, shard: int, store: ShardStore) -> CommitSummary | None:
        """Run `store.commit` in a thread; raises what it raises."""
        self._commits[shard] = commit = asyncio.create_task(asyncio.to_thread(store.commit))
        try:
            return await asyncio.shield(commit)
        finally:
            if self._commits.get(shard) is commit and commit.done():
                del self._commits[shard]

    async def sync(self) -> dict[int, OSError]:
        """Run `ShardStore.sync` on all stores. Return what failed."""
        failed: dict[int, OSError] = {}
        for shard, store in self.items():
            async with self._syncing:
                if self._open.get(shard) is store:
                    try:
                        await asyncio.to_thread(store.sync)
                    except OSError as error:
                        failed[shard] = error
        return failed

    async def release(self, shards: Collection[int]) -> None:
        """Close these stores, after any running commit. Uncommitted rows stay spooled for the next owner."""
        self.blocked.forget(shards)
        for shard in shards:
            if (recovering := self._recovering.pop(shard, None)) is not None:
                recovering.cancel()
                await asyncio.wait((recovering,))
            store = self._open.pop(shard, None)
            if (commit := self._commits.get(shard)) is not None:
                await asyncio.wait((commit,))
            if store is not None:
                async with self._syncing:
                    await asyncio.to_thread(store.close)
        released = [name for name in self.positions if self._keys.shard(Stream.parse(name).symbol) in shards]
        for name in released:
            del self.positions[name]
