"""Reading the bus: follow the doorbells of some shards, read only the streams that have new entries.

The cost of reading grows with ticks, not with symbols: one XREAD over 10,000 streams takes the server 5 ms
however few have new entries. A blocked XREAD waits on the bells (one small stream per shard); the streams
they name are read next. Bells may be missed: on a jump of a writer's counter, an unknown writer, and at
every connect, the shard is swept by its `last` hash.

A position is never given up because a stream was rolled back (Redis was flushed, restored from an old copy,
or lost its newest entries in a failover): IDs are bus time, so new entries lie above it, and what a gateway
resends lies below it and was already read. The counter of the first new entry shows what happened: too high
= trimmed, too low = another history. Only if a writer's clock is behind our position can new entries lie
below it; its bell shows that, and then the position is lowered.

Anybody can write to these keys, so whatever does not decode ends nothing: a bad bell counts as a missed
one, a bad head concerns its stream alone, and entries that no writer of tickbus wrote are skipped
(tickbus.protocol.foreign; docs/decisions/0016). All of it is counted, and logged once.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from tickbus.errors import RedisError, RedisMisconfigured, RedisUnavailable, WireError
from tickbus.protocol.codec import Bell, Head, read_bell, read_head
from tickbus.protocol.foreign import flatten, split
from tickbus.protocol.names import FEED_KINDS, START, Keys, Stream, StreamId, is_stream
from tickbus.reader.reads import FROM_START, NOW, Cursor, Lost, Poll, Read, Start, parse_start
from tickbus.reader.tracked_streams import Shard, TrackedStream, parse_writer
from tickbus.redis.link import Link, Reply, ReplyError, is_of_key
from tickbus.redis.resp import Command, pack, pairs

__all__ = ["FROM_START", "NOW", "PER_READ", "Lost", "Poll", "Read", "Reader", "Start", "parse_start"]

log = logging.getLogger("tickbus.reader")

_BLOCK_MS = 1_000
_BLOCK_SECONDS = _BLOCK_MS / 1000 + 5.0
PER_READ = 10_000
"""Approximate limit of entries per reply: COUNT is per stream, so it is divided among a call's streams."""
_STREAMS_PER_READ = 250
_RETRY_SECONDS = (0.05, 1.0)
_SUSPECT_SECONDS = 1.0
"""How often a shard is swept while its bell cannot be relied on."""
_MAX_AHEAD_MS = 300_000
"""An entry further ahead of the clock than this is ours only if the head of its stream says so."""
_MAX_WRITERS = 10_000
"""Writers of a bell whose counters are remembered."""


class _Request(NamedTuple):
    """A request to Redis: the entries of some streams, then the bells."""

    streams: list[TrackedStream]
    limit: int
    """Maximum entries per stream."""
    replies: "asyncio.Future[list[Reply]]"


_Ring = tuple[Shard, bytes, Bell | None, str, list[TrackedStream], bool]
"""One ring of a bell: shard, ID, content (None if it is no bell), owner that rang, the tracked streams it
names, and whether it names an unknown one."""


