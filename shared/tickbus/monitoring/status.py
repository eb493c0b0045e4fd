"""A bus at this moment, as `tickbus status` shows it: feeds, services and how far each is behind, streams.

Everything is derived from what is stored in Redis (heads, bells, leases, fences, positions), nothing comes
from the processes themselves: it is correct even for one that is stopped, cut off or dead.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import Literal

from tickbus.consumer.membership import read_heartbeats
from tickbus.errors import WireError
from tickbus.monitoring.lag import StreamLag, measure
from tickbus.protocol.codec import NIL, Bell, Head, decode_bell, head_tick
from tickbus.protocol.messages import Flag, Message, Quote, Trade
from tickbus.protocol.names import FEED_KINDS, Keys, Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter, decode_filter
from tickbus.redis.link import Connection
from tickbus.redis.registry import Standby, read_heads, read_meta, read_standby
from tickbus.redis.resp import milliseconds, pairs
from tickbus.units import MILLISECOND

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
    heads = await read_heads(link, keys, range(shards))
    now_ms = milliseconds(await link.ask("TIME"))
    streams = [_stream(name, head) for name, head in sorted(heads.items())]
    flat = await link.ask("HGETALL", keys.meta)
    services = {
        name.decode().removeprefix("service:"): decode_filter(value)
        for name, value in pairs(flat)
        if name.startswith(b"service:")
    }
    feeds = {stream.stream.feed for stream in streams if stream.stream.kind in FEED_KINDS}
    bells = await _newest_bells(link, keys, feeds)
    return BusStatus(
        now_ms, shards,
        [await _feed(link, keys, name, streams, bells.get(name), now_ms) for name in sorted(feeds)],
        [await _service(link, keys, name, reads, heads, now_ms) for name, reads in sorted(services.items())],
        streams, heads,
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
    return StreamStatus(stream, id, last, dict(head.gaps), head.repaired, head.missing)


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
    return FeedStatus(
        name, state, None if age is None else age / 1000, holder, epoch, own, last_tick_age, standby
    )


async def _service(
    link: Connection, keys: Keys, name: str, reads: StreamFilter, heads: Mapping[str, Head], now_ms: int
) -> ServiceStatus:
    shards = range(keys.shards)
    fences = await link.ask_all(
        [("MGET", keys.fence(shard, name), keys.holder(shard, name)) for shard in shards]
    )
    heartbeats = read_heartbeats(await link.ask("HGETALL", keys.members(name)))
    positions: dict[str, StreamId] = {}
    for flat in await link.ask_all([("HGETALL", keys.position(shard, name)) for shard in shards]):
        positions |= {stream.decode(): StreamId.parse(id) for stream, id in pairs(flat)}
    lags = await measure(link, keys, heads, positions, reads)
    holders = [(holder or b"").decode() for _, holder in fences]
    members = _members(
        holders, {member for member, until in heartbeats.items() if until > now_ms}, lags, keys
    )
    return ServiceStatus(name, members, holders.count(""), max(int(epoch or 0) for epoch, _ in fences), lags)


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
    holder = await link.ask("GET", keys.lease(owner))
    fences = await link.ask_all([("GET", keys.fence(shard, owner)) for shard in range(keys.shards)])
    return None if holder is None else holder.decode(), max(int(fence or 0) for fence in fences)


async def _newest_bells(link: Connection, keys: Keys, feeds: Iterable[str]) -> dict[str, Bell]:
    """Return for each feed the newest ring that says whether it is up.

    Others ring the same bells, so a few rings are read first, then all.
    """
    newest: dict[str, Bell] = {}
    for count in (_FEW_BELLS, _ALL_BELLS):
        commands = [("XREVRANGE", keys.bell(shard), "+", "-", "COUNT", count) for shard in range(keys.shards)]
        for rows in await link.ask_all(commands):
            for _, (_, payload) in rows:
                bell = decode_bell(payload)
                name = bell.writer.partition("#")[0]
                if bell.feed_up is not None and (name not in newest or bell.bus_ms >= newest[name].bus_ms):
                    newest[name] = bell
        if newest.keys() >= set(feeds):
            break
    return newest
