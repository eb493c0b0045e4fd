"""What a bus knows of itself: its shard number, its streams and their heads."""

import asyncio
import secrets
from collections.abc import Iterable

from tickbus.errors import ConfigError
from tickbus.protocol.codec import Head, read_head
from tickbus.protocol.names import Keys, is_stream
from tickbus.protocol.stream_filter import StreamFilter, decode_filter, encode_filter
from tickbus.redis.link import Connection
from tickbus.redis.resp import milliseconds, pairs

SCHEMA = "1"


async def check_meta(link: Connection, keys: Keys) -> None:
    """Fix the bus's shard number at first use; ConfigError if this process is configured otherwise."""
    _, _, shards, schema = await link.ask_all(
        [
            ("HSETNX", keys.meta, "shards", keys.shards),
            ("HSETNX", keys.meta, "schema", SCHEMA),
            ("HGET", keys.meta, "shards"),
            ("HGET", keys.meta, "schema"),
        ]
    )
    if int(shards) != keys.shards:
        raise ConfigError(
            f"the bus {keys.prefix!r} has {int(shards)} shards, this process is configured for {keys.shards}; use --shards {int(shards)}"
        )
    if schema.decode() != SCHEMA:
        raise ConfigError(
            f"the bus {keys.prefix!r} has schema {schema.decode()}, this version of tickbus writes {SCHEMA}; use another --prefix or version"
        )


async def write_delay(link: Connection, keys: Keys, feed: str, delay: int | None) -> None:
    """The least time in ns that a tick of this feed took from its ts_event to its ts_recv; None: it is not known."""
    if delay is not None:
        await link.ask("HSET", keys.meta, f"delay:{feed}", delay)


async def read_delay(link: Connection, keys: Keys, feed: str) -> int | None:
    """What the gateway before wrote; None if there was none."""
    delay = await link.ask("HGET", keys.meta, f"delay:{feed}")
    return None if delay is None else int(delay)


async def read_meta(link: Connection, prefix: str) -> int | None:
    """Shard number of a bus, for readers, which need not be told; None if nobody has written yet."""
    shards = await link.ask("HGET", Keys(prefix).meta, "shards")
    return None if shards is None else int(shards)


async def register_service(
    link: Connection, keys: Keys, service: str, reads: StreamFilter, writes: StreamFilter | None = None
) -> None:
    """Say what a service reads, so that others can tell its lag, and which streams it alone writes."""
    told = (
        ("HDEL", keys.meta, f"writes:{service}")
        if writes is None
        else ("HSET", keys.meta, f"writes:{service}", encode_filter(writes))
    )
    await link.ask_all([("HSET", keys.meta, f"service:{service}", encode_filter(reads)), told])


async def register_feed(link: Connection, keys: Keys, feed: str) -> None:
    """Say that this is a feed. ConfigError if a service has the name: both would hold the same fences and throw each other out."""
    if await link.ask("HGET", keys.meta, f"service:{feed}") is not None:
        raise ConfigError(f"{feed!r} is a service of the bus {keys.prefix!r}; a feed needs another --name")
    await link.ask("HSET", keys.meta, f"feed:{feed}", 1)


async def check_replicas(
    link: Connection, keys: Keys, service: str, reads: StreamFilter, writes: StreamFilter | None
) -> None:
    """ConfigError if this is the name of a feed, or if replicas of the service are alive that read or write other streams: what one of
    them did of a shard, the other would take for done."""
    feed, read, written = await link.ask(
        "HMGET", keys.meta, f"feed:{service}", f"service:{service}", f"writes:{service}"
    )
    if feed is not None:
        raise ConfigError(f"{service!r} is a feed of the bus {keys.prefix!r}; a service needs another name")
    same = read in (None, encode_filter(reads)) and (
        read is None or written == (None if writes is None else encode_filter(writes))
    )
    if not same and await _are_alive(link, keys, service):
        raise ConfigError(
            f"the service {service!r} is running with another selection of feeds, symbols or specs; replicas share it: stop them first, or use another name"
        )


async def _are_alive(link: Connection, keys: Keys, service: str) -> bool:
    """Whether its members are: one that was killed counts as alive for a moment, so who does not go on for as long is dead."""
    last = 0
    while True:
        heartbeats, time = await link.ask_all([("HVALS", keys.members(service)), ("TIME",)])
        now, newest = milliseconds(time), max(map(int, heartbeats), default=0)
        if newest <= now or (last and newest > last):
            return newest > now
        last = newest
        await asyncio.sleep((newest - now + 1) / 1000)


async def check_conflicting_writers(link: Connection, keys: Keys, service: str, writes: StreamFilter) -> None:
    """ConfigError if another service that is alive writes streams of these: each would number their entries by itself. Of two that are
    registered and alive before they look, at least one sees the other."""
    flat = await link.ask("HGETALL", keys.meta)
    for field, value in pairs(flat):
        owner = field.decode()
        rival = owner.removeprefix("writes:")
        if rival in (owner, service) or not writes.overlaps(decode_filter(value)):
            continue
        heartbeats, time = await link.ask_all([("HVALS", keys.members(rival)), ("TIME",)])
        if any(int(until) > milliseconds(time) for until in heartbeats):
            raise ConfigError(
                f"the service {rival!r} is running and writes the same streams; replicas share a --name, another service needs other --specs or --feeds"
            )


async def make_eras(link: Connection, keys: Keys, shards: Iterable[int]) -> None:
    """Mark each shard with a random era unless it has one: another era means another history."""
    await link.ask_all([("SET", keys.era(shard), secrets.token_hex(8), "NX") for shard in shards])


async def read_heads(link: Connection, keys: Keys, shards: Iterable[int]) -> dict[str, Head]:
    """The heads of all streams in some shards, by stream name. What is no stream is left out."""
    replies = await link.ask_all([("HGETALL", keys.last(shard)) for shard in shards])
    heads = {}
    for flat in replies:
        for name, value in pairs(flat):
            if is_stream(text := name.decode(errors="replace")):
                heads[text] = read_head(text, value)
    return heads
