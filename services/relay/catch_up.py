"""History, then live, without a hole or a double at the seam.

A subscription reads pages from Redis until its position in each stream lies in the ring of newest entries;
then it takes the rest of the rings and becomes live in one step, between two rounds.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from services.relay.bus_access import PAGE_ENTRIES, BusAccess, KnownStream
from services.relay.delivery import Subscription
from services.relay.hub import PASS_SECONDS, Hub
from services.relay.requests import FROM_NOW, FROM_OLDEST, Begin, Cursors, Last
from services.relay.styles import News
from tickbus.errors import RedisUnavailable
from tickbus.protocol.codec import TICK_FIELD
from tickbus.protocol.foreign import is_message, split
from tickbus.protocol.names import START, Stream, StreamId
from tickbus.reader.reads import Lost
from tickbus.reader.tracked_streams import TrackedStream

RESUME_MINUTES = 5
"""A client that may not read history resumes if all that it missed is younger."""
_MAX_PASSES = 200
"""So often the rings may have moved on before a client that is too slow for them is given up."""
_ROLLED_BACK_SECONDS = 5.0
"""How long a writer may take to send again what Redis lost."""
_RETRY_SECONDS = 0.2


class Refused(Exception):
    """The subscription cannot begin as its client asked. The text is for the client."""


class CatchUp:
    """Brings one subscription from where it begins to live."""

    def __init__(
        self,
        hub: Hub,
        access: BusAccess,
        subscription: Subscription,
        begin: Begin,
        max_streams: int,
        history: bool = True,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """history: whether its client may read entries that are older than `RESUME_MINUTES`.

        begun: called when it is fixed where the subscription begins.
        """
        self._hub = hub
        self._access = access
        self._subscription = subscription
        self._begin = begin
        self._max_streams = max_streams
        self._begun = begun
        self._may_read_history = history
        self._tracked: dict[str, TrackedStream] = {}
        self._heads: dict[str, StreamId] = {}
        """The newest entry of each stream at the beginning."""

    async def run(self) -> None:
        """Send the answer, the history and, if there was any, `replay_completed`. Then it is live.

        Refused if it cannot begin so.
        """
        subscription, client = self._subscription, self._subscription.client
        follows = self._hub.follows
        known = await self._find()
        yielded = time.monotonic()
        for one in known:
            self._hub.follow(subscription.group, one.stream, one.position)
            if time.monotonic() - yielded > PASS_SECONDS:
                await asyncio.sleep(0)
                yielded = time.monotonic()
        self._heads = {one.stream.name: one.position for one in known}
        self._hub.begin(subscription, self._heads, follows)
        for one in known:
            self._tracked[one.stream.name] = await self._first_position(one)
        streams = [
            {
                "stream": one.stream.name,
                "cursor": str(self._tracked[one.stream.name].position),
                "history": one.history,
            }
            for one in known
        ]
        if subscription.is_native:
            client.say(op="subscribed", id=subscription.id, streams=streams)
            self._hub.announce(subscription, self._heads)
        self._begun()
        for _ in range(_MAX_PASSES):
            for tracked in list(self._tracked.values()):
                await self._read_pages(tracked)
            if await self._join():
                break
        else:
            subscription.cannot_keep_up()
            return
        if self._begin != FROM_NOW and subscription.is_native:
            client.say(op="replay_completed", id=subscription.id)

    async def _find(self) -> list[KnownStream]:
        selection = self._subscription.group.selection
        names = () if selection.symbols.globs else selection.symbols.names
        while True:
            try:
                known = await self._access.find(selection, names)
                break
            except RedisUnavailable:
                await asyncio.sleep(_RETRY_SECONDS)
        if len(known) > self._max_streams:
            raise Refused(
                f"{len(known)} streams are selected, {self._max_streams} are allowed: name fewer symbols"
            )
        return sorted(known, key=lambda one: one.stream)

    async def _first_position(self, one: KnownStream) -> TrackedStream:
        begin, stream = self._begin, one.stream
        keys = self._access.keys
        if begin == FROM_NOW:
            # where the reader is: then there is nothing to catch up on, however busy the stream is
            read_to = self._hub.followed[stream.name].position
            start = one.position if read_to == START else read_to
            return TrackedStream(keys, stream, start, is_entry=True)
        if isinstance(begin, Cursors):
            cursor = begin.positions.get(stream.name)
            if cursor is None:
                whole = TrackedStream(keys, stream, START, is_entry=True)
                if not self._may_read_history and await self._follows_old_entry(whole):
                    return TrackedStream(keys, stream, one.position, is_entry=True)
                return whole
            tracked = TrackedStream(keys, stream, cursor, is_entry=cursor.seq > 0 or cursor == START)
            if begin.histories.get(stream.name, one.history) != one.history:
                tracked.lower(START)
            if not self._may_read_history and await self._follows_old_entry(tracked):
                raise _too_old(stream)
            return tracked
        if isinstance(begin, Last):
            return TrackedStream(keys, stream, await self._before_last(one, begin.count), is_entry=True)
        position = START if begin == FROM_OLDEST else begin
        assert isinstance(position, StreamId)
        return TrackedStream(keys, stream, position, is_entry=False)

    async def _follows_old_entry(self, tracked: TrackedStream) -> bool:
        """Whether the next entry is older than a client without history may read."""
        entries = await self._access.page(tracked.stream, tracked.position, 1)
        oldest_ms = self._hub.clock.now_ms() - RESUME_MINUTES * 60_000
        return bool(entries) and StreamId.parse(entries[0][0]).ms < oldest_ms

    async def _before_last(self, one: KnownStream, count: int) -> StreamId:
        """Return the position before the newest `count` ticks."""
        tick, before, missing = TICK_FIELD[one.stream.kind], "+", count
        position = one.position
        while missing:
            page = await self._access.page_before(one.stream, before, min(missing, PAGE_ENTRIES))
            if not page:
                return position
            for id, fields in page:
                found = StreamId.parse(id)
                if is_message(fields, one.stream.kind):
                    position = found._replace(seq=max(0, found.seq - 1))
                    missing -= fields[0] == tick
            before = f"({StreamId.parse(page[-1][0])}"
        return position

    async def _read_pages(self, tracked: TrackedStream) -> None:
        """Send pages of one stream until the ring has the rest."""
        access = self._access
        while not self._ring_has_rest(tracked):
            if tracked.position > self._hub.followed[tracked.name].position:
                await self._await_position(tracked)
                continue
            limit = max(self._hub.followed[tracked.name].position, self._heads[tracked.name])
            entries = await access.page(tracked.stream, tracked.position)
            # an ID above every head is not that of a writer of ours, or comes by the ring
            entries = [entry for entry in entries if StreamId.parse(entry[0]) <= limit]
            ours, _ = split(entries, tracked.seq if tracked.is_entry else 0, tracked.stream.kind)
            if ours:
                await self._send(tracked, ours)
                continue
            if entries:  # other programs wrote them
                tracked.read_to = entries[-1][0]
                continue
            head = await access.head(tracked.stream)
            if head is None or head <= tracked.position:
                self._heads[tracked.name] = tracked.position  # Redis may have lost what stood there
                await self._await_position(tracked)
            else:  # all of it was trimmed
                lost = Lost(head.seq - tracked.seq, tracked.position, head._replace(seq=head.seq + 1))
                await self._send_news(News(tracked.stream, (), lost if tracked.is_entry else None))
                self._advance(tracked, head)

    def _ring_has_rest(self, tracked: TrackedStream) -> bool:
        followed = self._hub.followed[tracked.name]
        # what somebody waited for is read from its first entry on: until it was, the newest is history too
        unread = followed.position == START < self._heads[tracked.name]
        return followed.has(tracked.position) and not unread

    async def _await_position(self, tracked: TrackedStream) -> None:
        """Wait until the reader has come to our position; if it never does, that is another history."""
        try:
            async with asyncio.timeout(_ROLLED_BACK_SECONDS):
                while tracked.position > self._hub.followed[tracked.name].position:
                    await self._hub.next_round()
        except TimeoutError:
            tracked.lower(START)
            if not self._may_read_history and await self._follows_old_entry(tracked):
                raise _too_old(tracked.stream) from None

    async def _send(self, tracked: TrackedStream, entries: Sequence[Any]) -> None:
        last = StreamId.parse(entries[-1][0])
        lost = None
        if last.seq - tracked.seq != len(entries) or tracked.abandoned_at is not None:
            lost = tracked.missing(list(entries))
        await self._send_news(News(tracked.stream, entries, lost))
        self._advance(tracked, last)
        self._hub.counts.history_entries += len(entries)
        self._hub.counts.history_pages += 1

    @staticmethod
    def _advance(tracked: TrackedStream, position: StreamId) -> None:
        tracked.read_to, tracked.seq, tracked.is_entry = str(position).encode(), position.seq, True

    async def _send_news(self, news: News) -> None:
        subscription = self._subscription
        client = subscription.client
        await client.sink.writable()
        chunk = news.chunk(subscription.style)
        if chunk.length:
            client.queue(subscription.style.data(subscription.head, chunk))
            client.flush()
            subscription.sent += chunk.length

    async def _join(self) -> bool:
        """Take the rest of the rings and become live, if that is little; else send some and return False."""
        subscription = self._subscription
        group = subscription.group
        for name, followed in group.streams.items():
            if name not in self._tracked:  # it appeared meanwhile
                self._tracked[name] = TrackedStream(self._access.keys, followed.stream, START, is_entry=True)
                self._heads[name] = followed.position
        rests: list[tuple[TrackedStream, list[Any]]] = []
        for name, tracked in self._tracked.items():
            followed = self._hub.followed[name]
            if not followed.has(tracked.position):
                return False
            if followed.position != tracked.position:
                rests.append((tracked, followed.after(tracked.position)))
        if sum(len(entries) for _, entries in rests) > PAGE_ENTRIES:
            for tracked, entries in rests:
                if entries:
                    await self._send(tracked, entries[:PAGE_ENTRIES])
            return False
        client, head, style = subscription.client, subscription.head, subscription.style
        for tracked, entries in rests:
            if entries:
                lost = tracked.missing(entries) if tracked.abandoned_at is not None else None
                chunk = News(tracked.stream, entries, lost).chunk(style)
                client.queue(style.data(head, chunk))
                subscription.sent += chunk.length
        group.join(subscription, self._hub.rounds)
        client.flush()
        return True


def _too_old(stream: Stream) -> Refused:
    return Refused(
        f"this token may not read history: what follows the cursor of {stream.name} is older than"
        f" {RESUME_MINUTES} minutes; subscribe from now"
    )
