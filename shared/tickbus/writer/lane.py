"""One connection on which one owner writes: transactions that are stored whole, once, one in flight at a time.

A transaction is armed beforehand: WATCH and MGET of the fences travel with the EXEC before it, so arming costs no round trip,
and a successor that raised a fence in between makes the EXEC void. After any error or lost connection its outcome is unknown;
then the last ID of each of its streams is read, and what is not stored is sent again, with the same IDs. "Equal or smaller"
alone proves nothing: in 1, 2, 3 where 2 failed, 3 is stored and 2 never can be; therefore whole transactions.

A new connection may lead to a server that lost what it had acknowledged. So before anything else is written the last IDs are
compared with the replay ring, and the lost tail is sent again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from tickbus.clock import BusClock, monotonic_ns
from tickbus.errors import Fenced, RedisError, RedisUnavailable
from tickbus.protocol.codec import decode_head
from tickbus.protocol.names import START, Keys, StreamId
from tickbus.redis.link import Link, ReplyError, set_clock
from tickbus.redis.registry import make_eras
from tickbus.redis.resp import pack, pairs
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.fences import Fence, Fences
from tickbus.writer.replay_buffer import ReplayRing, streams_of
from tickbus.writer.transaction import Field, Packer, Transaction, pack_fields

log = logging.getLogger("tickbus.publisher")

_RETRY_FIRST, _RETRY_LAST = 0.05, 1.0
_MULTI = pack(("MULTI",))
_EXEC = pack(("EXEC",))
_UNWATCH = pack(("UNWATCH",))


class Outage:
    """One line when the first of several lanes is held up, and one when the last goes on."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._held: set[object] = set()
        self._since = 0.0

    def begin(self, lane: object, problem: str) -> None:
        if not self._held:
            self._since = time.monotonic()
            log.warning("%s: %s; holding what arrives and trying again", self._owner, problem)
        else:
            log.debug("%s: held too: %s", self._owner, problem)
        self._held.add(lane)

    def give_up(self, lane: object) -> None:
        self._held.discard(lane)

    def end(self, lane: object) -> None:
        if lane in self._held:
            self._held.remove(lane)
            if not self._held:
                log.info(
                    "%s: Redis took what was held, after %.1f s", self._owner, time.monotonic() - self._since
                )


Choose = Callable[[Mapping[int, Fence]], Mapping[int, int]]
"""Fences as they stand -> shards to take over, with their new epochs."""


