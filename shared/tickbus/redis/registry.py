"""What a bus stores about itself: its number of shards, its feeds, services and streams, and their heads."""

import asyncio
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

from tickbus.errors import ConfigError, WireError
from tickbus.protocol.codec import MALFORMED, Head, read_head
from tickbus.protocol.names import Keys, Stream, StreamId, is_stream
from tickbus.protocol.stream_filter import StreamFilter, decode_filter, encode_filter
from tickbus.protocol.wants import SubscriptionState, Topic, decode_states
from tickbus.redis.link import Connection, Reply, ReplyError
from tickbus.redis.resp import Command, milliseconds, pairs

SCHEMA = "1"
MAX_SHARDS = 1_000
_MAX_LEASE_MS = 600_000


async def check_meta(link: Connection, keys: Keys) -> None:
    """Set the bus's number of shards at first use. ConfigError if this process is configured differently."""
    _, _, shards, schema = await link.ask_all(
        [
            ("HSETNX", keys.meta, "shards", keys.shards),
            ("HSETNX", keys.meta, "schema", SCHEMA),
            ("HGET", keys.meta, "shards"),
            ("HGET", keys.meta, "schema"),
        ]
    )
    if (found := _shards(keys, shards)) != keys.shards:
        raise ConfigError(
            f"bus {keys.prefix!r} has {found} shards, this process is configured for {keys.shards};"
            f" use --shards {found}"
        )
    _check_schema(keys.prefix, schema)


def _shards(keys: Keys, value: bytes) -> int:
    """Return the number of shards. ConfigError if it is not one: some other program wrote there."""
    if not (value.isdigit() and 1 <= len(value) <= 4 and 1 <= int(value) <= MAX_SHARDS):
        raise ConfigError(
            f"bus {keys.prefix!r} has an invalid number of shards, {value[:32]!r}: expected 1 to"
            f" {MAX_SHARDS}; fix: redis-cli HSET '{keys.meta}' shards NUMBER, as its gateways are configured"
        )
    return int(value)


def _check_schema(prefix: str, value: bytes) -> None:
    if value != SCHEMA.encode():
        raise ConfigError(
            f"bus {prefix!r} has schema {value[:32].decode(errors='backslashreplace')},"
            f" this version of tickbus writes {SCHEMA}; use another --prefix or version"
        )


async def read_bus(link: Connection, keys: Keys) -> str | None:
    """Return the id of this bus; None if it has none yet, or was emptied."""
    id = await link.ask("HGET", keys.meta, "bus")
    return None if id is None else str(id.decode(errors="replace"))


async def claim_bus(link: Connection, keys: Keys, id: str | None) -> str:
    """Return the id of this bus. One that has none gets `id`, or a random one."""
    _, found = await link.ask_all(
        [("HSETNX", keys.meta, "bus", id or secrets.token_hex(8)), ("HGET", keys.meta, "bus")]
    )
    return str(found.decode(errors="replace"))


async def claim_folder(link: Connection, keys: Keys, service: str, folder: str) -> bool:
    """Announce the id of the folder in which a service stores its results. Return whether it had another one.

    ConfigError if live replicas of the service use another one: each would hold a part.
    """
    field = f"folder:{service}"
    known = await link.ask("HGET", keys.meta, field)
    other = known not in (None, folder.encode())
    if other and await _are_alive(link, keys, service):
        raise ConfigError(
            f"service {service!r} is running with another --data-dir, which replicas must share;"
            " use the same folder, or another --name"
        )
    await link.ask("HSET", keys.meta, field, folder)
    return other


async def read_folder(link: Connection, keys: Keys, service: str) -> str:
    """Return the id of the folder that `claim_folder` announced last; empty if none did."""
    return str((await link.ask("HGET", keys.meta, f"folder:{service}") or b"").decode(errors="replace"))


