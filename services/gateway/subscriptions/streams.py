"""Opens and ends streams while the gateway runs; no other stream notices.

A stream takes ticks only once its head is read, and its first head stored: so the vendor is asked for a
symbol after that. One that ends is kept in memory: when it returns, its counter goes on, however much of it
is still on its way to Redis.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

from services.gateway.delivery.backlog import Backlog, Backlogs
from services.gateway.delivery.sender import Sender, StreamHead
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.vendors.symbols import SymbolMap
from tickbus.clock import BusClock
from tickbus.errors import ConfigError
from tickbus.protocol.codec import Head, encode
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.protocol.wants import SubscriptionState, Topic
from tickbus.redis.link import Connection
from tickbus.redis.registry import read_heads_of
from tickbus.units import MILLISECOND, MINUTE
from tickbus.writer.entry import StreamWriter
from tickbus.writer.head_repair import find_repairs
from tickbus.writer.heads import EMPTY_HEAD
from tickbus.writer.lane import Lane
from tickbus.writer.publisher import Publisher
from tickbus.writer.transaction import Field

log = logging.getLogger("tickbus.gateway")

_MAX_RETIRED = 10_000
"""Streams that have ended and are remembered; more only while their entries are on their way to Redis."""
_MAX_AHEAD = 5 * MINUTE
_MAX_NAMED = 20
"""Streams in one log line."""


class Streams:
    """The streams of one feed: `make`, `open`, `end`."""

    def __init__(
        self,
        name: str,
        keys: Keys,
        symbols: SymbolMap,
        sequenced: bool,
        snapshot_size: int,
        sequencer: Sequencer,
        publisher: Publisher,
        backlog: Backlog | Backlogs,
        clock: BusClock,
    ) -> None:
        """sequenced: whether the vendor's trade ids are contiguous."""
        self.by_name: dict[str, StreamState] = {}
        """All that were made, by stream name: also what has ended, of which entries may still be on disk."""
        self.heads: dict[StreamWriter, StreamHead] = {}
        self.senders: Sequence[Sender] = ()
        """Set once the heads are known."""
        self._name = name
        self._keys = keys
        self._symbols = symbols
        self._sequenced = sequenced
        self._snapshot_size = snapshot_size
        self._sequencer = sequencer
        self._publisher = publisher
        self._backlog = backlog
        self._clock = clock
        self._retired: dict[Topic, StreamState] = {}
        """What has ended, oldest first."""

    def make(self, topic: Topic) -> StreamState:
        """Return the state of a new stream. ConfigError if its symbol cannot be had."""
        self._symbols.add(topic.symbol)
        stream = Stream(topic.kind, self._name, topic.symbol)
        state = StreamState(
            self._keys, stream, self._sequenced and topic.kind == "trade", self._snapshot_size
        )
        self.by_name[state.name] = state
        return state

    def head(self, state: StreamState, stored: Head | None) -> StreamHead:
        """Return the builder of a stream's head, from the stored one."""
        head = StreamHead(state, stored or EMPTY_HEAD)
        head.begin(self._publisher.fences.held[state.shard])
        if stored is None:
            head.ts_recv = self._clock.now_ns()
        self.heads[state] = head
        return head

    async def open(self, link: Connection, topics: Sequence[Topic]) -> dict[Topic, str]:
        """Make these streams take ticks. Return those that cannot, and why. RedisError if Redis is away."""
        refused: dict[Topic, str] = {}
        new: dict[Topic, StreamState] = {}
        for topic in topics:
            if topic not in self._retired:
                try:
                    new[topic] = self.make(topic)
                except ConfigError as error:
                    refused[topic] = str(error)
        heads = await self._read_heads(link, new, refused)
        first: dict[StreamWriter, StreamHead] = {}
        for topic, state in new.items():
            if topic in refused:
                del self.by_name[state.name]
            elif stored := heads.get(state.name):  # not subscribed to until now: see `find_dropped`
                self.head(state, stored)
                self._sequencer.restore_stream(state, stored)
                state.end(stored.ts_recv)
            else:
                first[state] = self.head(state, None)
                self._sender(state).follow(state, first[state])
        await self._store({stream: head.pack() for stream, head in first.items()})
        for topic in topics:
            if topic not in refused:
                self._sequencer.add(new[topic] if topic in new else self._retired.pop(topic))
        return refused

    async def _read_heads(
        self, link: Connection, states: Mapping[Topic, StreamState], refused: dict[Topic, str]
    ) -> dict[str, Head]:
        """Return the heads of new streams that have entries. Those that cannot go on are refused."""
        if not states:
            return {}
        chosen = list(states.values())
        repairs = await find_repairs(
            link, self._keys, chosen, lambda state: self._sequenced and state.stream.kind == "trade",
            self._clock.now_ms(),
        )  # fmt: skip
        for topic, state in states.items():
            if (fault := repairs.faults.get(state)) is not None:
                refused[topic] = str(fault)
        await self._store(
            {stream: encode(head) for stream, head in repairs.heads.items() if stream not in repairs.faults}
        )
        heads = await read_heads_of(link, self._keys, [state.stream for state in chosen])
        held = self._publisher.held_heads()  # of spilled entries that a stream does not take yet
        heads |= {state.name: held[state.name] for state in chosen if state.name in held}
        limit = self._clock.now_ms() + _MAX_AHEAD // MILLISECOND
        for topic, state in states.items():
            head = heads.get(state.name)
            if head is not None and StreamId.parse(head.id).ms > limit:
                refused[topic] = f"{state.name} has entries ahead of the Redis server's clock"
        return {name: head for name, head in heads.items() if StreamId.parse(head.id).seq}

    async def _store(self, heads: Mapping[StreamWriter, bytes]) -> None:
        """Store heads of streams that take no ticks yet, each with its lane's next transaction."""
        by_sender: dict[Sender, dict[StreamWriter, bytes]] = {}
        for stream, head in heads.items():
            by_sender.setdefault(self._sender(stream), {})[stream] = head
        for sender, own in by_sender.items():
            await sender.attach(own, ())

    def end(self, topics: Iterable[Topic], recv: int) -> None:
        """Let these streams take no more ticks, from the receive time `recv` (ns) on.

        Each that has entries ends with a Gap; the head of one that never had any is deleted.
        """
        ended = []
        topics = list(topics)
        if topics:
            self._sequencer.measure_latency()
        for topic in topics:
            state = self._sequencer.drop(topic, recv)
            if state is None:
                continue
            ended.append(state.name)
            if state.seq:
                self._retired[topic] = state
            else:  # a stream that never had an entry leaves nothing behind
                del self.heads[state], self.by_name[state.name]
                sender = self._sender(state)
                sender.forget(state)
                sender.attach({}, [Field(state.shard, self._keys.last(state.shard), state.name, b"")])
        self._backlog.settle()
        self._forget_oldest()
        if ended:
            more = f" and {len(ended) - _MAX_NAMED} more" if len(ended) > _MAX_NAMED else ""
            log.info("%s: unsubscribed from %s%s", self._name, ", ".join(ended[:_MAX_NAMED]), more)

    def _forget_oldest(self) -> None:
        """Forget the oldest of too many that have ended, if nothing of them is on its way any more."""
        for topic, state in list(self._retired.items())[: max(0, len(self._retired) - _MAX_RETIRED)]:
            if self._sender(state).idle and self.heads[state].seq == state.seq:
                del self._retired[topic], self.heads[state], self.by_name[state.name]

    def store(self, changes: Mapping[Topic, SubscriptionState | None]) -> None:
        """Have states of subscriptions stored, each with its shard's next transaction; None removes one."""
        by_lane: dict[Lane, list[Field]] = {}
        for topic, state in changes.items():
            field = self.field(topic, state)
            by_lane.setdefault(self._publisher.lane(field.shard), []).append(field)
        for sender in self.senders:
            if fields := by_lane.get(sender.lane):
                sender.attach({}, fields)

    def field(self, topic: Topic, state: SubscriptionState | None) -> Field:
        """Return the field with which a state is stored; None removes it."""
        shard = self._keys.shard(topic.symbol)
        key = self._keys.subscriptions(shard, self._name)
        return Field(shard, key, topic.field, b"" if state is None else state.encode())

    def _sender(self, stream: StreamWriter) -> Sender:
        lane = self._publisher.lane(stream.shard)
        return next(sender for sender in self.senders if sender.lane is lane)
