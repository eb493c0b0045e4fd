"""Who gets which news, by policy. Pure: what is sent goes to a `Sink`, time comes from the caller.

A Group is one selection of streams and all its subscribers; equal selections share it, so that their data
are encoded and joined once. Lossless and dropping subscriptions hear of every round, through the Channel of
their style; conflating ones wait for the next beat of their Grid.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from services.relay.conflation import Interval
from services.relay.followed import FollowedStream
from services.relay.requests import RequestId
from services.relay.selection import Selection
from services.relay.styles import Chunk, NativeStyle, News, Style

KERNEL_BYTES = 64 << 10
"""Bytes that the kernel may buffer per client: they are set, and count as in flight."""
CANNOT_KEEP_UP = 4429
"""Close code."""


class Sink(Protocol):
    """A client's socket."""

    @property
    def buffered(self) -> int:
        """Bytes that this process has not handed to the kernel yet."""
        ...

    def write(self, data: bytes) -> None: ...

    def ping(self, payload: bytes) -> None: ...

    async def writable(self) -> None:
        """Wait until most of what was written has left this process. ConnectionError if it is closed."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame and end the connection soon, whatever the client does. Never waits."""
        ...


class Client:
    """One connection of `/v1`: frames to its socket in order, within its bound."""

    __slots__ = (
        "_marks",
        "_outbox",
        "_outbox_bytes",
        "bound",
        "closed",
        "name",
        "on_close",
        "sink",
        "style",
        "subscriptions",
        "written",
    )

    def __init__(self, sink: Sink, style: NativeStyle, bound: int, name: str = "") -> None:
        """style: of the requests and answers of `/v1`. bound: most bytes in flight, the kernel's included.
        name: of its token.
        """
        self.sink = sink
        self.style = style
        self.bound = bound
        self.name = name
        self.closed = False
        self.on_close: Callable[[int], None] = lambda code: None
        self.subscriptions: dict[RequestId, Subscription] = {}
        self.written = 0
        """Bytes written so far."""
        self._marks: deque[tuple[int, float]] = deque()
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0

    @property
    def in_flight(self) -> int:
        return self.sink.buffered + self._outbox_bytes + KERNEL_BYTES

    @property
    def idle(self) -> bool:
        """Whether everything sent so far has left this process."""
        return not self._outbox_bytes and not self.sink.buffered

    def has_room(self, size: int) -> bool:
        return self.in_flight + size <= self.bound

    def queue(self, frame: bytes) -> None:
        """Send a frame with the next `flush`."""
        if not self.closed:
            self._outbox.append(frame)
            self._outbox_bytes += len(frame)

    def flush(self) -> bool:
        """Write what is queued, at once. Return whether there was something."""
        if not self._outbox:
            return False
        self.written += self._outbox_bytes
        frames, self._outbox, self._outbox_bytes = self._outbox, [], 0
        if not self.closed:
            self.sink.write(frames[0] if len(frames) == 1 else b"".join(frames))
        return True

    def oldest(self, now: float) -> float | None:
        """Return since when the oldest bytes in flight have waited, at most; None if there are none.

        now: on any clock, never decreasing. It is as fine as this is called often.
        """
        buffered, marks = self.sink.buffered, self._marks
        if not buffered:
            marks.clear()
            return None
        if not marks or marks[-1][0] < self.written:
            marks.append((self.written, now))
        taken = self.written - buffered
        while len(marks) > 1 and marks[0][0] <= taken:
            marks.popleft()
        return marks[0][1]

    def say(self, **message: Any) -> None:
        """Send a message that is not data. A client that takes none of them is closed."""
        frame = self.style.control(message)
        if self.has_room(len(frame)):
            self.queue(frame)
            self.flush()
        else:
            self.close(CANNOT_KEEP_UP, "cannot keep up")

    def close(self, code: int, reason: str) -> None:
        """End the connection. Its pending data may be lost; nothing more is queued."""
        if not self.closed:
            self.flush()
            self.closed = True
            self.sink.close(code, reason)
            self.on_close(code)


