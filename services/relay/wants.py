"""What the relay's clients want from gateways: one want per topic for all of them.

A lease per feed keeps them alive; it ends with the relay.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from services.relay.bus_access import BusAccess
from services.relay.requests import BadRequest, NotNow
from services.relay.tokens import Account
from tickbus.errors import RedisError
from tickbus.protocol.names import Keys, Stream
from tickbus.protocol.wants import SubscriptionState, Topic, decode_states
from tickbus.redis.link import ReplyError
from tickbus.redis.resp import pairs
from tickbus.wants import WantLease, make_holder

log = logging.getLogger("tickbus.relay")

_LOOK_SECONDS = 0.5

Watch = Callable[[Stream, SubscriptionState], None]
"""Told what became of a topic, at first and whenever that changes."""


class Hold:
    """What one subscription of a client wants: from `begin` to `end`."""

    def __init__(
        self, wants: "Wants", account: str, feed: str, topics: Sequence[Topic], watch: Watch
    ) -> None:
        self.account = account
        self.feed = feed
        self.topics = topics
        self.shown: dict[Topic, SubscriptionState] = {}
        self.watch = watch
        self._wants = wants
        self.begun = self.ended = False

    def begin(self) -> None:
        """Want it: the position of the client is fixed."""
        if not (self.begun or self.ended):
            self.begun = True
            self._wants.begin(self)

    def end(self) -> None:
        """Want it no more."""
        if not self.ended:
            self.ended = True
            self._wants.end(self)


class Wants:
    """The wants of all clients."""

    def __init__(self, url: str, keys: Keys, access: BusAccess) -> None:
        self.live_feeds: tuple[str, ...] = ()
        """Feeds whose gateway holds its lease, as of the last look."""
        self.version = 0
        """Changes with these."""
        self.states: dict[str, dict[Topic, SubscriptionState]] = {}
        """What became of what is wanted, by feed."""
        self._url = url
        self._keys = keys
        self._access = access
        self._holder = make_holder("relay")
        self._leases: dict[str, WantLease] = {}
        self._users: dict[str, Counter[Topic]] = {}
        self._by_account: Counter[str] = Counter()
        self._holds: set[Hold] = set()

    @property
    def topics(self) -> int:
        """How many topics are wanted."""
        return sum(len(users) for users in self._users.values())

    def counts(self) -> dict[str, float]:
        """Return the number of wanted topics by state; `unknown` until a gateway answers."""
        counts: Counter[str] = Counter()
        for feed, users in self._users.items():
            states = self.states.get(feed, {})
            for topic in users:
                state = states.get(topic)
                counts["unknown" if state is None else state.state] += 1
        return dict(counts)

    def choose_feed(self, named: Sequence[str], preferred: str | None = None) -> str:
        """Return the feed to ask. BadRequest if that is not clear, NotNow if it may become so."""
        if len(named) == 1:
            return named[0]
        if preferred is not None:
            return preferred
        if len(self.live_feeds) == 1:
            return self.live_feeds[0]
        if not self.live_feeds:  # a relay that has just started does not know them yet
            raise NotNow("want: name one feed in feeds, which is to subscribe (no gateway is running)")
        running = ", ".join(self.live_feeds)
        raise BadRequest(f"want: name one feed in feeds, which is to subscribe ({running} are running)")

    def reserve(self, account: Account, feed: str, topics: Sequence[Topic], watch: Watch) -> Hold:
        """Return a hold on topics. BadRequest if the account may not want them."""
        if not account.want:
            raise BadRequest("this token may not want symbols: leave out want")
        if self._by_account[account.name] + len(topics) > account.max_wants:
            raise BadRequest(f"too many wants: this token may want {account.max_wants} at a time")
        for topic in topics:
            if not account.scope(Stream(topic.kind, feed, topic.symbol)):
                raise BadRequest(f"this token may not read {topic.kind} {topic.symbol} of {feed}")
        self._by_account[account.name] += len(topics)
        return Hold(self, account.name, feed, topics, watch)

    def begin(self, hold: Hold) -> None:
        users = self._users.setdefault(hold.feed, Counter())
        new = [topic for topic in hold.topics if not users[topic]]
        users.update(hold.topics)
        self._holds.add(hold)
        if new:
            lease = self._leases.get(hold.feed)
            if lease is None:
                lease = self._leases[hold.feed] = WantLease(self._url, self._keys, hold.feed, self._holder)
            lease.add(new)
        self._show(hold)

    def end(self, hold: Hold) -> None:
        self._by_account[hold.account] -= len(hold.topics)
        if not self._by_account[hold.account]:
            del self._by_account[hold.account]
        if hold not in self._holds:
            return
        self._holds.discard(hold)
        users = self._users[hold.feed]
        users.subtract(hold.topics)
        gone = [topic for topic in hold.topics if users[topic] <= 0]
        for topic in gone:
            del users[topic]
        self._leases[hold.feed].take(gone)

    async def run(self) -> None:
        """Look which feeds are live, and what became of the wants, until cancelled."""
        while True:
            try:
                await self._look()
            except (RedisError, ReplyError) as error:
                log.debug("what became of wants cannot be read: %s", error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        keys = self._keys
        (flat,) = await self._access.ask_all([("HGETALL", keys.meta)])
        fields = [name.decode(errors="replace") for name, _ in pairs(flat)]
        feeds = sorted(field.removeprefix("feed:") for field in fields if field.startswith("feed:"))
        leases = await self._access.ask_all([("GET", keys.lease(feed)) for feed in feeds])
        live = tuple(feed for feed, holder in zip(feeds, leases, strict=True) if holder is not None)
        self.version += live != self.live_feeds
        self.live_feeds = live
        for feed, users in list(self._users.items()):  # a client may want of another feed meanwhile
            self.states[feed] = await self._read_states(feed, list(users))
        for hold in list(self._holds):
            self._show(hold)

    async def _read_states(self, feed: str, topics: Sequence[Topic]) -> dict[Topic, SubscriptionState]:
        by_shard: dict[int, list[Topic]] = {}
        for topic in topics:
            by_shard.setdefault(self._keys.shard(topic.symbol), []).append(topic)
        replies = await self._access.ask_all(
            [
                ("HMGET", self._keys.subscriptions(shard, feed), *(topic.field for topic in some))
                for shard, some in by_shard.items()
            ]
        )
        stored: dict[bytes, bytes] = {}
        for some, values in zip(by_shard.values(), replies, strict=True):
            for topic, value in zip(some, values, strict=True):
                if value is not None:
                    stored[topic.field.encode()] = value
        return decode_states(stored)

    def _show(self, hold: Hold) -> None:
        states = self.states.get(hold.feed, {})
        for topic in hold.topics:
            state = states.get(topic)
            if state is not None and state != hold.shown.get(topic):
                hold.shown[topic] = state
                hold.watch(Stream(topic.kind, hold.feed, topic.symbol), state)

    async def close(self) -> None:
        """End all wants. Redis is told at once, if it answers."""
        leases = list(self._leases.values())
        for lease in leases:
            lease.stop()
        await asyncio.gather(*(asyncio.to_thread(lease.close) for lease in leases))
