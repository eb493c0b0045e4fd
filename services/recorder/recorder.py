"""Moves entries from the bus into the shards' stores, and commits them in time.

Reading continues while a commit runs in its thread. When files cannot be written (disk full, folder gone),
it reads no more than the buffer can hold; the rows stay, and it continues once there is space. The
manifests are the position; Redis only shows it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress

from services.recorder.buffer import Rows, RowType, pack_unknown
from services.recorder.options import Options
from services.recorder.row_ids import RowIds
from services.recorder.shard_store import CommitSummary, ShardStore
from services.recorder.shard_stores import ShardStores
from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import Fenced
from tickbus.protocol.codec import TICK_FIELD, encode
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.reader.reader import Read
from tickbus.reader.reads import trimmed_gap
from tickbus.units import SECOND

log = logging.getLogger("tickbus.recorder")

_RETRY_SECONDS = 1.0
_PUBLISH_SECONDS = 2.0
_SYNC_SECONDS = 1.0
_AT_ONCE = 8
"""Shards committed concurrently: a commit mostly waits for the disk, which syncs several as fast as one."""
_PAUSE_FACTOR = 4
"""Reading pauses when this many times --flush-bytes are buffered."""


class Recorder:
    def __init__(self, consumer: ShardConsumer, keys: Keys, options: Options, stores: ShardStores) -> None:
        self._consumer = consumer
        self._keys = keys
        self._stores = stores
        self._interval = options.flush_interval / SECOND
        self._flush_bytes = int(options.flush_bytes)
        self.rows: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()
        self.bytes = 0
        self.flushes: list[float] = []
        self.last_commit = 0.0
        self.blocked = False
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._due = asyncio.Event()
        self._advanced = asyncio.Event()
        self._unpublished: dict[str, StreamId] = {}
        """Positions that advanced and are not in Redis yet."""
        self._rewound: set[Stream] = set()
        """Streams that were reset, with IDs below those already in the files."""
        self._buffered_since: float | None = None
        """When the oldest buffered row was read."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until `stopping`, then commit once more. The next start reads again what cannot be written."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            flushing = group.create_task(self._flush_when_due(stopping))
            publishing = group.create_task(self._publish_positions())
            syncing = group.create_task(self._sync())
            await stopping.wait()
            # in this order: no row after the last commit, no cancelled commit (its thread would continue)
            reading.cancel()
            self._due.set()
            self._may_read.set()
            await flushing
            syncing.cancel()
            await self._publish_remaining(publishing)
        if left := sum(store.rows for store in self._stores.values()):
            log.error("%d rows could not be written; the next start reads them again", left)

    async def _read(self) -> None:
        async for batch in self._consumer.batches():
            for read in batch.reads:
                self._add(read)
            self._spool({self._keys.shard(read.stream.symbol) for read in batch.reads})
            if batch.lost:
                await self._release(batch.lost)
            if self._buffered_since is None and batch.reads:
                self._buffered_since = time.monotonic()
            self._apply_backpressure()
            await self._may_read.wait()

    async def _release(self, shards: Collection[int]) -> None:
        """Close these shards; their next owner reads the uncommitted rows again."""
        await self._stores.release(shards)
        shard_of = self._keys.shard
        self._unpublished = {
            name: id
            for name, id in self._unpublished.items()
            if shard_of(Stream.parse(name).symbol) not in shards
        }

    def _add(self, read: Read) -> None:
        store = self._stores[self._keys.shard(read.stream.symbol)]
        stream = read.stream
        if read.lost is not None:
            if read.lost.reset and read.lost.before <= store.newest(stream):
                self._rewound.add(stream)
                log.error(
                    "%s: stream reset to IDs below those in the files (another bus, or a clock set back); "
                    "entries up to %s are NOT recorded; record them into another --data-dir",
                    stream.name,
                    store.newest(stream),
                )
            gap = trimmed_gap(read, self._consumer.service)
            id = StreamId(read.lost.before.ms, read.lost.before.seq - 1)
            store.add_many(Rows(stream, RowIds([id.ms], [id.seq], [0]), b"\1", [encode(gap)]))
        ms: list[int] = []
        seqs: list[int] = []
        own = TICK_FIELD[stream.kind]
        gaps = bytearray()
        payloads: list[bytes] = []
        for raw, fields in read.entries:
            field, payload = fields if len(fields) == 2 else (b"", encode(fields))
            left, _, right = raw.partition(b"-")
            ms.append(int(left))
            seqs.append(int(right))
            if field == own:
                gaps.append(RowType.TICK)
            elif field == b"g":
                gaps.append(RowType.GAP)
            else:  # from a newer writer
                gaps.append(RowType.UNKNOWN)
                payload = pack_unknown(field, payload)
            payloads.append(payload)
        if stream in self._rewound:
            newest = store.newest(stream)
            self._consumer.lost += sum(StreamId(*id) <= newest for id in zip(ms, seqs, strict=True))
            if ms and StreamId(ms[-1], seqs[-1]) > newest:
                self._rewound.remove(stream)
        if payloads:
            store.add_many(
                Rows(stream, RowIds(ms, seqs, self._consumer.epochs_of(stream, seqs)), bytes(gaps), payloads)
            )

    def _spool(self, shards: set[int]) -> None:
        """Make what was read outlive this process."""
        try:
            for shard in shards:
                self._stores[shard].spool()
        except OSError as error:
            self._block(error)
            self._due.set()

    async def _sync(self) -> None:
        """Sync spooled rows to the disk once a second: a power cut loses one second at most."""
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            try:
                await self._stores.sync()
            except OSError as error:
                self._block(error)
                self._due.set()

    def _apply_backpressure(self) -> None:
        buffered = sum(store.bytes for store in self._stores.values())
        if buffered >= self._flush_bytes:
            self._due.set()
        if buffered >= self._flush_bytes * _PAUSE_FACTOR or self.blocked:
            self._may_read.clear()

    async def _flush_when_due(self, stopping: asyncio.Event) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)
        while True:
            last = stopping.is_set()
            with suppress(TimeoutError):
                async with asyncio.timeout(0 if last else self._seconds_until_due()):
                    await self._due.wait()
            self._due.clear()
            self._buffered_since = None
            pending = [(shard, store) for shard, store in self._stores.items() if store.rows]
            await asyncio.gather(
                *(self._commit_until_done(shard, store, limit, stopping) for shard, store in pending)
            )
            self._may_read.set()
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

    def _seconds_until_due(self) -> float:
        return (
            self._interval
            if self._buffered_since is None
            else max(0.0, self._buffered_since + self._interval - time.monotonic())
        )

    async def _commit(self, shard: int, store: ShardStore) -> bool:
        """Return whether the shard's rows are done with: they are on disk, or belong to another recorder."""
        started = time.monotonic()
        try:
            committed = await self._stores.commit(shard, store)
        except Fenced:
            if await self._is_owned(shard, store):
                raise  # then the other writer is not one of our replicas
            return True
        except OSError as error:
            self._block(error)
            return False
        if self.blocked:
            log.info("files are writable again")
            self.blocked = False
        if committed is not None:
            self.flushes.append(time.monotonic() - started)
            self._count(committed)
            self._unpublished |= committed.positions
            self._advanced.set()
        return True

    async def _is_owned(self, shard: int, store: ShardStore) -> bool:
        """Return whether the fences confirm that we have owned the shard since this store was opened. False
        while Redis is unavailable: then nothing is certain.
        """
        members = self._consumer.members
        try:
            async with asyncio.timeout(4 * members.interval):
                await members.refreshed()
        except TimeoutError:
            return False
        # if lost and won again in between, it has another store
        return (
            self._stores.get(shard) is store
            and shard in self._consumer.epochs
            and shard not in members.plan(self._consumer.epochs).taken
        )

    def _block(self, error: OSError) -> None:
        if not self.blocked:
            remedy = (
                "restore the folder, or restart if it is gone for good"
                if isinstance(error, FileNotFoundError)
                else "free disk space"
            )
            log.error(
                "cannot write files: %s; reading paused, nothing lost, retrying; fix: %s", error, remedy
            )
        self.blocked = True

    def _count(self, committed: CommitSummary) -> None:
        self.rows.update(committed.rows)
        self.files.update(committed.files)
        self.quarantined.update(committed.quarantined)
        self.bytes += committed.bytes
        self._stores.positions |= committed.positions
        self.last_commit = time.time()

    async def _publish_positions(self) -> None:
        """Store the positions in Redis, for others to see. A task of its own: files do not wait for Redis."""
        while True:
            await self._advanced.wait()
            self._advanced.clear()
            published = dict(self._unpublished)
            await self._consumer.commit({Stream.parse(name): id for name, id in published.items()})
            self._unpublished = {
                name: id for name, id in self._unpublished.items() if published.get(name) != id
            }

    async def _publish_remaining(self, publishing: "asyncio.Task[None]") -> None:
        try:
            async with asyncio.timeout(_PUBLISH_SECONDS):
                while self._unpublished:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning(
                "Redis is unavailable; the last positions are only in the manifests, which is sufficient"
            )
        publishing.cancel()