class Subscription:
    """What a client subscribed to, lossless: every entry, or the end of the connection."""

    policy = "lossless"
    is_native = True
    """Whether its client speaks `/v1`: it is told streams and cursors."""

    def __init__(self, client: Client, id: RequestId, group: "Group") -> None:
        self.client = client
        self.id = id
        self.group = group
        self.style: Style = client.style
        self.head = client.style.head(id)
        self.joined = False
        """Whether it is live: it has everything up to the newest round."""
        self.announced = False
        """Whether the client was told the streams: those that appear later are announced one by one."""
        self.sent = 0
        """Elements sent so far."""
        self.dropped = 0
        """Elements dropped so far."""
        self.conflated = 0
        """Beats that were merged into a later one."""

    def deliver(self, chunk: Chunk) -> None:
        """Send a round's news."""
        client = self.client
        frame = self.style.data(self.head, chunk)
        if client.has_room(len(frame)):
            client.queue(frame)
            self.sent += chunk.length
        else:
            self.cannot_keep_up()

    def cannot_keep_up(self) -> None:
        """End the connection, and say from where each stream can be resumed."""
        client = self.client
        if client.closed:
            return
        cursors = {
            name: cursor
            for subscription in client.subscriptions.values()
            if subscription.joined and subscription.policy == "lossless"
            for name, cursor in subscription.group.cursors().items()
        }
        reason = "cannot keep up: resume from your cursors"
        message = {"op": "closing", "code": CANNOT_KEEP_UP, "reason": reason, "cursors": cursors}
        client.queue(client.style.control(message))  # over the bound: the last that it is sent
        client.close(CANNOT_KEEP_UP, reason)

    def resume(self) -> None:
        """The client's socket accepts data again."""

    @property
    def waiting(self) -> int:
        """Bytes that wait for it besides those in flight."""
        return 0


class DroppingSubscription(Subscription):
    """Drops the oldest news of a client that cannot keep up, and says how many."""

    policy = "drop"

    def __init__(self, client: Client, id: RequestId, group: "Group", limit: int) -> None:
        """limit: most bytes that wait, before the oldest are dropped."""
        super().__init__(client, id, group)
        self._limit = limit
        self._waiting: deque[Chunk] = deque()
        self._waiting_bytes = 0
        self._episode = 0

    def deliver(self, chunk: Chunk) -> None:
        if not self._waiting and self.client.in_flight < KERNEL_BYTES + self._limit:
            self._send(chunk)
            return
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk.body)
        while self._waiting_bytes > self._limit and len(self._waiting) > 1:
            oldest = self._waiting.popleft()
            self._waiting_bytes -= len(oldest.body)
            self._episode += oldest.length
            self.dropped += oldest.length

    def resume(self) -> None:
        if self._episode:
            self.client.queue(
                self.client.style.control({"op": "dropped", "id": self.id, "count": self._episode})
            )
            self._episode = 0
        while self._waiting and self.client.in_flight < KERNEL_BYTES + self._limit:
            chunk = self._waiting.popleft()
            self._waiting_bytes -= len(chunk.body)
            self._send(chunk)

    @property
    def waiting(self) -> int:
        return self._waiting_bytes

    def _send(self, chunk: Chunk) -> None:
        self.client.queue(self.style.data(self.head, chunk))
        self.sent += chunk.length


class ConflatingSubscription(Subscription):
    """At most one element per stream and beat; what a slow client misses is merged."""

    policy = "conflate"

    def __init__(self, client: Client, id: RequestId, group: "Group", grid: "Grid") -> None:
        super().__init__(client, id, group)
        self.grid = grid
        self.first_segment = 0
        """Of the grid's present interval: what precedes it was sent already."""
        self._missed: list[Intervals] = []

    def beat(self, intervals: "Intervals", chunk: Callable[[], Chunk]) -> None:
        """Send what happened since the last beat, unless the client is still busy with that one.

        chunk: what `intervals` hold of its streams, encoded.
        """
        if not self.client.idle:
            self._missed.append(intervals)
            self.conflated += 1
            if len(self._missed) > _MERGED_FROM:
                self._missed = [self._merge()]
            return
        if self._missed:
            self._missed.append(intervals)
            merged, self._missed = self._merge(), []
            ready = encode(merged, self.group, self.client.style)
        else:
            ready = chunk()
        if ready.length:
            self.client.queue(self.style.data(self.head, ready))
            self.sent += ready.length

    def _merge(self) -> "Intervals":
        streams = self.group.streams
        merged: Intervals = {}
        for intervals in self._missed:
            for name in streams.keys() & intervals.keys():
                if (earlier := merged.get(name)) is None:
                    merged[name] = intervals[name].copy()
                else:
                    earlier.merge(intervals[name])
        return merged


_MERGED_FROM = 16
"""Missed beats that wait unmerged: a stalled client costs an append a beat."""

Intervals = dict[str, Interval]
"""By stream name."""


def encode(intervals: Intervals, group: "Group", style: NativeStyle) -> Chunk:
    """Return the intervals of a group's streams as one chunk."""
    return style.join_chunks(
        [style.interval(group.streams[name].stream, intervals[name]) for name in _common(group, intervals)]
        or [Chunk(0, b"")]
    )


def _common(group: "Group", intervals: Intervals) -> Iterator[str]:
    """Yield the names of the group's streams that have an interval."""
    if len(group.streams) < len(intervals):
        return (name for name in group.streams if name in intervals)
    return (name for name in intervals if name in group.streams)


