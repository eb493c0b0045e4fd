"""Which shards a replica owns, and what was committed in them: claiming, releasing, loading, losing.

Who should own a shard is decided from what all replicas see (tickbus.consumer.membership, assignment); who
may write it, by its fence. A new owner continues from what the previous one committed: positions, states,
the heads of its outputs.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from tickbus.clock import BusClock
from tickbus.consumer.handover import Handover, read_handover
from tickbus.consumer.membership import Membership
from tickbus.consumer.outputs import OutputStreams
from tickbus.errors import Fenced, RedisError
from tickbus.protocol.codec import Head
from tickbus.protocol.names import Keys, StateField, Stream, StreamId, stream_of_state
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.reads import NOW
from tickbus.redis.link import Connection, Reply, ReplyError
from tickbus.redis.registry import read_heads
from tickbus.units import MILLISECOND
from tickbus.writer.fences import Fence
from tickbus.writer.publisher import Publisher
from tickbus.writer.replay_buffer import Window
from tickbus.writer.transaction import Field

log = logging.getLogger("tickbus.consumer")

ANY_OUTPUT = StreamFilter.of(("bar", "signal"))
SLOW_SHARD_SECONDS = 0.5
"""A commit or claim waits this long for a cluster's slowest shard, then continues with the others."""
_RETRY_SECONDS = 0.2

T = TypeVar("T")


class Recover(Protocol):
    async def __call__(self, shards: list[int]) -> Mapping[str, StreamId]:
        """Return the positions by stream name in shards that were just taken over, of a service that stores
        them outside Redis."""
        ...


