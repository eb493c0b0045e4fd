"""A bus at this moment, as `tickbus status` shows it: feeds, services and how far each is behind, streams.

Everything is derived from what is stored in Redis (heads, bells, leases, fences, positions) and from what
Redis says of itself; nothing is asked of the processes: it is correct even for one that is stopped, cut off
or dead. Only what a process alone can know (`reports` of replicas, `relays` and their clients) is what it
last said, and expires seconds later.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import Literal

from tickbus.consumer.membership import read_heartbeats
from tickbus.errors import WireError
from tickbus.monitoring.lag import StreamLag, measure
from tickbus.monitoring.relays import RelayReport, read_relays
from tickbus.protocol.codec import NIL, Bell, Head, head_tick, read_bell, read_head
from tickbus.protocol.messages import Flag, Message, Quote, Trade
from tickbus.protocol.names import FEED_KINDS, Keys, Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.protocol.wants import SubscriptionState
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.refusals import find_refusals
from tickbus.redis.registry import (
    Standby,
    read_feeds,
    read_filter,
    read_heads,
    read_meta,
    read_reports,
    read_standby,
    read_subscriptions,
)
from tickbus.redis.resp import milliseconds, pairs
from tickbus.units import MILLISECOND
from tickbus.writer.fences import read_fence
from tickbus.writer.quarantine import top_fault

_FEW_BELLS, _ALL_BELLS = 32, 1_000
STALE_MS = 5_000
"""A gateway rings every second: a bus clock older than this has no gateway behind it."""


@dataclass(frozen=True)
class StreamStatus:
    stream: Stream
    id: StreamId
    """Newest entry; its counter is the number of entries ever written, including Gaps."""
    last_tick: int | None
    """When the newest tick reached the bus, ns since the epoch; None if the stream never had one."""
    gaps: dict[str, int]
    """Gap messages with repaired = false, by kind."""
    repaired: int
    missing: int
    forgotten: int = 0
    """Holes that are not known any more, because there were too many: trades that fill them are dropped."""

    @property
    def ticks(self) -> int:
        """Entries other than Gaps."""
        return self.id.seq - sum(self.gaps.values()) - self.repaired


@dataclass(frozen=True)
class FeedStatus:
    name: str
    state: Literal["up", "down", "gone"]
    """`up`: connected upstream. `down`: its gateway runs, but is not connected. `gone`: no gateway rings."""
    clock_age: float | None
    """Seconds since the newest bell of this feed that moves the bus clock; None if no such bell is kept."""
    holder: str | None
    """Holder of the lease: host:pid:token."""
    epoch: int
    streams: list[StreamStatus]
    """Trade and quote streams."""
    last_tick_age: float | None
    standby: Standby | None = None
    """The gateway that stands by; None if there is none."""
    subscriptions: dict[Stream, SubscriptionState] = field(default_factory=dict)
    """What its gateway is subscribed to at the vendor, or was asked for."""

    @property
    def subscribed(self) -> dict[str, int]:
        """The number of subscriptions by state."""
        return dict(Counter(state.state for state in self.subscriptions.values()))

    @property
    def ticks(self) -> int:
        return sum(stream.ticks for stream in self.streams)

    @property
    def silent(self) -> list[Stream]:
        """Subscribed streams that never had a tick."""
        return [stream.stream for stream in self.streams if stream.last_tick is None]

    @property
    def gaps(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for stream in self.streams:
            total.update(stream.gaps)
        return dict(total)

    @property
    def repaired(self) -> int:
        return sum(stream.repaired for stream in self.streams)

    @property
    def missing(self) -> int:
        return sum(stream.missing for stream in self.streams)


@dataclass(frozen=True)
class MemberStatus:
    """A replica of a service."""

    token: str
    """host:pid:token."""
    alive: bool
    """Whether its heartbeat says so. A dead one may still hold shards, until others have taken them over."""
    shards: int
    """Number of shards that it holds."""
    ticks: int
    """Its lag: uncommitted entries of these shards."""


@dataclass(frozen=True)
class ServiceStatus:
    """A service that commits positions. `lags` has one item for each stream that it reads."""

    name: str
    members: list[MemberStatus]
    """Those that are alive, and those that hold shards."""
    free: int
    """Number of shards without a holder."""
    epoch: int
    lags: list[StreamLag]
    reports: list[tuple[str, str]] = field(default_factory=list)
    """(replica, line) of what replicas say of their own state: shards set aside, clocks of vendors ahead."""

    @property
    def ticks(self) -> int:
        return sum(lag.ticks for lag in self.lags)

    @property
    def seconds(self) -> float:
        return max((lag.seconds for lag in self.lags), default=0.0)

    @property
    def lost(self) -> int:
        return sum(lag.lost for lag in self.lags)

    @property
    def headroom(self) -> float | None:
        """None if it reads no stream."""
        return min((lag.headroom for lag in self.lags), default=None)


@dataclass(frozen=True)
class Totals:
    """Entries ever written, by kind; Gaps, including repairs, are counted separately."""

    trades: int = 0
    quotes: int = 0
    bars: int = 0
    signals: int = 0
    gaps: int = 0

    def __sub__(self, before: "Totals") -> "Totals":
        return Totals(*(ours - theirs for ours, theirs in zip(astuple(self), astuple(before), strict=True)))


@dataclass(frozen=True)
class BusStatus:
    time_ms: int
    """Redis's own time."""
    shards: int
    feeds: list[FeedStatus]
    services: list[ServiceStatus]
    streams: list[StreamStatus]
    """All kinds, by name."""
    heads: dict[str, Head] = field(repr=False)
    faults: list[str] = field(default_factory=list)
    """What some other program wrote to the keys of this bus, a line each: what is wrong, and the remedy."""
    relays: list[RelayReport] = field(default_factory=list)
    """Those that run, and their clients, as they say themselves."""
    refusals: list[str] = field(default_factory=list)
    """Why Redis refuses writes now, a line each, which begins with the first word of its error."""

    @property
    def totals(self) -> Totals:
        ticks: Counter[str] = Counter()
        for stream in self.streams:
            ticks[stream.stream.kind] += stream.ticks
        gaps = sum(sum(stream.gaps.values()) + stream.repaired for stream in self.streams)
        return Totals(ticks["trade"], ticks["quote"], ticks["bar"], ticks["signal"], gaps)


