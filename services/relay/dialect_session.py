"""The conversation with a client that believes to speak to its vendor."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Set

from websockets.frames import Frame, Opcode

from services.relay.allowance import Allowance
from services.relay.bus_access import BusAccess
from services.relay.catch_up import CatchUp
from services.relay.delivery import Client, Group, Subscription
from services.relay.dialect_style import DialectStyle, reply_frames
from services.relay.hub import Hub
from services.relay.registry import Registry
from services.relay.requests import FROM_NOW, FROM_OLDEST, BadRequest
from services.relay.selection import Selection, Symbols
from services.relay.tokens import Account
from services.relay.wants import Hold, Wants
from services.vendors import VENDORS
from services.vendors.dialect import Answer, Dialect
from tickbus.errors import ConfigError, RedisError
from tickbus.protocol.codec import decode_head
from tickbus.protocol.names import FEED_KINDS, Stream, check_symbol
from tickbus.protocol.wants import Topic

log = logging.getLogger("tickbus.relay")

_POLICY_VIOLATION, _INTERNAL_ERROR = 1008, 1011


class DialectSubscription(Subscription):
    """One stream, in a vendor's frames."""

    policy = "lossless"
    is_native = False

    def __init__(self, client: Client, stream: Stream, group: Group, style: DialectStyle) -> None:
        super().__init__(client, f"{stream.name} {style.key}", group)
        self.style = style
        self.head = b""

    def cannot_keep_up(self) -> None:
        self.client.close(_POLICY_VIOLATION, "slow consumer")


