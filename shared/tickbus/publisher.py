"""Writing to the bus: transactions that are stored whole, once, by one owner.

A transaction is sent as one MULTI/EXEC, one in flight at a time. It is armed beforehand: WATCH and GET of the owner's fences
travel with the EXEC before it, so arming costs no round trip, and a successor that raised a fence in between makes the EXEC
void. After any error or lost connection its outcome is unknown; then the last ID of each of its streams is read, and what is
not stored is sent again, with the same IDs. "Equal or smaller" alone proves nothing: in 1, 2, 3 where 2 failed, 3 is stored
and 2 never can be; therefore whole transactions.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from tickbus.clock import BusClock
from tickbus.errors import Fenced, RedisAway, RedisError
from tickbus.link import Link, ReplyError, pack, set_clock
from tickbus.names import START, Keys, StreamId
from tickbus.registry import make_eras
from tickbus.streams import Entry, StreamWriter
from tickbus.wire import Bell, Head, encode

log = logging.getLogger("tickbus.publisher")

_RETRY_FIRST, _RETRY_LAST = 0.05, 1.0
_BELL_LENGTH = 512
"""Rings kept per shard: a reader that misses more sweeps the shard by `last`."""
_MULTI = pack(("MULTI",))
_EXEC = pack(("EXEC",))


class Transaction:
    """What is to be stored together: entries in order, the heads of their streams, and hash fields to set."""

    __slots__ = ("bus_ms", "entries", "feed_up", "hashes", "heads", "ring_all")

    def __init__(self, bus_ms: int, feed_up: bool | None = None) -> None:
        self.bus_ms = bus_ms
        """Bus time for the doorbell: a promise that no later entry of this writer is older."""
        self.feed_up = feed_up
        self.entries: Sequence[Entry] = []
        self.heads: dict[StreamWriter, Head] = {}
        self.hashes: list[tuple[str, dict[str, bytes]]] = []
        """(key, fields): position and state. An empty value deletes the field."""
        self.ring_all = False
        """Ring every shard, news or not: the bus clock."""


class Publisher:
    """Writes for one owner, a feed or a service, on a connection of its own."""

    def __init__(self, connect: Callable[[], Awaitable[Link]], keys: Keys, owner: str, clock: BusClock, home: int = 0) -> None:
        """`home`: a shard that the owner writes to. Its fence stands for all: on one server they are raised in one transaction."""
        self._connect = connect
        self._keys = keys
        self._owner = owner
        self._clock = clock
        self._shards = range(keys.shards)
        self.epoch = 0
        self.up = False
        self.retries = 0
        self.reconnects = 0
        self._link: Link | None = None
        self._fences = [keys.fence(shard, owner) for shard in self._shards]
        # watching every fence would cost the server 200 us a transaction: docs/decisions/0003-fences.md
        self._arm = pack(("WATCH", keys.fence(home, owner))) + pack(("GET", keys.fence(home, owner)))
        self._ask_all = pack(("MGET", *self._fences))
        # packed once, up to where they differ: with many symbols there are nearly as many of these as ticks
        self._hset_last = [_arguments("HSET", keys.last(shard)) for shard in self._shards]
        self._ring = [b"*8\r\n" + _arguments("XADD", keys.bell(shard), "MAXLEN", "~", str(_BELL_LENGTH), "*", "d") for shard in self._shards]
        self._bells = [0] * keys.shards

    async def take_over(self) -> None:
        """Raise all fences to a new epoch: from now on every older writer of this owner is refused."""
        while True:
            link = await self._connected()
            try:
                _, _, held = await link.send(self._arm + self._ask_all, 3)
                epoch = 1 + max(int(value or 0) for value in held)
                sets = [pack(("SET", fence, epoch)) for fence in self._fences]
                *_, done = await link.send(b"".join([_MULTI, *sets, _EXEC]), len(sets) + 2)
                if isinstance(done, ReplyError):
                    raise RedisAway(f"Redis refuses to store: {done}")
                if done is None:
                    continue  # somebody else raised them at the same moment: look again
                self.epoch = epoch
                await make_eras(link, self._keys, self._shards)
                await self._check_fences(link)
                return
            except (RedisError, ReplyError) as error:
                log.warning("%s: cannot take over: %s; trying again", self._owner, error)
                await self._lost(error, _RETRY_LAST)

    async def commit(self, transaction: Transaction) -> None:
        """Store it; returns when it is stored, however long Redis is away. Fenced if this owner writes under a newer epoch."""
        wait, first, since = _RETRY_FIRST, True, time.monotonic()
        while True:
            try:
                link = self._link if self._link is not None and self.up and not self._link.closed else await self._rearmed()
                if not first:
                    self.retries += 1
                    transaction.entries = await self._missing(link, transaction.entries)
                problem = await self._send(link, transaction)
                if problem is None:
                    if not first:
                        log.info("%s: Redis took what was held, after %.1f s", self._owner, time.monotonic() - since)
                    return
            except (RedisError, ReplyError) as error:
                problem = str(error)
            if first:
                log.warning("%s: %s; holding what arrives and trying again", self._owner, problem)
            first = False
            await self._lost(problem, wait)
            wait = min(2 * wait, _RETRY_LAST)

    async def _send(self, link: Link, transaction: Transaction) -> str | None:
        """One try; -> what went wrong, None if it is stored."""
        body, count = self._packed(transaction)
        replies = await link.send(b"".join((_MULTI, body, _EXEC, self._arm)), count + 4)
        done, held = replies[-3], replies[-1]
        if done is None or held != b"%d" % self.epoch:
            await self._check_fences(link)
            if done is None:
                return "the fences were touched and are ours again"
        if type(done) is not list:
            # refused when it was queued (no memory, read-only, disk full): nothing of it is stored
            cause = next((str(reply) for reply in replies if isinstance(reply, ReplyError) and "EXECABORT" not in str(reply)), str(done))
            return f"Redis refuses to store: {cause}"
        for reply in done:
            if type(reply) is ReplyError:
                return f"Redis stored only a part: {reply}"
        return None

    def _packed(self, transaction: Transaction) -> tuple[bytes, int]:
        """The commands between MULTI and EXEC, and their number."""
        parts: list[bytes] = []
        append = parts.append
        for stream, ms, seq, field, payload, _, _ in transaction.entries:
            # 15 = 13 digits of ms, a dash, one digit; packing by one format is 3 times faster than pack_command
            size = 15 if seq < 10 else 14 + len(str(seq))
            append(b"%b%d\r\n%d-%d\r\n$1\r\n%b\r\n$%d\r\n%b\r\n" % (stream.xadd, size, ms, seq, field, len(payload), payload))
        news: dict[int, list[str]] = {shard: [] for shard in self._shards} if transaction.ring_all else {}
        heads: dict[int, list[bytes]] = {}
        for stream, head in transaction.heads.items():
            shard, value = stream.shard, encode(head)
            if shard not in heads:
                heads[shard] = []
                news.setdefault(shard, [])
            heads[shard].append(b"%b%d\r\n%b\r\n" % (stream.name_packed, len(value), value))
            news[shard].append(stream.name)
        for shard, fields in heads.items():
            append(b"*%d\r\n%b%b" % (2 + 2 * len(fields), self._hset_last[shard], b"".join(fields)))
        for key, hashed in transaction.hashes:
            kept = [part for item in hashed.items() if item[1] for part in item]
            gone = [name for name, value in hashed.items() if not value]
            if kept:
                append(pack(("HSET", key, *kept)))
            if gone:
                append(pack(("HDEL", key, *gone)))
        writer = f"{self._owner}#{self.epoch}"
        for shard, names in news.items():
            self._bells[shard] += 1
            bell = encode(Bell(writer, self._bells[shard], transaction.bus_ms, transaction.feed_up, names))
            append(b"%b$%d\r\n%b\r\n" % (self._ring[shard], len(bell), bell))
        return b"".join(parts), len(parts)

    async def _missing(self, link: Link, entries: Sequence[Entry]) -> list[Entry]:
        """Of the entries of a transaction whose outcome is unknown, those that are not stored."""
        streams = list({entry[0]: None for entry in entries})
        ends = dict(zip(streams, await stream_ends(link, [stream.key for stream in streams]), strict=True))
        stored = [entry for entry in entries if (entry[1], entry[2]) <= ends[entry[0]].last]
        found = await link.ask_all([("XRANGE", entry[0].key, id, id) for entry in stored for id in [f"{entry[1]}-{entry[2]}"]])
        for entry, rows in zip(stored, found, strict=True):
            if not rows and (entry[1], entry[2]) >= ends[entry[0]].first:  # an older one was trimmed since
                raise Fenced(
                    f"{entry[0].name}: entry {entry[1]}-{entry[2]} is not stored, yet newer ones are; another program has written to this stream"
                )
        return [entry for entry in entries if (entry[1], entry[2]) > ends[entry[0]].last]

    async def _connected(self) -> Link:
        if self._link is None or self._link.closed:
            self._link = await self._connect()
            await set_clock(self._link, self._clock)
            self.up = False
        return self._link

    async def _rearmed(self) -> Link:
        link = await self._connected()
        await self._check_fences(link)
        return link

    async def _check_fences(self, link: Link) -> None:
        """Look at all fences and arm the next transaction. Fenced if a newer epoch stands there; set again if they are gone."""
        while True:
            # in this order: a fence that is raised after the look at it must void the next transaction
            _, _, held = await link.send(self._arm + self._ask_all, 3)
            if not isinstance(held, list):
                raise RedisAway(f"Redis does not show the fences: {held}")
            if (newest := max(int(value or 0) for value in held)) > self.epoch:
                raise Fenced(f"{self._owner}: epoch {newest} writes now, this process had epoch {self.epoch}; what it still held is not merged")
            if all(held):
                self.up = True
                return
            log.error("%s: the fences are gone from Redis: it was flushed or lost its data; going on with what comes", self._owner)
            sets = [pack(("SET", fence, self.epoch, "NX")) for fence in self._fences]
            await link.send(b"".join(sets), len(sets))
            await make_eras(link, self._keys, self._shards)

    async def _lost(self, error: object, wait: float) -> None:
        self.up = False
        if self._link is not None:
            self._link.close(str(error))
            self._link = None
            self.reconnects += 1
        await asyncio.sleep(wait)
        try:
            await self._connected()
        except (RedisError, ReplyError) as still:
            log.debug("%s: %s", self._owner, still)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


def _arguments(*texts: str) -> bytes:
    """Part of a command as it is sent."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(text), text.encode()) for text in texts)


class Ends(NamedTuple):
    """First entry that a stream holds and last ID that it ever gave out, also if that entry is trimmed."""

    first: StreamId
    last: StreamId


async def stream_ends(link: Link, keys: Sequence[bytes | str]) -> list[Ends]:
    """0-0 twice where there is no stream."""
    replies = await link.send(b"".join(pack(("XINFO", "STREAM", key)) for key in keys), len(keys)) if keys else []
    ends = []
    for key, reply in zip(keys, replies, strict=True):
        if isinstance(reply, ReplyError):
            if "no such key" not in str(reply):
                raise RedisAway(f"{key!r}: {reply}")
            ends.append(Ends(START, START))
        else:
            info = dict(zip(reply[::2], reply[1::2], strict=True))
            last = StreamId.parse(info[b"last-generated-id"])
            first = StreamId.parse(info[b"first-entry"][0]) if info[b"first-entry"] else StreamId(last.ms, last.seq + 1)
            ends.append(Ends(first, last))
    return ends
