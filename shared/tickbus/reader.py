"""Reading the bus: follow the doorbells of some shards, read only the streams that have news.

Reading costs by ticks, not by symbols: one XREAD over 10,000 streams takes the server 5 ms however few have news. A blocked
XREAD waits on the bells (one small stream per shard); what they name is read next. Bells may be missed: on a jump of a
writer's counter, an unknown writer, another era, and at the start, the shard is swept by its `last` hash.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from tickbus.errors import ConfigError, RedisAway, RedisError, RedisUnfit
from tickbus.link import Command, Link, Reply, ReplyError, pack
from tickbus.names import START, Keys, Stream, StreamId
from tickbus.units import MILLISECOND, parse_time
from tickbus.wire import Head, decode_bell, decode_head

log = logging.getLogger("tickbus.reader")

_BLOCK_MS = 1_000
_BLOCK_SECONDS = _BLOCK_MS / 1000 + 5.0
_PER_READ = 10_000
"""Entries in one reply at most, about: COUNT is per stream, so it is shared out over the streams of the call."""
_STREAMS_PER_READ = 250
_ROUNDS_UNHEARD = 8
_RETRY_SECONDS = (0.05, 1.0)

NOW = "now"
FROM_START = "start"
Start = str | int | datetime


@dataclass(frozen=True)
class Lost:
    """Entries of a stream that were trimmed before they were read."""

    count: int
    after: StreamId
    """The position before the loss."""
    before: StreamId
    """The first entry that is still there."""


class Read(NamedTuple):
    """Consecutive entries of one stream, as Redis gave them: [ID, [field, payload]], and the position after them."""

    stream: Stream
    entries: list[Reply]
    last: StreamId
    lost: Lost | None


@dataclass
class Round:
    """What one round brought: reads in order per stream, and the bus clocks that hold once they are applied."""

    reads: list[Read] = field(default_factory=list)
    clocks: dict[tuple[int, str], int] = field(default_factory=dict)
    """(shard, feed) -> bus ms: every entry of that feed's trade and quote streams with an older ID has been delivered."""


class _Followed:
    """One stream that is read."""

    __slots__ = ("exact", "key", "name", "position", "read_to", "shard", "stream")

    def __init__(self, keys: Keys, stream: Stream, position: StreamId, exact: bool) -> None:
        self.stream = stream
        self.name = stream.name
        self.shard = keys.shard(stream.symbol)
        self.key = keys.stream(stream)
        self.position = position
        self.read_to: bytes = str(position).encode()
        """The position as Redis writes it."""
        self.exact = exact
        """Whether the position's counter is ours: what is missing after it was lost. Not so for a time, or the oldest entry."""


class _Request(NamedTuple):
    """What is asked of Redis: the entries of some streams, or news if `asked` is empty."""

    asked: list[_Followed]
    most: int
    """Entries per stream."""
    replies: "asyncio.Future[list[Reply]]"


@dataclass
class _Shard:
    bell: str
    rings: dict[str, int] = field(default_factory=dict)
    """Writer -> its last counter seen."""
    clocks: dict[str, int] = field(default_factory=dict)
    """Feed -> bus ms, from bells whose news is not all read yet."""
    era: bytes | None = None
    known: bool = False
    bell_id: str = "0-0"