async def read_status(link: Connection, prefix: str) -> BusStatus | None:
    """Return the status of a bus; None if nobody has written to it yet. Takes about 20 us per stream."""
    shards = await read_meta(link, prefix)
    if shards is None:
        return None
    keys = Keys(prefix, shards)
    bad: dict[str, str] = {}
    heads = await read_heads(link, keys, range(shards), bad)
    faults = list(bad.values()) + await _stream_faults(link, keys, heads)
    now_ms = milliseconds(await link.ask("TIME"))
    streams = [_stream(name, head) for name, head in sorted(heads.items())]
    flat = await link.ask("HGETALL", keys.meta)
    services = {
        name.decode(errors="backslashreplace").removeprefix("service:"): reads
        for name, value in pairs(flat)
        if name.startswith(b"service:") and (reads := read_filter(value)) is not None
    }
    feeds = {stream.stream.feed for stream in streams if stream.stream.kind in FEED_KINDS}
    registered = await read_feeds(link, keys)
    leases = await link.ask_each([("GET", keys.lease(feed)) for feed in registered])
    feeds |= {feed for feed, holder in zip(registered, leases, strict=True) if holder is not None}
    bells = await _newest_bells(link, keys, feeds, faults)
    return BusStatus(
        now_ms, shards,
        [await _feed(link, keys, name, streams, bells.get(name), now_ms) for name in sorted(feeds)],
        [
            await _service(link, keys, name, reads, heads, now_ms, faults)
            for name, reads in sorted(services.items())
        ],
        streams, heads, faults, await read_relays(link, keys, now_ms, faults), await find_refusals(link),
    )  # fmt: skip


def _stream(name: str, head: Head) -> StreamStatus:
    stream, id = Stream.parse(name), StreamId.parse(head.id)
    last = None
    if bytes(head.tick) != bytes(NIL):
        last = id.ms * MILLISECOND
        tick: Message | None = None
        with suppress(WireError):
            tick = head_tick(head, stream.kind)
        # the newest entry may be a Gap; but a replayed tick was received long before it reached this bus
        if isinstance(tick, Trade | Quote) and not tick.flags & Flag.REPLAYED:
            last = tick.ts_recv
    return StreamStatus(stream, id, last, dict(head.gaps), head.repaired, head.missing, head.forgotten)


