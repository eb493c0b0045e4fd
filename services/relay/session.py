"""The conversation with one client of `/v1`: requests in, answers and subscriptions out."""

import asyncio
import logging
from collections.abc import Callable

from services.relay.bus_access import BusAccess
from services.relay.catch_up import CatchUp, TooManyStreams
from services.relay.delivery import Client, Subscription
from services.relay.hub import Hub
from services.relay.requests import (
    FROM_NOW,
    Auth,
    BadRequest,
    Begin,
    Ping,
    RequestId,
    Subscribe,
    Unsubscribe,
    Want,
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
MAX_REQUEST_BYTES = 16 << 10
_REQUESTS_PER_SECOND = 20
_BURST = 200


class Session:
    def __init__(
        self,
        hub: Hub,
        access: BusAccess,
        client: Client,
        account: Account | None,
        authenticate: Callable[[str], Account | None],
        wants: Wants,
    ) -> None:
        """account: None until the client has sent its token. authenticate: finds that of a token."""
        self.account = account
        self.client = client
        self._hub = hub
        self._access = access
        self._authenticate = authenticate
        self._wants = wants
        self._holds: dict[RequestId, Hold] = {}
        """What subscriptions, and wants alone, ask gateways for, by id."""
        self._catching_up: dict[Subscription, asyncio.Task[None]] = {}
        self._allowance = float(_BURST)
        self._asked_at = asyncio.get_running_loop().time()
        self.history_served = 0

    def receive(self, message: str | bytes) -> None:
        """Handle one message of the client. Never raises for what it sends."""
        client = self.client
        if len(message) > MAX_REQUEST_BYTES:
            client.close(TOO_LARGE, f"request of more than {MAX_REQUEST_BYTES} bytes")
            return
        if not self._is_allowed():
            client.close(TOO_MANY_REQUESTS, f"more than {_REQUESTS_PER_SECOND} requests a second")
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
                case Unsubscribe():
                    self._unsubscribe(request)
        except BadRequest as error:
            client.say(op="error", id=id, reason=str(error))

    def close(self) -> None:
        """The client has gone: end its subscriptions."""
        for task in self._catching_up.values():
            task.cancel()
        for subscription in list(self.client.subscriptions.values()):
            self._leave(subscription)
        for hold in self._holds.values():
            hold.end()
        self._holds.clear()

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
        """Whether the client's requests are within their rate."""
        now = asyncio.get_running_loop().time()
        self._allowance = min(_BURST, self._allowance + (now - self._asked_at) * _REQUESTS_PER_SECOND)
        self._asked_at = now
        self._allowance -= 1
        return self._allowance >= 0

    def _authorize(self, token: str) -> None:
        account = self._authenticate(token)
        if account is None:
            self.client.close(UNAUTHORIZED, "unknown token")
        else:
            self.account, self.client.name = account, account.name
            self.client.say(op="authorized", name=account.name)

    def _subscribe(self, request: Subscribe, account: Account) -> None:
        client = self.client
        self._check_id(request.id)
        if len(client.subscriptions) >= account.max_subscriptions:
            raise BadRequest(f"too many subscriptions: {account.max_subscriptions} are allowed")
        begin = parse_begin(request.from_, request.kind)
        if begin != FROM_NOW and not account.history:
            raise BadRequest("this token may not read history: leave out from")
        if request.kind not in account.scope.kinds:
            raise BadRequest(f"this token may not read the kind {request.kind}")
        if request.policy == "conflate" and request.kind == "signal":
            raise BadRequest("signals cannot be conflated: use the policy lossless or drop")
        hold = self._reserve(request, account) if request.want else None
        try:
            subscription = self._hub.subscribe(client, request, account.scope)
        except BadRequest:
            if hold is not None:
                hold.end()
            raise
        if hold is not None:
            self._holds[request.id] = hold
        task = asyncio.create_task(self._catch_up(subscription, begin, account), name="catch up")
        self._catching_up[subscription] = task
        task.add_done_callback(lambda _: self._catching_up.pop(subscription, None))

    def _check_id(self, id: RequestId) -> None:
        if id in self.client.subscriptions or id in self._holds:
            raise BadRequest("this id has a subscription: unsubscribe it first, or choose another id")

    def _want(self, request: Want, account: Account) -> None:
        self._check_id(request.id)
        if len(self._holds) >= account.max_subscriptions:
            raise BadRequest(f"too many wants: {account.max_subscriptions} requests are allowed")
        hold = self._holds[request.id] = self._reserve(request, account)
        self.client.say(op="wanted", id=request.id, feed=hold.feed)
        hold.begin()

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
        catch_up = CatchUp(self._hub, self._access, subscription, begin, account.max_streams, begun)
        try:
            await catch_up.run()
        except TooManyStreams as error:
            self._leave(subscription)
            self.client.say(op="error", id=subscription.id, reason=str(error))
        except ConnectionError:
            pass  # the client has gone
        except RedisError as error:
            log.warning("a subscription failed: %s", error)
            self._leave(subscription)
            self.client.say(op="error", id=subscription.id, reason="the bus cannot be read", retry=True)
        finally:
            self.history_served += catch_up.served

    def _unsubscribe(self, request: Unsubscribe) -> None:
        subscription = self.client.subscriptions.get(request.id)
        if subscription is None:
            if not self._release(request.id):
                raise BadRequest("no subscription has this id")
            self.client.say(op="unsubscribed", id=request.id)
            return
        if (task := self._catching_up.pop(subscription, None)) is not None:
            task.cancel()
        self._leave(subscription)
        self.client.say(op="unsubscribed", id=request.id)