class Grid:
    """The conflating subscriptions of one rate and phase: they share intervals and encoded elements."""

    def __init__(self, rate: float, phase: int) -> None:
        self.rate = rate
        self.phase = phase
        self.members: dict[ConflatingSubscription, None] = {}
        self.newest = ""
        """ID of the last entry that was taken since the last beat; empty: none was."""
        self._segments: list[Intervals] = [{}]
        """The present interval; a new segment begins when a member joins, which has the ones before."""

    def join(self, member: ConflatingSubscription) -> None:
        if self._segments[-1]:
            self._segments.append({})
        member.first_segment = len(self._segments) - 1
        self.members[member] = None

    def leave(self, member: ConflatingSubscription) -> None:
        self.members.pop(member, None)

    def take(self, news: News) -> None:
        if not news.entries:
            return
        intervals = self._segments[-1]
        interval = intervals.get(news.stream.name)
        if interval is None:
            intervals[news.stream.name] = news.interval().copy()
        else:
            interval.merge(news.interval())
        if news.entries:
            self.newest = news.entries[-1].cursor

    def beat(self) -> Iterator[ConflatingSubscription]:
        """End the interval: send to each member, and yield it."""
        segments, self._segments = self._segments, [{}]
        self.newest = ""
        merged: dict[int, Intervals] = {}
        encoded: dict[tuple[NativeStyle, Group, int], Chunk] = {}
        elements: dict[tuple[NativeStyle, int, str], Chunk] = {}
        for member in list(self.members):
            first, member.first_segment = member.first_segment, 0
            if first not in merged:
                merged[first] = _merge_segments(segments[first:])
            intervals, group, style = merged[first], member.group, member.client.style

            def chunk(
                first: int = first,
                intervals: Intervals = intervals,
                group: Group = group,
                style: NativeStyle = style,
            ) -> Chunk:
                key = style, group, first
                if key not in encoded:
                    chunks = []
                    for name in _common(group, intervals):
                        part = elements.get((style, first, name))
                        if part is None:
                            part = style.interval(group.streams[name].stream, intervals[name])
                            elements[style, first, name] = part
                        chunks.append(part)
                    encoded[key] = style.join_chunks(chunks) if chunks else Chunk(0, b"")
                return encoded[key]

            if intervals:
                member.beat(intervals, chunk)
            elif member.client.idle:
                member.beat({}, chunk)
            yield member


def _merge_segments(segments: Sequence[Intervals]) -> Intervals:
    if len(segments) == 1:
        return segments[0]
    merged: Intervals = {}
    for segment in segments:
        for name, interval in segment.items():
            if (earlier := merged.get(name)) is None:
                merged[name] = interval.copy()
            else:
                earlier.merge(interval)
    return merged


class Channel:
    """The live lossless and dropping subscriptions of one group and style."""

    __slots__ = ("_chunks", "members", "style")

    def __init__(self, style: Style) -> None:
        self.style = style
        self.members: dict[Subscription, None] = {}
        self._chunks: list[Chunk] = []

    def take(self, news: News) -> None:
        self._chunks.append(news.chunk(self.style))

    def flush(self) -> Iterator[Client]:
        """Send the round's news to all members. Yield their clients."""
        chunks, self._chunks = self._chunks, []
        chunk = self.style.join_chunks(chunks)
        if chunk.length:
            for member in list(self.members):
                member.deliver(chunk)
                yield member.client


class Group:
    """One selection of streams, and who subscribed to it."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.streams: dict[str, FollowedStream] = {}
        self.subscriptions: dict[Subscription, None] = {}
        """All of them, also those that still catch up."""
        self.channels: dict[Style, Channel] = {}
        self.grids: dict[Grid, int] = {}
        """How many members each has in this group."""
        self.history: Callable[[FollowedStream], str | None] = lambda followed: None

    def join(self, subscription: Subscription) -> None:
        """Make it live: it has everything up to the newest round."""
        subscription.joined = True
        if isinstance(subscription, ConflatingSubscription):
            self.grids[subscription.grid] = self.grids.get(subscription.grid, 0) + 1
            subscription.grid.join(subscription)
        else:
            style = subscription.style
            channel = self.channels.get(style)
            if channel is None:
                channel = self.channels[style] = Channel(style)
            channel.members[subscription] = None

    def leave(self, subscription: Subscription) -> None:
        """End a subscription of it."""
        self.subscriptions.pop(subscription, None)
        if not subscription.joined:
            return
        if isinstance(subscription, ConflatingSubscription):
            grid = subscription.grid
            grid.leave(subscription)
            self.grids[grid] -= 1
            if not self.grids[grid]:
                del self.grids[grid]
            return
        channel = self.channels[subscription.style]
        del channel.members[subscription]
        if not channel.members:
            del self.channels[subscription.style]

    def cursors(self) -> dict[str, str]:
        """Return from where each stream can be resumed if the newest round was not delivered."""
        return {
            name: cursor_text(followed.previous, self.history(followed))
            for name, followed in self.streams.items()
        }


def cursor_text(position: object, history: str | None) -> str:
    """Return a position with its history, as `from` takes it."""
    return f"{position}@{history}" if history else str(position)
