"""How far a service is behind: in entries, exactly, by stream counters; in seconds, by the oldest unread one.

Lag in entries = counter of the head - counter of the position: correct even after trimming. XINFO's own
`lag` is not.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tickbus.errors import RedisError
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters
from tickbus.protocol.codec import Head
from tickbus.protocol.names import FEED_KINDS, START, Keys, Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.registry import read_filter, read_heads
from tickbus.redis.resp import milliseconds, pairs
from tickbus.units import HOUR, MILLISECOND

log = logging.getLogger("tickbus.lag")

_CHUNK = 250
_RETENTION = re.compile(rb"(\d{1,18}),(\d{1,18})")
DEFAULT_RETENTION_MS = 24 * HOUR // MILLISECOND


@dataclass(frozen=True)
class StreamLag:
    """One stream of one service."""

    stream: Stream
    ticks: int
    """Uncommitted entries, including those already trimmed."""
    lost: int
    """How many of these were trimmed: they can no longer be read."""
    seconds: float
    """Age of the oldest uncommitted entry; 0 if there is none."""
    headroom: float
    """Seconds until retention removes an uncommitted entry."""


class _Retention(NamedTuple):
    """How much of a stream is kept."""

    ms: int = DEFAULT_RETENTION_MS
    entries: int = 0
    """0: no limit."""


class _Retentions:
    """The retention of each stream, as declared by its writer."""

    def __init__(self, flat: Sequence[bytes]) -> None:
        """`flat`: all of `tickbus:meta`."""
        self._by_owner: dict[str, _Retention] = {}
        self._services: list[tuple[str, StreamFilter]] = []
        for field, value in pairs(flat):
            kind, _, owner = field.decode(errors="replace").partition(":")
            if kind == "retention" and (match := _RETENTION.fullmatch(value)):
                self._by_owner[owner] = _Retention(int(match[1]), int(match[2]))
            elif kind == "writes" and (writes := read_filter(value)) is not None:
                self._services.append((owner, writes))

    def of(self, stream: Stream) -> _Retention:
        """Return what the stream's feed declares, or for bars and signals the service that writes them."""
        owners = (
            [stream.feed]
            if stream.kind in FEED_KINDS
            else [name for name, writes in self._services if writes(stream)]
        )
        return next((self._by_owner[owner] for owner in owners if owner in self._by_owner), _Retention())


async def measure(
    link: Connection,
    keys: Keys,
    heads: Mapping[str, Head],
    positions: Mapping[str, StreamId],
    wanted: Callable[[Stream], bool],
) -> list[StreamLag]:
    """Return the lag of a service with these positions, for every stream that it wants."""
    now_ms = milliseconds(await link.ask("TIME"))
    retentions = _Retentions(await link.ask("HGETALL", keys.meta))
    behind: list[tuple[Stream, StreamId, StreamId]] = []
    lags = []
    for name, head in heads.items():
        stream = Stream.parse(name)
        if not wanted(stream):
            continue
        last, position = StreamId.parse(head.id), positions.get(name, START)
        if last > position:
            behind.append((stream, last, position))
        else:
            lags.append(StreamLag(stream, 0, 0, 0.0, retentions.of(stream).ms / 1000))
    for start in range(0, len(behind), _CHUNK):
        chunk = behind[start : start + _CHUNK]
        rows = await link.ask_each(
            [
                ("XRANGE", keys.stream(stream), f"({position}", "+", "COUNT", 1)
                for stream, _, position in chunk
            ]
        )
        for (stream, last, position), found in zip(chunk, rows, strict=True):
            if isinstance(found, ReplyError):  # some other program stored something else: all of it is lost
                found = []
            oldest = StreamId.parse(found[0][0]) if found else last
            age = max(0.0, (now_ms - oldest.ms) / 1000)
            # an empty reply: everything unread was trimmed
            headroom = _headroom(retentions.of(stream), oldest, last, age) if found else 0.0
            lost = max(0, oldest.seq - position.seq - 1) if found else last.seq - position.seq
            lags.append(StreamLag(stream, last.seq - position.seq, lost, age, headroom))
    return lags


def _headroom(retention: _Retention, oldest: StreamId, last: StreamId, age: float) -> float:
    """Return the seconds left by age or, if fewer, by number of entries at the rate of the unread ones."""
    by_age = retention.ms / 1000 - age
    unread = last.seq - oldest.seq + 1
    span = (last.ms - oldest.ms) / 1000
    if not retention.entries or span <= 0 or unread <= 0:
        return max(0.0, by_age)
    return max(0.0, min(by_age, (retention.entries - unread) / (unread / span)))


class LagMeter:
    """Measures a service's own lag every few seconds and exposes it in its metrics."""

    def __init__(
        self, meters: Meters, service: str, keys: Keys, connect: Callable[[], Awaitable[Connection]],
        wanted: Callable[[Stream], bool], positions: Callable[[], Mapping[str, StreamId]],
    ) -> None:  # fmt: skip
        self._keys = keys
        self._connect = connect
        self._wanted = wanted
        self._positions = positions
        self._ticks = meters.gauge(m.CONSUMER_LAG_TICKS).labels(service)
        self._seconds = meters.gauge(m.CONSUMER_LAG_SECONDS).labels(service)
        self._headroom = meters.gauge(m.RETENTION_HEADROOM).labels(service)

    async def run(self) -> None:
        link: Connection | None = None
        interval = 1.0
        while True:
            try:
                if link is None or link.closed:
                    link = await self._connect()
                heads = await read_heads(link, self._keys, range(self._keys.shards))
                # reading all heads costs about 10 us per stream
                interval = max(1.0, len(heads) / 2_000)
                lags = await measure(link, self._keys, heads, self._positions(), self._wanted)
                self._ticks.set(sum(lag.ticks for lag in lags))
                self._seconds.set(max((lag.seconds for lag in lags), default=0.0))
                self._headroom.set(min((lag.headroom for lag in lags), default=DEFAULT_RETENTION_MS / 1000))
            except (RedisError, ReplyError) as error:
                log.debug("lag: %s", error)
            await asyncio.sleep(interval)