class DialectSession:
    def __init__(
        self,
        hub: Hub,
        access: BusAccess,
        registry: Registry,
        client: Client,
        account: Account,
        dialect: Dialect,
        unsaid: Counter[str],
        wants: Wants,
    ) -> None:
        self.client = client
        self.account = account
        self.dialect = dialect
        self.vendor = dialect.vendor
        self._hub = hub
        self._access = access
        self._registry = registry
        self._feed = VENDORS[dialect.vendor].feed
        self._unsaid = unsaid
        self._wants = wants
        self._holds: dict[tuple[str, str], Hold] = {}
        """What it asks for, as wants, by kind and the client's spelling."""
        self._subscriptions: dict[tuple[str, str], Subscription] = {}
        """By kind and the client's spelling."""
        self._pending: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._missing: set[tuple[str, str]] = set()
        """Asked for, but without a stream so far."""
        self._allowance = Allowance(time.monotonic())
        self._looked_at = registry.version, wants.version
        registry.users += 1
        self.refresh()

    @property
    def wanted(self) -> int:
        """How many topics it asks gateways for."""
        return sum(len(hold.topics) for hold in self._holds.values())

    def receive(self, message: str | bytes) -> None:
        """Handle one message of the client."""
        if self._is_allowed():
            raw = message.encode() if isinstance(message, str) else message
            self._apply(self.dialect.receive(raw, _now()))

    def on_control(self, frame: Frame) -> None:
        """Handle a ping or pong of the client; the pong to a ping was sent."""
        if frame.opcode is Opcode.PING:
            if not self._is_allowed():
                return
            self._apply(self.dialect.on_ping(_now()))
        else:
            self._apply(self.dialect.on_pong(bytes(frame.data), _now()))

    def on_timer(self) -> None:
        """Send what is due by the clock; subscribe to streams that have appeared."""
        self._apply(self.dialect.on_timer(_now()))
        if self._missing and self._looked_at != (self._registry.version, self._wants.version):
            self.refresh()

    def _is_allowed(self) -> bool:
        """Whether the client asks as rarely as any client must; if not, the vendor's answer was sent."""
        if self._allowance.take(time.monotonic()):
            return True
        self._apply(self.dialect.slow_down())
        return False

    def close(self) -> None:
        """The client has gone."""
        self._registry.users -= 1
        for task in self._pending.values():
            task.cancel()
        for subscription in list(self.client.subscriptions.values()):
            self._hub.leave(subscription)
        for hold in self._holds.values():
            hold.end()
        self._holds.clear()

    def _apply(self, answer: Answer) -> None:
        client = self.client
        if answer.replies:
            frames = reply_frames(answer.replies)
            if not client.has_room(len(frames)):
                client.close(_POLICY_VIOLATION, "slow consumer")
                return
            client.queue(frames)
            client.flush()
        if answer.ping is not None:
            client.sink.ping(answer.ping)
        if answer.event is not None:
            self.refresh()
        if answer.close is not None:
            client.close(*answer.close)

    def refresh(self) -> None:
        """Make the subscriptions those that the client asked for."""
        self._looked_at = self._registry.version, self._wants.version
        wanted = {
            (kind, spelling)
            for spelling in self.dialect.symbols()
            for kind in FEED_KINDS
            if self.dialect.wants(kind, spelling)
        }
        for key in list(self._subscriptions):
            subscription = self._subscriptions[key]
            if key not in wanted or not self._has_our_style(subscription):
                if (task := self._pending.pop(key, None)) is not None:
                    task.cancel()
                self._hub.leave(self._subscriptions.pop(key))
        self._want(wanted)
        was_missing, self._missing = self._missing, set()
        for key in wanted - self._subscriptions.keys() - self._pending.keys():
            kind, spelling = key
            stream = self._registry.stream(self.vendor, kind, self._registry.symbol(self._feed, spelling))
            if stream is None or not self.account.scope(stream):
                self._missing.add(key)
            else:
                # one that appears after it was asked for is new to the client from its first entry
                begin = FROM_OLDEST if key in was_missing else FROM_NOW
                self._pending[key] = asyncio.create_task(self._subscribe(key, stream, begin))

    def _want(self, wanted: Set[tuple[str, str]]) -> None:
        """Want what the client asked for, as far as its account may; its vendor would not say more either."""
        for key in self._holds.keys() - wanted:
            self._holds.pop(key).end()
        if not self.account.want:
            return
        for key in wanted - self._holds.keys():
            kind, spelling = key
            symbol = self._registry.symbol(self._feed, spelling)
            try:
                topic = Topic(kind, check_symbol(symbol))
                known = self._registry.stream(self.vendor, kind, symbol)
                feed = self._wants.choose_feed(
                    () if known is None else (known.feed,), self._registry.preferred(self.vendor)
                )
                hold = self._wants.reserve(self.account, feed, [topic], lambda stream, state: None)
            except (BadRequest, ConfigError):
                continue
            self._holds[key] = hold
            hold.begin()

    def _has_our_style(self, subscription: Subscription) -> bool:
        """Whether the client still gets the frames that it wants: some may change their form at any time."""
        assert isinstance(subscription.style, DialectStyle)
        key = subscription.style.key
        assert isinstance(key, tuple)
        return bool(key[0] == self.dialect.style)

    async def _subscribe(self, key: tuple[str, str], stream: Stream, begin: str) -> None:
        shard = self._access.keys.shard(stream.symbol)
        try:
            (value,) = await self._access.patiently([("HGET", self._access.keys.last(shard), stream.name)])
            sequenced = value is not None and decode_head(value).vendor_id is not None
        except ValueError:
            sequenced = False
        group = self._hub.group(
            Selection(
                stream.kind, Symbols(frozenset((stream.symbol,))), frozenset((stream.feed,)), frozenset(),
                self.account.scope,
            )
        )  # fmt: skip
        style = DialectStyle(self.dialect, key[1], sequenced, self._unsaid)
        subscription = DialectSubscription(self.client, stream, group, style)
        self._subscriptions[key] = subscription
        self._hub.add(subscription)
        try:
            await CatchUp(self._hub, self._access, subscription, begin, max_streams=1).run()
        except ConnectionError:
            pass  # the client has gone
        except RedisError as error:
            log.warning("a %s client is disconnected: its subscription failed: %s", self.vendor, error)
            self.client.close(_INTERNAL_ERROR, "the bus cannot be read")
        except Exception:
            log.exception("a subscription failed: a bug of tickbus; its client is disconnected")
            self.client.close(_INTERNAL_ERROR, "internal error")
        finally:
            self._pending.pop(key, None)


def _now() -> int:
    return time.monotonic_ns()
