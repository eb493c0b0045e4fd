"""One connection on which one owner writes: transactions are stored whole, once, one in flight at a time.

A transaction is armed in advance: WATCH and MGET of the fences travel with the previous EXEC, so arming
costs no round trip, and a successor that raises a fence in between makes the EXEC void. After any error or
lost connection the outcome is unknown: then the last ID of each stream is read, and the entries not stored
are resent with the same IDs. "Equal or smaller" alone proves nothing: of 1, 2, 3, if 2 failed, 3 is stored
and 2 never can be; hence whole transactions.

A key that some other program wrote to is taken out of the transactions until it is mended
(tickbus.writer.quarantine); an EXEC stores everything else all the same.

A new connection may lead to a server that lost acknowledged entries. So before anything else is written,
the last IDs are compared with the replay buffer, and the lost tail is resent.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from tickbus.clock import BusClock, monotonic_ns
from tickbus.errors import RedisError, RedisUnavailable
from tickbus.protocol.codec import MALFORMED, decode_head
from tickbus.protocol.names import START, Keys, StreamId
from tickbus.redis.link import Connection, Link, Reply, ReplyError, refusal_in, set_clock
from tickbus.redis.registry import ensure_eras
from tickbus.redis.resp import pack, pairs, unpack
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.fences import Fence, Fences
from tickbus.writer.quarantine import Fault, Quarantine, Scope, merge_fields, postponed, top_fault, type_fault
from tickbus.writer.replay_buffer import ReplayBuffer, streams_of
from tickbus.writer.transaction import Field, Packer, Transaction, pack_fields

log = logging.getLogger("tickbus.publisher")

_RETRY_FIRST, _RETRY_LAST = 0.05, 1.0
_RECHECK_SECONDS = 1.0
"""How often it is checked whether a faulty key is mended."""
_MAX_HELD_BYTES = 64 << 20
"""What a service may hold back for faulty keys; beyond that its commits wait."""
_REFUSALS = ("WRONGTYPE", "ERR The ID specified in XADD", "ERR The stream has exhausted")
"""Errors within a transaction that concern one key alone, and do not pass by themselves."""
_LAST_MS = b"%d-" % ((1 << 64) - 1)
"""After an ID with this time Redis may have no further one to give."""
_MULTI = pack(("MULTI",))
_EXEC = pack(("EXEC",))
_UNWATCH = pack(("UNWATCH",))


_LIMIT = "Too many open files"


class Outage:
    """Logs one line when the first of several lanes stalls, and one when the last resumes."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._stalled: set[object] = set()
        self._since = 0.0
        self.refusal = ""
        """Why the server rejects writes, in its own words; empty while it does not."""
        self._said_limit = False

    def begin(self, lane: object, problem: str) -> None:
        refusal = refusal_in(problem)
        if not self._stalled:
            self._since, self._said_limit = time.monotonic(), _LIMIT in problem
            log.warning("%s: %s; buffering and retrying", self._owner, problem)
        elif refusal.partition(" ")[0] != self.refusal.partition(" ")[0] or self._is_ours(problem):
            log.warning("%s: still stalled: %s", self._owner, problem)
        else:
            log.debug("%s: another lane stalled: %s", self._owner, problem)
        self.refusal = refusal
        self._stalled.add(lane)

    def _is_ours(self, problem: str) -> bool:
        """Return whether the machine, not Redis, is the reason now: said once an outage."""
        said, self._said_limit = self._said_limit, self._said_limit or _LIMIT in problem
        return self._said_limit and not said

    def give_up(self, lane: object) -> None:
        self._stalled.discard(lane)
        if not self._stalled:
            self.refusal = ""

    def end(self, lane: object) -> None:
        if lane in self._stalled:
            self._stalled.remove(lane)
            if not self._stalled:
                self.refusal = ""
                seconds = time.monotonic() - self._since
                log.info("%s: Redis accepts writes again after %.1f s", self._owner, seconds)


Choose = Callable[[Mapping[int, Fence]], Mapping[int, int]]
"""Returns the shards to take over, with their new epochs, from the stored fences."""


