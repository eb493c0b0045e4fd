"""A service's side of the bus: read the shards that it owns, commit position, state and output together.

    consumer = ShardConsumer(url, keys, "bars", reads, lease_ttl)
    await consumer.open()
    async for batch in consumer.batches():
        ...
        await batch.commit(outputs, state)

Any number of processes share the shards of a service (tickbus.consumer.ownership). Position and state are
stored in Redis next to the streams, and a commit is one fenced transaction with the outputs: after a crash
at any point the next owner of the shard continues as if nothing had happened. A service whose output is
elsewhere (the recorder's files) stores its position there, provides it through `recover`, and commits it
here only to show it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from functools import partial

from tickbus.clock import BusClock
from tickbus.consumer.batch import Batch
from tickbus.consumer.group_mirror import GroupMirror
from tickbus.consumer.membership import Membership
from tickbus.consumer.outputs import Output
from tickbus.consumer.ownership import SLOW_SHARD_SECONDS, Recover, ShardOwnership
from tickbus.consumer.uncommitted import UncommittedPositions
from tickbus.consumer.writer_epochs import WriterEpochs
from tickbus.errors import Fenced, RedisError
from tickbus.protocol.names import Keys, StateField, Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.cluster_reader import AnyReader, open_reader
from tickbus.reader.reads import FROM_START, NOW, Poll
from tickbus.redis.link import ReplyError
from tickbus.redis.registry import check_conflicting_writers, check_meta, check_replicas, register_service
from tickbus.redis.topology import locate
from tickbus.units import Duration
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import HeadBuilder
from tickbus.writer.publisher import Publisher
from tickbus.writer.replay_buffer import DEFAULT_WINDOW, Window
from tickbus.writer.transaction import Field, Transaction

log = logging.getLogger("tickbus.consumer")

_RECHECK_SECONDS = 1.0
_LAST_COMMIT_SECONDS = 2.0
"""A commit in progress may take this long when the service ends."""


class ShardConsumer:
    """One replica of a service."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        service: str,
        reads: StreamFilter,
        lease_ttl: Duration,
        *,
        start: str | StreamId = FROM_START,
        writes: StreamFilter | None = None,
        recover: Recover | None = None,
        window: Window = DEFAULT_WINDOW,
        mirror_groups: bool = False,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """
        reads: which streams. start: where streams without a position begin.
        writes: its own streams, which no other service may write; None: unknown until it writes them.
        recover: how a service that stores positions outside Redis finds them.
        window: how much of what was recently written is kept, to be resent if Redis loses it.
        mirror_groups: whether positions are shown as consumer groups too.
        notes: fields of `tickbus:meta` that this service sets where they are missing, again after a flush.
        """
        self._redis = locate(url)
        self.connect = self._redis.connect
        self.keys = keys
        self.service = service
        self.reads = reads
        self._start = start
        self._notes = notes or {}
        self._writes = writes
        self._keeps_positions = recover is None
        self.clock = BusClock()
        self.publisher = Publisher(self._redis, keys, service, self.clock, window=window, whole_shards=True)
        self.members = Membership(self.connect, keys, service, lease_ttl, self.publisher.fences.holder)
        self.shards = ShardOwnership(
            keys, service, reads, self.publisher, self.members, self.clock, self.connect,
            start=start, writes=writes, recover=recover, window=window,
        )  # fmt: skip
        self.shards.on_lost.append(self._forget)
        self._uncommitted = UncommittedPositions()
        self._groups = GroupMirror(self.connect, keys, service) if mirror_groups else None
        self._writer_epochs = WriterEpochs()
        self._reader: AnyReader | None = None
        self._committing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0
        """Number of the newest batch."""
        self._planned = -1
        """The membership version that was last acted on."""
        self._withheld: set[int] = set()
        """Owned shards that are not read: see `withhold`."""
        self._withheld_streams: set[str] = set()
        """Names of streams of owned shards that are not read: see `withhold_stream`."""
        self._selection_changed = False
        """Whether other shards are to be read than the reader reads."""
        self._registered = 0
        """After how many losses of Redis's history this service has registered again."""
        self._reconnects = 0
        self._rechecked_at = 0.0
        self._foreign: Counter[str] = Counter()
        self.read = 0
        """Total of entries read."""
        self.commits = 0
        self.lost = 0
        """Entries that were trimmed before they were read."""

    @property
    def epochs(self) -> Mapping[int, int]:
        """Owned shard -> the epoch under which this process owns it."""
        return self.shards.epochs

    def owns(self, stream: Stream) -> bool:
        """Return whether this process is the one that reads the stream for the service."""
        return self.reads(stream) and self.shards.owns(stream)

    @property
    def ready(self) -> bool:
        """Whether it owns its share of the shards, or no share is left for it."""
        return bool(self.members.alive) and bool(self.epochs or not self.members.wanted)

    @property
    def reconnects(self) -> int:
        return (
            self.publisher.reconnects
            + self._reconnects
            + (self._reader.reconnects if self._reader is not None else 0)
        )

    @property
    def foreign(self) -> Counter[str]:
        """What other programs wrote and was skipped, as `Reader.foreign`."""
        return self._foreign + (self._reader.foreign if self._reader is not None else Counter())

    @property
    def faults(self) -> list[str]:
        """Keys and streams that other programs overwrote, so that this service cannot read or write them."""
        return self.shards.faults + [fault.key for fault in self.publisher.quarantined]

    async def open(self) -> None:
        """Become a member, unless it already is one. RedisError or ConfigError if that is not possible."""
        if self._tasks:
            return
        link = await self.connect()
        try:
            await check_meta(link, self.keys)
            await check_replicas(link, self.keys, self.service, self.reads, self._writes)
        finally:
            link.close()
        await self._register()
        await self.members.beat()
        if self._writes is not None:
            await self.shards.retry_until_answered(
                partial(check_conflicting_writers, keys=self.keys, service=self.service, writes=self._writes)
            )
        background = [self.members.run(), *([self._groups.run()] if self._groups is not None else [])]
        self._tasks = [asyncio.create_task(coroutine) for coroutine in background]

    async def _register(self) -> None:
        link = await self.connect()
        try:
            await check_meta(link, self.keys)
            await register_service(link, self.keys, self.service, self.reads, self._writes)
            for field, value in self._notes.items():
                await link.ask("HSETNX", self.keys.meta, field, value)
        finally:
            link.close()

    async def _register_again(self) -> None:
        """Redis lost its data, including what others know about this service."""
        try:
            await self._register()
            self._registered = self.publisher.histories_lost
        except (RedisError, ReplyError) as error:
            log.debug("%s: cannot register again yet: %s", self.service, error)

    # reading

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield batches forever. Shards are taken over and released between two: a slow batch delays that."""
        polls: AsyncIterator[Poll] | None = None
        while True:
            self._raise_bugs()
            if self.publisher.in_flight:
                await self._check_in_flight()
            if self._selection_changed:
                self._selection_changed = False
                polls = None
                self._end_reading()
            if self.publisher.quarantined and time.monotonic() - self._rechecked_at > _RECHECK_SECONDS:
                await self._recheck()
            if self.shards.has_losses or self._planned != self.members.version:
                self._planned = self.members.version
                if self._registered != self.publisher.histories_lost:
                    await self._register_again()
                if leaving := await self.shards.leaving():
                    polls = None
                    self._end_reading()
                    yield self._batch(Poll(), lost=leaving)
                    if self._groups is not None:
                        await self._groups.flush(_LAST_COMMIT_SECONDS)
                    await self.shards.release(leaving)
                if gained := await self.shards.take():
                    polls = None
                    self._end_reading()
                    yield self._batch(Poll(), gained=gained)
            elif not self.epochs.keys() - self._withheld:
                await self.members.next_refresh()
            else:
                polls = polls or self._begin_reading()
                yield self._batch(await anext(polls))

    def _batch(
        self,
        poll: Poll,
        gained: Mapping[int, Mapping[str, bytes]] | None = None,
        lost: frozenset[int] = frozenset(),
    ) -> Batch:
        self._number += 1
        if self._keeps_positions:
            self._uncommitted.add(self._number, {read.stream: read.last for read in poll.reads})
        for read in poll.reads:
            self.read += len(read.entries)
            if read.lost is not None:
                self.lost += read.lost.count
                if read.lost.reset:
                    self._writer_epochs.forget([read.stream.name])
                    log.error(
                        "%s: %s was rolled back: Redis lost entries that had been read",
                        self.service,
                        read.stream.name,
                    )
                else:
                    log.error(
                        "%s: %s: %d entries were trimmed before they were read",
                        self.service,
                        read.stream.name,
                        read.lost.count,
                    )
        return Batch(self, self._number, poll, gained or {}, lost)

    def _begin_reading(self) -> AsyncIterator[Poll]:
        start = FROM_START if self._start == NOW else self._start  # the positions already hold where NOW was
        read_to, shards = self.shards.read_to, sorted(self.epochs.keys() - self._withheld)
        self._reader = open_reader(
            self._redis, self.keys, self._is_read, start, read_to, shards, self._paused
        )
        return self._reader.polls()

    def _is_read(self, stream: Stream) -> bool:
        return (
            self.reads(stream)
            and stream.name not in self.shards.unreadable
            and stream.name not in self._withheld_streams
        )

    def _paused(self) -> Collection[int]:
        """Return the shards of which nothing more is delivered until their last commit is stored."""
        return self.publisher.in_flight.shards

    def withhold(self, shard: int) -> None:
        """Deliver nothing more of this owned shard until `resume`: the service cannot process it now, and its
        entries wait on the bus. Those of a poll that is already under way may still come.
        """
        if shard in self.epochs and shard not in self._withheld:
            self._withheld.add(shard)
            self._selection_changed = True

    def resume(self, shard: int, positions: Mapping[str, StreamId] | None = None) -> None:
        """Deliver a withheld shard again, from where it was delivered to, or after these `positions`."""
        if shard in self._withheld:
            self.shards.read_to |= positions or {}
            self._withheld.remove(shard)
            self._selection_changed = True

    def withhold_stream(self, stream: Stream, position: StreamId) -> None:
        """Deliver nothing more of this stream until `resume_stream`, which continues after `position`: the
        service has no room for it. Those of a poll that is already under way may still come.
        """
        if self.shards.owns(stream):
            self._withheld_streams.add(stream.name)
            self.shards.read_to[stream.name] = position
            if self._reader is not None:
                self._reader.unfollow(stream)

    def resume_stream(self, stream: Stream) -> None:
        """Deliver a withheld stream again."""
        if stream.name in self._withheld_streams:
            self._withheld_streams.remove(stream.name)
            if self._reader is not None:
                self._reader.follow(stream, self.shards.read_to[stream.name])

    def history(self, stream: Stream) -> str | None:
        """Return the ID of the history from which the stream is read now; None if it is not being read."""
        return self._reader.history(self.keys.shard(stream.symbol)) if self._reader is not None else None

    def _end_reading(self) -> None:
        """The set of shards changes: another reader continues where this one is."""
        if self._reader is not None:
            resumable = self._reader.resumable
            self.shards.read_to |= {
                name: id for name, id in resumable.items() if name not in self._withheld_streams
            }
            self._reader.close()
            self._reconnects += self._reader.reconnects
            self._foreign += self._reader.foreign
            self._reader = None

    def _forget(self, shards: Collection[int]) -> None:
        """Another process owns these shards now."""

        def is_gone(stream: Stream) -> bool:
            return self.keys.shard(stream.symbol) in shards

        self._withheld.difference_update(shards)
        self._withheld_streams = {n for n in self._withheld_streams if not is_gone(Stream.parse(n))}
        self._writer_epochs.forget_if(lambda name: is_gone(Stream.parse(name)))
        self._uncommitted.forget(is_gone)
        if self._groups is not None:
            self._groups.forget(is_gone)

    def epochs_of(self, stream: Stream, seqs: Sequence[int]) -> list[int]:
        """Return the epochs under which the next entries of a stream were written, by their counters."""
        head = self._reader.heads.get(stream.name) if self._reader is not None else None
        return self._writer_epochs.epochs(stream.name, head.epochs if head is not None else (), seqs)

    # committing

    def state(self, stream: Stream) -> bytes | None:
        """Return the last committed state of this stream."""
        return self.shards.states.get(stream.name)

    async def commit(
        self,
        positions: Mapping[Stream, StreamId],
        outputs: Sequence[Output] = (),
        state: Mapping[Stream, bytes] | None = None,
    ) -> None:
        """Store these as one transaction, as far as their shards are owned. Returns when it is stored."""
        fields: dict[StateField, bytes] = dict((state or {}).items())
        await self._shielded(self._commit(positions, outputs, fields, dict(self.epochs)))

    async def commit_batch(
        self,
        number: int,
        epochs: Mapping[int, int],
        outputs: Sequence[Output],
        state: Mapping[StateField, bytes],
    ) -> None:
        """As `commit`, for everything delivered up to batch `number`. `epochs`: those owned at that batch."""
        foreign = next(
            (output.stream for output in outputs if self.keys.shard(output.stream.symbol) not in epochs), None
        )
        if foreign is not None:
            raise ValueError(
                f"{foreign.name}: its shard is not owned by this process; give an output the symbol of the "
                "entry that caused it"
            )
        await self._shielded(self._commit(self._uncommitted.up_to(number), outputs, state, epochs))
        self._uncommitted.committed(number)

    async def _shielded(self, commit: Awaitable[None]) -> None:
        """Run a commit that is never cancelled halfway: nobody would know which part of it is stored."""
        self._committing = asyncio.ensure_future(commit)
        await asyncio.shield(self._committing)

    async def _commit(
        self,
        positions: Mapping[Stream, StreamId],
        outputs: Sequence[Output],
        state: Mapping[StateField, bytes],
        epochs: Mapping[int, int],
    ) -> None:
        owned, shard_of = self.shards, self.keys.shard
        async with owned.lock:
            # a shard that was lost and gained again since is not the one that these entries were read from
            ours = {shard for shard, epoch in epochs.items() if self.epochs.get(shard) == epoch}
            positions = {stream: id for stream, id in positions.items() if shard_of(stream.symbol) in ours}
            state = {stream: value for stream, value in state.items() if shard_of(stream.symbol) in ours}
            heads: dict[StreamWriter, HeadBuilder] = {}
            entries = [
                owned.outputs.entry(output, epochs[shard], heads)
                for output in outputs
                if (shard := shard_of(output.stream.symbol)) in ours
            ]
            await self._store(entries, heads, owned.position_fields(positions) + owned.state_fields(state))
            self.commits += 1
            # only of what is still owned: `_store` may have found that a shard was taken over
            positions = {stream: id for stream, id in positions.items() if owned.owns(stream)}
            owned.positions |= {stream.name: id for stream, id in positions.items()}
            owned.states |= {stream.name: value for stream, value in state.items() if owned.owns(stream)}
            if self._groups is not None:
                self._groups.move(positions)

    async def _store(
        self, entries: list[Entry], heads: Mapping[StreamWriter, HeadBuilder], fields: list[Field]
    ) -> None:
        """Store the part in shards that nobody took over. Counters of outputs in the others do not move."""
        while True:
            transaction = Transaction(self.clock.now_ms())
            transaction.entries = [entry for entry in entries if entry.stream.shard in self.epochs]
            transaction.heads = {
                writer: head.pack() for writer, head in heads.items() if writer.shard in self.epochs
            }
            transaction.fields = [field for field in fields if field.shard in self.epochs]
            if not transaction.shards():
                break
            try:
                await self.publisher.commit(transaction, SLOW_SHARD_SECONDS)
                break
            except Fenced as error:
                if not error.shards:
                    raise
                self.shards.drop(error.shards)
                if self._redis.sharded:  # each shard is its own transaction: those of the others are stored
                    break
        self.shards.outputs.stored(
            {writer: head for writer, head in heads.items() if writer.shard in self.epochs}
        )

    async def _check_in_flight(self) -> None:
        """Check what became of commits in flight."""
        async with self.shards.lock:
            try:
                self.publisher.in_flight.check()
            except Fenced as error:
                if not error.shards:
                    raise
                self.shards.drop(error.shards)

    async def _recheck(self) -> None:
        """Check whether keys that some other program wrote to are mended."""
        self._rechecked_at = time.monotonic()
        async with self.shards.lock:
            try:
                await self.publisher.recheck(self.clock.now_ms())
            except Fenced as error:
                if not error.shards:
                    raise
                self.shards.drop(error.shards)

    # the end

    def _raise_bugs(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def close(self) -> None:
        """Release all shards and leave. A commit in progress gets a short time to finish."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._committing is not None:
            await asyncio.wait((self._committing,), timeout=_LAST_COMMIT_SECONDS)
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)
        await self.publisher.in_flight.finish(_LAST_COMMIT_SECONDS)
        if self._groups is not None:
            await self._groups.flush(_LAST_COMMIT_SECONDS)
        self._end_reading()
        await self.publisher.release()
        await self.members.leave()
        self.publisher.close()
