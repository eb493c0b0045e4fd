"""Entries from the bus into the shards' stores, and commits at the right time.

Subscription goes on while a commit runs in its thread. When files cannot be written (disk full, folder gone) nothing more is read
than the buffer holds; the rows stay, and it goes on when there is room. The manifests are the position; Redis only shows it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress

from services.recorder.buffer import Rows
from services.recorder.options import Options
from services.recorder.row_ids import Entries
from services.recorder.shard_store import Committed, ShardStore
from services.recorder.shard_stores import ShardStores
from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import Fenced
from tickbus.protocol.codec import encode
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.reader.reader import Read
from tickbus.reader.reads import trimmed_gap
from tickbus.units import SECOND

log = logging.getLogger("tickbus.recorder")

_RETRY_SECONDS = 1.0
_SHOW_SECONDS = 2.0
_SYNC_SECONDS = 1.0
_AT_ONCE = 8
"""Shards that are committed at the same time: most of a commit is waiting for the disk, and it syncs several as fast as one."""
_HELD_FACTOR = 4
"""Subscription stops when this many times --flush-bytes wait."""


class Recorder:
    def __init__(self, consumer: ShardConsumer, keys: Keys, options: Options, stores: ShardStores) -> None:
        self._consumer = consumer
        self._keys = keys
        self._stores = stores
        self._interval = options.flush_interval / SECOND
        self._most = int(options.flush_bytes)
        self.rows: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.aside: Counter[str] = Counter()
        self.bytes = 0
        self.flushes: list[float] = []
        self.last_commit = 0.0
        self.blocked = False
        self._room = asyncio.Event()
        self._room.set()
        self._due = asyncio.Event()
        self._moved = asyncio.Event()
        self._unshown: dict[str, StreamId] = {}
        """Positions that moved and do not stand in Redis yet."""
        self._older: set[Stream] = set()
        """Streams whose history lies below what the files hold of another one."""
        self._since: float | None = None
        """When the oldest row that waits was read."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`: then what was read is committed once more; what cannot be written is read again at the next start."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            flushing = group.create_task(self._flush_when_due(stopping))
            showing = group.create_task(self._show_positions())
            syncing = group.create_task(self._sync())
            await stopping.wait()
            # in this order: no row comes after the last commit, and no commit is cancelled, as its thread would go on
            reading.cancel()
            self._due.set()
            self._room.set()
            await flushing
            syncing.cancel()
            await self._show_the_rest(showing)
        if left := sum(store.rows for store in self._stores.values()):
            log.error(
                "%d rows are not in the files: they could not be written; the next start reads them again",
                left,
            )

    async def _read(self) -> None:
        async for batch in self._consumer.batches():
            for read in batch.reads:
                self._add(read)
            self._spool({self._keys.shard(read.stream.symbol) for read in batch.reads})
            if batch.lost:
                await self._leave(batch.lost)
            if self._since is None and batch.reads:
                self._since = time.monotonic()
            self._bound()
            await self._room.wait()

    async def _leave(self, shards: Collection[int]) -> None:
        """What waits of these is another recorder's to read again."""
        await self._stores.leave(shards)
        of = self._keys.shard
        self._unshown = {
            name: id for name, id in self._unshown.items() if of(Stream.parse(name).symbol) not in shards
        }

    def _add(self, read: Read) -> None:
        store = self._stores[self._keys.shard(read.stream.symbol)]
        stream = read.stream
        if read.lost is not None:
            if read.lost.reset and read.lost.before <= store.newest(stream):
                self._older.add(stream)
                log.error(
                    "%s: another history, with IDs below those in the files: another bus, or a clock that went back; up to %s it is NOT recorded; "
                    "record it into another --data-dir", stream.name, store.newest(stream),
                )  # fmt: skip
            gap = trimmed_gap(read, self._consumer.service)
            id = StreamId(read.lost.before.ms, read.lost.before.seq - 1)
            store.add_many(Rows(stream, Entries([id.ms], [id.seq], [0]), b"\1", [encode(gap)]))
        ms: list[int] = []
        seqs: list[int] = []
        gaps = bytearray()
        payloads: list[bytes] = []
        for raw, (field, payload) in read.entries:
            left, _, right = raw.partition(b"-")
            ms.append(int(left))
            seqs.append(int(right))
            gaps.append(field == b"g")
            payloads.append(payload)
        if stream in self._older:
            newest = store.newest(stream)
            self._consumer.lost += sum(StreamId(*id) <= newest for id in zip(ms, seqs, strict=True))
            if ms and StreamId(ms[-1], seqs[-1]) > newest:
                self._older.remove(stream)
        if payloads:
            store.add_many(
                Rows(stream, Entries(ms, seqs, self._consumer.epochs_of(stream, seqs)), bytes(gaps), payloads)
            )

    def _spool(self, shards: set[int]) -> None:
        """What was read outlives this process from here on."""
        try:
            for shard in shards:
                self._stores[shard].spool()
        except OSError as error:
            self._block(error)
            self._due.set()

    async def _sync(self) -> None:
        """Once a second what was spooled goes to the disk itself: a power cut takes a second at most."""
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            try:
                await self._stores.sync()
            except OSError as error:
                self._block(error)
                self._due.set()

    def _bound(self) -> None:
        waiting = sum(store.bytes for store in self._stores.values())
        if waiting >= self._most:
            self._due.set()
        if waiting >= self._most * _HELD_FACTOR or self.blocked:
            self._room.clear()

    async def _flush_when_due(self, stopping: asyncio.Event) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)
        while True:
            last = stopping.is_set()
            with suppress(TimeoutError):
                async with asyncio.timeout(0 if last else self._until_due()):
                    await self._due.wait()
            self._due.clear()
            self._since = None
            waiting = [(shard, store) for shard, store in self._stores.items() if store.rows]
            await asyncio.gather(
                *(self._commit_until_done(shard, store, limit, stopping) for shard, store in waiting)
            )
            self._room.set()
            if last:
                return

    async def _commit_until_done(
        self, shard: int, store: ShardStore, limit: asyncio.Semaphore, stopping: asyncio.Event
    ) -> None:
        async with limit:
            while (
                self._stores.get(shard) is store
                and store.rows
                and not await self._commit(shard, store)
                and not stopping.is_set()
            ):
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await stopping.wait()

    def _until_due(self) -> float:
        return (
            self._interval
            if self._since is None
            else max(0.0, self._since + self._interval - time.monotonic())
        )

    async def _commit(self, shard: int, store: ShardStore) -> bool:
        """-> whether there is no more to do about the shard's rows: they are on the disk, or another recorder's."""
        started = time.monotonic()
        try:
            committed = await self._stores.commit(shard, store)
        except Fenced:
            if await self._surely_ours(shard, store):
                raise  # then it is no replica of ours that writes there
            return True
        except OSError as error:
            self._block(error)
            return False
        if self.blocked:
            log.info("files can be written again")
            self.blocked = False
        if committed is not None:
            self.flushes.append(time.monotonic() - started)
            self._count(committed)
            self._unshown |= committed.positions
            self._moved.set()
        return True

    async def _surely_ours(self, shard: int, store: ShardStore) -> bool:
        """Whether the fences still say that the shard is ours since this store was opened. While Redis is away nothing is sure."""
        members = self._consumer.members
        try:
            async with asyncio.timeout(4 * members.interval):
                await members.refreshed()
        except TimeoutError:
            return False
        # lost and won again in between, it has another store
        return (
            self._stores.get(shard) is store
            and shard in self._consumer.epochs
            and shard not in members.plan(self._consumer.epochs).taken
        )

    def _block(self, error: OSError) -> None:
        if not self.blocked:
            remedy = (
                "bring the folder back, or start again if it is gone for good"
                if isinstance(error, FileNotFoundError)
                else "free some room"
            )
            log.error(
                "cannot write files: %s; reading stops, nothing is lost, trying again: %s", error, remedy
            )
        self.blocked = True

    def _count(self, committed: Committed) -> None:
        self.rows.update(committed.rows)
        self.files.update(committed.files)
        self.aside.update(committed.aside)
        self.bytes += committed.bytes
        self._stores.positions |= committed.positions
        self.last_commit = time.time()

    async def _show_positions(self) -> None:
        """Put the positions into Redis, for others to see. A task of its own: Redis may be away, and the files go on."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            shown = dict(self._unshown)
            await self._consumer.commit({Stream.parse(name): id for name, id in shown.items()})
            self._unshown = {name: id for name, id in self._unshown.items() if shown.get(name) != id}

    async def _show_the_rest(self, showing: "asyncio.Task[None]") -> None:
        try:
            async with asyncio.timeout(_SHOW_SECONDS):
                while self._unshown:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning("Redis is away: the last positions are in the manifests only, which is enough")
        showing.cancel()
