"""Moves entries from the bus into the shards' stores, and commits them in time.

Reading continues while a commit runs in its thread. A shard whose files cannot be written (disk full, folder
gone, no access) is read no further; its rows stay, and it continues once they can. The other shards go on.
The manifests are the position; Redis only shows it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from itertools import compress

from services.recorder.buffer import Rows, RowType, pack_fields, pack_unknown
from services.recorder.options import Options
from services.recorder.partition import MAX_DAYS
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
_MAX_ID = (1 << 63) - 1
"""The largest half of an ID that a column holds."""
_ROUND_SECONDS = 1.0
"""A shard whose rows take several commits is given this long at a time: the others wait for it."""
_PAUSE_FACTOR = 4
"""Reading pauses when this many times --flush-bytes are buffered."""


class BacklogError(Exception):
    """A shard has rows of so many days that they are not written in time."""


class Recorder:
    def __init__(self, consumer: ShardConsumer, keys: Keys, options: Options, stores: ShardStores) -> None:
        self._consumer = consumer
        self._keys = keys
        self.stores = self._stores = stores
        self._interval = options.flush_interval / SECOND
        self._flush_bytes = int(options.flush_bytes)
        self.rows: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()
        self.split = 0
        """Commits that left rows of further days to the next one."""
        self.bytes = 0
        self.flushes: list[float] = []
        self.last_commit = 0.0
        self._committing: set[int] = set()
        """Shards with a commit under way: two of one shard must not overlap."""
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
            retrying = group.create_task(self._retry_blocked(stopping))
            await stopping.wait()
            # in this order: no row after the last commit, no cancelled commit (its thread would continue)
            reading.cancel()
            await retrying
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
        if read.lost is not None and max(read.lost.before) <= _MAX_ID:
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
            left, _, right = raw.partition(b"-")
            ms.append(int(left))
            seqs.append(int(right))
            # one field and its value; anything else is not ours, and kept as it is
            field, payload = fields if len(fields) == 2 else (b"", pack_fields(fields))
            if field == own:
                gaps.append(RowType.TICK)
            elif field == b"g":
                gaps.append(RowType.GAP)
            else:  # from a newer writer, or a foreign one
                gaps.append(RowType.UNKNOWN)
                payload = pack_unknown(field, payload)
            payloads.append(payload)
        if ms and max(ms[-1], *seqs) > _MAX_ID:
            ms, seqs, gaps, payloads = self._without_foreign_ids(stream, ms, seqs, gaps, payloads)
        if stream in self._rewound:
            newest = store.newest(stream)
            self._consumer.lost += sum(StreamId(*id) <= newest for id in zip(ms, seqs, strict=True))
            if ms and StreamId(ms[-1], seqs[-1]) > newest:
                self._rewound.remove(stream)
        if payloads:
            store.add_many(
                Rows(stream, RowIds(ms, seqs, self._consumer.epochs_of(stream, seqs)), bytes(gaps), payloads)
            )

    def _without_foreign_ids(
        self, stream: Stream, ms: list[int], seqs: list[int], gaps: bytearray, payloads: list[bytes]
    ) -> tuple[list[int], list[int], bytearray, list[bytes]]:
        """Return the rows whose IDs can be ours: the others do not fit their columns."""
        ours = [max(id) <= _MAX_ID for id in zip(ms, seqs, strict=True)]
        foreign = ours.index(False)
        log.error(
            "%s: %d entries with IDs that no tickbus writer makes, e.g. %d-%d, are not recorded; "
            "fix: XDEL them",
            stream.name,
            ours.count(False),
            ms[foreign],
            seqs[foreign],
        )
        self.quarantined["unreadable"] += ours.count(False)
        return (
            list(compress(ms, ours)),
            list(compress(seqs, ours)),
            bytearray(compress(gaps, ours)),
            list(compress(payloads, ours)),
        )

    def _spool(self, shards: set[int]) -> None:
        """Make what was read outlive this process."""
        for shard in shards:
            try:
                self._stores[shard].spool()
            except OSError as error:
                self._stores.block(shard, error)

    async def _sync(self) -> None:
        """Sync spooled rows to the disk once a second: a power cut loses one second at most."""
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            self._stores.raise_bugs()
            for shard, error in (await self._stores.sync()).items():
                self._stores.block(shard, error)

    def _apply_backpressure(self) -> None:
        """Commit when enough is buffered, and read no more when too much is: of the shards that can be
        committed, or of those that cannot.
        """
        blocked = self._stores.blocked
        free = held = 0
        for shard, store in self._stores.items():
            if shard in blocked:
                held += store.bytes
            else:
                free += store.bytes
        if free >= self._flush_bytes:
            self._due.set()
        if max(free, held) >= self._flush_bytes * _PAUSE_FACTOR:
            self._may_read.clear()
        else:
            self._may_read.set()

    async def _flush_when_due(self, stopping: asyncio.Event) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)
        while True:
            last = stopping.is_set()
            with suppress(TimeoutError):
                async with asyncio.timeout(0 if last else self._seconds_until_due()):
                    await self._due.wait()
            self._due.clear()
            self._buffered_since = None
            pending = [
                (shard, store)
                for shard, store in self._stores.items()
                if store.rows and (last or shard not in self._stores.blocked)
            ]
            await asyncio.gather(*(self._commit(shard, store, limit) for shard, store in pending))
            self._apply_backpressure()
            if last:
                return

    async def _retry_blocked(self, stopping: asyncio.Event) -> None:
        """Commit blocked shards again until that succeeds."""
        limit = asyncio.Semaphore(_AT_ONCE)
        while not stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_SECONDS):
                    await stopping.wait()
            blocked = [
                (shard, store) for shard, store in self._stores.items() if shard in self._stores.blocked
            ]
            if blocked and not stopping.is_set():
                await asyncio.gather(*(self._commit(shard, store, limit) for shard, store in blocked))
                self._apply_backpressure()

    def _seconds_until_due(self) -> float:
        return (
            self._interval
            if self._buffered_since is None
            else max(0.0, self._buffered_since + self._interval - time.monotonic())
        )

    async def _commit(self, shard: int, store: ShardStore, limit: asyncio.Semaphore) -> None:
        """Write the shard's rows. It is blocked if that fails, and no longer blocked if it succeeds."""
        async with limit:
            if self._stores.get(shard) is not store or shard in self._committing:
                return
            self._committing.add(shard)
            try:
                await self._commit_all(shard, store)
            except Fenced:
                if await self._is_owned(shard, store):
                    raise  # then the other writer is not one of our replicas
            except (OSError, BacklogError) as error:
                if self._stores.get(shard) is store:
                    self._stores.block(shard, error)
            else:
                if self._stores.get(shard) is store and shard in self._stores.blocked:
                    self._stores.unblock(shard)
            finally:
                self._committing.remove(shard)

    async def _commit_all(self, shard: int, store: ShardStore) -> None:
        """Commit until nothing is left, for a second at most; BacklogError if rows are left then."""
        began = time.monotonic()
        while True:
            started, missing = time.monotonic(), store.missing_files
            committed = await self._stores.commit(shard, store)
            self._stores.missing_files += store.missing_files - missing
            if committed is None:
                return
            self.flushes.append(time.monotonic() - started)
            self._count(committed)
            self._unpublished |= committed.positions
            self._advanced.set()
            if not committed.is_cut:
                return
            if time.monotonic() - began > _ROUND_SECONDS:
                raise BacklogError(
                    f"{store.rows} rows of more than {MAX_DAYS} days each are still to be written"
                )

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

    def _count(self, committed: CommitSummary) -> None:
        self.rows.update(committed.rows)
        self.files.update(committed.files)
        self.quarantined.update(committed.quarantined)
        self.split += committed.is_cut
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
