"""One reader for all clients: it follows what somebody subscribed to, and hands each round to the groups."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from services.relay.bus_access import BusAccess
from services.relay.delivery import (
    CANNOT_KEEP_UP,
    Channel,
    Client,
    ConflatingSubscription,
    DroppingSubscription,
    Grid,
    Group,
    Subscription,
    look_up_takers,
)
from services.relay.followed import FollowedStream
from services.relay.requests import Subscribe, parse_rate, parse_symbols
from services.relay.selection import Scope, Selection
from services.relay.styles import News
from tickbus.clock import BusClock
from tickbus.protocol.names import START, Stream, StreamId
from tickbus.reader.cluster_reader import AnyReader, open_reader
from tickbus.reader.reads import NOW, Read
from tickbus.redis.topology import Redis

log = logging.getLogger("tickbus.relay")

PHASES = 4
"""Clients of one rate are spread over this many phases of an interval: each encodes what it sends anew."""
PASS_SECONDS = 0.002
"""A pass over many members or streams yields this often."""
_SHORT_SECONDS = 0.0005
"""A round that took longer is followed by a pause: `_PAUSES` times as long, at most `_MAX_PAUSE_SECONDS`."""
_PAUSES = 2
_MAX_PAUSE_SECONDS = 0.02


@dataclass
class Counts:
    """Totals since the start."""

    sent: Counter[str] = field(default_factory=Counter)
    """Elements, by policy; of subscriptions that have ended, as the next two."""
    dropped: Counter[str] = field(default_factory=Counter)
    conflated: Counter[str] = field(default_factory=Counter)
    """Beats that were merged into a later one."""
    history_entries: int = 0
    history_pages: int = 0
    request_errors: int = 0
    """Requests on `/v1` that were answered with an error."""

    def add(self, subscription: Subscription) -> None:
        """Count what a subscription got."""
        self.sent[subscription.policy] += subscription.sent
        self.dropped[subscription.policy] += subscription.dropped
        self.conflated[subscription.policy] += subscription.conflated


class Hub:
    def __init__(
        self, redis: Redis, access: BusAccess, ring_bytes: int, drop_bytes: int, total_bytes: int
    ) -> None:
        """ring_bytes: memory for the newest entries of all followed streams; drop_bytes: what waits for one
        dropping subscription; total_bytes: in flight to all clients."""
        self._redis = redis
        self._access = access
        self._ring_bytes_limit = ring_bytes
        self._drop_bytes = drop_bytes
        self._total_bytes = total_bytes
        self.clients: set[Client] = set()
        self.groups: dict[Selection, Group] = {}
        self.followed: dict[str, FollowedStream] = {}
        """In the order in which they were begun."""
        self.follows = 0
        """How many were ever begun."""
        self.ring_bytes = 0
        self._ring_order: list[FollowedStream] = []
        self._grids: dict[tuple[float, int], Grid] = {}
        self._beating: dict[float, asyncio.Task[None]] = {}
        self._rate_users: Counter[float] = Counter()
        self._reader: AnyReader | None = None
        self._round = asyncio.Event()
        self._phase = count()
        self.up = False
        """Whether the bus is being read."""
        self.rounds = 0
        self.entries = 0
        self.invalid = 0
        """Entries that are no messages of this version."""
        self.counts = Counts()
        self.clock = BusClock()
        self.on_delivered: Callable[[str, int], None] = lambda policy, id_ms: None
        """Called with the ms of a stream ID when its bytes were handed to the sockets: of the oldest entry of
        a round, for lossless and dropping clients (`lossless`), and of the newest of a beat (`conflate`).
        """

    # the bus

    async def run(self) -> None:
        """Read the bus until cancelled."""
        self._reader = reader = open_reader(
            self._redis, self._access.keys, self._is_wanted, NOW, clocks=False
        )
        watching = self._begin(self._watch_total(), "watch total")
        try:
            await reader.prepare()
            self.up = True
            async for poll in reader.polls():
                began = time.monotonic()
                if poll.reads:
                    self._deliver(poll.reads)
                self._round.set()
                self._round.clear()
                took = time.monotonic() - began
                if took > _SHORT_SECONDS:
                    # fewer and larger rounds cost less, and the beats get their time
                    await asyncio.sleep(min(_PAUSES * took, _MAX_PAUSE_SECONDS))
        finally:
            self.up = False
            watching.cancel()
            for task in self._beating.values():
                task.cancel()
            reader.close()

    @staticmethod
    def _begin(work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Start what runs until it is cancelled; say so if it ends by an error."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report)
        return task

    async def next_round(self) -> None:
        """Wait until something was read; at most about a second."""
        await self._round.wait()

    def _is_wanted(self, stream: Stream) -> bool:
        """Whether a stream that has just appeared is to be read from its first entry."""
        return any(group.selection(stream) for group in self.groups.values())

    def _deliver(self, reads: Iterable[Read]) -> None:
        self.rounds += 1
        touched: list[FollowedStream] = []
        channels: list[Channel] = []
        clients: set[Client] = set()
        oldest: list[bytes] = []
        marks: list[int] = []
        for read in reads:
            followed = self.followed.get(read.stream.name)
            if followed is None:
                followed = self._appeared(read)
                if followed is None:
                    continue
            elif followed.cursor is not None and read.cursor is not followed.cursor:
                continue  # of an earlier `follow`
            self.ring_bytes += followed.append(read.entries, read.lost is not None)
            self._ring_order.append(followed)
            touched.append(followed)
            oldest.append(read.entries[0][0])
            news = News(read.stream, read.entries, read.lost)
            self.entries += len(read.entries)
            self.invalid += news.invalid
            takers = followed.takers
            for channel in look_up_takers(followed) if takers is None else takers:
                if not channel.pending:
                    channels.append(channel)
                channel.pending.append(news)
            if followed.recent is not None and news.entries:
                followed.recent.add(self.rounds, news.interval())
                if followed.recent.is_long:
                    marks = marks or self._marks()
                    followed.recent.fold(marks)
        for channel in channels:
            clients.update(channel.flush())
        for client in clients:
            client.flush()
        if clients:
            self.on_delivered("lossless", min(map(_ms, oldest)))
        for followed in touched:
            followed.previous = followed.position
        self._bound_rings()

    def _appeared(self, read: Read) -> FollowedStream | None:
        """A stream that the reader found by itself: it begins with its first entry."""
        stream = read.stream
        groups = [group for group in self.groups.values() if group.selection(stream)]
        if not groups:
            if self._reader is not None:
                self._reader.unfollow(stream)
            return None
        followed = self._enter(FollowedStream(stream, START, read.cursor))
        self._give(followed, groups)
        return followed

    def _enter(self, followed: FollowedStream) -> FollowedStream:
        self.followed[followed.name] = followed
        self.follows += 1
        return followed

    def _give(self, followed: FollowedStream, groups: Iterable[Group]) -> None:
        """Add a stream to groups that have it from its first entry on, and announce it."""
        for group in groups:
            self._add_to_group(group, followed)
            for subscription in group.subscriptions:
                if subscription.announced:
                    self._announce(subscription, followed)

    def _announce(self, subscription: Subscription, followed: FollowedStream) -> None:
        subscription.client.say(
            op="stream",
            id=subscription.id,
            stream=followed.name,
            cursor=str(START),
            history=self.history(followed),
        )

    def _bound_rings(self) -> None:
        """Forget the oldest entries of all rings while they are too large together."""
        order = self._ring_order
        at = 0
        while self.ring_bytes > self._ring_bytes_limit and at < len(order):
            followed = order[at]
            at += 1
            self.ring_bytes -= followed.drop_oldest(self.ring_bytes - self._ring_bytes_limit)
        if at or len(order) > 100_000:
            remaining = dict.fromkeys(followed for followed in order[at:] if followed.ring)
            self._ring_order = list(remaining)

    def history(self, followed: FollowedStream) -> str | None:
        """Return the ID of the history of a stream's shard."""
        if self._reader is None:
            return None
        return self._reader.history(self._access.keys.shard(followed.stream.symbol))

    # subscriptions

    def subscribe(self, client: Client, request: Subscribe, scope: Scope) -> Subscription:
        """Return a new subscription that has yet to catch up. BadRequest if the request is invalid."""
        rate = parse_rate(request)
        group = self.group(
            Selection(
                request.kind,
                parse_symbols(request),
                frozenset(request.feeds),
                frozenset(request.specs),
                scope,
            )
        )
        subscription: Subscription
        if request.policy == "conflate":
            subscription = ConflatingSubscription(client, request.id, group, self._grid(rate))
        elif request.policy == "drop":
            subscription = DroppingSubscription(client, request.id, group, self._drop_bytes)
        else:
            subscription = Subscription(client, request.id, group)
        self.add(subscription)
        return subscription

    def group(self, selection: Selection) -> Group:
        """Return the group of a selection; it lives while it has subscriptions."""
        group = self.groups.get(selection)
        if group is None:
            group = self.groups[selection] = Group(selection)
            group.history = self.history
        return group

    @staticmethod
    def add(subscription: Subscription) -> None:
        """Enter a new subscription. It has yet to catch up."""
        subscription.group.subscriptions[subscription] = None
        subscription.client.subscriptions[subscription.id] = subscription

    def follow(self, group: Group, stream: Stream, position: StreamId) -> FollowedStream:
        """Follow a stream for a group, from after `position` unless it is followed already.

        The reader may be about to find it by itself: those who waited for it have it from its first entry on.
        """
        followed = self.followed.get(stream.name)
        if followed is None:
            assert self._reader is not None
            waiting = [
                other
                for other in self.groups.values()
                if other.selection(stream) and any(one.begun for one in other.subscriptions)
            ]
            if waiting:
                position = START
            cursor = self._reader.follow(stream, position)
            followed = self._enter(FollowedStream(stream, position, cursor))
            self._give(followed, waiting)
        self._add_to_group(group, followed)
        return followed

    def begin(self, subscription: Subscription, found: Collection[str], since: int) -> None:
        """The streams that it found are followed: from now on it has those that appear.

        found: their names. What is followed and not among them appeared while they were looked up.
        since: `follows` before the look. There may be ten thousand older ones.
        """
        subscription.begun, group = True, subscription.group
        for followed in islice(reversed(self.followed.values()), self.follows - since):
            if followed.name not in found and group.selection(followed.stream):
                self._add_to_group(group, followed)

    def announce(self, subscription: Subscription, found: Collection[str]) -> None:
        """Say which streams appeared since its streams were looked up, and from now on each that appears."""
        subscription.announced = True
        for name, followed in subscription.group.streams.items():
            if name not in found:
                self._announce(subscription, followed)

    @staticmethod
    def _add_to_group(group: Group, followed: FollowedStream) -> None:
        group.streams[followed.name] = followed
        followed.users.add(group)
        followed.takers = None

    def leave(self, subscription: Subscription) -> None:
        """End a subscription, and with the last one of its streams the reading of these."""
        group = subscription.group
        subscription.client.subscriptions.pop(subscription.id, None)
        group.leave(subscription)
        self.counts.add(subscription)
        if isinstance(subscription, ConflatingSubscription):
            self._leave_grid(subscription.grid)
        if group.subscriptions:
            return
        del self.groups[group.selection]
        for followed in group.streams.values():
            followed.users.discard(group)
            followed.takers = None
            if not followed.users:
                self.ring_bytes -= followed.clear()
                del self.followed[followed.name]
                if self._reader is not None:
                    self._reader.unfollow(followed.stream)

    # conflation: grids beat while somebody uses their rate

    def _grid(self, rate: float) -> Grid:
        phase = next(self._phase) % PHASES
        grid = self._grids.get((rate, phase))
        if grid is None:
            grid = self._grids[rate, phase] = Grid(rate, phase)
        self._rate_users[rate] += 1
        if rate not in self._beating:
            self._beating[rate] = self._begin(self._beat(rate), f"beat {rate:g}")
        return grid

    def _leave_grid(self, grid: Grid) -> None:
        rate = grid.rate
        self._rate_users[rate] -= 1
        if not self._rate_users[rate]:
            del self._rate_users[rate]
            self._beating.pop(rate).cancel()
            for phase in range(PHASES):
                self._grids.pop((rate, phase), None)

    def _marks(self) -> list[int]:
        """Return, sorted, the rounds up to which a conflating client has everything."""
        return sorted(set().union(*(grid.marks() for grid in self._grids.values() if grid.members)))

    async def _beat(self, rate: float) -> None:
        """Beat the grids of a rate, one phase after the other."""
        loop = asyncio.get_running_loop()
        step = 1 / rate / PHASES
        due = loop.time()
        for phase in (number % PHASES for number in count()):
            due = max(due + step, loop.time() - 1 / rate)
            await asyncio.sleep(max(0.0, due - loop.time()))
            grid = self._grids.get((rate, phase))
            if grid is None or not grid.members:
                continue
            began = time.monotonic()
            newest_ms = 0
            for ready in grid.beat(self.rounds):
                if ready is not None and ready[0].flush():
                    newest_ms = max(newest_ms, ready[1])
                if time.monotonic() - began > PASS_SECONDS:
                    await asyncio.sleep(0)
                    began = time.monotonic()
            if newest_ms:
                self.on_delivered("conflate", newest_ms)

    # bounds

    async def _watch_total(self) -> None:
        """End the clients with most in flight while all of them together have too much."""
        while True:
            await asyncio.sleep(0.25)
            flights = {client: client.sink.buffered for client in self.clients if not client.closed}
            in_flight = sum(flights.values())
            while in_flight > self._total_bytes:
                fullest = max(flights, key=flights.__getitem__)
                in_flight -= flights.pop(fullest)
                log.warning("more than %d bytes in flight: ending the slowest client", self._total_bytes)
                for subscription in fullest.subscriptions.values():
                    subscription.cannot_keep_up()
                    break
                else:
                    fullest.close(CANNOT_KEEP_UP, "cannot keep up")


def _ms(id: bytes) -> int:
    """Return the bus time of a stream ID."""
    return int(id.partition(b"-")[0])


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed: a bug of tickbus; restart this relay", task.get_name(), exc_info=error)