class Lane:
    """Writes some shards of an owner. `commit` returns once stored, however long Redis is unavailable."""

    def __init__(
        self, link: Callable[[], Awaitable[Link]], keys: Keys, fences: Fences, clock: BusClock,
        replay: ReplayBuffer, shards: Collection[int], outage: Outage, home: int | None = None,
        whole_shards: bool = False,
    ) -> None:  # fmt: skip
        """`home`: the shard whose fence is raised together with all others, so that watching it is enough.

        If None, the fences of a transaction's own shards are watched. `whole_shards`: as for Quarantine.
        """
        self.quarantine = Quarantine(whole_shards)
        self._whole_shards = whole_shards
        self._rechecked_at = 0.0
        self._announced_ms = 0
        """The newest bus time that went out with bells: no entry added later may be older. 0 for services:
        their bells promise nothing, and what they hold keeps the IDs of its causes."""
        self._restored: dict[StreamWriter, bytes] = {}
        """Heads to set back: a transaction stored them, but not their entries."""
        self.replay = replay
        self.up = False
        self.retries = 0
        self.reconnects = 0
        self.resent = 0
        """Entries that Redis acknowledged and lost, and that were resent."""
        self.unfinished: Transaction | None = None
        """The transaction that is sent, or to be sent, and not yet acknowledged."""
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
        """How often fences were missing: Redis was flushed, or replaced by an older copy."""
        self._history_lost = False
        """Whether that is not recovered yet: more may be lost than the entries of `replay` show."""
        self._lock = asyncio.Lock()

    @property
    def owned(self) -> list[int]:
        """Shards of this lane that this process owns."""
        return [shard for shard in self._fences.held if shard in self._shards]

    async def claim(
        self, shards: Collection[int], choose: Choose, first: Sequence[Field] = ()
    ) -> dict[int, Fence]:
        """Take over the shards that `choose` returns. From then on every older writer is fenced.

        Return these with their previous fences. `first`: fields to set together with the fence of a shard
        that never had an owner.
        """
        async with self._lock:
            while True:
                try:
                    claimed = await self._claim(await self._connected(), shards, choose, first)
                    if claimed is not None:
                        return claimed
                except (RedisError, ReplyError) as error:
                    log.warning("%s: cannot take over: %s; retrying", self._fences.owner, error)
                    await self._disconnect(error, _RETRY_LAST)

    async def _claim(
        self, link: Link, shards: Collection[int], choose: Choose, first: Sequence[Field]
    ) -> dict[int, Fence] | None:
        """Return None if another process raised them at the same time."""
        self._armed = ()
        watched, values = await link.send(self._fences.arm(shards), 2)
        found = self._fences.parse(shards, _checked(values, watched))
        epochs = choose(found)
        if not epochs:
            await link.send(_UNWATCH, 1)
            return {}
        initial = Transaction(self._clock.now_ms())
        initial.fields = [field for field in first if field.shard in epochs and not found[field.shard].epoch]
        sets = self._fences.set(epochs) + pack_fields(initial.fields)
        *_, done = await link.send(b"".join([_MULTI, *sets, _EXEC]), len(sets) + 2)
        if isinstance(done, ReplyError):
            raise RedisUnavailable(f"Redis rejected the transaction: {done}")
        if done is None:
            return None
        self._fences.held.update(epochs)
        self.replay.add(initial, 0, monotonic_ns())
        await ensure_eras(link, self._keys, epochs)
        return {shard: found[shard] for shard in epochs}

    async def release(self, shards: Collection[int]) -> None:
        """Mark these shards as released, so that their next owner need not wait. Best effort."""
        owned = [shard for shard in shards if shard in self._fences.held]
        if not owned or self._link is None or self._link.closed or self._lock.locked():
            self.drop(owned)
            return
        async with self._lock:
            try:
                self._armed = ()
                watched, values = await self._link.send(self._fences.arm(owned), 2)
                if _checked(values, watched) == self._fences.expected(owned):
                    sets = self._fences.set({shard: self._fences.held[shard] for shard in owned}, holder="")
                    await self._link.send(b"".join([_MULTI, *sets, _EXEC]), len(sets) + 2)
            except (RedisError, ReplyError) as error:
                log.info("%s: fences not released: %s", self._fences.owner, error)
            self.drop(owned)

    def drop(self, shards: Collection[int]) -> None:
        """Forget these shards: they are not owned any more."""
        for shard in shards:
            self._fences.held.pop(shard, None)
        self.replay.forget(frozenset(shards))
        if dropped := self.quarantine.forget(shards):
            log.error(
                "%s: dropped %d entries held for keys that some other program wrote to;"
                " readers see the gap in the counters",
                self._fences.owner,
                dropped,
            )

    async def commit(self, transaction: Transaction) -> Sequence[Entry]:
        """Store it. Fenced if another process took over one of its shards: then no more of it is stored.

        Return the entries that are stored now: without those that are held because of a faulty key, and with
        those held earlier whose key is mended. If cancelled, it may be stored or not: see `unfinished`.
        """
        async with self._lock:
            self.unfinished = transaction
            try:
                stored = await self._commit_until_stored(transaction)
            except BaseException:  # Fenced, or cancelled: passed on; what was sent may be stored or not
                self._armed = ()  # the reply with the fences was not seen
                self._outage.give_up(self)
                raise
            self._outage.end(self)
            self.unfinished = None
            return stored

    async def _commit_until_stored(self, transaction: Transaction) -> Sequence[Entry]:
        wait, first = _RETRY_FIRST, True
        while True:
            faults = len(self.quarantine.all)
            try:
                link = await self._connected()
                if self.quarantine or self._restored:
                    transaction = self.unfinished = self._sendable(await self._lift_mended(link, transaction))
                sent = transaction
                if not first:
                    self.retries += 1
                    # checked again on each try, and all of it is retained: what is stored now may be lost
                    # before the next try, or after the last
                    sent = transaction.with_entries(await self._missing(link, transaction.entries))
                problem = await self._send(link, sent, transaction)
                if problem is None and not (self._whole_shards and self.quarantine.bytes > _MAX_HELD_BYTES):
                    return transaction.entries
                if problem is None:
                    first = True
                    transaction = Transaction(transaction.bus_ms, transaction.feed_up)
                    self._outage.begin(self, f"too much is held for {self.quarantine.all[0].key}")
                    await asyncio.sleep(_RECHECK_SECONDS)
                    continue
            except (RedisError, ReplyError) as error:
                problem = str(error)
            if len(self.quarantine.all) > faults:  # not the server's fault: again at once, without these
                first = False
                continue
            self._outage.begin(self, problem)
            first = False
            await self._disconnect(problem, wait)
            wait = min(2 * wait, _RETRY_LAST)

    async def _send(self, link: Link, transaction: Transaction, retained: Transaction | None) -> str | None:
        """Try once. Return the problem, or None if stored; then `retained` goes into the replay buffer."""
        watched = (self._home,) if self._home is not None else tuple(sorted(transaction.shards()))
        if not set(watched) <= set(self._armed):
            await self._arm(link, watched)
        if not self._whole_shards:
            self._announced_ms = max(self._announced_ms, transaction.bus_ms)
        body, count = self._packer.pack(
            transaction, self.owned if transaction.ring_all else (), self.quarantine.bells
        )
        arming = self._fences.arm(watched) if watched else b""
        replies = await link.send(b"".join((_MULTI, body, _EXEC, arming)), count + 2 + 2 * bool(watched))
        done = replies[count + 1]
        if done is None or (watched and replies[-1] != self._fences.expected(watched)):
            await self._check(link, self.owned)
            if done is None:
                return "fences were modified meanwhile, but this process still owns them"
            self._armed = ()
        else:
            self._armed = watched
        if type(done) is not list:
            # rejected when it was queued (no memory, read-only, disk full): nothing of it is stored
            cause = next(
                (
                    str(reply)
                    for reply in replies
                    if isinstance(reply, ReplyError) and "EXECABORT" not in str(reply)
                ),
                str(done),
            )
            return f"Redis rejected the transaction: {cause}"
        if ReplyError in map(type, done):
            at, rejected = next((at, reply) for at, reply in enumerate(done) if type(reply) is ReplyError)
            # a transaction begins with its entries
            where = (
                f"{transaction.entries[at].stream.key.decode()}: " if at < len(transaction.entries) else ""
            )
            await self._note_faults(link, transaction, body, done)
            return f"Redis stored only part of the transaction: {where}{rejected}"
        if retained is not None:
            self.replay.add(retained, len(body), monotonic_ns())
        return None

    # keys that other programs wrote to

    @property
    def held(self) -> list[Entry]:
        """What is held, with the bus time that it would get now."""
        return [postponed(entry, self._announced_ms) for entry in self.quarantine.entries]

    def quarantine_stream(self, stream: StreamWriter, fault: Fault) -> None:
        """Keep a stream out of the transactions until it is mended."""
        self._add_fault(self.quarantine.scope(stream), fault)

    async def write_heads(self, heads: Mapping[StreamWriter, bytes], bus_ms: int) -> None:
        """Store packed heads, also of streams that are kept out."""
        self._restored |= heads
        await self.commit(Transaction(bus_ms))

    def _add_fault(self, scope: Scope, fault: Fault) -> None:
        if self.quarantine.add(scope, fault):
            log.error("%s: %s; until then what belongs to it is held", self._fences.owner, fault)

    async def _note_faults(
        self, link: Link, transaction: Transaction, body: bytes, done: Sequence[Reply]
    ) -> None:
        """Take out the keys for which parts of a transaction failed. `body`, `done`: commands, replies."""
        streams = {stream.key: stream for stream in (*transaction.heads, *streams_of(transaction.entries))}
        bells = {self._keys.bell(shard).encode(): shard for shard in self._shards}
        hashes = {self._keys.last(shard).encode(): shard for shard in self._shards}
        hashes |= {field.key.encode(): field.shard for field in transaction.fields}
        stored: dict[bytes, StreamId] = {}
        refused: set[bytes] = set()
        for command, reply in zip(unpack(body), done, strict=True):
            key = command[1]
            if not isinstance(reply, ReplyError):
                if key in streams and key not in refused:
                    stored[key] = StreamId.parse(command[2])
                continue
            if not str(reply).startswith(_REFUSALS) or key in refused:
                continue
            refused.add(key)
            if key in streams:
                stream = streams[key]
                self.quarantine_stream(
                    stream, await self._stream_fault(link, stream, stored.get(key, self._stored_to(stream)))
                )
            elif key in bells:
                fault = type_fault(key.decode(), "stream that takes entries")
                self.quarantine.bells[bells[key]] = fault
                log.error("%s: %s; until then it is not rung", self._fences.owner, fault)
            elif key in hashes:
                self._add_fault(hashes[key], type_fault(key.decode(), "hash"))
        if not self._whole_shards:
            # the heads are stored, the entries are not: who restarts from such a head would miss them
            for key in refused & streams.keys():
                if (head := self.replay.heads.get(streams[key])) is not None:
                    self._restored[streams[key]] = head

    def _stored_to(self, stream: StreamWriter) -> StreamId:
        """Return the newest entry of a stream that Redis has acknowledged."""
        head = self.replay.heads.get(stream)
        return START if head is None else _head_id(head)

    async def _stream_fault(self, link: Link, stream: StreamWriter, after: StreamId) -> Fault:
        """Return what is wrong with a stream that does not take an entry behind `after`."""
        key = stream.key.decode()
        (top,) = await link.ask_each([("XREVRANGE", key, "+", "-", "COUNT", 1)])
        if isinstance(top, ReplyError):
            return type_fault(key, "stream", after)
        (end,) = await stream_ends(link, [key])
        found = f"its newest entry {top[0][0].decode()}" if top else "its newest entry, now deleted,"
        if not top or StreamId.parse(top[0][0]) <= after < end.last:
            found = f"its last ID {end.last}"
        return top_fault(key, after, found)

    def _sendable(self, transaction: Transaction) -> Transaction:
        """Return what of a transaction may be sent; the rest is held."""
        sent = self.quarantine.take_out(transaction)
        if self._restored:
            sent.heads, self._restored = {**sent.heads, **self._restored}, {}
        return sent

    async def _lift_mended(self, link: Link, transaction: Transaction) -> Transaction:
        """Return the transaction with what was held for keys that are mended by now."""
        now = time.monotonic()
        if now - self._rechecked_at < _RECHECK_SECONDS:
            return transaction
        self._rechecked_at = now
        for shard, fault in list(self.quarantine.bells.items()):
            (newest,) = await link.ask_each([("XREVRANGE", fault.key, "+", "-", "COUNT", 1)])
            if not isinstance(newest, ReplyError) and not (newest and newest[0][0].startswith(_LAST_MS)):
                del self.quarantine.bells[shard]
                log.info("%s: %s is mended", self._fences.owner, fault.key)
        for scope, fault in list(self.quarantine.faults.items()):
            held = self.quarantine.held.get(scope)
            entries = held.entries if held is not None else ()
            # some of what is held may be stored: the transaction that failed was stored in part
            keys = list({entry.stream.key: None for entry in entries} | {fault.key.encode(): None})
            if fault.after is None:
                (reply,) = await link.ask_each([("HGET", keys.pop(), "")])
                if isinstance(reply, ReplyError):
                    continue
            ends = dict(zip(keys, await stream_ends_or_none(link, keys), strict=True))
            if fault.after is not None:
                key = fault.key.encode()
                waiting = [
                    entry.id for entry in entries if entry.id > fault.after and entry.stream.key == key
                ]
                if (end := ends[key]) is None:
                    continue
                if end.last > fault.after and not (waiting and end.last < waiting[0]):
                    continue
            log.info("%s: %s is mended; writing what was held", self._fences.owner, fault.key)
            stored = {key: end.last for key, end in ends.items() if end is not None}
            transaction = self.quarantine.lift(scope, transaction, stored, self._announced_ms)
            if fault.after is None and isinstance(scope, int):
                transaction = self._with_all_heads(scope, transaction)
        return transaction

    def _with_all_heads(self, shard: int, transaction: Transaction) -> Transaction:
        """Return it with all that was ever acknowledged in the hashes of a shard: they are new."""
        known = self.replay.recovery((), transaction.bus_ms)
        merged = transaction.with_entries(transaction.entries)
        merged.heads = {stream: head for stream, head in known.heads.items() if stream.shard == shard}
        merged.heads |= transaction.heads
        merged.fields = merge_fields(
            [field for field in known.fields if field.shard == shard], transaction.fields
        )
        return merged

    async def _ends(self, link: Link, streams: Sequence[StreamWriter]) -> "dict[StreamWriter, Ends]":
        """Return the ends of these streams, without those whose key holds something else: taken out now."""
        found = await stream_ends_or_none(link, [stream.key for stream in streams])
        ends = {}
        for stream, end in zip(streams, found, strict=True):
            if end is None:
                fault = type_fault(stream.key.decode(), "stream", self._stored_to(stream))
                self.quarantine_stream(stream, fault)
            else:
                ends[stream] = end
        return ends

    async def _arm(self, link: Link, shards: tuple[int, ...]) -> None:
        """Watch these fences."""
        for _ in range(2):
            watched, values = await link.send(self._fences.arm(shards), 2)
            if _checked(values, watched) == self._fences.expected(shards):
                self._armed = shards
                return
            await self._check(link, self.owned)
            if self._history_lost:  # whatever else was lost must be resent before anything new
                break
        raise RedisUnavailable("fences were missing, or keep changing")

    async def _connected(self) -> Link:
        """Return a connection to a server with our history: lost entries have been resent."""
        if self._link is None or self._link.closed:
            self.up = False
            self._armed = ()
            if self._link is not None:  # the server closed it between two commits
                self._link = None
                self.reconnects += 1
            self._link = await self._open()
            await set_clock(self._link, self._clock)
        if not self.up:
            if owned := self.owned:
                await self._check(self._link, owned)
                await self._resend_lost(self._link)
            self.up = True
        return self._link

    async def _check(self, link: Link, shards: Collection[int]) -> None:
        """Fenced if a fence has a newer epoch. Missing fences are set again."""
        while True:
            watched, values = await link.send(self._fences.arm(shards), 2)
            missing = self._fences.check(self._fences.parse(shards, _checked(values, watched)))
            if not missing:
                break
            log.error(
                "%s: fences missing in Redis (flush or failover); resending recent entries",
                self._fences.owner,
            )
            self._history_lost = True
            self.histories_lost += 1
            sets = self._fences.set({shard: self._fences.held[shard] for shard in missing})
            *_, done = await link.send(b"".join([_MULTI, *sets, _EXEC]), len(sets) + 2)
            if isinstance(done, ReplyError):
                raise RedisUnavailable(f"Redis rejected the transaction: {done}")
            await ensure_eras(link, self._keys, missing)
        await link.send(_UNWATCH, 1)
        self._armed = ()

    async def _resend_lost(self, link: Link) -> None:
        """Resend the acknowledged entries that the server has lost."""
        ends = await self._ends(link, streams_of(self.replay.entries))
        lost = self.replay.after({stream: end.last for stream, end in ends.items()})
        if not lost and not self._history_lost:
            return
        older = _count_older(lost, {stream: end.last for stream, end in ends.items()})
        if older:
            log.error(
                "%s: Redis lost %d entries older than --replay-window; readers see the gap in the counters",
                self._fences.owner,
                older,
            )
        log.warning("%s: Redis lost %d acknowledged entries; resending them", self._fences.owner, len(lost))
        # entries received since wait behind the lost tail: their IDs are older than now, so the bus clock
        # must not be ahead of them
        newest = max((entry.ms for entry in self.replay.entries), default=0)
        recovery = self.replay.recovery(lost, newest, await self._rewritten_streams(link))
        if self.quarantine:
            faults = self.quarantine.faults
            recovery.entries = [entry for entry in lost if self.quarantine.holding(entry.stream) is None]
            recovery.heads = {
                stream: head for stream, head in recovery.heads.items() if stream.shard not in faults
            }
            recovery.fields = [field for field in recovery.fields if field.shard not in faults]
        problem = await self._send(link, recovery, None)
        if problem is not None:
            raise RedisUnavailable(problem)
        self.resent += len(lost)
        self._history_lost = False

    async def _rewritten_streams(self, link: Link) -> set[StreamWriter]:
        """Return streams whose head in Redis is newer than ours: a service may have left them to another."""
        by_shard: dict[int, list[StreamWriter]] = {}
        for stream in self.replay.heads:
            by_shard.setdefault(stream.shard, []).append(stream)
        found = await link.ask_each(
            [
                ("HMGET", self._keys.last(shard), *[stream.name for stream in streams])
                for shard, streams in by_shard.items()
            ]
        )
        rewritten: set[StreamWriter] = set()
        for (shard, streams), heads in zip(by_shard.items(), found, strict=True):
            if isinstance(heads, ReplyError):
                self._add_fault(shard, type_fault(self._keys.last(shard), "hash"))
                continue
            rewritten |= {
                stream
                for stream, stored in zip(streams, heads, strict=True)
                if stored is not None and _head_id(stored) > _head_id(self.replay.heads[stream])
            }
        return rewritten

    async def _missing(self, link: Link, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries that are not stored, of a transaction whose outcome is unknown."""
        faults = len(self.quarantine.all)
        ends = await self._ends(link, streams_of(entries))
        if len(self.quarantine.all) > faults:
            raise RedisUnavailable("a stream is no stream any more")
        stored = [entry for entry in entries if entry.id <= ends[entry.stream].last]
        found = await link.ask_all(
            [("XRANGE", entry.stream.key, id, id) for entry in stored for id in [str(entry.id)]]
        )
        after: dict[StreamWriter, StreamId] = {}
        absent: dict[StreamWriter, Entry] = {}
        for entry, rows in zip(stored, found, strict=True):
            if rows:
                if entry.stream not in absent:
                    after[entry.stream] = entry.id
            elif entry.id >= ends[entry.stream].first:
                absent.setdefault(entry.stream, entry)
        for stream, entry in absent.items():
            (end,) = await stream_ends(link, [stream.key])
            if end.last < entry.id:
                raise RedisUnavailable("Redis lost its data between two queries")
            if end.first <= entry.id:  # else it was trimmed since
                fault = await self._stream_fault(link, stream, after.get(stream, self._stored_to(stream)))
                self.quarantine_stream(stream, fault)
        if len(self.quarantine.all) > faults:
            raise RedisUnavailable("a stream does not take its next entry")
        return [entry for entry in entries if entry.id > ends[entry.stream].last]

    async def _disconnect(self, error: object, wait: float) -> None:
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
    """Return the reply to MGET. RedisUnavailable if it, or another one, is an error."""
    for one in (*others, reply):
        if isinstance(one, ReplyError):
            raise RedisUnavailable(f"cannot read the fences: {one}")
    assert isinstance(reply, list)
    return reply


def _head_id(head: bytes) -> StreamId:
    """Return the ID in a head; 0-0 if some other program wrote it."""
    try:
        return StreamId.read(decode_head(head).id)
    except MALFORMED:
        return START


def _count_older(lost: Sequence[Entry], ends: Mapping[object, StreamId]) -> int:
    """Count the entries between the end of each stream and its first resent entry: permanently lost."""
    first = {entry.stream: entry.seq for entry in reversed(lost)}
    return sum(seq - ends[stream].seq - 1 for stream, seq in first.items() if ends[stream] != START)


class Ends(NamedTuple):
    """ID of a stream's first stored entry, and the last ID ever assigned, even if that entry was trimmed."""

    first: StreamId
    last: StreamId


async def stream_ends(link: Link, keys: Sequence[bytes | str]) -> list[Ends]:
    """Return the ends of these streams; 0-0 twice for a stream that does not exist."""
    ends = []
    for key, end in zip(keys, await stream_ends_or_none(link, keys), strict=True):
        if end is None:
            raise RedisUnavailable(f"{key!r} is no stream")
        ends.append(end)
    return ends


async def stream_ends_or_none(link: Connection, keys: Sequence[bytes | str]) -> list[Ends | None]:
    """As `stream_ends`; None for a key that holds something else: some other program wrote it."""
    ends: list[Ends | None] = []
    for reply in await link.ask_each([("XINFO", "STREAM", key) for key in keys]):
        if isinstance(reply, ReplyError):
            ends.append(None if str(reply).startswith("WRONGTYPE") else Ends(START, START))
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