class Reader:
    """Follows the streams of some shards that `wanted` accepts.

    `positions`: where to go on, by stream name. Other streams that exist at the start begin at `start` (NOW, FROM_START or an
    ID to begin after); those that appear later are read from their first entry.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Link]], keys: Keys, wanted: Callable[[Stream], bool],
        start: str | StreamId = NOW, positions: Mapping[str, StreamId] | None = None, shards: Iterable[int] | None = None,
    ) -> None:  # fmt: skip
        self._connect = connect
        self._keys = keys
        self._wanted = wanted
        self._start = start
        self._positions = dict(positions or {})
        self._shards = {shard: _Shard(keys.bell(shard)) for shard in (range(keys.shards) if shards is None else shards)}
        self._by_bell = {state.bell.encode(): shard for shard, state in self._shards.items()}
        self._followed: dict[str, _Followed] = {}
        self._by_key: dict[bytes, _Followed] = {}
        self._ignored: set[str] = set()
        self._pending: dict[str, _Followed] = {}
        """Streams with news that is not read yet."""
        self._told: set[int] = set()
        """Shards with clocks that are not given out yet."""
        self.heads: dict[str, Head] = {}
        """As of the last sweep of their shard: who wrote what."""
        self.reconnects = 0
        self._link: Link | None = None

    @property
    def positions(self) -> dict[str, StreamId]:
        """Stream name -> ID of the last entry delivered, for all streams that are followed."""
        return {name: followed.position for name, followed in self._followed.items()}

    @property
    def resumable(self) -> dict[str, StreamId]:
        """`positions` for another reader to go on by: of the streams whose first entry is known."""
        return {name: followed.position for name, followed in self._followed.items() if followed.exact}

    async def rounds(self) -> AsyncIterator[Round]:
        """For ever, over reconnects. An empty round is given at least each second: time goes on."""
        wait = _RETRY_SECONDS[0]
        said = False
        while True:
            try:
                link = await self._linked()
                if said:
                    log.info("Redis is back")
                    said = False
                async for result in self._follow(link):
                    wait = _RETRY_SECONDS[0]
                    yield result
            except RedisError as error:
                if not said:
                    log.warning("%s; trying again", error)
                    said = True
                if self._link is not None:
                    self._link.close()
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_SECONDS[1])

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    async def prepare(self) -> None:
        """Connect and find out where everything stands, so that `start="now"` means the moment of this call."""
        await self._linked()

    async def _linked(self) -> Link:
        if self._link is None or self._link.closed:
            again = self._link is not None
            self._link = await self._connect()
            self.reconnects += again
            await self._sweep(self._link, self._shards)
        return self._link

    async def _follow(self, link: Link) -> AsyncIterator[Round]:
        request = self._listen(link)
        unheard = 0
        while True:
            replies = await request.replies
            if not request.asked:
                await self._hear(link, replies[0])
                unheard = 0
                result = Round()
            else:
                result = Round(self._take(request, replies))
                unheard += 1
            self._settle(result)
            # The next request goes out before this round is worked on. While catching up the bells are still heard now and
            # then: streams with fresh news must not wait for the end of an old backlog.
            request = self._listen(link) if not self._pending or unheard >= _ROUNDS_UNHEARD else self._ask(link)
            if result.reads or not self._pending:
                yield result

    def _listen(self, link: Link) -> "_Request":
        """Ask for news: the bells, blocked unless something is known to be unread."""
        shards = self._shards.values()
        options: Command = () if self._pending else ("BLOCK", _BLOCK_MS)
        command = ("XREAD", "COUNT", 1000, *options, "STREAMS", *[s.bell for s in shards], *[s.bell_id for s in shards])
        return _Request([], 0, link.send(pack(command), 1, _BLOCK_SECONDS))

    async def _hear(self, link: Link, reply: Reply) -> None:
        _raise(reply)
        missed: set[int] = set()
        for key, rows in reply or ():
            self._heed(self._by_bell[key], rows, missed)
        if missed:
            await self._sweep(link, missed)

    def _heed(self, shard: int, rows: list[Reply], missed: set[int]) -> None:
        state = self._shards[shard]
        for id, (_, payload) in rows:
            bell = decode_bell(payload)
            if state.rings.get(bell.writer, -1) + 1 != bell.counter:
                missed.add(shard)
            state.rings[bell.writer] = bell.counter
            for name in bell.streams:
                followed = self._followed.get(name)
                if followed is not None:
                    self._pending[name] = followed
                elif name not in self._ignored:
                    missed.add(shard)
            if bell.feed_up is not None:
                state.clocks[bell.writer.partition("#")[0]] = bell.bus_ms
                self._told.add(shard)
            state.bell_id = id.decode()

    def _settle(self, result: Round) -> None:
        """All news is read: the clocks of the bells that told it hold."""
        behind = {followed.shard for followed in self._pending.values()} if self._pending else ()
        for shard in [shard for shard in self._told if shard not in behind]:
            clocks = self._shards[shard].clocks
            for feed, bus_ms in clocks.items():
                result.clocks[shard, feed] = bus_ms
            clocks.clear()
            self._told.remove(shard)

    def _ask(self, link: Link) -> "_Request":
        """Ask for the entries of streams with news: as many as one round takes."""
        asked = list(islice(self._pending.values(), 4 * _STREAMS_PER_READ))
        count = max(10, _PER_READ // len(asked))
        commands = []
        for first in range(0, len(asked), _STREAMS_PER_READ):
            piece = asked[first : first + _STREAMS_PER_READ]
            commands.append(pack(("XREAD", "COUNT", count, "STREAMS", *[f.key for f in piece], *[f.read_to for f in piece])))
        for followed in asked:
            del self._pending[followed.name]
        return _Request(asked, count, link.send(b"".join(commands), len(commands)))

    def _take(self, request: "_Request", replies: list[Reply]) -> list[Read]:
        reads = []
        for reply in replies:
            if isinstance(reply, ReplyError):
                for followed in request.asked:  # nothing of this round is lost: it is asked for again
                    self._pending[followed.name] = followed
                _raise(reply)
            for key, entries in reply or ():
                followed = self._by_key[key]
                followed.read_to = entries[-1][0]
                last = StreamId.parse(followed.read_to)
                before, lost = followed.position, None
                # IDs are dense: what was read ends where it must unless something is missing in front of it
                if last.seq - before.seq > len(entries) and followed.exact:
                    lost = Lost(last.seq - before.seq - len(entries), before, StreamId.parse(entries[0][0]))
                followed.position, followed.exact = last, True
                if len(entries) == request.most:
                    self._pending[followed.name] = followed
                reads.append(Read(followed.stream, entries, last, lost))
        return reads

    async def _sweep(self, link: Link, shards: Iterable[int]) -> None:
        """Compare the heads of whole shards with our positions: for what no bell told."""
        shards = list(shards)
        commands: list[Command] = []
        for shard in shards:
            bell = self._shards[shard].bell
            commands += [("GET", self._keys.era(shard)), ("XREVRANGE", bell, "+", "-", "COUNT", 1), ("HGETALL", self._keys.last(shard))]
        replies = await link.ask_all(commands)
        for number, shard in enumerate(shards):
            era, bells, flat = replies[3 * number : 3 * number + 3]
            self._sweep_shard(shard, era, bells, flat)

    def _sweep_shard(self, shard: int, era: bytes | None, bells: list[Reply], flat: list[bytes]) -> None:
        state = self._shards[shard]
        if state.era is not None and era != state.era:
            log.error(
                "shard %s has another history than before (flushed, or restored from an old copy); reading it from its start", self._keys.tag(shard)
            )
            for followed in self._followed.values():
                if followed.shard == shard:
                    followed.position, followed.read_to = START, b"0-0"
        state.era = era
        if not state.known and bells:
            state.bell_id = bells[0][0].decode()
            bell = decode_bell(bells[0][1][1])
            state.rings[bell.writer] = bell.counter
        for raw, value in zip(flat[::2], flat[1::2], strict=True):
            name = raw.decode()
            if name in self._ignored:
                continue
            head = decode_head(value)
            known = self._followed.get(name)
            if known is None:
                if not self._wanted(stream := Stream.parse(name)):
                    self._ignored.add(name)
                    continue
                known = self._follow_new(stream, head, fresh=not state.known)
            self.heads[name] = head
            if StreamId.parse(head.id) > known.position:
                self._pending[name] = known
        state.known = True

    def _follow_new(self, stream: Stream, head: Head, fresh: bool) -> _Followed:
        name = stream.name
        if (position := self._positions.get(name)) is not None or not fresh:
            followed = _Followed(self._keys, stream, position or START, exact=True)
        elif self._start == NOW:
            followed = _Followed(self._keys, stream, StreamId.parse(head.id), exact=True)
        else:
            followed = _Followed(self._keys, stream, self._start if isinstance(self._start, StreamId) else START, exact=False)
        self._followed[name] = followed
        self._by_key[followed.key.encode()] = followed
        return followed


def parse_start(start: Start) -> str | StreamId:
    """`now`, `start`, or a time (ns since the epoch, datetime, text as of units.parse_time) -> where a Reader begins."""
    if start in (NOW, FROM_START):
        return str(start)
    if isinstance(start, datetime):
        ns = int(start.timestamp() * 1_000_000) * 1000
    elif isinstance(start, int):
        ns = start
    else:
        try:
            ns = parse_time(start)
        except ValueError as error:
            raise ConfigError(f"where to begin: {error}; or use now or start") from None
    return StreamId(ns // MILLISECOND, 0)


def _raise(reply: Reply) -> None:
    if isinstance(reply, ReplyError):
        text = str(reply)
        if text.startswith(("NOPERM", "NOAUTH", "WRONGTYPE")):
            raise RedisUnfit(f"Redis refuses to read: {text}")
        raise RedisAway(f"Redis refuses to read: {text}")
