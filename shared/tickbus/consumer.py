"""A service's side of the bus: read the shards that are its own, commit position, state and output together.

    consumer = Consumer(url, keys, "bars", reads, lease_ttl)
    await consumer.open()
    async for batch in consumer.batches():
        ...
        await batch.commit(outputs, state)

Any number of processes share the shards of a service (tickbus.members). Position and state stand in Redis beside the streams,
and a commit is one fenced transaction with the outputs: after a crash anywhere whoever works the shard next goes on as if
nothing had happened. A service whose output is elsewhere (the recorder's files) keeps its position there, says so by
`recover`, and commits it here only to show it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

from tickbus.authors import Authors
from tickbus.batch import Batch
from tickbus.clock import BusClock
from tickbus.delivered import Delivered
from tickbus.errors import Fenced, RedisError
from tickbus.fences import Fence
from tickbus.groups import GroupMirror
from tickbus.handover import Handover, read_handover
from tickbus.link import Connection, ReplyError
from tickbus.members import Membership
from tickbus.merged import AnyReader, open_reader
from tickbus.names import Keys, Stream, StreamId
from tickbus.outputs import Output, OutputStreams
from tickbus.publisher import Publisher
from tickbus.reads import FROM_START, NOW, Round
from tickbus.registry import check_meta, check_replicas, check_rivals, read_heads, register_service
from tickbus.replay_ring import DEFAULT_WINDOW, Window
from tickbus.selection import Selection
from tickbus.streams import Entry, StreamWriter
from tickbus.topology import locate
from tickbus.transaction import Field, Transaction
from tickbus.units import MILLISECOND, Duration
from tickbus.wire import Head, encode

log = logging.getLogger("tickbus.consumer")

_ANY_OUTPUT = Selection.of(("bar", "signal"))
_RETRY_SECONDS = 0.2
_PATIENCE_SECONDS = 0.5
"""So long a commit, or a claim, waits for the slowest shard of a cluster before it goes on with the others."""
_LAST_COMMIT_SECONDS = 2.0
"""A commit under way may take this long when the service ends."""

Answer = TypeVar("Answer")

Recover = Callable[[list[int]], Awaitable[Mapping[str, StreamId]]]
"""Shards that were just taken over -> positions by stream name, of a service that keeps them elsewhere than in Redis."""


class Consumer:
    """One replica of a service."""

    def __init__(
        self, url: str, keys: Keys, service: str, reads: Selection, lease_ttl: Duration, *,
        start: str | StreamId = FROM_START, writes: Selection | None = None, recover: Recover | None = None,
        window: Window = DEFAULT_WINDOW,
    ) -> None:  # fmt: skip
        """`reads`: which streams; `start`: where streams without a position begin; `writes`: its own streams, which no other service may write;
        None: nobody knows before it writes."""
        self._redis = locate(url)
        self._connect = self._redis.connect
        self._keys = keys
        self.service = service
        self.reads = reads
        self._start = start
        self._writes = writes
        self._recover = recover
        self._window = window
        self.clock = BusClock()
        self.publisher = Publisher(self._redis, keys, service, self.clock, window=window)
        self.members = Membership(self._connect, keys, service, lease_ttl, self.publisher.fences.holder)
        self.positions: dict[str, StreamId] = {}
        """Committed, by stream name, of the shards that are held; on a cluster perhaps still on the way to a master that is away."""
        self.states: dict[str, bytes] = {}
        self.outputs = OutputStreams(keys)
        self._delivered = Delivered()
        self._groups = GroupMirror(self._connect, keys, service)
        self._reader: AnyReader | None = None
        self._read_to: dict[str, StreamId] = {}
        """Where a new reader goes on: what was delivered, committed or not."""
        self._authors = Authors()
        self._taken: set[int] = set()
        """Shards that another process took over, and the service is not told yet."""
        self._lock = asyncio.Lock()
        """One commit or change of shards at a time."""
        self._committing: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0
        self._planned = -1
        """The news of the members that was acted on."""
        self._registered = 0
        """How many losses of Redis's history this service has answered by registering again."""
        self._reconnects = 0
        self.read = 0
        self.commits = 0
        self.lost = 0
        """Entries that were trimmed before they were read."""
        self.rebalances = 0

    @property
    def epochs(self) -> Mapping[int, int]:
        """The shards that this process works -> the epoch under which it does."""
        return self.publisher.fences.held

    def works(self, stream: Stream) -> bool:
        """Whether this process is the one that reads it for the service."""
        return self.reads(stream) and self._owns(stream)

    def _owns(self, stream: Stream) -> bool:
        return self._keys.shard(stream.symbol) in self.epochs

    @property
    def ready(self) -> bool:
        """Whether it works its part, or there is no part left for it."""
        return bool(self.members.alive) and bool(self.epochs or not self.members.wanted)

    @property
    def reconnects(self) -> int:
        return self.publisher.reconnects + self._reconnects + (self._reader.reconnects if self._reader is not None else 0)

    async def open(self) -> None:
        """Become a member. RedisError or ConfigError if that is not possible."""
        link = await self._connect()
        try:
            await check_meta(link, self._keys)
            await check_replicas(link, self._keys, self.service, self.reads, self._writes)
        finally:
            link.close()
        await self._register()
        await self.members.beat()
        if self._writes is not None:
            await self._patiently(partial(check_rivals, keys=self._keys, service=self.service, writes=self._writes))
        self._tasks = [asyncio.create_task(work) for work in (self.members.run(), self._groups.run())]

    async def _register(self) -> None:
        link = await self._connect()
        try:
            await check_meta(link, self._keys)
            await register_service(link, self._keys, self.service, self.reads, self._writes)
        finally:
            link.close()

    async def _register_again(self) -> None:
        """Redis lost its data, and with them what others know of this service."""
        try:
            await self._register()
            self._registered = self.publisher.histories_lost
        except (RedisError, ReplyError) as error:
            log.debug("%s: not registered again yet: %s", self.service, error)

    # reading

    async def batches(self) -> AsyncIterator[Batch]:
        """For ever. Shards are taken over and given back between two batches, so one that takes long holds that up."""
        rounds: AsyncIterator[Round] | None = None
        while True:
            self._raise_bugs()
            if self.publisher.pending:
                await self._look_at_pending()
            if self._taken or self._planned != self.members.news:
                self._planned = self.members.news
                if self._registered != self.publisher.histories_lost:
                    await self._register_again()
                if leaving := await self._leaving():
                    rounds = None
                    self._end_reading()
                    yield self._batch(Round(), lost=leaving)
                    await self._give_back(leaving)
                if gained := await self._take():
                    rounds = None
                    self._end_reading()
                    yield self._batch(Round(), gained=gained)
            elif not self.epochs:
                await self.members.next_look()
            else:
                rounds = rounds or self._begin_reading()
                yield self._batch(await anext(rounds))

    def _batch(self, news: Round, gained: Mapping[int, Mapping[str, bytes]] | None = None, lost: frozenset[int] = frozenset()) -> Batch:
        self._number += 1
        if self._recover is None:
            self._delivered.add(self._number, {read.stream: read.last for read in news.reads})
        for read in news.reads:
            self.read += len(read.entries)
            if read.lost is not None:
                self.lost += read.lost.count
                if read.lost.reset:
                    self._authors.forget([read.stream.name])
                what = "went back: Redis lost entries that were read" if read.lost.reset else f"lost {read.lost.count} entries to trimming, unread"
                log.error("%s: %s %s", self.service, read.stream.name, what)
        return Batch(self, self._number, news, gained or {}, lost)

    def _begin_reading(self) -> AsyncIterator[Round]:
        start = FROM_START if self._start == NOW else self._start  # where NOW was is in the positions
        self._reader = open_reader(self._redis, self._keys, self.reads, start, self._read_to, sorted(self.epochs), self._withheld)
        return self._reader.rounds()

    def _withheld(self) -> Collection[int]:
        """Shards of which nothing more is delivered until what was committed of them is stored."""
        return self.publisher.pending.shards

    def _end_reading(self) -> None:
        """The shards change: another reader goes on where this one is."""
        if self._reader is not None:
            self._read_to |= self._reader.resumable
            self._reader.close()
            self._reconnects += self._reader.reconnects
            self._reader = None

    def epochs_of(self, stream: Stream, seqs: Sequence[int]) -> list[int]:
        """The epochs under which the next entries of a stream were written, by their counters."""
        head = self._reader.heads.get(stream.name) if self._reader is not None else None
        return self._authors.epochs(stream.name, head.epochs if head is not None else (), seqs)

    # which shards

    async def _leaving(self) -> frozenset[int]:
        """Shards that are worked no more; those that nobody took over yet are still held."""
        plan = self.members.plan(self.epochs)
        if plan.taken:
            async with self._lock:
                self._drop(self.members.plan(self.epochs).taken)
        gone, self._taken = frozenset(self._taken), set()
        return gone | (plan.leave & self.epochs.keys())

    async def _give_back(self, shards: Collection[int]) -> None:
        async with self._lock:
            await self._release(shards)
            self._forget(shards)
        self.rebalances += 1
        log.info("%s: %d shards less, %d are worked here", self.service, len(shards), len(self.epochs))

    async def _release(self, shards: Collection[int]) -> None:
        given = {shard: self.epochs[shard] for shard in shards if shard in self.epochs}
        await self.publisher.release(given)
        self.members.note({shard: Fence(epoch, "") for shard, epoch in given.items()})

    def _drop(self, shards: Collection[int]) -> None:
        """Another process took these over."""
        if gone := {shard for shard in shards if shard in self.epochs}:
            log.warning("%s: another process works %d shards of this one now; what was not committed of them is its to do", self.service, len(gone))
            self._taken |= gone
        self.publisher.drop(shards)
        self._forget(shards)

    def _forget(self, shards: Collection[int]) -> None:
        of = self._keys.shard
        gone = {name for name in self._read_to.keys() | self.positions.keys() | self.states.keys() if of(Stream.parse(name).symbol) in shards}
        for name in gone:
            for kept in (self._read_to, self.positions, self.states):
                kept.pop(name, None)
        self._authors.forget(gone)
        self._delivered.forget(lambda stream: of(stream.symbol) in shards)
        self._groups.forget(lambda stream: of(stream.symbol) in shards)
        self.outputs.forget(shards)

    async def _take(self) -> dict[int, dict[str, bytes]]:
        """Take over what is ours and free -> the states of these shards."""
        async with self._lock:
            plan = self.members.plan(self.epochs)
            if stray := await self._claim(plan.stray, self._in_our_name):
                await self._release(stray)
            claimed = await self._claim(plan.claim - self._taken, self.members.choose, await self._first(plan.claim))
            states = await self._load(claimed) if claimed else {}
        if claimed:
            self.rebalances += 1
            log.info("%s: %d shards more, %d are worked here", self.service, len(claimed), len(self.epochs))
        return states

    def _in_our_name(self, found: Mapping[int, Fence]) -> dict[int, int]:
        return {shard: epoch for shard, epoch in self.members.choose(found).items() if found[shard].holder == self.members.token}

    async def _claim(
        self, shards: Collection[int], choose: Callable[[Mapping[int, Fence]], dict[int, int]], first: Sequence[Field] = ()
    ) -> dict[int, Fence]:
        while True:
            try:
                claimed = await self.publisher.claim(shards, choose, first, _PATIENCE_SECONDS) if shards else {}
            except Fenced as error:
                if not error.shards:
                    raise
                self._drop(error.shards)
            else:
                self.members.note({shard: Fence(self.epochs[shard], self.members.token) for shard in claimed})
                return claimed

    async def _first(self, shards: Collection[int]) -> list[Field]:
        """`start="now"`: positions at the heads, for shards that this service never worked. They are set with the first fence, or
        whoever goes on after a replica that died in between would read from the start. What appears later is read whole."""
        if self._start != NOW or self._recover is not None or not shards:
            return []
        heads = await self._patiently(partial(read_heads, keys=self._keys, shards=sorted(shards)))
        return self._position_fields({Stream.parse(name): id for name, id in self._at_heads(heads, shards).items()})

    async def _load(self, claimed: Mapping[int, Fence]) -> dict[int, dict[str, bytes]]:
        """Everything that stands in Redis for these shards; nobody else can change it any more."""
        shards = sorted(claimed)
        found = await self._patiently(partial(self._look, shards=shards))
        positions, heads = found.positions, found.heads
        fields = self._position_fields({Stream.parse(name): id for name, id in positions.items()})
        fields += self._state_fields({Stream.parse(name): value for states in found.states.values() for name, value in states.items()})
        writes = self._writes or _ANY_OUTPUT
        self.outputs.load({name: head for name, head in heads.items() if writes(Stream.parse(name))})
        self.publisher.inherit(found.transaction(self.clock.now_ms(), fields, lambda name: self.outputs.writer(Stream.parse(name))))
        if self._recover is not None:
            positions = dict(await self._recover(shards))
            if self._start == NOW:
                positions |= self._at_heads(heads, claimed.keys() - {self._keys.shard(Stream.parse(name).symbol) for name in positions})
        self.positions |= positions
        self._read_to |= positions
        for of_shard in found.states.values():
            self.states |= of_shard
        return found.states

    async def _look(self, link: Connection, shards: Sequence[int]) -> Handover:
        age, most = self._window.age // MILLISECOND, self._window.bytes
        return await read_handover(link, self._keys, self.service, shards, self._writes, age, self.clock.now_ms(), most)

    async def _patiently(self, ask: Callable[[Connection], Awaitable[Answer]]) -> Answer:
        """Ask Redis until it answers."""
        while True:
            try:
                link = await self._connect()
                try:
                    return await ask(link)
                finally:
                    link.close()
            except (RedisError, ReplyError) as error:
                log.warning("%s: %s; trying again", self.service, error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _at_heads(self, heads: Mapping[str, Head], shards: Collection[int]) -> dict[str, StreamId]:
        """Where the streams of these shards end that this service reads."""
        of = self._keys.shard
        return {name: StreamId.parse(head.id) for name, head in heads.items() if self.reads(at := Stream.parse(name)) and of(at.symbol) in shards}

    # committing

    async def commit(self, positions: Mapping[Stream, StreamId], outputs: Sequence[Output] = (), state: Mapping[Stream, bytes] | None = None) -> None:
        """Store these as one transaction, as far as their shards are held; returns when it is stored."""
        await self._shielded(self._commit(positions, outputs, state or {}, dict(self.epochs)))

    async def commit_batch(self, number: int, epochs: Mapping[int, int], outputs: Sequence[Output], state: Mapping[Stream, bytes]) -> None:
        """As `commit`, for all that was delivered up to batch `number`. `epochs`: the shards as they were held with it."""
        foreign = next((output.stream for output in outputs if self._keys.shard(output.stream.symbol) not in epochs), None)
        if foreign is not None:
            raise ValueError(f"{foreign.name}: its shard is not worked here; give an output the symbol of what caused it")
        await self._shielded(self._commit(self._delivered.up_to(number), outputs, state, epochs))
        self._delivered.committed(number)

    async def _shielded(self, commit: Awaitable[None]) -> None:
        """A commit is never cut in half: nobody would know what of it is stored."""
        self._committing = asyncio.ensure_future(commit)
        await asyncio.shield(self._committing)

    async def _commit(
        self, positions: Mapping[Stream, StreamId], outputs: Sequence[Output], state: Mapping[Stream, bytes], epochs: Mapping[int, int]
    ) -> None:
        async with self._lock:
            # a shard that was lost and won again in between is another matter than the one that this was read from
            ours = {shard for shard, epoch in epochs.items() if self.epochs.get(shard) == epoch}
            positions = {stream: id for stream, id in positions.items() if self._keys.shard(stream.symbol) in ours}
            state = {stream: value for stream, value in state.items() if self._keys.shard(stream.symbol) in ours}
            heads: dict[StreamWriter, Head] = {}
            entries = [
                self.outputs.entry(output, epochs[shard], heads) for output in outputs if (shard := self._keys.shard(output.stream.symbol)) in ours
            ]
            await self._store(entries, heads, self._position_fields(positions) + self._state_fields(state))
            self.commits += 1
            self.positions |= {stream.name: id for stream, id in positions.items() if self._owns(stream)}
            self.states |= {stream.name: value for stream, value in state.items() if self._owns(stream)}
            self._groups.move({stream: id for stream, id in positions.items() if self._owns(stream)})

    async def _store(self, entries: list[Entry], heads: Mapping[StreamWriter, Head], fields: list[Field]) -> None:
        """Store what of it is in shards that nobody took over; the counters of the others' outputs have not moved."""
        while True:
            transaction = Transaction(self.clock.now_ms())
            transaction.entries = [entry for entry in entries if entry.stream.shard in self.epochs]
            transaction.heads = {writer: encode(head) for writer, head in heads.items() if writer.shard in self.epochs}
            transaction.fields = [field for field in fields if field.shard in self.epochs]
            if not transaction.shards():
                break
            try:
                await self.publisher.commit(transaction, _PATIENCE_SECONDS)
                break
            except Fenced as error:
                if not error.shards:
                    raise
                self._drop(error.shards)
                if self._redis.sharded:  # each shard is a transaction of its own: those of the others are stored
                    break
        self.outputs.stored({writer: head for writer, head in heads.items() if writer.shard in self.epochs})

    async def _look_at_pending(self) -> None:
        """What became of commits that were on their way."""
        async with self._lock:
            try:
                self.publisher.pending.check()
            except Fenced as error:
                if not error.shards:
                    raise
                self._drop(error.shards)

    def _position_fields(self, positions: Mapping[Stream, StreamId]) -> list[Field]:
        shards = [(self._keys.shard(stream.symbol), stream.name, str(id).encode()) for stream, id in positions.items()]
        return [Field(shard, self._keys.position(shard, self.service), name, id) for shard, name, id in shards]

    def _state_fields(self, states: Mapping[Stream, bytes]) -> list[Field]:
        shards = [(self._keys.shard(stream.symbol), stream.name, value) for stream, value in states.items()]
        return [Field(shard, self._keys.state(shard, self.service), name, value) for shard, name, value in shards]

    # the end

    def _raise_bugs(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def close(self) -> None:
        """Give all shards back and leave; a commit under way is waited for, for a moment."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._committing is not None:
            await asyncio.wait((self._committing,), timeout=_LAST_COMMIT_SECONDS)
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)
        await self.publisher.pending.finish(_LAST_COMMIT_SECONDS)
        self._end_reading()
        await self.publisher.release()
        await self.members.leave()
        self.publisher.close()