async def read_positions(link: Connection, keys: Keys, service: str) -> dict[str, StreamId]:
    """Return what a service has committed, by stream name, as shown on the bus; what is none is left out."""
    shards = range(keys.shards)
    replies = await link.ask_all([("HGETALL", keys.position(shard, service)) for shard in shards])
    positions = {}
    for flat in replies:
        for name, value in pairs(flat):
            with suppress(ValueError):
                positions[Stream.parse(name.decode(errors="replace")).name] = StreamId.parse(value)
    return positions


async def write_delay(link: Connection, keys: Keys, feed: str, delay: int | None) -> None:
    """Store the minimum time in ns from ts_event to ts_recv of this feed, unless it is None: unknown."""
    if delay is not None:
        await link.ask("HSET", keys.meta, f"delay:{feed}", delay)


async def read_delay(link: Connection, keys: Keys, feed: str) -> int | None:
    """Return what the previous gateway wrote; None if there was none, or if it is no time."""
    delay = await link.ask("HGET", keys.meta, f"delay:{feed}")
    # negative where the vendor's clock is ahead of ours
    return int(delay) if delay is not None and re.fullmatch(rb"-?\d{1,18}", delay) else None


async def read_meta(link: Connection, prefix: str) -> int | None:
    """Return the number of shards, so that readers need no option for it; None before the first writer.

    ConfigError if the bus has another schema, or no valid number.
    """
    keys = Keys(prefix)
    shards = await link.ask("HGET", keys.meta, "shards")
    if shards is None:
        return None
    schema = await link.ask("HGET", keys.meta, "schema")
    if schema is not None:
        _check_schema(prefix, schema)
    return _shards(keys, shards)


async def register_service(
    link: Connection, keys: Keys, service: str, reads: StreamFilter, writes: StreamFilter | None = None
) -> None:
    """Announce what a service reads, so that others can compute its lag, and what it alone writes."""
    write_filter: Command = (
        ("HDEL", keys.meta, f"writes:{service}")
        if writes is None
        else ("HSET", keys.meta, f"writes:{service}", encode_filter(writes))
    )
    await link.ask_all([("HSET", keys.meta, f"service:{service}", encode_filter(reads)), write_filter])


class Standby(msgspec.Struct, frozen=True):
    """What a gateway that stands by says of itself."""

    holder: str
    """host:pid:token."""
    differs: str = ""
    """In what it differs from the one that runs; empty: in nothing."""


async def register_feed(link: Connection, keys: Keys, feed: str, description: bytes | None = None) -> None:
    """Announce a feed. ConfigError if a service has the name: they would fence each other out.

    description: what its owner writes; None leaves what is there.
    """
    if await link.ask("HGET", keys.meta, f"service:{feed}") is not None:
        raise ConfigError(f"name {feed!r} is used by a service of bus {keys.prefix!r}; use another --name")
    if description is None:
        await link.ask("HSETNX", keys.meta, f"feed:{feed}", 1)
    else:
        await link.ask("HSET", keys.meta, f"feed:{feed}", description)


async def read_feed(link: Connection, keys: Keys, feed: str) -> bytes | None:
    """Return what the owner of a feed last wrote about itself; None if nobody registered it."""
    stored: bytes | None = await link.ask("HGET", keys.meta, f"feed:{feed}")
    return stored


async def read_feeds(link: Connection, keys: Keys) -> list[str]:
    """Return the names of all feeds that ever wrote to this bus."""
    flat = await link.ask("HGETALL", keys.meta)
    fields = [name.decode(errors="replace") for name, _ in pairs(flat)]
    return sorted(field.removeprefix("feed:") for field in fields if field.startswith("feed:"))


async def write_standby(link: Connection, keys: Keys, feed: str, standby: Standby, ttl_ms: int) -> None:
    await link.ask("SET", keys.standby(feed), msgspec.json.encode(standby), "PX", ttl_ms)


async def read_standby(link: Connection, keys: Keys, feed: str) -> Standby | None:
    """Return None if no gateway stands by, or what is there is none of ours."""
    stored = await link.ask("GET", keys.standby(feed))
    try:
        return None if stored is None else msgspec.json.decode(stored, type=Standby)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