class ShardOwnership:
    """The shards of one replica of a service. `lock` allows one commit or change of shards at a time."""

    def __init__(
        self,
        keys: Keys,
        service: str,
        reads: StreamFilter,
        publisher: Publisher,
        membership: Membership,
        clock: BusClock,
        connect: Callable[[], Awaitable[Connection]],
        *,
        start: str | StreamId,
        writes: StreamFilter | None,
        recover: Recover | None,
        window: Window,
    ) -> None:
        self._keys = keys
        self._service = service
        self._reads = reads
        self._publisher = publisher
        self._membership = membership
        self._clock = clock
        self._connect = connect
        self._start = start
        self._writes = writes
        self._recover = recover
        self._window = window
        self.lock = asyncio.Lock()
        self.outputs = OutputStreams(keys)
        self.positions: dict[str, StreamId] = {}
        """Committed, by stream name; on a cluster perhaps still in flight to a master that is unavailable."""
        self.states: dict[str, bytes] = {}
        """Committed, by stream name."""
        self.read_to: dict[str, StreamId] = {}
        """Where a new reader continues: after what was delivered, committed or not."""
        self.on_lost: list[Callable[[Collection[int]], None]] = []
        """Called with shards that are no longer owned, to discard what is kept of their streams."""
        self.unreadable: dict[str, str] = {}
        """Streams that are not read, by name: some other program overwrote their position, and to read them
        from anywhere else would repeat or lose entries. Value: what is wrong."""
        self._unsound: set[str] = set()
        """Keys of shards that are left to nobody, because they hold something else; logged."""
        self.rebalances = 0
        self._unreported: set[int] = set()
        """Shards that another process took over, not yet reported to the service."""

    @property
    def epochs(self) -> Mapping[int, int]:
        """Owned shard -> the epoch under which it is owned."""
        return self._publisher.fences.held

    def owns(self, stream: StateField) -> bool:
        return self._keys.shard(stream.symbol) in self.epochs

    @property
    def has_losses(self) -> bool:
        """Whether another process took shards over and `leaving` has not returned them yet."""
        return bool(self._unreported)

    # releasing

    async def leaving(self) -> frozenset[int]:
        """Return the shards that this replica loses. Those that nobody has taken over yet are still held,
        until `release`."""
        plan = self._membership.plan(self.epochs)
        if plan.taken:
            async with self.lock:
                self.drop(self._membership.plan(self.epochs).taken)
        gone, self._unreported = frozenset(self._unreported), set()
        return gone | (plan.release & self.epochs.keys())

    async def release(self, shards: Collection[int]) -> None:
        """Release these shards, so that their next owner need not wait."""
        async with self.lock:
            await self._release(shards)
            self._forget(shards)
        self.rebalances += 1
        log.info("%s: released %d shards, %d owned", self._service, len(shards), len(self.epochs))

    async def _release(self, shards: Collection[int]) -> None:
        released = {shard: self.epochs[shard] for shard in shards if shard in self.epochs}
        await self._publisher.release(released)
        self._membership.update({shard: Fence(epoch, "") for shard, epoch in released.items()})

    def drop(self, shards: Collection[int]) -> None:
        """Give up shards that another process took over."""
        if gone := {shard for shard in shards if shard in self.epochs}:
            log.warning(
                "%s: lost %d shards to another process; it will reprocess uncommitted entries",
                self._service,
                len(gone),
            )
            self._unreported |= gone
        self._publisher.drop(shards)
        self._forget(shards)

    def _forget(self, shards: Collection[int]) -> None:
        names = self.read_to.keys() | self.positions.keys() | self.states.keys()
        for name in [name for name in names if self._keys.shard(stream_of_state(name).symbol) in shards]:
            for mapping in (self.read_to, self.positions, self.states):
                mapping.pop(name, None)
        self.unreadable = {
            name: why
            for name, why in self.unreadable.items()
            if self._keys.shard(Stream.parse(name).symbol) not in shards
        }
        self.outputs.forget(shards)
        for forget in self.on_lost:
            forget(shards)

    # taking over

    async def take(self) -> dict[int, dict[str, bytes]]:
        """Take over the shards that are assigned to us and free. Return their states by stream name."""
        async with self.lock:
            plan = self._membership.plan(self.epochs)
            if orphaned := await self._claim(plan.orphaned, self._held_by_us):
                await self._release(orphaned)
            free = await self._sound(plan.claim) if plan.claim else plan.claim
            first_positions = await self._first_positions(free)
            claimed = await self._claim(free - self._unreported, self._membership.choose, first_positions)
            states = await self._load(claimed) if claimed else {}
        if claimed:
            self.rebalances += 1
            log.info("%s: took over %d shards, %d owned", self._service, len(claimed), len(self.epochs))
        return states

    def _held_by_us(self, found: Mapping[int, Fence]) -> dict[int, int]:
        token = self._membership.token
        return {
            shard: epoch
            for shard, epoch in self._membership.choose(found).items()
            if found[shard].holder == token
        }

    async def _claim(
        self,
        shards: Collection[int],
        choose: Callable[[Mapping[int, Fence]], dict[int, int]],
        first_positions: Sequence[Field] = (),
    ) -> dict[int, Fence]:
        while True:
            try:
                claimed = (
                    await self._publisher.claim(shards, choose, first_positions, SLOW_SHARD_SECONDS)
                    if shards
                    else {}
                )
            except Fenced as error:
                if not error.shards:
                    raise
                self.drop(error.shards)
            else:
                token = self._membership.token
                self._membership.update({shard: Fence(self.epochs[shard], token) for shard in claimed})
                return claimed

    async def _first_positions(self, shards: Collection[int]) -> list[Field]:
        """Return, for `start="now"`, positions at the heads of shards that this service never owned.

        They are set with the first fence; otherwise the successor of a replica that died in between would
        read from the start. Streams that appear later are read from their first entry.
        """
        if self._start != NOW or self._recover is not None or not shards:
            return []
        heads = await self.retry_until_answered(partial(read_heads, keys=self._keys, shards=sorted(shards)))
        return self.position_fields(
            {Stream.parse(name): id for name, id in self._head_positions(heads, shards).items()}
        )

    async def _sound(self, shards: Collection[int]) -> frozenset[int]:
        """Return the shards whose hashes are hashes: without these none can be read and committed."""
        keys = {
            key: shard
            for shard in shards
            for key in (
                self._keys.last(shard),
                self._keys.position(shard, self._service),
                self._keys.state(shard, self._service),
            )
        }

        async def probe(link: Connection) -> list[Reply]:
            return await link.ask_each([("HGET", key, "") for key in keys])

        replies = await self.retry_until_answered(probe)
        broken = {key for key, reply in zip(keys, replies, strict=True) if isinstance(reply, ReplyError)}
        for key in broken - self._unsound:
            log.error(
                "%s: %s is no hash: some other program wrote it; its shard is not read;"
                " fix: redis-cli RENAME '%s' '%s:foreign'",
                self._service, key, key, key,
            )  # fmt: skip
        for key in (self._unsound - broken) & keys.keys():
            log.info("%s: %s is usable again", self._service, key)
        self._unsound = (self._unsound - keys.keys()) | broken
        return frozenset(shards) - {keys[key] for key in broken}

    @property
    def faults(self) -> list[str]:
        """What keeps this service from parts of its work: names of keys and streams."""
        return sorted(self._unsound) + sorted(self.unreadable)

    async def _load(self, claimed: Mapping[int, Fence]) -> dict[int, dict[str, bytes]]:
        """Load everything that Redis stores for these shards, which nobody else can change any more. Return
        their states by stream name."""
        shards = sorted(claimed)
        found = await self.retry_until_answered(partial(self._read_handover, shards=shards))
        positions, heads = found.positions, found.heads
        fields = self.position_fields({Stream.parse(name): id for name, id in positions.items()})
        fields += [
            Field(shard, self._keys.state(shard, self._service), name, value)
            for shard, states in found.states.items()
            for name, value in states.items()
        ]
        writes = self._writes or ANY_OUTPUT
        self.outputs.load({name: head for name, head in heads.items() if writes(Stream.parse(name))})
        writer = self.outputs.writer
        self._publisher.inherit(
            found.transaction(self._clock.now_ms(), fields, lambda name: writer(Stream.parse(name)))
        )
        if self._recover is not None:
            positions = dict(await self._recover(shards))
            if self._start == NOW:
                known = {self._keys.shard(Stream.parse(name).symbol) for name in positions}
                positions |= self._head_positions(heads, claimed.keys() - known)
        elif found.unreadable:
            self.unreadable |= found.unreadable
            for name, why in found.unreadable.items():
                key = self._keys.position(self._keys.shard(Stream.parse(name).symbol), self._service)
                log.error(
                    "%s: %s is not read: its position was overwritten (%s); fix: redis-cli HSET '%s' '%s'"
                    " ID-OF-THE-LAST-ENTRY-PROCESSED, and restart this service",
                    self._service, name, why, key, name,
                )  # fmt: skip
        self.positions |= positions
        self.read_to |= positions
        for states in found.states.values():
            self.states |= states
        return found.states

    async def _read_handover(self, link: Connection, shards: Sequence[int]) -> Handover:
        window_ms, max_bytes = self._window.age // MILLISECOND, self._window.bytes
        now_ms = self._clock.now_ms()
        return await read_handover(
            link, self._keys, self._service, shards, self._writes, window_ms, now_ms, max_bytes
        )

    def _head_positions(self, heads: Mapping[str, Head], shards: Collection[int]) -> dict[str, StreamId]:
        """Return the end of each stream in these shards that this service reads."""
        return {
            name: StreamId.parse(head.id)
            for name, head in heads.items()
            if self._reads(stream := Stream.parse(name)) and self._keys.shard(stream.symbol) in shards
        }

    # shared with the commit

    async def retry_until_answered(self, query: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a query until Redis answers it. Return the result."""
        while True:
            try:
                link = await self._connect()
                try:
                    return await query(link)
                finally:
                    link.close()
            except (RedisError, ReplyError) as error:
                log.warning("%s: %s; retrying", self._service, error)
                await asyncio.sleep(_RETRY_SECONDS)

    def position_fields(self, positions: Mapping[Stream, StreamId]) -> list[Field]:
        shards = [
            (self._keys.shard(stream.symbol), stream.name, str(id).encode())
            for stream, id in positions.items()
        ]
        return [
            Field(shard, self._keys.position(shard, self._service), name, id) for shard, name, id in shards
        ]

    def state_fields(self, states: Mapping[StateField, bytes]) -> list[Field]:
        shards = [(self._keys.shard(stream.symbol), stream.name, value) for stream, value in states.items()]
        return [
            Field(shard, self._keys.state(shard, self._service), name, value) for shard, name, value in shards
        ]
