"""Which shards a replica owns, and what was committed in them: claiming, releasing, loading, losing.

Who should own a shard is decided from what all replicas see (tickbus.consumer.membership, assignment); who may write it, by its
fence. Whoever takes a shard over continues from what its last owner committed: positions, states, the heads of its outputs.
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
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.reads import NOW
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.registry import read_heads
from tickbus.units import MILLISECOND
from tickbus.writer.fences import Fence
from tickbus.writer.publisher import Publisher
from tickbus.writer.replay_buffer import Window
from tickbus.writer.transaction import Field

log = logging.getLogger("tickbus.consumer")

ANY_OUTPUT = StreamFilter.of(("bar", "signal"))
SLOW_SHARD_SECONDS = 0.5
"""A commit or a claim waits this long for the slowest shard of a cluster before it continues with the others."""
_RETRY_SECONDS = 0.2

Answer = TypeVar("Answer")


class Recover(Protocol):
    async def __call__(self, shards: list[int]) -> Mapping[str, StreamId]:
        """Return the positions in shards that were just taken over, by stream name, of a service that keeps them outside of Redis."""
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
        """Committed, by stream name; on a cluster perhaps still on the way to a master that is unavailable."""
        self.states: dict[str, bytes] = {}
        """Committed, by stream name."""
        self.read_to: dict[str, StreamId] = {}
        """Where a new reader goes on: what was delivered, committed or not."""
        self.on_lost: list[Callable[[Collection[int]], None]] = []
        """Called with shards that are no longer owned: what others keep of their streams goes."""
        self.rebalances = 0
        self._taken: set[int] = set()
        """Shards that another process took over, and the service has not been told."""

    @property
    def epochs(self) -> Mapping[int, int]:
        """Owned shard -> the epoch under which it is owned."""
        return self._publisher.fences.held

    def owns(self, stream: Stream) -> bool:
        return self._keys.shard(stream.symbol) in self.epochs

    @property
    def was_robbed(self) -> bool:
        """Whether another process took shards over and `leaving` has not returned them yet."""
        return bool(self._taken)

    # giving up

    async def leaving(self) -> frozenset[int]:
        """Return the shards that are owned no more. Those that nobody took over yet are still held, until `release`."""
        plan = self._membership.plan(self.epochs)
        if plan.taken:
            async with self.lock:
                self.drop(self._membership.plan(self.epochs).taken)
        gone, self._taken = frozenset(self._taken), set()
        return gone | (plan.leave & self.epochs.keys())

    async def release(self, shards: Collection[int]) -> None:
        """Give these back: who wants them next need not wait."""
        async with self.lock:
            await self._release(shards)
            self._forget(shards)
        self.rebalances += 1
        log.info("%s: released %d shards, %d owned", self._service, len(shards), len(self.epochs))

    async def _release(self, shards: Collection[int]) -> None:
        released = {shard: self.epochs[shard] for shard in shards if shard in self.epochs}
        await self._publisher.release(released)
        self._membership.note({shard: Fence(epoch, "") for shard, epoch in released.items()})

    def drop(self, shards: Collection[int]) -> None:
        """Another process took these over."""
        if gone := {shard for shard in shards if shard in self.epochs}:
            log.warning(
                "%s: lost %d shards to another process; it will reprocess uncommitted entries",
                self._service,
                len(gone),
            )
            self._taken |= gone
        self._publisher.drop(shards)
        self._forget(shards)

    def _forget(self, shards: Collection[int]) -> None:
        names = self.read_to.keys() | self.positions.keys() | self.states.keys()
        for name in [name for name in names if self._keys.shard(Stream.parse(name).symbol) in shards]:
            for kept in (self.read_to, self.positions, self.states):
                kept.pop(name, None)
        self.outputs.forget(shards)
        for forget in self.on_lost:
            forget(shards)

    # taking over

    async def take(self) -> dict[int, dict[str, bytes]]:
        """Take over the shards that are ours and free. Return their states by stream name."""
        async with self.lock:
            plan = self._membership.plan(self.epochs)
            if stray := await self._claim(plan.stray, self._in_our_name):
                await self._release(stray)
            first = await self._first_positions(plan.claim)
            claimed = await self._claim(plan.claim - self._taken, self._membership.choose, first)
            states = await self._load(claimed) if claimed else {}
        if claimed:
            self.rebalances += 1
            log.info("%s: took over %d shards, %d owned", self._service, len(claimed), len(self.epochs))
        return states

    def _in_our_name(self, found: Mapping[int, Fence]) -> dict[int, int]:
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
        first: Sequence[Field] = (),
    ) -> dict[int, Fence]:
        while True:
            try:
                claimed = (
                    await self._publisher.claim(shards, choose, first, SLOW_SHARD_SECONDS) if shards else {}
                )
            except Fenced as error:
                if not error.shards:
                    raise
                self.drop(error.shards)
            else:
                token = self._membership.token
                self._membership.note({shard: Fence(self.epochs[shard], token) for shard in claimed})
                return claimed

    async def _first_positions(self, shards: Collection[int]) -> list[Field]:
        """`start="now"`: positions at the heads, for shards that this service never owned. They are set with the first fence, or
        whoever continues after a replica that died in between would read from the start. What appears later is read whole."""
        if self._start != NOW or self._recover is not None or not shards:
            return []
        heads = await self.ask(partial(read_heads, keys=self._keys, shards=sorted(shards)))
        return self.position_fields(
            {Stream.parse(name): id for name, id in self._at_heads(heads, shards).items()}
        )

    async def _load(self, claimed: Mapping[int, Fence]) -> dict[int, dict[str, bytes]]:
        """Everything that is stored in Redis for these shards; nobody else can change it any more."""
        shards = sorted(claimed)
        found = await self.ask(partial(self._read_handover, shards=shards))
        positions, heads = found.positions, found.heads
        fields = self.position_fields({Stream.parse(name): id for name, id in positions.items()})
        fields += self.state_fields(
            {Stream.parse(name): value for states in found.states.values() for name, value in states.items()}
        )
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
                positions |= self._at_heads(heads, claimed.keys() - known)
        self.positions |= positions
        self.read_to |= positions
        for of_shard in found.states.values():
            self.states |= of_shard
        return found.states

    async def _read_handover(self, link: Connection, shards: Sequence[int]) -> Handover:
        window_ms, max_bytes = self._window.age // MILLISECOND, self._window.bytes
        now_ms = self._clock.now_ms()
        return await read_handover(
            link, self._keys, self._service, shards, self._writes, window_ms, now_ms, max_bytes
        )

    def _at_heads(self, heads: Mapping[str, Head], shards: Collection[int]) -> dict[str, StreamId]:
        """Where the streams of these shards end that this service reads."""
        return {
            name: StreamId.parse(head.id)
            for name, head in heads.items()
            if self._reads(stream := Stream.parse(name)) and self._keys.shard(stream.symbol) in shards
        }

    # shared with the commit

    async def ask(self, question: Callable[[Connection], Awaitable[Answer]]) -> Answer:
        """Ask Redis until it answers."""
        while True:
            try:
                link = await self._connect()
                try:
                    return await question(link)
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

    def state_fields(self, states: Mapping[Stream, bytes]) -> list[Field]:
        shards = [(self._keys.shard(stream.symbol), stream.name, value) for stream, value in states.items()]
        return [
            Field(shard, self._keys.state(shard, self._service), name, value) for shard, name, value in shards
        ]