async def _feed(
    link: Connection, keys: Keys, name: str, streams: Iterable[StreamStatus], bell: Bell | None, now_ms: int
) -> FeedStatus:
    own = [stream for stream in streams if stream.stream.feed == name and stream.stream.kind in FEED_KINDS]
    holder, epoch = await _owner(link, keys, name)
    age = None if bell is None else max(0, now_ms - bell.bus_ms)
    state: Literal["up", "down", "gone"] = "gone"
    if bell is not None and age is not None and age < STALE_MS and holder is not None:
        state = "up" if bell.feed_up else "down"
    newest = max((stream.last_tick for stream in own if stream.last_tick is not None), default=None)
    last_tick_age = None if newest is None else max(0, now_ms - newest // MILLISECOND) / 1000
    standby = await read_standby(link, keys, name)
    subscriptions = {
        Stream(topic.kind, name, topic.symbol): subscription
        for topic, subscription in sorted((await read_subscriptions(link, keys, name)).items())
    }
    return FeedStatus(
        name, state, None if age is None else age / 1000, holder, epoch, own, last_tick_age, standby,
        subscriptions,
    )  # fmt: skip


async def _service(
    link: Connection, keys: Keys, name: str, reads: StreamFilter, heads: Mapping[str, Head], now_ms: int,
    faults: list[str],
) -> ServiceStatus:  # fmt: skip
    shards = range(keys.shards)
    fences = [
        read_fence(epoch, holder)
        for epoch, holder in await link.ask_all(
            [("MGET", keys.fence(shard, name), keys.holder(shard, name)) for shard in shards]
        )
    ]
    hashes = [keys.members(name), *[keys.position(shard, name) for shard in shards]]
    flats: list[Sequence[bytes]] = []
    for key, flat in zip(hashes, await link.ask_each([("HGETALL", key) for key in hashes]), strict=True):
        if isinstance(flat, ReplyError):
            faults.append(f"{key} is no hash: fix: redis-cli RENAME '{key}' '{key}:foreign'")
        flats.append([] if isinstance(flat, ReplyError) else flat)
    heartbeats = read_heartbeats(flats[0])
    positions: dict[str, StreamId] = {}
    for key, flat in zip(hashes[1:], flats[1:], strict=True):
        for raw, id in pairs(flat):
            stream = raw.decode(errors="backslashreplace")
            try:
                positions[stream] = StreamId.read(id)
            except ValueError as error:
                faults.append(f"{key}: the position of {stream} cannot be read: {error}")
    lags = await measure(link, keys, heads, positions, reads)
    holders = [fence.holder for fence in fences]
    members = _members(
        holders, {member for member, until in heartbeats.items() if until > now_ms}, lags, keys
    )
    epoch = max(fence.epoch for fence in fences)
    reports = await read_reports(link, keys, name, [member.token for member in members])
    return ServiceStatus(name, members, holders.count(""), epoch, lags, reports)


def _members(
    holders: Sequence[str], alive: Collection[str], lags: Iterable[StreamLag], keys: Keys
) -> list[MemberStatus]:
    """Return the members of a service. `holders`: by shard."""
    ticks: Counter[str] = Counter()
    for lag in lags:
        ticks[holders[keys.shard(lag.stream.symbol)]] += lag.ticks
    return [
        MemberStatus(token, token in alive, holders.count(token), ticks[token])
        for token in sorted({*alive, *holders} - {""})
    ]


async def _owner(link: Connection, keys: Keys, owner: str) -> tuple[str | None, int]:
    """Return the holder of the lease of a feed or service, and the epoch that may write."""
    holder, *fences = await link.ask_each(
        [("GET", keys.lease(owner)), *[("GET", keys.fence(shard, owner)) for shard in range(keys.shards)]]
    )
    return (
        holder.decode(errors="backslashreplace") if isinstance(holder, bytes) else None,
        max(read_fence(fence, None).epoch if isinstance(fence, bytes) else 0 for fence in fences),
    )


async def _stream_faults(link: Connection, keys: Keys, heads: Mapping[str, Head]) -> list[str]:
    """Return what is wrong with streams whose newest entry is above their head: it is not ours.

    Both are written together, so those that seem to be are read once more, the head last.
    """
    suspects = [Stream.parse(name) for name in heads]
    tops = await link.ask_each(
        [("XREVRANGE", keys.stream(stream), "+", "-", "COUNT", 1) for stream in suspects]
    )
    above = [
        (stream, top)
        for stream, top in zip(suspects, tops, strict=True)
        if isinstance(top, ReplyError)
        or (top and StreamId.parse(top[0][0]) > StreamId.parse(heads[stream.name].id))
    ]
    again = await link.ask_each(
        [("HGET", keys.last(keys.shard(stream.symbol)), stream.name) for stream, _ in above]
    )
    faults = []
    for (stream, top), value in zip(above, again, strict=True):
        key = keys.stream(stream)
        if isinstance(top, ReplyError):
            faults.append(f"{key} is no stream: fix: redis-cli RENAME '{key}' '{key}:foreign'")
            continue
        with suppress(WireError):
            id, newest = top[0][0], read_head(stream.name, value if isinstance(value, bytes) else b"")
            if StreamId.parse(id) > StreamId.parse(newest.id):
                faults.append(str(top_fault(key, StreamId.parse(newest.id), f"its entry {id.decode()}")))
    return faults


async def _newest_bells(
    link: Connection, keys: Keys, feeds: Iterable[str], faults: list[str]
) -> dict[str, Bell]:
    """Return for each feed the newest ring that says whether it is up.

    Others ring the same bells, so a few rings are read first, then all.
    """
    newest: dict[str, Bell] = {}
    for count in (_FEW_BELLS, _ALL_BELLS):
        commands = [("XREVRANGE", keys.bell(shard), "+", "-", "COUNT", count) for shard in range(keys.shards)]
        broken = []
        for shard, rows in enumerate(await link.ask_each(commands)):
            if isinstance(rows, ReplyError):
                key = keys.bell(shard)
                broken.append(f"{key} is no stream: fix: redis-cli RENAME '{key}' '{key}:foreign'")
                continue
            for _, fields in rows:
                if (bell := read_bell(fields)) is None:
                    continue
                name = bell.writer.partition("#")[0]
                if bell.feed_up is not None and (name not in newest or bell.bus_ms >= newest[name].bus_ms):
                    newest[name] = bell
        if newest.keys() >= set(feeds):
            break
    faults += broken
    return newest
