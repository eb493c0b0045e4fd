"""The conversation with one client of `/v1`: requests in, answers and subscriptions out."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from websockets.frames import Frame, Opcode

from services.relay.allowance import REQUESTS_PER_SECOND, Allowance
from services.relay.bus_access import BusAccess
from services.relay.catch_up import RESUME_MINUTES, CatchUp, Refused
from services.relay.delivery import Client, Subscription
from services.relay.health import Health
from services.relay.health import Watch as HealthWatch
from services.relay.hub import Hub
from services.relay.requests import (
    FROM_NOW,
    Auth,
    BadRequest,
    Begin,
    Cursors,
    NotNow,
    Ping,
    RequestId,
    Subscribe,
    Unsubscribe,
    Want,
    Watch,
    parse_begin,
    parse_topics,
)
from services.relay.tokens import Account
from services.relay.wants import Hold, Wants
from tickbus.errors import RedisError
from tickbus.protocol.names import Stream
from tickbus.protocol.wants import SubscriptionState

log = logging.getLogger("tickbus.relay")

UNAUTHORIZED, FORBIDDEN, AUTH_TIMEOUT, TOO_LARGE, TOO_MANY_REQUESTS = 4401, 4403, 4408, 4413, 4420
INTERNAL_ERROR = 1011
MAX_REQUEST_BYTES = 16 << 10


class Session:
    def __init__(
        self,
        hub: Hub,
        access: BusAccess,
        client: Client,
        account: Account | None,
        authenticate: Callable[[str], Account | None],
        wants: Wants,
        health: Health,
    ) -> None:
        """account: None until the client has sent its token. authenticate: finds that of a token."""
        self.account = account
        self.client = client
        self._hub = hub
        self._access = access
        self._authenticate = authenticate
        self._wants = wants
        self._health = health
        self._holds: dict[RequestId, Hold] = {}
        """What subscriptions, and wants alone, ask gateways for, by id."""
        self._watches: dict[RequestId, HealthWatch] = {}
        self._catching_up: dict[Subscription, asyncio.Task[None]] = {}
        self._allowance = Allowance(time.monotonic())

    @property
    def wanted(self) -> int:
        """How many topics it asks gateways for."""
        return sum(len(hold.topics) for hold in self._holds.values())

    def receive(self, message: str | bytes) -> None:
        """Handle one message of the client. Never raises for what it sends."""
        client = self.client
        if len(message) > MAX_REQUEST_BYTES:
            client.close(TOO_LARGE, f"request of more than {MAX_REQUEST_BYTES} bytes")
            return
        if not self._is_allowed():
            return
        id = None
        try:
            request = client.style.parse(message)
            id = getattr(request, "id", None)
            match request:
                case Auth(token):
                    self._authorize(token)
                case Ping():
                    client.say(op="pong", id=id)
                case _ if self.account is None:
                    client.close(UNAUTHORIZED, "send your token first")
                case Subscribe():
                    self._subscribe(request, self.account)
                case Want():
                    self._want(request, self.account)
                case Watch():
                    self._watch(request, self.account)
                case Unsubscribe():
                    self._unsubscribe(request)
        except BadRequest as error:
            retry = {"retry": True} if isinstance(error, NotNow) else {}
            self._refuse(id, str(error), **retry)

    def on_control(self, frame: Frame) -> None:
        """Count a ping of the client as a request; its pong is sent by the library."""
        if frame.opcode is Opcode.PING:
            self._is_allowed()

    def close(self) -> None:
        """The client has gone: end its subscriptions."""
        for task in self._catching_up.values():
            task.cancel()
        for subscription in list(self.client.subscriptions.values()):
            self._leave(subscription)
        for hold in self._holds.values():
            hold.end()
        self._holds.clear()
        for watch in self._watches.values():
            watch.end()
        self._watches.clear()

    def _leave(self, subscription: Subscription) -> None:
        self._hub.leave(subscription)
        self._release(subscription.id)

    def _release(self, id: RequestId) -> bool:
        """End what a request wants. Return whether it wanted something."""
        hold = self._holds.pop(id, None)
        if hold is not None:
            hold.end()
        return hold is not None

    def _is_allowed(self) -> bool:
        """Whether the client's requests are within their rate; if not, it is closed."""
        if self._allowance.take(time.monotonic()):
            return True
        self.client.close(TOO_MANY_REQUESTS, f"more than {REQUESTS_PER_SECOND} requests a second")
        return False

    def _authorize(self, token: str) -> None:
        account = self._authenticate(token)
        if account is None:
            self.client.close(UNAUTHORIZED, "unknown token")
        elif self.account not in (None, account):
            raise BadRequest("this connection has another token: open another one")
        else:
            self.account, self.client.name = account, account.name
            self.client.say(op="authorized", name=account.name)

    def _subscribe(self, request: Subscribe, account: Account) -> None:
        client = self.client
        self._check_id(request.id)
        if len(client.subscriptions) >= account.max_subscriptions:
            raise BadRequest(f"too many subscriptions: {account.max_subscriptions} are allowed")
        begin = parse_begin(request.from_, request.kind)
        if begin != FROM_NOW and not isinstance(begin, Cursors) and not account.history:
            raise BadRequest(
                "this token may not read history: leave out from, or resume from the cursors of the last"
                f" {RESUME_MINUTES} minutes"
            )
        if request.kind not in account.scope.kinds:
            raise BadRequest(f"this token may not read the kind {request.kind}")
        if request.policy == "conflate" and request.kind == "signal":
            raise BadRequest("signals cannot be conflated: use the policy lossless or drop")
        subscription = self._hub.subscribe(client, request, account.scope)
        if request.want:
            try:
                self._holds[request.id] = self._reserve(request, account)
            except BadRequest:
                self._hub.leave(subscription)
                raise
        task = asyncio.create_task(self._catch_up(subscription, begin, account), name="catch up")
        self._catching_up[subscription] = task
        task.add_done_callback(lambda _: self._catching_up.pop(subscription, None))

    def _check_id(self, id: RequestId) -> None:
        if id in self.client.subscriptions or id in self._holds or id in self._watches:
            raise BadRequest("this id has a subscription: unsubscribe it first, or choose another id")

    def _want(self, request: Want, account: Account) -> None:
        self._check_id(request.id)
        if len(self._holds) >= account.max_subscriptions:
            raise BadRequest(f"too many wants: {account.max_subscriptions} requests are allowed")
        hold = self._holds[request.id] = self._reserve(request, account)
        self.client.say(op="wanted", id=request.id, feed=hold.feed)
        hold.begin()

    def _watch(self, request: Watch, account: Account) -> None:
        self._check_id(request.id)
        if len(self._watches) >= account.max_subscriptions:
            raise BadRequest(f"too many watches: {account.max_subscriptions} are allowed")

        def tell(health: Mapping[str, object]) -> None:
            if self.client.idle:  # else it is still busy: the next one is newer
                self.client.say(op="health", id=request.id, health=health)

        self.client.say(op="watching", id=request.id)
        self._watches[request.id] = self._health.watch(account.scope, tell)

    def _reserve(self, request: Subscribe | Want, account: Account) -> Hold:
        """Return what a request wants. BadRequest if it may not."""
        topics, feed = parse_topics(request), self._wants.choose_feed(request.feeds)

        def say(stream: Stream, state: SubscriptionState) -> None:
            self.client.say(
                op="want", id=request.id, stream=stream.name, state=state.state, since=state.since,
                reason=state.reason,
            )  # fmt: skip

        return self._wants.reserve(account, feed, topics, say)

    async def _catch_up(self, subscription: Subscription, begin: Begin, account: Account) -> None:
        hold = self._holds.get(subscription.id)
        begun = (lambda: None) if hold is None else hold.begin
        catch_up = CatchUp(
            self._hub, self._access, subscription, begin, account.max_streams, account.history, begun
        )
        try:
            await catch_up.run()
        except Refused as error:
            self._leave(subscription)
            self._refuse(subscription.id, str(error))
        except ConnectionError:
            pass  # the client has gone
        except RedisError as error:
            log.warning("a subscription failed: %s", error)
            self._leave(subscription)
            self._refuse(subscription.id, "the bus cannot be read", retry=True)
        except Exception:
            log.exception("a subscription failed: a bug of tickbus; its client is disconnected")
            self.client.close(INTERNAL_ERROR, "internal error")

    def _refuse(self, id: RequestId | None, reason: str, **more: bool) -> None:
        self._hub.counts.request_errors += 1
        self.client.say(op="error", id=id, reason=reason, **more)

    def _unsubscribe(self, request: Unsubscribe) -> None:
        subscription = self.client.subscriptions.get(request.id)
        if subscription is None:
            if (watch := self._watches.pop(request.id, None)) is not None:
                watch.end()
            elif not self._release(request.id):
                raise BadRequest("no subscription has this id")
            self.client.say(op="unsubscribed", id=request.id)
            return
        if (task := self._catching_up.pop(subscription, None)) is not None:
            task.cancel()
        self._leave(subscription)
        self.client.say(op="unsubscribed", id=request.id)
