"""The conversation with one client of `/v1`: requests in, answers and subscriptions out."""

import asyncio
import logging
import time
from collections.abc import Callable

from websockets.frames import Frame, Opcode

from services.relay.allowance import REQUESTS_PER_SECOND, Allowance
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
    Subscribe,
    Unsubscribe,
    parse_begin,
)
from services.relay.tokens import Account
from tickbus.errors import RedisError

log = logging.getLogger("tickbus.relay")

UNAUTHORIZED, FORBIDDEN, AUTH_TIMEOUT, TOO_LARGE, TOO_MANY_REQUESTS = 4401, 4403, 4408, 4413, 4420
MAX_REQUEST_BYTES = 16 << 10


class Session:
    def __init__(
        self,
        hub: Hub,
        access: BusAccess,
        client: Client,
        account: Account | None,
        authenticate: Callable[[str], Account | None],
    ) -> None:
        """account: None until the client has sent its token. authenticate: finds that of a token."""
        self.account = account
        self.client = client
        self._hub = hub
        self._access = access
        self._authenticate = authenticate
        self._catching_up: dict[Subscription, asyncio.Task[None]] = {}
        self._allowance = Allowance(time.monotonic())
        self.history_served = 0

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
                case Unsubscribe():
                    self._unsubscribe(request)
        except BadRequest as error:
            client.say(op="error", id=id, reason=str(error))

    def on_control(self, frame: Frame) -> None:
        """Count a ping of the client as a request; its pong is sent by the library."""
        if frame.opcode is Opcode.PING:
            self._is_allowed()

    def close(self) -> None:
        """The client has gone: end its subscriptions."""
        for task in self._catching_up.values():
            task.cancel()
        for subscription in list(self.client.subscriptions.values()):
            self._hub.leave(subscription)

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
        else:
            self.account, self.client.name = account, account.name
            self.client.say(op="authorized", name=account.name)

    def _subscribe(self, request: Subscribe, account: Account) -> None:
        client = self.client
        if request.id in client.subscriptions:
            raise BadRequest("this id has a subscription: unsubscribe it first, or choose another id")
        if len(client.subscriptions) >= account.max_subscriptions:
            raise BadRequest(f"too many subscriptions: {account.max_subscriptions} are allowed")
        begin = parse_begin(request.from_, request.kind)
        if begin != FROM_NOW and not account.history:
            raise BadRequest("this token may not read history: leave out from")
        if request.kind not in account.scope.kinds:
            raise BadRequest(f"this token may not read the kind {request.kind}")
        if request.policy == "conflate" and request.kind == "signal":
            raise BadRequest("signals cannot be conflated: use the policy lossless or drop")
        subscription = self._hub.subscribe(client, request, account.scope)
        task = asyncio.create_task(self._catch_up(subscription, begin, account), name="catch up")
        self._catching_up[subscription] = task
        task.add_done_callback(lambda _: self._catching_up.pop(subscription, None))

    async def _catch_up(self, subscription: Subscription, begin: Begin, account: Account) -> None:
        catch_up = CatchUp(self._hub, self._access, subscription, begin, account.max_streams)
        try:
            await catch_up.run()
        except TooManyStreams as error:
            self._hub.leave(subscription)
            self.client.say(op="error", id=subscription.id, reason=str(error))
        except ConnectionError:
            pass  # the client has gone
        except RedisError as error:
            log.warning("a subscription failed: %s", error)
            self._hub.leave(subscription)
            self.client.say(op="error", id=subscription.id, reason="the bus cannot be read", retry=True)
        finally:
            self.history_served += catch_up.served

    def _unsubscribe(self, request: Unsubscribe) -> None:
        subscription = self.client.subscriptions.get(request.id)
        if subscription is None:
            raise BadRequest("no subscription has this id")
        if (task := self._catching_up.pop(subscription, None)) is not None:
            task.cancel()
        self._hub.leave(subscription)
        self.client.say(op="unsubscribed", id=request.id)