async def write_report(
    link: Connection, keys: Keys, service: str, member: str, lines: Sequence[str], ttl_ms: int
) -> None:
    """Store what a replica says of its own state that nothing else in Redis shows; none: remove it."""
    key = keys.report(service, member)
    if lines:
        await link.ask("SET", key, msgspec.json.encode(lines), "PX", ttl_ms)
    else:
        await link.ask("DEL", key)


async def read_reports(
    link: Connection, keys: Keys, service: str, members: Sequence[str]
) -> list[tuple[str, str]]:
    """Return what replicas of a service say of themselves: (replica, line)."""
    found = await link.ask_each([("GET", keys.report(service, member)) for member in members])
    reports = []
    for member, stored in zip(members, found, strict=True):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # nothing, or not ours
            lines = msgspec.json.decode(
                stored or b"[]" if isinstance(stored, bytes | None) else b"[]", type=list[str]
            )
            reports += [(member, line) for line in lines]
    return reports


async def check_replicas(
    link: Connection, keys: Keys, service: str, reads: StreamFilter, writes: StreamFilter | None
) -> None:
    """ConfigError for the name of a feed, or if live replicas of the service read or write other streams.

    One replica would take a shard for processed although another had processed only part of it.
    """
    feed, read, written = await link.ask(
        "HMGET", keys.meta, f"feed:{service}", f"service:{service}", f"writes:{service}"
    )
    if feed is not None:
        raise ConfigError(f"name {service!r} is used by a feed of bus {keys.prefix!r}; use another name")
    same = read in (None, encode_filter(reads)) and (
        read is None or written == (None if writes is None else encode_filter(writes))
    )
    if not same and await _are_alive(link, keys, service):
        raise ConfigError(
            f"service {service!r} is running with other feeds, symbols or specs, which replicas must share;"
            " stop it first, or use another name"
        )


async def _are_alive(link: Connection, keys: Keys, service: str) -> bool:
    """Wait for a heartbeat or its expiry: a killed member seems alive for a moment. True if one is alive."""
    last = 0
    while True:
        heartbeats, now = await _heartbeats(link, keys, service)
        newest = max(heartbeats, default=0)
        if newest <= now or (last and newest > last):
            return newest > now
        last = newest
        await asyncio.sleep((newest - now + 1) / 1000)


async def _heartbeats(link: Connection, keys: Keys, service: str) -> tuple[list[int], int]:
    """Return until when members of a service are alive, and the time, in ms.

    What some other program wrote is left out: no lease is as long as a time far ahead says.
    """
    values, time = await link.ask_each([("HVALS", keys.members(service)), ("TIME",)])
    now = milliseconds(time)
    heartbeats = [] if isinstance(values, ReplyError) else map(read_heartbeat, values)
    return [until for until in heartbeats if until <= now + _MAX_LEASE_MS], now


async def check_conflicting_writers(link: Connection, keys: Keys, service: str, writes: StreamFilter) -> None:
    """ConfigError if another live service writes any of these streams: both would number their entries.

    If two services register and are alive before they check, at least one sees the other.
    """
    flat = await link.ask("HGETALL", keys.meta)
    for field, value in pairs(flat):
        owner = field.decode(errors="backslashreplace")
        rival = owner.removeprefix("writes:")
        declared = read_filter(value) if rival not in (owner, service) else None
        if declared is None or not writes.overlaps(declared):
            continue
        heartbeats, now = await _heartbeats(link, keys, rival)
        if any(until > now for until in heartbeats):
            raise ConfigError(
                f"service {rival!r} is running and writes the same streams;"
                f" use --name {rival} to add a replica, or other --specs or --feeds"
            )


async def ensure_eras(link: Connection, keys: Keys, shards: Iterable[int]) -> None:
    """Give each shard a random era unless it has one: another era means another history."""
    await link.ask_all([("SET", keys.era(shard), secrets.token_hex(8), "NX") for shard in shards])


