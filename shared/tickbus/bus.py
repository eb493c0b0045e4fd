"""The entry point to a bus: read it, take a snapshot of it, consume it as a service."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import ConfigError, WireError
from tickbus.protocol.codec import head_tick
from tickbus.protocol.names import (
    DEFAULT_PREFIX,
    DEFAULT_SHARDS,
    Keys,
    Stream,
    StreamId,
    check_name,
)
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.protocol.wants import WANT_TTL_MS, SubscriptionState, Topic
from tickbus.readable import Readable, make_filter
from tickbus.reader.cluster_reader import AnyReader, open_reader
from tickbus.reader.reads import FROM_START, Start, parse_start
from tickbus.redis.registry import read_feeds, read_heads, read_meta, read_subscriptions
from tickbus.redis.topology import locate
from tickbus.subscription import Consumer
from tickbus.units import Duration, parse_duration
from tickbus.wants import Want, WantLease, make_holder

log = logging.getLogger("tickbus")

_EMPTY_BUS_SECONDS = 0.2
"""How often an empty bus is polled for its first writer."""


def connect(url: str = "redis://127.0.0.1:6379/0", *, prefix: str = DEFAULT_PREFIX) -> "Bus":
    """Return a bus to read from; `async with` or `with` opens and closes it.

    url: `redis://[user:password@]host:port/db`, `rediss://` for TLS, `unix://path`,
        `redis+sentinel://host:port,host:port/master/db` or `redis+cluster://host:port,host:port`.
    prefix: the first part of every key of the bus.

    Errors: ConfigError for an invalid URL or prefix. Entering the bus raises RedisUnavailable if no server
    responds, and RedisMisconfigured if it rejects the login or is a replica, a sentinel or a cluster node.

        async with tickbus.connect("redis://127.0.0.1:6379/0") as bus:
            async for tick in bus.read("trade", symbols=["BTC-USDT"], gaps=False):
                print(tick.symbol, tick.price, tick.size)
    """
    return Bus(url, prefix)


class Bus(Readable):
    """A bus, from `connect`. Leaving it ends all its subscriptions and consumers."""

    def __init__(self, url: str, prefix: str = DEFAULT_PREFIX) -> None:
        super().__init__()
        locate(url)
        Keys(prefix)
        self._url = url
        self._prefix = prefix
        self._consumers: WeakSet[Consumer] = WeakSet()

    async def _snapshot(self, kind: str, streams: StreamFilter) -> dict[Stream, tuple[StreamId, Any]]:
        connection = await locate(self._url).connect()
        try:
            keys = Keys(self._prefix, await read_meta(connection, self._prefix) or DEFAULT_SHARDS)
            shards = sorted({keys.shard(symbol) for symbol in streams.symbols}) or range(keys.shards)
            heads = await read_heads(connection, keys, shards)
        finally:
            connection.close()
        chosen = {stream: head for name, head in heads.items() if streams(stream := Stream.parse(name))}
        newest: dict[Stream, tuple[StreamId, Any]] = {}
        for stream, head in chosen.items():
            try:
                tick = head_tick(head, kind)
            except WireError as error:
                log.error("%s: its newest message in `last` is left out: %s", stream.name, error)
                continue
            if tick is not None:
                newest[stream] = StreamId.parse(head.id), tick
        return newest

    def _lease(self, feed: str, name: str = "", ttl_ms: int = WANT_TTL_MS) -> WantLease:
        return WantLease(self._url, Keys(self._prefix), feed, make_holder(name), ttl_ms)

    async def _make_want(self, feeds: Sequence[str], topics: Sequence[Topic]) -> Want:
        """Return the want of a subscription. ConfigError if it is not clear whom to ask."""
        if not feeds:
            connection = await locate(self._url).connect()
            try:
                feeds = await read_feeds(connection, Keys(self._prefix))
            finally:
                connection.close()
            if len(feeds) != 1:
                raise ConfigError(
                    f"feeds must be given with want=True: the bus has {', '.join(feeds) or 'none yet'}"
                )
        return Want(self._lease(feeds[0]), topics)

    async def _read_subscriptions(self, feed: str) -> dict[Stream, SubscriptionState]:
        connection = await locate(self._url).connect()
        try:
            keys = Keys(self._prefix, await read_meta(connection, self._prefix) or DEFAULT_SHARDS)
            states = await read_subscriptions(connection, keys, feed)
        finally:
            connection.close()
        return {Stream(topic.kind, feed, topic.symbol): state for topic, state in sorted(states.items())}

    def consume(
        self,
        service: str,
        *,
        kind: str | Collection[str] = "trade",
        symbols: Collection[str] | None = None,
        feeds: Collection[str] | None = None,
        specs: Collection[str] | None = None,
        start: Start = FROM_START,
        lease_ttl: str = "3s",
        mirror_groups: bool = False,
    ) -> Consumer:
        """Return batches of the streams that this process owns as one replica of `service`, to iterate over.

        Start the program as often as you like: each process owns whole shards, no symbol is ever owned by
        two, and when one joins, leaves or dies the others take over within `lease_ttl` and a second or two.
        Positions, states and outputs are committed together: `Batch.commit`.

        service: the name of the service; all its replicas read the same streams.
        kind: one or several of `trade`, `quote`, `bar`, `signal`.
        symbols, feeds, specs: which streams, as in `read`.
        start: where streams without a committed position begin, as in `read`.
        lease_ttl: after this time without a heartbeat a process may be replaced: `500ms`, `3s`.
        mirror_groups: whether positions are mirrored to consumer groups, for tools that know only those.

        Errors: ConfigError for invalid arguments, for a name that a feed uses, and while replicas that read
        other streams are running; Fenced if another program writes this service's outputs.

            async for batch in bus.consume("my-app", kind="trade"):
                for stream, id, message in batch:
                    print(stream.symbol, id, message)
                await batch.commit()
        """
        check_name(service)
        kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        streams = make_filter(kinds, symbols, feeds, specs)
        try:
            ttl = parse_duration(lease_ttl)
        except ValueError as error:
            raise ConfigError(f"lease_ttl: {error}") from None
        consumer = Consumer(
            partial(self._open_consumer, service, streams, parse_start(start), ttl, mirror_groups)
        )
        self._consumers.add(consumer)
        return consumer

    async def _open_consumer(
        self,
        service: str,
        streams: StreamFilter,
        start: str | StreamId,
        lease_ttl: Duration,
        mirror_groups: bool,
    ) -> ShardConsumer:
        keys, _ = await self._keys()
        return ShardConsumer(
            self._url, keys, service, streams, lease_ttl, start=start, mirror_groups=mirror_groups
        )

    def _wanting(self, streams: StreamFilter, topics: Sequence[Topic]) -> Callable[[], Awaitable[Want]]:
        return partial(self._make_want, tuple(streams.feeds), topics)

    async def _open_reader(
        self,
        kind: str,
        streams: StreamFilter,
        want: bool,
        start: str | StreamId,
        positions: Mapping[str, StreamId],
    ) -> AnyReader:
        keys, was_empty = await self._keys()
        if was_empty:  # every entry from now on is new, so none may be skipped
            start = FROM_START
        shards = {keys.shard(symbol) for symbol in streams.symbols} or None
        # located afresh each time: a topology belongs to the event loop that reads
        return open_reader(locate(self._url), keys, streams, start, positions, shards, clocks=False)

    async def _keys(self) -> tuple[Keys, bool]:
        """Wait until somebody has written to the bus. Return its keys, and whether it was empty."""
        was_empty = False
        connection = await locate(self._url).connect()
        try:
            while (shards := await read_meta(connection, self._prefix)) is None:
                was_empty = True
                await asyncio.sleep(_EMPTY_BUS_SECONDS)
        finally:
            connection.close()
        return Keys(self._prefix, shards), was_empty

    async def __aenter__(self) -> Self:
        connection = await locate(self._url).connect()
        try:
            await read_meta(connection, self._prefix)
        finally:
            connection.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for consumer in list(self._consumers):
            await consumer.close()