class Lane:
    """Writes some shards of an owner. `commit` returns when it is stored, however long Redis is away."""

    def __init__(
        self, link: Callable[[], Awaitable[Link]], keys: Keys, fences: Fences, clock: BusClock, ring: ReplayRing, shards: Collection[int],
        outage: Outage, home: int | None = None,
    ) -> None:  # fmt: skip
        """`home`: the shard whose fence is raised together with those of all others, so that watching it is enough; None: those
        of a transaction's own shards are watched."""
        self.ring = ring
        self.up = False
        self.retries = 0
        self.reconnects = 0
        self.resent = 0
        """Entries that Redis had acknowledged, lost, and was sent again."""
        self.unfinished: Transaction | None = None
        """What is sent, or to be sent, and not yet acknowledged."""
        self._open = link
        self._keys = keys
        self._fences = fences
        self._clock = clock
        self._shards = frozenset(shards)
        self._home = home
        self._outage = outage
        self._packer = Packer(keys, shards, fences.owner, fences.held)
        self._link: Link | None = None
        self._armed: tuple[int, ...] = ()
        """Shards whose fences the connection watches."""
        self.histories_lost = 0
        """How often fences were found gone: Redis was flushed, or replaced by an older copy."""
        self._history_lost = False
        """And not made good yet: more may be gone than what the ring's entries show."""
        self._lock = asyncio.Lock()

    @property
    def held(self) -> list[int]:
        """Shards of this lane that are ours."""
        return [shard for shard in self._fences.held if shard in self._shards]

    async def claim(
        self, shards: Collection[int], choose: Choose, first: Sequence[Field] = ()
    ) -> dict[int, Fence]:
        """Take shards over; -> those that `choose` chose, with their fences as they stood before. Every older writer is refused from now on.

        `first`: what is set together with the fence of a shard that nobody ever had."""
        async with self._lock:
            while True:
                try:
                    claimed = await self._claim(await self._connected(), shards, choose, first)
                    if claimed is not None:
                        return claimed
                except (RedisError, ReplyError) as error:
                    log.warning("%s: cannot take over: %s; trying again", self._fences.owner, error)
                    await self._lost(error, _RETRY_LAST)

    async def _claim(
        self, link: Link, shards: Collection[int], choose: Choose, first: Sequence[Field]
    ) -> dict[int, Fence] | None:
        """None if somebody else raised them at the same moment."""
        self._armed = ()
        watched, held = await link.send(self._fences.arm(shards), 2)
        found = self._fences.read(shards, _checked(held, watched))
        epochs = choose(found)
        if not epochs:
            await link.send(_UNWATCH, 1)
            return {}
        beginning = Transaction(self._clock.now_ms())
        beginning.fields = [
            field for field in first if field.shard in epochs and not found[field.shard].epoch
        ]
        sets = self._fences.set(epochs) + pack_fields(beginning.fields)
        *_, done = await link.send(b"".join([_MULTI, *sets, _EXEC]), len(sets) + 2)
        if isinstance(done, ReplyError):
            raise RedisUnavailable(f"Redis refuses to store: {done}")
        if done is None:
            return None
        self._fences.held.update(epochs)
        self.ring.keep(beginning, 0, monotonic_ns())
        await make_eras(link, self._keys, epochs)
        return {shard: found[shard] for shard in epochs}

    async def release(self, shards: Collection[int]) -> None:
        """Say that these are free: who comes next need not wait. Best effort."""
        mine = [shard for shard in shards if shard in self._fences.held]
        if not mine or self._link is None or self._link.closed or self._lock.locked():
            self.drop(mine)
            return
        async with self._lock:
            try:
                self._armed = ()
                watched, held = await self._link.send(self._fences.arm(mine), 2)
                if _checked(held, watched) == self._fences.expected(mine):
                    sets = self._fences.set({shard: self._fences.held[shard] for shard in mine}, holder="")
                    await self._link.send(b"".join([_MULTI, *sets, _EXEC]), len(sets) + 2)
            except (RedisError, ReplyError) as error:
                log.info("%s: fences not released: %s", self._fences.owner, error)
            self.drop(mine)

    def drop(self, shards: Collection[int]) -> None:
        """These are not ours any more."""
        for shard in shards:
            self._fences.held.pop(shard, None)
        self.ring.forget(frozenset(shards))

    async def commit(self, transaction: Transaction) -> None:
        """Store it. Fenced if another process took over one of its shards: then nothing more of it is stored.

        Cancelled, it is stored or not; `unfinished` says what it was."""
        async with self._lock:
            self.unfinished = transaction
            try:
                await self._until_stored(transaction)
            except BaseException:
                self._armed = ()  # what the fences said meanwhile was not seen
                self._outage.give_up(self)
                raise
            self._outage.end(self)
            self.unfinished = None

    async def _until_stored(self, transaction: Transaction) -> None:
        wait, first = _RETRY_FIRST, True
        while True:
            try:
                link = await self._connected()
                sent = transaction
                if not first:
                    self.retries += 1
                    # asked anew each time, and all of it is kept: what is stored now may be lost before the next try, or after the last
                    sent = transaction.with_entries(await self._missing(link, transaction.entries))
                problem = await self._send(link, sent, transaction)
                if problem is None:
                    return
            except (RedisError, ReplyError) as error:
                problem = str(error)
            self._outage.begin(self, problem)
            first = False
            await self._lost(problem, wait)
            wait = min(2 * wait, _RETRY_LAST)

    async def _send(self, link: Link, transaction: Transaction, keep: Transaction | None) -> str | None:
        """One try; -> what went wrong, None if it is stored. `keep`: what comes into the replay ring then."""
        watched = (self._home,) if self._home is not None else tuple(sorted(transaction.shards()))
        if not set(watched) <= set(self._armed):
            await self._arm(link, watched)
        body, count = self._packer.pack(transaction, self.held if transaction.ring_all else ())
        arming = self._fences.arm(watched) if watched else b""
        replies = await link.send(b"".join((_MULTI, body, _EXEC, arming)), count + 2 + 2 * bool(watched))
        done = replies[count + 1]
        if done is None or (watched and replies[-1] != self._fences.expected(watched)):
            await self._check(link, self.held)
            if done is None:
                return "the fences were touched and are ours again"
            self._armed = ()
        else:
            self._armed = watched
        if type(done) is not list:
            # refused when it was queued (no memory, read-only, disk full): nothing of it is stored
            cause = next(
                (
                    str(reply)
                    for reply in replies
                    if isinstance(reply, ReplyError) and "EXECABORT" not in str(reply)
                ),
                str(done),
            )
            return f"Redis refuses to store: {cause}"
        if ReplyError in map(type, done):
            at, refused = next((at, reply) for at, reply in enumerate(done) if type(reply) is ReplyError)
            # a transaction begins with its entries
            where = (
                f"{transaction.entries[at].stream.key.decode()}: " if at < len(transaction.entries) else ""
            )
            return f"Redis stored only a part: {where}{refused}"
        if keep is not None:
            self.ring.keep(keep, len(body), monotonic_ns())
        return None

    async def _arm(self, link: Link, shards: tuple[int, ...]) -> None:
        """Watch these fences."""
        for _ in range(2):
            watched, held = await link.send(self._fences.arm(shards), 2)
            if _checked(held, watched) == self._fences.expected(shards):
                self._armed = shards
                return
            await self._check(link, self.held)
            if self._history_lost:  # what else was lost comes before anything new
                break
        raise RedisUnavailable("the fences were gone, or change all the time")

    async def _connected(self) -> Link:
        """A connection to a server whose history is ours: what it lost was sent again."""
        if self._link is None or self._link.closed:
            self.up = False
            self._armed = ()
            self._link = await self._open()
            await set_clock(self._link, self._clock)
        if not self.up:
            if held := self.held:
                await self._check(self._link, held)
                await self._heal(self._link)
            self.up = True
        return self._link

    async def _check(self, link: Link, shards: Collection[int]) -> None:
        """Fenced if a newer epoch stands in a fence; set again if they are gone."""
        while True:
            watched, held = await link.send(self._fences.arm(shards), 2)
            again = self._fences.judge(self._fences.read(shards, _checked(held, watched)))
            if not again:
                break
            log.error(
                "%s: fences are gone from Redis: it was flushed, or lost its newest data; what it lost lately is sent again",
                self._fences.owner,
            )
            self._history_lost = True
            self.histories_lost += 1
            sets = self._fences.set({shard: self._fences.held[shard] for shard in again})
            *_, done = await link.send(b"".join([_MULTI, *sets, _EXEC]), len(sets) + 2)
            if isinstance(done, ReplyError):
                raise RedisUnavailable(f"Redis refuses to store: {done}")
            await make_eras(link, self._keys, again)
        await link.send(_UNWATCH, 1)
        self._armed = ()

    async def _heal(self, link: Link) -> None:
        """Send again what the server has lost of what it acknowledged."""
        streams = streams_of(self.ring.entries)
        ends = dict(zip(streams, await stream_ends(link, [stream.key for stream in streams]), strict=True))
        lost = self.ring.after({stream: end.last for stream, end in ends.items()})
        if not lost and not self._history_lost:
            return
        older = _older(lost, {stream: end.last for stream, end in ends.items()})
        if older:
            log.error(
                "%s: Redis lost %d entries that are older than --replay-window: readers are told by the counters",
                self._fences.owner,
                older,
            )
        log.warning(
            "%s: Redis lost %d entries that it had acknowledged; they are sent again",
            self._fences.owner,
            len(lost),
        )
        # what was received since waits behind the lost tail: its IDs are older than now, so the bus clock must not be ahead of them
        newest = max((entry.ms for entry in self.ring.entries), default=0)
        problem = await self._send(link, self.ring.whole(lost, newest, await self._newer(link)), None)
        if problem is not None:
            raise RedisUnavailable(problem)
        self.resent += len(lost)
        self._history_lost = False

    async def _newer(self, link: Link) -> set[StreamWriter]:
        """Streams whose head in Redis is newer than ours: a service may have left them to another one."""
        by_shard: dict[int, list[StreamWriter]] = {}
        for stream in self.ring.heads:
            by_shard.setdefault(stream.shard, []).append(stream)
        found = await link.ask_all(
            [
                ("HMGET", self._keys.last(shard), *[stream.name for stream in streams])
                for shard, streams in by_shard.items()
            ]
        )
        pairs = zip(chain.from_iterable(by_shard.values()), chain.from_iterable(found), strict=True)
        return {
            stream
            for stream, stands in pairs
            if stands is not None and _head_id(stands) > _head_id(self.ring.heads[stream])
        }

    async def _missing(self, link: Link, entries: Sequence[Entry]) -> list[Entry]:
        """Of the entries of a transaction whose outcome is unknown, those that are not stored."""
        streams = streams_of(entries)
        ends = dict(zip(streams, await stream_ends(link, [stream.key for stream in streams]), strict=True))
        stored = [entry for entry in entries if entry.id <= ends[entry.stream].last]
        found = await link.ask_all(
            [("XRANGE", entry.stream.key, id, id) for entry in stored for id in [str(entry.id)]]
        )
        absent = [
            entry
            for entry, rows in zip(stored, found, strict=True)
            if not rows and entry.id >= ends[entry.stream].first
        ]
        if absent:
            entry = absent[0]
            (end,) = await stream_ends(link, [entry.stream.key])
            if end.last < entry.id:
                raise RedisUnavailable("Redis lost its data between two questions")
            if end.first <= entry.id:  # else it was trimmed since
                raise Fenced(
                    f"{entry.stream.name}: entry {entry.id} is not stored, yet newer ones are; another program has written to this stream"
                )
        return [entry for entry in entries if entry.id > ends[entry.stream].last]

    async def _lost(self, error: object, wait: float) -> None:
        self.up = False
        if self._link is not None:
            self._link.close(str(error))
            self._link = None
            self.reconnects += 1
        await asyncio.sleep(wait)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


