"""Who gets which news, by policy. Pure: what is sent goes to a `Sink`, time comes from the caller.

A Group is one selection of streams and all its subscribers; equal selections share it, so that their data
are encoded and joined once. Lossless and dropping subscriptions hear of every round, through the Channel of
their style; conflating ones wait for the next beat of their Grid.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from services.relay.conflation import Recent
from services.relay.followed import FollowedStream
from services.relay.requests import RequestId
from services.relay.selection import Selection
from services.relay.styles import Chunk, NativeStyle, News, Style

SEND_BUFFER_BYTES = 64 << 10
"""The kernel's send buffer of a client."""
KERNEL_BYTES = SEND_BUFFER_BYTES + (32 << 10)
"""Bytes that the kernel may hold per client, with what it takes over its buffer: they count as in flight."""
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
        self.begun = False
        """Whether its streams were looked up: it has those that appear later from their first entry on."""
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
    """At most one element per stream and beat; what a slow client misses comes merged with what follows."""

    policy = "conflate"

    def __init__(self, client: Client, id: RequestId, group: "Group", grid: "Grid") -> None:
        super().__init__(client, id, group)
        self.grid = grid
        self.since = 0
        """The round up to which it has everything."""


class Grid:
    """The conflating subscriptions of one rate and phase: they share encoded elements."""

    def __init__(self, rate: float, phase: int) -> None:
        self.rate = rate
        self.phase = phase
        self.members: dict[ConflatingSubscription, None] = {}
        self.round = 0
        """The newest one at its last beat."""

    def beat(self, round: int) -> "Iterator[tuple[Client, int] | None]":
        """Send each member what followed its last beat, unless its client is still busy with that one.

        round: the newest; later ones may be delivered while this goes on. Yield the clients, with the bus
        time in ms of the newest entry that was queued for each, 0 if none was; None while nothing is ready.
        """
        self.round = round
        encoded = _Encoded(round)
        for member in list(self.members):
            client, since = member.client, member.since
            if client.idle:
                yield from encoded.prepare(member.group, since, client.style)
            if member not in self.members:
                continue  # it left meanwhile
            if not client.idle:
                member.conflated += 1
                continue
            chunk, newest_ms = encoded.groups[member.group, since, client.style]
            if chunk.length:
                client.queue(member.style.data(member.head, chunk))
                member.sent += chunk.length
            member.since = round
            yield client, newest_ms

    def marks(self) -> set[int]:
        """Return the rounds up to which its members have everything, or soon will."""
        return {self.round, *(member.since for member in self.members)}


class _Encoded:
    """What streams did until one round, encoded: once for all groups and members with the same style."""

    def __init__(self, until: int) -> None:
        self._until = until
        self.groups: dict[tuple[Group, int, NativeStyle], tuple[Chunk, int]] = {}
        """What the streams of a group did after a round, and the bus time in ms of the newest entry."""
        self._streams: dict[tuple[str, int, NativeStyle], Chunk | None] = {}

    def prepare(self, group: "Group", since: int, style: NativeStyle) -> Iterator[None]:
        """Make an element of `groups`, if it is missing. Yield now and then: it may take a while."""
        if (group, since, style) in self.groups:
            return
        chunks, newest_ms = [], 0
        for number, followed in enumerate(list(group.streams.values()), 1):
            if (chunk := self._stream(followed, since, style)) is not None:
                chunks.append(chunk)
                newest_ms = max(newest_ms, followed.position.ms)
            if not number % _STREAMS_AT_ONCE:
                yield None
        joined = style.join_chunks(chunks) if chunks else Chunk(0, b"")
        self.groups[group, since, style] = joined, newest_ms

    def _stream(self, followed: FollowedStream, since: int, style: NativeStyle) -> Chunk | None:
        key = followed.name, since, style
        if key not in self._streams:
            recent = followed.recent
            interval = None if recent is None else recent.between(since, self._until)
            self._streams[key] = None if interval is None else style.interval(followed.stream, interval)
        return self._streams[key]


_STREAMS_AT_ONCE = 25
"""Streams that are encoded between two looks at the clock."""


class Channel:
    """The live lossless and dropping subscriptions of one group and style."""

    __slots__ = ("members", "pending", "style")

    def __init__(self, style: Style) -> None:
        self.style = style
        self.members: dict[Subscription, None] = {}
        self.pending: list[News] = []
        """Of this round, to be flushed."""

    def flush(self) -> Iterator[Client]:
        """Send the round's news to all members. Yield their clients."""
        pending, self.pending = self.pending, []
        chunk = self.style.join_chunks([news.chunk(self.style) for news in pending])
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
        self.conflating = 0
        """How many of its live subscriptions conflate."""
        self.history: Callable[[FollowedStream], str | None] = lambda followed: None

    def join(self, subscription: Subscription, round: int) -> None:
        """Make it live: it has everything up to `round`, the newest."""
        subscription.joined = True
        if isinstance(subscription, ConflatingSubscription):
            subscription.since = round
            subscription.grid.members[subscription] = None
            self.conflating += 1
        else:
            channel = self.channels.setdefault(subscription.style, Channel(subscription.style))
            channel.members[subscription] = None
        self._changed()

    def leave(self, subscription: Subscription) -> None:
        """End a subscription of it."""
        self.subscriptions.pop(subscription, None)
        if not subscription.joined:
            return
        if isinstance(subscription, ConflatingSubscription):
            del subscription.grid.members[subscription]
            self.conflating -= 1
        else:
            channel = self.channels[subscription.style]
            del channel.members[subscription]
            if not channel.members:
                del self.channels[subscription.style]
        self._changed()

    def _changed(self) -> None:
        """The streams look up again who takes their news."""
        for followed in self.streams.values():
            followed.takers = None

    def cursors(self) -> dict[str, str]:
        """Return from where each stream can be resumed if the newest round was not delivered."""
        return {
            name: cursor_text(followed.previous, self.history(followed))
            for name, followed in self.streams.items()
        }


def look_up_takers(followed: FollowedStream) -> tuple[Channel, ...]:
    """Return who takes each round of a stream, after somebody joined or left; see whether it is conflated."""
    groups: set[Group] = followed.users
    followed.takers = takers = tuple(channel for group in groups for channel in group.channels.values())
    if not any(group.conflating for group in groups):
        followed.recent = None
    elif followed.recent is None:
        followed.recent = Recent()
    return takers


def cursor_text(position: object, history: str | None) -> str:
    """Return a position with its history, as `from` takes it."""
    return f"{position}@{history}" if history else str(position)
