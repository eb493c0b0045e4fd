"""Subscription the bus: follow the doorbells of some shards, read only the streams that have news.

Subscription costs by ticks, not by symbols: one XREAD over 10,000 streams takes the server 5 ms however few have news. A blocked
XREAD waits on the bells (one small stream per shard); what they name is read next. Bells may be missed: on a jump of a
writer's counter, an unknown writer, and at every connect, the shard is swept by its `last` hash.

A position is never given up because a stream went back (Redis was flushed, restored from an old copy, or lost its newest entries
in a failover): IDs are bus time, so what is new lies above it, and what a gateway sends again lies below it and was read. The
counter of the first new entry tells what happened: too high = trimmed, too low = another history. Only where a writer's clock is
behind our position can something new lie below it; its bell says so, and then the position is lowered.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from tickbus.errors import RedisError, RedisMisconfigured, RedisUnavailable
from tickbus.protocol.codec import Bell, Head, decode_bell, read_head
from tickbus.protocol.names import FEED_KINDS, START, Keys, Stream, StreamId, is_stream
from tickbus.reader.reads import FROM_START, NOW, Cursor, Lost, Poll, Read, Start, parse_start
from tickbus.reader.tracked_streams import Shard, TrackedStream, author
from tickbus.redis.link import Link, Reply, ReplyError
from tickbus.redis.resp import Command, pack, pairs

__all__ = ["FROM_START", "NOW", "PER_READ", "Lost", "Poll", "Read", "Reader", "Start", "parse_start"]

log = logging.getLogger("tickbus.reader")

_BLOCK_MS = 1_000
_BLOCK_SECONDS = _BLOCK_MS / 1000 + 5.0
PER_READ = 10_000
"""Entries in one reply at most, about: COUNT is per stream, so it is shared out over the streams of the call."""
_STREAMS_PER_READ = 250
_RETRY_SECONDS = (0.05, 1.0)


class _Request(NamedTuple):
    """What is asked of Redis: the entries of some streams, then the bells."""

    asked: list[TrackedStream]
    most: int
    """Entries per stream."""
    replies: "asyncio.Future[list[Reply]]"


_Heard = tuple[Shard, bytes, Bell, str, list[TrackedStream], bool]
"""A bell: its shard, its ID, what it says, who rang, the streams that it names, and whether it names one that is not known."""


class Reader:
    """Follows the streams of some shards that `wanted` accepts.

    `positions`: where to go on, by stream name. Other streams that exist at the start begin at `start` (NOW, FROM_START or an
    ID to begin after); those that appear later are read from their first entry.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Link]], keys: Keys, wanted: Callable[[Stream], bool],
        start: str | StreamId = NOW, positions: Mapping[str, StreamId] | None = None, shards: Iterable[int] | None = None,
        per_read: int = PER_READ, clocks: bool = True,
    ) -> None:  # fmt: skip
        """`clocks`: whether rounds shall bring them."""
        self._connect = connect
        self._keys = keys
        self._wanted = wanted
        self._start = start
        self._per_read = per_read
        self._clocks = clocks
        self._positions = dict(positions or {})
        self._shards = {
            shard: Shard(shard, keys.bell(shard), at)
            for at, shard in enumerate(range(keys.shards) if shards is None else shards)
        }
        self._by_bell = {state.bell.encode(): state for state in self._shards.values()}
        bells = [state.bell for state in self._shards.values()]
        self._look = _unfinished(("XREAD", "COUNT", 1000, "STREAMS", *bells), len(bells))
        self._wait = _unfinished(("XREAD", "COUNT", 1, "BLOCK", _BLOCK_MS, "STREAMS", *bells), len(bells))
        """What asks for news, packed, but for the IDs after which it is news: `_after`."""
        self._after = [b"$3\r\n0-0\r\n" for _ in bells]
        self._followed: dict[str, TrackedStream] = {}
        self._ignored: set[str] = set()
        self._pending: dict[str, TrackedStream] = {}
        """Streams with news that is not read yet."""
        self._told: set[int] = set()
        """Shards with clocks that are not given out yet."""
        self.heads: dict[str, Head] = {}
        """Who wrote what: as of the last sweep of their shard, or of the first bell since of a newer epoch."""
        self._outdated: list[TrackedStream] = []
        """Streams whose head does not name the epoch that was heard to write them."""
        self.reconnects = 0
        self._link: Link | None = None
        self._closed = False

    @property
    def positions(self) -> dict[str, StreamId]:
        """Stream name -> ID of the last entry delivered, for all streams that are followed."""
        return {name: followed.position for name, followed in self._followed.items()}

    @property
    def resumable(self) -> dict[str, StreamId]:
        """`positions` for another reader to go on by: of the streams whose first entry is known."""
        return {name: followed.position for name, followed in self._followed.items() if followed.is_entry}

    @property
    def cursors(self) -> Sequence[Cursor]:
        """All streams that are followed."""
        return list(self._followed.values())

    async def polls(self) -> AsyncIterator[Poll]:
        """Until `close`, over reconnects. An empty round is given at least each second: time goes on."""
        wait = _RETRY_SECONDS[0]
        said = False
        while True:
            try:
                link = await self._linked()
                if self._closed:
                    link.close()
                    return
                if said:
                    log.info("Redis is back")
                    said = False
                async for result in self._follow(link):
                    wait = _RETRY_SECONDS[0]
                    yield result
            except RedisError as error:
                if self._closed:
                    return
                if not said:
                    log.warning("%s; trying again", error)
                    said = True
                if self._link is not None:
                    self._link.close()
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_SECONDS[1])

    def close(self) -> None:
        self._closed = True
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
            for shard in self._told:  # the news that came with these clocks may be lost, and come again later
                self._shards[shard].clocks.clear()
            self._told.clear()
            await self._sweep(self._link, self._shards)
        return self._link

    async def _follow(self, link: Link) -> AsyncIterator[Poll]:
        request = self._ask(link)
        while True:
            replies = await request.replies
            # before anything is taken: should this fail, all of it is asked for again on the next connection
            for reply in replies:
                _raise(reply)
            bells = self._decode(replies[-1])
            if self._outdated:
                await self._look_up(link)
            result = Poll(self._take(request, replies[:-1]))
            # in this order: the clocks of the bells that came along hold when the news which they tell is read
            if result.reads or not self._pending:
                self._settle(result)
            missed = self._hear(bells)
            if not missed and not self._pending:  # they told no news: their clocks hold at once
                self._settle(result)
            due = bool(result.reads or result.clocks) or not self._pending
            if missed:
                if due:
                    yield result
                    due = False
                await self._sweep(link, missed)
            # the next request goes out before this round is worked on
            request = self._ask(link)
            if due:
                yield result

    def _decode(self, reply: Reply) -> "list[_Heard]":
        """Bells, and what they name. Streams that a new writer rings for are noted: entries of it may have come in the same reply."""
        bells: list[_Heard] = []
        followed_by_name = self._followed
        for key, rows in reply or ():
            state = self._by_bell[key]
            for id, (_, payload) in rows:
                bell = decode_bell(payload)
                owner, epoch = author(bell.writer)
                news: list[TrackedStream] = []
                unknown = False
                for name in bell.streams:
                    followed = followed_by_name.get(name)
                    if followed is not None:
                        news.append(followed)
                        if epoch > followed.epoch:
                            followed.epoch = epoch
                            self._outdated.append(followed)
                    elif name not in self._ignored:
                        unknown = True
                bells.append((state, id, bell, owner, news, unknown))
        return bells

    def _hear(self, bells: "Iterable[_Heard]") -> set[int]:
        """Note the news that bells tell; -> shards that must be swept."""
        missed: set[int] = set()
        pending = self._pending
        for state, id, bell, owner, news, unknown in bells:
            rings, writer, counter = state.rings, bell.writer, bell.counter
            if unknown or rings.get(writer, -1) + 1 != counter:
                missed.add(state.number)
            rings[writer] = counter
            for followed in news:
                pending[followed.name] = followed
            if bell.feed_up is not None:
                if self._clocks:
                    state.clocks[owner] = bell.bus_ms
                    self._told.add(state.number)
                if state.below:
                    self._judge(state, StreamId.parse(id), bell)
            self._heard(state, id)
        return missed

    def _heard(self, state: Shard, id: bytes) -> None:
        """Bells up to this one are known."""
        state.bell_id = id
        self._after[state.at] = b"$%d\r\n%b\r\n" % (len(id), id)

    def _settle(self, result: Poll) -> None:
        """All news is read: the clocks of the bells that told it hold."""
        if not self._told:
            return
        behind = {followed.shard for followed in self._pending.values()} if self._pending else ()
        for shard in [shard for shard in self._told if shard not in behind]:
            clocks = self._shards[shard].clocks
            for feed, bus_ms in clocks.items():
                result.clocks[shard, feed] = bus_ms
            clocks.clear()
            self._told.remove(shard)

    def _ask(self, link: Link) -> "_Request":
        """Ask for the entries of streams with news, as many as one round takes, and for the bells: blocked if there are none."""
        ids = b"".join(self._after)
        if not self._pending:
            return _Request([], 0, link.send(self._wait + ids + self._look + ids, 2, _BLOCK_SECONDS))
        asked = list(islice(self._pending.values(), 4 * _STREAMS_PER_READ))
        count = max(10, self._per_read // len(asked))
        commands = []
        for first in range(0, len(asked), _STREAMS_PER_READ):
            piece = asked[first : first + _STREAMS_PER_READ]
            commands.append(
                pack(
                    ("XREAD", "COUNT", count, "STREAMS", *[f.key for f in piece], *[f.read_to for f in piece])
                )
            )
        if len(asked) == len(self._pending):
            self._pending.clear()
        else:
            for followed in asked:
                del self._pending[followed.name]
        return _Request(asked, count, link.send(b"".join(commands) + self._look + ids, len(commands) + 1))

    def _take(self, request: "_Request", replies: list[Reply]) -> list[Read]:
        reads: list[Read] = []
        if not request.asked:  # the first bell that rang: it comes again with all others
            return reads
        asked = iter(request.asked)
        for reply in replies:
            for key, entries in reply or ():
                # Redis answers in the order in which it was asked, without those that have nothing: no look-up among all
                followed = next(asked)
                while followed.key != key:
                    followed = next(asked)
                last = entries[-1][0]
                seq = int(last[last.index(b"-") + 1 :])
                # IDs are dense: what was read ends where it must unless something is missing in front of it
                lost = (
                    followed.missing(entries)
                    if seq - followed.seq != len(entries) or followed.abandoned_at is not None
                    else None
                )
                followed.read_to, followed.seq = last, seq
                followed.is_entry, followed.from_old_era, followed.rewound = True, False, False
                if len(entries) == request.most:
                    self._pending[followed.name] = followed
                reads.append(Read(followed.stream, entries, lost, followed))
        return reads

    async def _sweep(self, link: Link, shards: Iterable[int]) -> None:
        """Compare the heads of whole shards with our positions: for what no bell told."""
        shards = list(shards)
        commands: list[Command] = []
        for shard in shards:
            bell = self._shards[shard].bell
            commands += [
                ("GET", self._keys.era(shard)),
                ("XREVRANGE", bell, "+", "-", "COUNT", 1),
                ("HGETALL", self._keys.last(shard)),
            ]
        replies = await link.ask_all(commands)
        for number, shard in enumerate(shards):
            era, bells, flat = replies[3 * number : 3 * number + 3]
            self._sweep_shard(shard, era, bells, flat)

    def _sweep_shard(self, shard: int, era: bytes | None, bells: list[Reply], flat: list[bytes]) -> None:
        state = self._shards[shard]
        if era is not None and era != state.era:
            if state.era is not None:
                log.error("shard %s was flushed; going on with what is new in it", self._keys.tag(shard))
                for followed in self._followed.values():
                    followed.from_old_era |= followed.shard == shard
            state.era = era
        state.swept_at = bells[0][0] if bells else b"0-0"
        if not state.known and bells:
            self._heard(state, state.swept_at)
            bell = decode_bell(bells[0][1][1])
            state.rings[bell.writer] = bell.counter
        elif StreamId.parse(state.swept_at) < StreamId.parse(state.bell_id):
            self._heard(state, state.swept_at)  # the bells went back too
        back: list[tuple[TrackedStream, StreamId]] = []
        for raw, value in pairs(flat):
            name = raw.decode(errors="replace")
            if name in self._ignored:
                continue
            head = read_head(name, value)
            known = self._followed.get(name)
            if known is None:
                if not is_stream(name) or not self._wanted(stream := Stream.parse(name)):
                    self._ignored.add(name)
                    continue
                known = self._follow_new(stream, head, fresh=not state.known)
            self.heads[name] = head
            if head.epochs:
                known.epoch = max(known.epoch, head.epochs[-1][0])
            at, position = StreamId.parse(head.id), known.position
            if at > position:
                self._pending[name] = known
            elif at < position and known.is_entry:  # else it is a time, and nothing is there after it
                back.append((known, at))
        self._note(shard, back)
        state.known = True

    async def _look_up(self, link: Link) -> None:
        """The heads of streams that have a new writer: its first entry is still to be read."""
        outdated, self._outdated = self._outdated, []
        replies = await link.ask_all(
            [("HGET", self._keys.last(followed.shard), followed.name) for followed in outdated]
        )
        for followed, value in zip(outdated, replies, strict=True):
            if value is not None:
                self.heads[followed.name] = read_head(followed.name, value)

    def _note(self, shard: int, back: list[tuple[TrackedStream, StreamId]]) -> None:
        """Some heads are below our positions: either their writer will soon have sent again what is missing, or that is gone."""
        below = self._shards[shard].below = {}
        for followed, head in back:
            if followed.stream.kind in FEED_KINDS:
                below.setdefault(followed.stream.feed, []).append((followed, head, followed.position))
        if fresh := [(followed, head) for followed, head in back if not followed.rewound]:
            followed, head = fresh[0]
            log.warning(
                "shard %s: %d streams went back (%s from %s to %s); going on with what is new in them",
                self._keys.tag(shard), len(fresh), followed.name, followed.position, head,
            )  # fmt: skip
            for followed, _ in fresh:
                followed.rewound = True

    def _judge(self, state: Shard, id: StreamId, bell: Bell) -> None:
        """A gateway rings some of whose streams went back: does it write above our positions, or below?"""
        if id <= StreamId.parse(state.swept_at):
            return
        for followed, head, position in state.below.pop(author(bell.writer)[0], ()):
            # what was read since lies above it, and says as much; the bell may be older than that
            if bell.bus_ms < position.ms and followed.position == position:
                followed.lower(START if followed.from_old_era else head)
                self._pending[followed.name] = followed

    def _follow_new(self, stream: Stream, head: Head, fresh: bool) -> TrackedStream:
        name = stream.name
        if (position := self._positions.get(name)) is not None or not fresh:
            # one without a counter is a time
            followed = TrackedStream(
                self._keys,
                stream,
                position or START,
                is_entry=position is None or position.seq > 0 or position == START,
            )
        elif self._start == NOW:
            followed = TrackedStream(self._keys, stream, StreamId.parse(head.id), is_entry=True)
        else:
            followed = TrackedStream(
                self._keys,
                stream,
                self._start if isinstance(self._start, StreamId) else START,
                is_entry=False,
            )
        self._followed[name] = followed
        return followed


def _raise(reply: Reply) -> None:
    if isinstance(reply, ReplyError):
        text = str(reply)
        if text.startswith(("NOPERM", "NOAUTH", "WRONGTYPE")):
            raise RedisMisconfigured(f"Redis refuses to read: {text}")
        raise RedisUnavailable(f"Redis refuses to read: {text}")


def _unfinished(command: Command, more: int) -> bytes:
    """A packed command that `more` arguments are still to follow."""
    packed = pack(command)
    return b"*%d\r\n" % (len(command) + more) + packed[packed.index(b"\n") + 1 :]