async def read_heads(
    link: Connection, keys: Keys, shards: Iterable[int], bad: dict[str, str] | None = None
) -> dict[str, Head]:
    """Return the heads of all streams in some shards, by stream name. Other names are skipped.

    Anybody can write there: what is no head is left out. `bad`: collects what that is, by the name of the
    stream, or of the hash if that is none.
    """
    shards = list(shards)
    replies = await link.ask_each([("HGETALL", keys.last(shard)) for shard in shards])
    heads: dict[str, Head] = {}
    bad = {} if bad is None else bad
    for shard, flat in zip(shards, replies, strict=True):
        if isinstance(flat, ReplyError):
            bad[keys.last(shard)] = f"{keys.last(shard)}: {flat}"
            continue
        for name, value in pairs(flat):
            stream = name.decode(errors="replace")
            if not is_stream(stream) or keys.shard(Stream.parse(stream).symbol) != shard:
                bad[stream] = f"{keys.last(shard)}: {stream[:128]!r} is no stream of its shard; it is ignored"
                continue
            try:
                heads[stream] = read_head(stream, value)
            except WireError as error:
                bad[stream] = str(error)
    return heads


async def read_heads_of(link: Connection, keys: Keys, streams: Iterable[Stream]) -> dict[str, Head]:
    """Return the heads of these streams, by name; what is missing or unreadable is left out."""
    names: dict[int, list[str]] = {}
    for stream in streams:
        names.setdefault(keys.shard(stream.symbol), []).append(stream.name)
    replies = await link.ask_each([("HMGET", keys.last(shard), *some) for shard, some in names.items()])
    heads = {}
    for some, values in zip(names.values(), replies, strict=True):
        if isinstance(values, ReplyError):
            continue
        for name, value in zip(some, values, strict=True):
            if value is not None:
                with suppress(WireError):
                    heads[name] = read_head(name, value)
    return heads


async def read_stream_names(link: Connection, keys: Keys, feed: str) -> list[Stream]:
    """Return all streams that a feed or a service has ever written."""
    replies = await link.ask_each([("HKEYS", keys.last(shard)) for shard in range(keys.shards)])
    found = []
    for shard, names in enumerate(replies):
        for raw in () if isinstance(names, ReplyError) else names:
            name = raw.decode(errors="replace")
            if not is_stream(name):
                continue
            stream = Stream.parse(name)
            if stream.feed == feed and keys.shard(stream.symbol) == shard:
                found.append(stream)
    return found


async def read_subscriptions(link: Connection, keys: Keys, feed: str) -> dict[Topic, SubscriptionState]:
    """Return what a gateway says of its subscriptions, by topic."""
    return decode_subscriptions(keys, await link.ask_each(subscription_commands(keys, feed)))


def subscription_commands(keys: Keys, feed: str) -> list[Command]:
    """Return the commands whose replies `decode_subscriptions` takes."""
    return [("HGETALL", keys.subscriptions(shard, feed)) for shard in range(keys.shards)]


def decode_subscriptions(keys: Keys, replies: Sequence[Reply]) -> dict[Topic, SubscriptionState]:
    """Return the states by topic; what some other program wrote is left out."""
    states: dict[Topic, SubscriptionState] = {}
    for shard, flat in enumerate(replies):
        if not isinstance(flat, ReplyError):
            found = decode_states(dict(pairs(flat)))
            states |= {topic: state for topic, state in found.items() if keys.shard(topic.symbol) == shard}
    return states


def read_heartbeat(value: bytes) -> int:
    """Return the bus ms until which a member counts as alive, negative if it has ended; 0 if that is none."""
    digits = value.removeprefix(b"-")
    return int(value) if digits.isdigit() and len(digits) < 19 else 0


def read_filter(value: bytes) -> StreamFilter | None:
    """Return what a service declares to read or write; None if that is not readable."""
    try:
        return decode_filter(value)
    except MALFORMED:
        return None