def _checked(reply: object, *others: object) -> list[bytes | None]:
    """The reply to MGET; RedisUnavailable if it, or another one, is an error."""
    for one in (*others, reply):
        if isinstance(one, ReplyError):
            raise RedisUnavailable(f"Redis does not show the fences: {one}")
    assert isinstance(reply, list)
    return reply


def _head_id(head: bytes) -> StreamId:
    return StreamId.parse(decode_head(head).id)


def _older(lost: Sequence[Entry], ends: Mapping[object, StreamId]) -> int:
    """Entries between the end of each stream and the first of it that is sent again: gone for good."""
    first = {entry.stream: entry.seq for entry in reversed(lost)}
    return sum(seq - ends[stream].seq - 1 for stream, seq in first.items() if ends[stream] != START)


class Ends(NamedTuple):
    """First entry that a stream holds and last ID that it ever gave out, also if that entry is trimmed."""

    first: StreamId
    last: StreamId


async def stream_ends(link: Link, keys: Sequence[bytes | str]) -> list[Ends]:
    """0-0 twice where there is no stream."""
    replies = (
        await link.send(b"".join(pack(("XINFO", "STREAM", key)) for key in keys), len(keys)) if keys else []
    )
    ends = []
    for key, reply in zip(keys, replies, strict=True):
        if isinstance(reply, ReplyError):
            if "no such key" not in str(reply):
                raise RedisUnavailable(f"{key!r}: {reply}")
            ends.append(Ends(START, START))
        else:
            info = dict(pairs(reply))
            last = StreamId.parse(info[b"last-generated-id"])
            first = (
                StreamId.parse(info[b"first-entry"][0])
                if info[b"first-entry"]
                else StreamId(last.ms, last.seq + 1)
            )
            ends.append(Ends(first, last))
    return ends