class Reader:
    """Follows the streams of some shards that `wanted` accepts.

    `positions`: where to continue, by stream name. Other streams that exist at the start begin at `start`
    (NOW, FROM_START or an ID to begin after); those that appear later are read from their first entry.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Link]], keys: Keys, wanted: Callable[[Stream], bool],
        start: str | StreamId = NOW, positions: Mapping[str, StreamId] | None = None,
        shards: Iterable[int] | None = None, per_read: int = PER_READ, clocks: bool = True,
    ) -> None:  # fmt: skip
        """`clocks`: whether polls report the bus clocks."""
        self._connect = connect
        self._keys = keys
        self._wanted = wanted
        self._start = start
        self._per_read = per_read
        self._clocks = clocks
        self._positions = dict(positions or {})
        self._shards = {
            shard: Shard(shard, keys.bell(shard), index)
            for index, shard in enumerate(range(keys.shards) if shards is None else shards)
        }
        self._by_bell = {state.bell.encode(): state for state in self._shards.values()}
        self._pack_commands()
        self._after = [b"$3\r\n0-0\r\n" for _ in self._shards]
        self._tracked: dict[str, TrackedStream] = {}
        self._ignored: set[str] = set()
        self._pending: dict[str, TrackedStream] = {}
        """Streams with unread entries."""
        self._unreported: set[int] = set()
        """Shards with clocks that are not reported yet."""
        self.heads: dict[str, Head] = {}
        """Who wrote what: as of the last sweep of the shard, or the first bell of a newer epoch since."""
        self._stale_heads: list[TrackedStream] = []
        """Streams whose head does not name the epoch that now writes them, according to a bell."""
        self.reconnects = 0
        self.foreign: Counter[str] = Counter()
        """What other programs wrote and was skipped: `entry`, `bell`, `head`."""
        self._bad_heads: set[str] = set()
        """Names in `last` whose value is no head, and that are logged."""
        self._suspect: set[int] = set()
        """Shards whose bell cannot be relied on: swept every second, until it rings properly."""
        self._suspects_swept_at = 0.0
        self._latest = b""
        """An ID from which on the head must confirm that an entry is ours."""
        self._confirmed_ms = 0
        """The newest time of an ID that a head has confirmed."""
        self._unconfirmed: list[tuple[TrackedStream, list[Reply], int]] = []
        """Entries beyond that, of the current poll: stream, entries, their limit in the request."""
        self._link: Link | None = None
        self._closed = False

    def _pack_commands(self) -> None:
        """Pack the commands that read the bells, without the IDs to read after: `_after`.

        Instead of a bell whose key holds something else, which would fail all of them, one is read that does
        not exist.
        """
        bells = [f"{state.bell}:none" if state.is_broken else state.bell for state in self._shards.values()]
        self._poll_command = _pack_prefix(("XREAD", "COUNT", 1000, "STREAMS", *bells), len(bells))
        self._block_command = _pack_prefix(
            ("XREAD", "COUNT", 1, "BLOCK", _BLOCK_MS, "STREAMS", *bells), len(bells)
        )

    @property
    def positions(self) -> dict[str, StreamId]:
        """Stream name -> ID of the last entry delivered, for all streams that are followed."""
        return {name: tracked.position for name, tracked in self._tracked.items()}

    @property
    def resumable(self) -> dict[str, StreamId]:
        """`positions` from which another reader can continue: those of streams whose first entry is known."""
        return {name: tracked.position for name, tracked in self._tracked.items() if tracked.is_entry}

    @property
    def cursors(self) -> Sequence[Cursor]:
        """Those of all streams that are followed."""
        return list(self._tracked.values())

    async def polls(self) -> AsyncGenerator[Poll, None]:
        """Yield polls until `close`, over reconnects; at least one a second, even if empty: time goes on."""
        wait = _RETRY_SECONDS[0]
        logged = False
        while True:
            try:
                link = await self._ensure_link()
                if self._closed:
                    link.close()
                    return
                if logged:
                    log.info("Redis is available again")
                    logged = False
                async for poll in self._poll_link(link):
                    wait = _RETRY_SECONDS[0]
                    yield poll
            except RedisError as error:
                if self._closed:
                    return
                if not logged:
                    log.warning("%s; retrying", error)
                    logged = True
                if self._link is not None:
                    self._link.close()
                await asyncio.sleep(wait)
                wait = min(2 * wait, _RETRY_SECONDS[1])

    def follow(self, stream: Stream, position: StreamId) -> Cursor:
        """Read this stream too, whatever `wanted` says, from after `position`. Return its cursor.

        Reads of an earlier `follow` have another cursor; at most one poll still contains some.
        """
        self._ignored.discard(stream.name)
        is_entry = position.seq > 0 or position == START
        tracked = TrackedStream(self._keys, stream, position, is_entry)
        self._tracked[tracked.name] = self._pending[tracked.name] = tracked
        return tracked

    def unfollow(self, stream: Stream) -> None:
        """Stop reading this stream until the next `follow`."""
        name = stream.name
        self._tracked.pop(name, None)
        self._pending.pop(name, None)
        self._ignored.add(name)

    def history(self, shard: int) -> str | None:
        """Return the ID of the history of a shard, as of the last sweep; None before the first writer."""
        era = self._shards[shard].history
        return None if era is None else era.decode()

    def close(self) -> None:
        self._closed = True
        if self._link is not None:
            self._link.close()

    async def prepare(self) -> None:
        """Connect and look up all heads, so that `start="now"` means the moment of this call."""
        await self._ensure_link()

    async def _ensure_link(self) -> Link:
        if self._link is None or self._link.closed:
            is_reconnect = self._link is not None
            self._link = await self._connect()
            self.reconnects += is_reconnect
            # the entries announced with these clocks may be lost, and announced again later
            for shard in self._unreported:
                self._shards[shard].clocks.clear()
            self._unreported.clear()
            await self._sweep(self._link, self._shards)
        return self._link

    async def _poll_link(self, link: Link) -> AsyncIterator[Poll]:
        request = self._send_request(link)
        while True:
            replies = await request.replies
            if ReplyError in map(type, replies):
                replies = await self._without_broken_keys(link, request, replies)
            # before anything is processed: if this fails, all of it is requested again on the next connection
            for reply in replies:
                _raise_error(reply)
            bells = self._decode_bells(replies[-1])
            if self._stale_heads:
                await self._refresh_heads(link)
                bells = self._decode_bells(replies[-1])  # streams may have been followed or not meanwhile
            poll = Poll(self._collect(request, replies[:-1]))
            if self._unconfirmed:
                poll.reads += await self._confirm(link)
            # in this order: the clocks of these bells are valid once the entries they announce are read
            if poll.reads or not self._pending:
                self._release_clocks(poll)
            missed = self._process_bells(bells)
            if self._suspect and time.monotonic() - self._suspects_swept_at > _SUSPECT_SECONDS:
                self._suspects_swept_at = time.monotonic()
                missed |= self._suspect
            if not missed and not self._pending:  # they announced nothing new: their clocks are valid at once
                self._release_clocks(poll)
            due = bool(poll.reads or poll.clocks) or not self._pending
            if missed:
                if due:
                    yield poll
                    due = False
                await self._sweep(link, missed)
            # the next request goes out before this poll is processed
            request = self._send_request(link)
            if due:
                yield poll

    def _decode_bells(self, reply: Reply) -> "list[_Ring]":
        """Return the bells of a reply. Streams that a new writer rings for are marked stale: entries it
        wrote may be in the same reply."""
        bells: list[_Ring] = []
        by_name = self._tracked
        for key, rows in reply or ():
            state = self._by_bell[key]
            for id, fields in rows:
                bell = read_bell(fields)
                if bell is None:
                    self._note_bad_bell(state, id)
                    bells.append((state, id, None, "", [], False))
                    continue
                owner, epoch = parse_writer(bell.writer)
                announced: list[TrackedStream] = []
                unknown = False
                for name in bell.streams:
                    tracked = by_name.get(name)
                    if tracked is not None:
                        announced.append(tracked)
                        if epoch > tracked.epoch:
                            tracked.epoch = epoch
                            self._stale_heads.append(tracked)
                    elif name not in self._ignored:
                        unknown = True
                bells.append((state, id, bell, owner, announced, unknown))
        return bells

    def _process_bells(self, bells: "Iterable[_Ring]") -> set[int]:
        """Mark the streams that bells announce as pending. Return the shards that must be swept."""
        missed: set[int] = set()
        pending = self._pending
        for state, id, bell, owner, announced, unknown in bells:
            if bell is None:
                missed.add(state.number)
                self._advance_bell(state, id)
                continue
            if self._suspect and len(id.partition(b"-")[0]) == 13 and not state.is_broken:
                self._suspect.discard(state.number)
            counters, writer, counter = state.counters, bell.writer, bell.counter
            if len(counters) > _MAX_WRITERS:
                counters.clear()
            if unknown or counters.get(writer, -1) + 1 != counter:
                missed.add(state.number)
            counters[writer] = counter
            for tracked in announced:
                pending[tracked.name] = tracked
            if bell.feed_up is not None:
                if self._clocks:
                    state.clocks[owner] = bell.bus_ms
                    self._unreported.add(state.number)
                if state.below:
                    self._resolve_rewound(state, StreamId.parse(id), bell)
            self._advance_bell(state, id)
        return missed

    def _advance_bell(self, state: Shard, id: bytes) -> None:
        """Read the bell after this ID from now on."""
        state.bell_id = id
        self._after[state.index] = b"$%d\r\n%b\r\n" % (len(id), id)

    def _release_clocks(self, poll: Poll) -> None:
        """Add the clocks of the shards without pending streams: what their bells announced is read."""
        if not self._unreported:
            return
        behind = {tracked.shard for tracked in self._pending.values()} if self._pending else ()
        for shard in [shard for shard in self._unreported if shard not in behind]:
            clocks = self._shards[shard].clocks
            for feed, bus_ms in clocks.items():
                poll.clocks[shard, feed] = bus_ms
            clocks.clear()
            self._unreported.remove(shard)

    def _send_request(self, link: Link) -> "_Request":
        """Request the entries of pending streams, as many as one poll takes, and the bells: blocking if no
        stream is pending."""
        ids = b"".join(self._after)
        now_ms = max(int(time.time() * 1000), self._confirmed_ms)
        self._latest = b"%d-" % (now_ms + _MAX_AHEAD_MS)
        if not self._pending:
            return _Request(
                [], 0, link.send(self._block_command + ids + self._poll_command + ids, 2, _BLOCK_SECONDS)
            )
        streams = list(islice(self._pending.values(), 4 * _STREAMS_PER_READ))
        count = max(10, self._per_read // len(streams))
        commands = []
        for first in range(0, len(streams), _STREAMS_PER_READ):
            chunk = streams[first : first + _STREAMS_PER_READ]
            commands.append(
                pack(
                    ("XREAD", "COUNT", count, "STREAMS", *[f.key for f in chunk], *[f.read_to for f in chunk])
                )
            )
        if len(streams) == len(self._pending):
            self._pending.clear()
        else:
            for tracked in streams:
                del self._pending[tracked.name]
        return _Request(
            streams, count, link.send(b"".join(commands) + self._poll_command + ids, len(commands) + 1)
        )

    def _collect(self, request: "_Request", replies: list[Reply]) -> list[Read]:
        reads: list[Read] = []
        if not request.streams:  # the reply is the first bell that rang: it comes again with all the others
            return reads
        streams, latest = iter(request.streams), self._latest
        for reply in replies:
            for key, entries in reply or ():
                # Redis replies in the order of the request and leaves out empty streams: no look-up among all
                tracked = next(streams)
                while tracked.key != key:
                    tracked = next(streams)
                if self._tracked.get(tracked.name) is not tracked:
                    continue  # not followed any more
                last = entries[-1][0]
                dash = last.index(b"-")
                seq = int(last[dash + 1 :])
                # counters are dense: the last one is as expected unless something is missing before them. As
                # bytes, an ID compares like one as long as its time has 13 digits
                if (
                    seq - tracked.seq != len(entries)
                    or dash != 13
                    or last > latest
                    or tracked.abandoned_at is not None
                ):
                    reads += self._examine(tracked, entries, request.limit)
                    continue
                # as `advance`: a call would cost a tenth of all this
                tracked.read_to, tracked.seq = last, seq
                tracked.is_entry, tracked.from_old_era, tracked.rewound = True, False, False
                if len(entries) == request.limit:
                    self._pending[tracked.name] = tracked
                reads.append(Read(tracked.stream, entries, None, tracked))
        return reads

    def _examine(
        self, tracked: TrackedStream, entries: list[Reply], limit: int, newest: StreamId | None = None
    ) -> list[Read]:
        """Return what is to be delivered of entries that are not as expected.

        limit: of entries in the request. newest: entries up to this ID are ours by their time, a later one is
        not; None: not known yet.
        """
        if newest is None and _time_of(entries[-1][0]) > self._latest_ms:
            self._unconfirmed.append((tracked, entries, limit))
            return []
        is_full = len(entries) >= limit
        known = [entry for entry in entries if newest is None or StreamId.parse(entry[0]) <= newest]
        ours, foreign = split(known, tracked.seq if tracked.is_entry else 0, tracked.stream.kind)
        foreign += entries[len(known) :]
        if foreign:
            self._note_foreign(tracked, foreign)
        if is_full and (ours or len(known) == len(entries)):
            self._pending[tracked.name] = tracked
        if not ours:
            if is_full and len(known) == len(entries):  # whole requests of them: our own come after
                tracked.read_to = entries[-1][0]
            return []
        # not beyond: entries of ours may still come before those that others wrote last
        ours = flatten(ours)
        last = ours[-1][0]
        seq = StreamId.parse(last).seq
        lost = (
            tracked.missing(ours)
            if seq - tracked.seq != len(ours) or tracked.abandoned_at is not None
            else None
        )
        tracked.advance(last, seq)
        return [Read(tracked.stream, ours, lost, tracked)]

    @property
    def _latest_ms(self) -> int:
        return int(self._latest[:-1])

    async def _confirm(self, link: Link) -> list[Read]:
        """Return what is to be delivered of entries that are ahead of the clock.

        An entry and the head of its stream are stored together: what is above the head is not ours.
        """
        unconfirmed, self._unconfirmed = self._unconfirmed, []
        replies = await link.ask_each(
            [("HGET", self._keys.last(tracked.shard), tracked.name) for tracked, _, _ in unconfirmed]
        )
        reads: list[Read] = []
        for (tracked, entries, limit), value in zip(unconfirmed, replies, strict=True):
            head = self._read_head(tracked.name, value) if isinstance(value, bytes) else None
            newest = StreamId(self._latest_ms, 0)
            if head is not None and (confirmed := StreamId.parse(head.id)) > newest:
                newest = confirmed
                if len(str(confirmed.ms)) == 13:
                    self._confirmed_ms = max(self._confirmed_ms, confirmed.ms)
            reads += self._examine(tracked, entries, limit, newest)
        return reads

    # what other programs wrote

    async def _without_broken_keys(
        self, link: Link, request: "_Request", replies: list[Reply]
    ) -> list[Reply]:
        """Return these replies after reading again, one by one, what failed because of a single key."""
        if is_of_key(replies[-1]):
            await self._find_broken_bells(link)
            ids = b"".join(self._after)
            replies = [*replies[:-1], *await link.send(self._poll_command + ids, 1)]
        if not request.streams:
            return [None, replies[-1]]
        for at, reply in enumerate(replies[:-1]):
            if not is_of_key(reply):
                continue
            chunk = request.streams[at * _STREAMS_PER_READ : (at + 1) * _STREAMS_PER_READ]
            found = await link.ask_each(
                [
                    ("XREAD", "COUNT", request.limit, "STREAMS", tracked.key, tracked.read_to)
                    for tracked in chunk
                ]
            )
            for tracked, one in zip(chunk, found, strict=True):
                if isinstance(one, ReplyError):
                    self._note_broken_stream(tracked, one)
            replies[at] = [row for one in found if isinstance(one, list) for row in one]
        return replies

    async def _find_broken_bells(self, link: Link) -> None:
        states = list(self._shards.values())
        found = await link.ask_each([("XREVRANGE", state.bell, "+", "-", "COUNT", 1) for state in states])
        for state, reply in zip(states, found, strict=True):
            self._note_broken_bell(state, isinstance(reply, ReplyError))

    def _note_broken_bell(self, state: Shard, is_broken: bool) -> None:
        if is_broken != state.is_broken:
            state.is_broken = is_broken
            self._pack_commands()
            if is_broken:
                self.foreign["bell"] += 1
                log.error(
                    "%s is no stream: some other program wrote it; its shard is read by its heads,"
                    " with up to a second of delay; fix: redis-cli RENAME '%s' '%s:foreign'",
                    state.bell, state.bell, state.bell,
                )  # fmt: skip
        if is_broken:
            self._suspect.add(state.number)

    def _note_bad_bell(self, state: Shard, id: bytes) -> None:
        self.foreign["bell"] += 1
        if state.number not in self._suspect:
            self._suspect.add(state.number)
            log.warning(
                "%s %s is no bell: some other program wrote it; reading the shard by its heads instead",
                state.bell, id.decode(errors="replace"),
            )  # fmt: skip

    def _note_broken_stream(self, tracked: TrackedStream, error: ReplyError) -> None:
        self.foreign["entry"] += 1
        if tracked.foreign_to == START:
            tracked.foreign_to = StreamId(0, 1)
            key = tracked.key.decode()
            log.error(
                "%s is no stream: some other program wrote it (%s); fix: redis-cli RENAME '%s' '%s:foreign'",
                key, error, key, key,
            )  # fmt: skip

    def _note_foreign(self, tracked: TrackedStream, entries: list[Reply]) -> None:
        """Count and log entries that are not ours; the same ones may be read again."""
        ids = [id for entry in entries if (id := StreamId.parse(entry[0])) > tracked.foreign_to]
        if not ids:
            return
        self.foreign["entry"] += len(ids)
        if tracked.foreign_to <= StreamId(0, 1):
            log.error(
                "%s: skipping %d entries that no writer of this bus wrote (%s); later ones are only counted",
                tracked.key.decode(), len(ids), ids[0],
            )  # fmt: skip
        tracked.foreign_to = ids[-1]

    def _read_head(self, name: str, value: bytes) -> Head | None:
        """Return a head; None, counted and logged once, if that is none."""
        try:
            head = read_head(name, value)
        except WireError as error:
            if name not in self._bad_heads:
                self._bad_heads.add(name)
                self.foreign["head"] += 1
                log.error("%s; some other program wrote it; its writer will replace it", error)
            return None
        self._bad_heads.discard(name)
        return head

    # sweeps

    async def _sweep(self, link: Link, shards: Iterable[int]) -> None:
        """Compare the heads of whole shards with our positions, for entries that no bell announced."""
        shards = list(shards)
        commands: list[Command] = []
        for shard in shards:
            bell = self._shards[shard].bell
            commands += [
                ("GET", self._keys.era(shard)),
                ("XREVRANGE", bell, "+", "-", "COUNT", 1),
                ("HGETALL", self._keys.last(shard)),
            ]
        replies = await link.ask_each(commands)
        for number, shard in enumerate(shards):
            history, bells, flat = replies[3 * number : 3 * number + 3]
            self._note_broken_bell(self._shards[shard], isinstance(bells, ReplyError))
            if isinstance(flat, ReplyError):
                name = self._keys.last(shard)
                if name not in self._bad_heads:
                    self._bad_heads.add(name)
                    self.foreign["head"] += 1
                    log.error(
                        "%s is no hash: some other program wrote it (%s); of its shard only streams that are"
                        " known already are read; fix: redis-cli RENAME '%s' '%s:foreign'",
                        name,
                        flat,
                        name,
                        name,
                    )
            else:
                self._bad_heads.discard(self._keys.last(shard))
            self._sweep_shard(
                shard,
                None if isinstance(history, ReplyError) else history,
                [] if isinstance(bells, ReplyError) else bells,
                None if isinstance(flat, ReplyError) else flat,
            )

    def _sweep_shard(
        self, shard: int, history: bytes | None, bells: list[Reply], flat: list[bytes] | None
    ) -> None:
        """`flat`: the heads; None if they cannot be read."""
        state = self._shards[shard]
        if history is not None and history != state.history:
            if state.history is not None:
                log.error("shard %s was flushed; continuing with new entries", self._keys.tag(shard))
                for tracked in self._tracked.values():
                    tracked.from_old_era |= tracked.shard == shard
            state.history = history
        state.swept_at = bells[0][0] if bells else b"0-0"
        if not state.swept and bells:
            self._advance_bell(state, state.swept_at)
            if (bell := read_bell(bells[0][1])) is not None:
                state.counters[bell.writer] = bell.counter
            else:
                self._note_bad_bell(state, state.swept_at)
        elif StreamId.parse(state.swept_at) < StreamId.parse(state.bell_id):
            self._advance_bell(state, state.swept_at)  # the bell was rolled back too
        rewound: list[tuple[TrackedStream, StreamId]] = []
        if flat is None:
            self._pending |= {name: known for name, known in self._tracked.items() if known.shard == shard}
        for raw, value in pairs(flat or ()):
            name = raw.decode(errors="replace")
            if name in self._ignored:
                continue
            known = self._tracked.get(name)
            if known is None and not self._is_wanted(name):
                self._ignored.add(name)
                continue
            if (self._keys.shard(name.rpartition(":")[2]) if known is None else known.shard) != shard:
                continue  # in the hash of another shard
            head = self._read_head(name, value)
            if known is None:
                fresh = not state.swept
                if head is None and fresh and self._start == NOW and name not in self._positions:
                    continue  # where its end is now is not known
                known = self._track(Stream.parse(name), head, fresh)
            if head is None:
                self._pending[name] = known
                continue
            self.heads[name] = head
            if head.epochs:
                known.epoch = max(known.epoch, head.epochs[-1][0])
            last, position = StreamId.parse(head.id), known.position
            if last > position:
                self._pending[name] = known
            elif last < position and known.is_entry:  # else it is a time, with no entry after it
                rewound.append((known, last))
        self._note_rewound(shard, rewound)
        state.swept = True

    def _is_wanted(self, name: str) -> bool:
        """Whether this is the name of a stream that this reader follows."""
        return is_stream(name) and self._wanted(Stream.parse(name))

    async def _refresh_heads(self, link: Link) -> None:
        """Read the heads of streams that have a new writer whose first entry is not delivered yet."""
        stale, self._stale_heads = self._stale_heads, []
        replies = await link.ask_each(
            [("HGET", self._keys.last(tracked.shard), tracked.name) for tracked in stale]
        )
        for tracked, value in zip(stale, replies, strict=True):
            if isinstance(value, bytes) and (head := self._read_head(tracked.name, value)) is not None:
                self.heads[tracked.name] = head

    def _note_rewound(self, shard: int, rewound: list[tuple[TrackedStream, StreamId]]) -> None:
        """Heads are below our positions: their writer will soon resend what is missing, or it is lost."""
        below = self._shards[shard].below = {}
        for tracked, head in rewound:
            if tracked.stream.kind in FEED_KINDS:
                below.setdefault(tracked.stream.feed, []).append((tracked, head, tracked.position))
        if fresh := [(tracked, head) for tracked, head in rewound if not tracked.rewound]:
            tracked, head = fresh[0]
            log.warning(
                "shard %s: %d streams were rolled back (%s from %s to %s); continuing with new entries",
                self._keys.tag(shard), len(fresh), tracked.name, tracked.position, head,
            )  # fmt: skip
            for tracked, _ in fresh:
                tracked.rewound = True

    def _resolve_rewound(self, state: Shard, id: StreamId, bell: Bell) -> None:
        """A gateway with rolled-back streams rings: lower our positions if it writes below them."""
        if id <= StreamId.parse(state.swept_at):
            return
        for tracked, head, position in state.below.pop(parse_writer(bell.writer)[0], ()):
            # a position that has moved since shows that it writes above; this bell may be older than that
            if bell.bus_ms < position.ms and tracked.position == position:
                tracked.lower(START if tracked.from_old_era else head)
                self._pending[tracked.name] = tracked

    def _track(self, stream: Stream, head: Head | None, fresh: bool) -> TrackedStream:
        """`head`: None, if it is not readable, for a stream whose position is known without it."""
        name = stream.name
        if (position := self._positions.get(name)) is not None or not fresh:
            # a position without a counter is a time
            tracked = TrackedStream(
                self._keys,
                stream,
                position or START,
                is_entry=position is None or position.seq > 0 or position == START,
            )
        elif self._start == NOW:
            assert head is not None
            tracked = TrackedStream(self._keys, stream, StreamId.parse(head.id), is_entry=True)
        else:
            tracked = TrackedStream(
                self._keys,
                stream,
                self._start if isinstance(self._start, StreamId) else START,
                is_entry=False,
            )
        self._tracked[name] = tracked
        return tracked


def _time_of(id: bytes) -> int:
    return int(id.partition(b"-")[0])


def _raise_error(reply: Reply) -> None:
    if isinstance(reply, ReplyError):
        text = str(reply)
        if text.startswith(("NOPERM", "NOAUTH", "WRONGTYPE")):
            raise RedisMisconfigured(f"Redis refused the read: {text}")
        raise RedisUnavailable(f"Redis refused the read: {text}")


def _pack_prefix(command: Command, more: int) -> bytes:
    """Return a packed command to which `more` arguments are still to be appended."""
    packed = pack(command)
    return b"*%d\r\n" % (len(command) + more) + packed[packed.index(b"\n") + 1 :]
