"""What a bus knows of itself: its shard number, its streams and their heads."""

import secrets
from collections.abc import Iterable

from tickbus.errors import ConfigError
from tickbus.link import Connection
from tickbus.names import Keys
from tickbus.selection import Selection, decode_selection, encode_selection
from tickbus.wire import Head, decode_head

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


async def register_service(link: Connection, keys: Keys, service: str, reads: Selection, writes: Selection | None = None) -> None:
    """Say what a service reads, so that others can tell its lag, and which streams it alone writes."""
    told = ("HDEL", keys.meta, f"writes:{service}") if writes is None else ("HSET", keys.meta, f"writes:{service}", encode_selection(writes))
    await link.ask_all([("HSET", keys.meta, f"service:{service}", encode_selection(reads)), told])


async def check_rivals(link: Connection, keys: Keys, service: str, writes: Selection) -> None:
    """ConfigError if another service that is alive writes streams of these: each would number their entries by itself. Of two that are
    registered and alive before they look, at least one sees the other."""
    flat = await link.ask("HGETALL", keys.meta)
    for field, value in zip(flat[::2], flat[1::2], strict=True):
        owner = field.decode()
        rival = owner.removeprefix("writes:")
        if rival in (owner, service) or not writes.meets(decode_selection(value)):
            continue
        heartbeats, (seconds, micros) = await link.ask_all([("HVALS", keys.members(rival)), ("TIME",)])
        if any(int(until) > int(seconds) * 1000 + int(micros) // 1000 for until in heartbeats):
            raise ConfigError(
                f"the service {rival!r} is running and writes the same streams; replicas share a --name, another service needs other --specs or --feeds"
            )


async def make_eras(link: Connection, keys: Keys, shards: Iterable[int]) -> None:
    """Mark each shard with a random era unless it has one: another era means another history."""
    await link.ask_all([("SET", keys.era(shard), secrets.token_hex(8), "NX") for shard in shards])


async def read_heads(link: Connection, keys: Keys, shards: Iterable[int]) -> dict[str, Head]:
    """The heads of all streams in some shards, by stream name."""
    replies = await link.ask_all([("HGETALL", keys.last(shard)) for shard in shards])
    heads = {}
    for flat in replies:
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            heads[name.decode()] = decode_head(value)
    return heads
