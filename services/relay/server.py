"""The relay's port: handshakes, limits and plain HTTP; each WebSocket then has a session of its own."""

import asyncio
import http
import logging
import socket
import ssl
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import parse_qs, urlsplit

import websockets.http11
from websockets.asyncio.server import Server, serve
from websockets.datastructures import Headers, MultipleValuesError
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from services.relay.api import Api
from services.relay.bus_access import BusAccess
from services.relay.delivery import SEND_BUFFER_BYTES, Client
from services.relay.dialect_session import DialectSession
from services.relay.dialects import Dialects
from services.relay.health import Health
from services.relay.hub import Hub
from services.relay.page import Page, PageAnswer
from services.relay.session import (
    AUTH_TIMEOUT,
    FORBIDDEN,
    INTERNAL_ERROR,
    MAX_REQUEST_BYTES,
    UNAUTHORIZED,
    Session,
)
from services.relay.sockets import Gate, RelayConnection, SocketSink
from services.relay.styles import JSON, STYLES
from services.relay.tokens import ANONYMOUS, Account, Tokens
from services.vendors.dialect import HttpRefusal
from tickbus.errors import RedisError

log = logging.getLogger("tickbus.relay")

_quiet = logging.getLogger("tickbus.relay.websocket")
_quiet.setLevel(logging.CRITICAL)  # what a client does wrong is counted, not logged with a traceback

REQUEST_LINE_BYTES = 32 << 10
"""A request may name 1,024 streams."""
websockets.http11.MAX_LINE_LENGTH = REQUEST_LINE_BYTES
_TOKEN_PROTOCOL = "tickbus.token."
_OPEN_SECONDS = 10.0
_PING_SECONDS = 20.0
_LOOK_SECONDS = 1.0
_RESTART = 1012
_SPARE, _SPARE_TOTAL = 64, 1_000
"""Sockets beyond the caps, from one address and in total, for plain HTTP and for answers to those refused."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    client_bytes: int
    max_clients: int
    max_clients_per_address: int
    auth_seconds: float
    origins: frozenset[str] = frozenset()
    """Besides those that equal the Host."""
    hosts: frozenset[str] = frozenset()
    """Names under which the relay may be addressed, besides loopback and its address."""


@dataclass
class Counts:
    """What the metrics report."""

    refused: Counter[str] = field(default_factory=Counter)
    """By reason."""
    closed: Counter[str] = field(default_factory=Counter)
    """By close code."""
    answered: Counter[str] = field(default_factory=Counter)
    """Plain HTTP, by status."""


class RelayServer:
    def __init__(
        self,
        hub: Hub,
        access: BusAccess,
        tokens: Tokens,
        api: Api,
        dialects: Dialects,
        limits: Limits,
        host: str,
        health: Health,
        page: Page | None = None,
    ) -> None:
        """page: None where its files are missing: everything else is served."""
        self.hub = hub
        self.dialects = dialects
        self.counts = Counts()
        self._access = access
        self._tokens = tokens
        self._api = api
        self._limits = limits
        self._host = host
        self._health = health
        self._page = page
        self.gate = Gate(limits.max_clients + _SPARE_TOTAL, limits.max_clients_per_address + _SPARE)
        self._accounts: Counter[str] = Counter()
        self._sessions: dict[Session | DialectSession, RelayConnection] = {}
        self._draining = False

    async def serve(self, port: int, tls: ssl.SSLContext | None) -> Server:
        """Begin to listen. OSError if that is impossible."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.create_server((self._host, port), family=family, backlog=1024)
        # accepted sockets inherit it; the kernel doubles what it is told
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES // 2)
        return await serve(
            self._handle,  # type: ignore[arg-type]  # our kind of connection
            sock=sock,
            ssl=tls,
            create_connection=partial(RelayConnection, gate=self.gate),  # type: ignore[arg-type]
            process_request=self._process_request,  # type: ignore[arg-type]
            select_subprotocol=self._select_subprotocol,  # type: ignore[arg-type]
            compression=None,
            max_size=4 * MAX_REQUEST_BYTES,
            max_queue=16,
            open_timeout=_OPEN_SECONDS,
            ssl_handshake_timeout=_OPEN_SECONDS if tls else None,
            ping_interval=_PING_SECONDS,
            ping_timeout=None,  # a slow client answers late; a dead one ends by TCP_USER_TIMEOUT
            close_timeout=5,
            write_limit=(SEND_BUFFER_BYTES, 0),
            server_header=None,
            logger=_quiet,
        )

    @property
    def clients(self) -> int:
        return len(self._sessions)

    def connections(self) -> list[tuple[Session | DialectSession, str, str]]:
        """Return all conversations, each with the client's address and its protocol: the subprotocol of `/v1`
        or the name of the vendor."""
        return [
            (
                session,
                connection.address,
                session.vendor if isinstance(session, DialectSession) else session.client.style.subprotocol,
            )
            for session, connection in self._sessions.items()
        ]

    async def drain(self, seconds: float) -> None:
        """Tell all clients to connect again elsewhere, and wait until they have gone."""
        self._draining = True
        for session in list(self._sessions):
            for subscription in list(session.client.subscriptions.values()):
                self.hub.leave(subscription)
            if isinstance(session, Session):
                session.client.say(op="closing", code=_RESTART, reason="this relay stops: connect again")
            session.client.close(_RESTART, "this relay stops: connect again")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._sessions:
                    await asyncio.sleep(0.02)

    async def watch_tokens(self) -> None:
        """Read the tokens again when their file changes; end the connections that they no longer allow."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._tokens.changed():
                for session in list(self._sessions):
                    if session.account is not None and not self._tokens.is_valid(session.account):
                        session.client.close(FORBIDDEN, "this token was changed or removed")

    # handshake

    async def _process_request(self, connection: RelayConnection, request: Request) -> Response | None:
        """Answer plain HTTP; let WebSocket handshakes through that may have one."""
        try:
            return await self._decide(connection, request)
        except MultipleValuesError as error:
            return self._refuse(400, f"the header {error} is there twice", "header")
        except Exception:
            log.exception("a request failed: a bug of tickbus; it is answered with 500")
            return _response(500, "text/plain; charset=utf-8", b"internal error\n")

    async def _decide(self, connection: RelayConnection, request: Request) -> Response | None:
        if not request.path.startswith("/") or request.path.startswith("//"):
            return self._refuse(400, "the request target is no path", "path")
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            return self._refuse(405, "only GET is served here", "method", [("Allow", "GET, HEAD, OPTIONS")])
        if not self._is_our_host(request.headers):
            return self._refuse(421, "unknown host: name it with --public-host", "host")
        if not self._is_allowed_origin(request.headers):
            return self._refuse(403, "this origin is not allowed: name it with --origins", "origin")
        if self.gate.count(connection.address) > self._limits.max_clients_per_address:
            return self._refuse(429, "too many connections from this address", "address")
        if self.gate.open > self._limits.max_clients or self._draining:
            return self._refuse(503, "too many connections", "total", [("Retry-After", "5")])
        path = urlsplit(request.path).path
        token = _token_of(request)
        account = self._account(token)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            response = await self._answer_http(request, path, token, account)
            self.counts.answered[str(response.status_code)] += 1
            self._share(response, request.headers.get("Origin"))
            return response
        if request.method != "GET":
            return self._refuse(405, "a WebSocket handshake is a GET", "method")
        if path != "/v1":
            return await self._open_dialect(connection, request, account)
        if token is not None and account is None:
            connection.refusal = UNAUTHORIZED, "unknown token"
        elif account is not None and self._accounts[account.name] >= account.max_connections:
            return self._refuse(429, "too many connections with this token", "token")
        connection.account = account
        return None

    async def _open_dialect(
        self, connection: RelayConnection, request: Request, account: Account | None
    ) -> Response | None:
        """Let a client of a vendor in, on one of its paths."""
        if account is None:
            return self._refuse(401, "a token is needed: ?token=TOKEN", "unauthorized")
        if self._accounts[account.name] >= account.max_connections:
            return self._refuse(429, "too many connections with this token", "token")
        try:
            await self.dialects.registry.refresh()
        except RedisError:
            return self._refuse(503, "the bus cannot be read now", "bus", [("Retry-After", "1")])
        opened = self.dialects.open(request.path)
        if isinstance(opened, HttpRefusal):
            self.counts.refused["path" if opened.status == 404 else "vendor"] += 1
            return _response(opened.status, "application/json", opened.body)
        connection.dialect, connection.account = opened, account
        return None

    def _refuse(self, status: int, text: str, why: str, headers: Sequence[tuple[str, str]] = ()) -> Response:
        self.counts.refused[why] += 1
        return _response(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)

    def _account(self, token: str | None) -> Account | None:
        if not self._tokens.required:
            return ANONYMOUS
        return None if token is None else self._tokens.find(token)

    async def _answer_http(
        self, request: Request, path: str, token: str | None, account: Account | None
    ) -> Response:
        if request.method == "OPTIONS":
            return _response(204, "text/plain", b"", [("Allow", "GET, HEAD, OPTIONS")])
        if self._page is not None:
            host, known = request.headers.get("Host", ""), request.headers.get("If-None-Match", "")
            if (found := self._page.get(path, host, known)) is not None:
                return _page_response(found, request.method == "HEAD")
        if account is None and not self._api.is_public(path):
            text = "unknown token" if token else "a token is needed: Authorization: Bearer TOKEN"
            return self._refuse(401, text, "unauthorized", [("WWW-Authenticate", "Bearer")])
        account = account or ANONYMOUS  # of what is public
        try:
            vendors = await self.dialects.answer_get(path, account)
        except RedisError:
            return self._refuse(503, "the bus cannot be read now", "bus", [("Retry-After", "1")])
        if vendors is not None:
            return _response(200, "application/json", vendors)
        status, content_type, body = await self._api.get(
            path, parse_qs(urlsplit(request.path).query, keep_blank_values=True), account
        )
        headers = [("Retry-After", "1")] if status == 503 else []
        response = _response(status, content_type, body, headers)
        if request.method == "HEAD":
            response.body = b""
        return response

    def _share(self, response: Response, origin: str | None) -> None:
        """Let a page of a listed origin read an answer, and ask with a token."""
        if origin in self._limits.origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Headers"] = "Authorization"
            response.headers["Vary"] = "Origin"

    def _is_our_host(self, headers: Headers) -> bool:
        """Whether the request was meant for us: a page may have rebound its name to our address."""
        host = _host_name(headers.get("Host", ""))
        return host in (*_LOOPBACK, self._host) or host in self._limits.hosts

    def _is_allowed_origin(self, headers: Headers) -> bool:
        origin = headers.get("Origin")
        if origin is None or origin in self._limits.origins:
            return True
        return origin.partition("://")[2].lower() == headers.get("Host", "").lower()

    @staticmethod
    def _select_subprotocol(
        connection: RelayConnection, offered: Sequence[Subprotocol]
    ) -> Subprotocol | None:
        return next((name for name in offered if name in STYLES), None)

    # clients

    async def _handle(self, connection: RelayConnection) -> None:
        if connection.refusal is not None:
            self.counts.closed[str(connection.refusal[0])] += 1
            await connection.close(*connection.refusal)
            return
        style = STYLES.get(connection.subprotocol or "", JSON)
        account = connection.account
        client = Client(
            SocketSink(connection), style, self._limits.client_bytes, account.name if account else ""
        )
        client.on_close = lambda code: self.counts.closed.update((str(code),))
        session: Session | DialectSession
        if connection.dialect is not None and account is not None:
            session = self.dialects.session(client, account, connection.dialect)
            connection.on_control = session.on_control
        else:
            session = Session(
                self.hub, self._access, client, account, self._authenticate, self.dialects.wants, self._health
            )
            connection.on_control = session.on_control
        connection.on_resume = lambda: _resume(client)
        self._sessions[session] = connection
        self.hub.clients.add(client)
        timer = None
        if account is None:
            timer = connection.loop.call_later(self._limits.auth_seconds, _close_without_token, session)
        else:
            self._count(account, client)
        try:
            async for message in connection:
                session.receive(message)
                if account is None and session.account is not None:
                    account = session.account
                    self._count(account, client)
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("a client failed: a bug of tickbus; it is disconnected")
            client.close(INTERNAL_ERROR, "internal error")
        finally:
            if timer is not None:
                timer.cancel()
            if not client.closed:  # else it was counted
                client.closed = True
                self.counts.closed[_close_code(connection)] += 1
            session.close()
            self.hub.clients.discard(client)
            del self._sessions[session]
            if account is not None:
                _decrease(self._accounts, account.name)

    def _count(self, account: Account, client: Client) -> None:
        """Count one connection more of a token; several may have passed the handshake at once."""
        self._accounts[account.name] += 1
        if self._accounts[account.name] > account.max_connections:
            client.close(FORBIDDEN, "too many connections with this token")

    def _authenticate(self, token: str) -> Account | None:
        return self._tokens.find(token) if self._tokens.required else ANONYMOUS


def _resume(client: Client) -> None:
    if not client.closed:
        for subscription in list(client.subscriptions.values()):
            subscription.resume()
        client.flush()


def _close_without_token(session: Session | DialectSession) -> None:
    if session.account is None:
        session.client.close(AUTH_TIMEOUT, "no token was sent in time")


def _close_code(connection: RelayConnection) -> str:
    """Return the code with which a connection ended that its client or the library closed."""
    sent = connection.protocol.close_sent
    return str(CloseCode.ABNORMAL_CLOSURE.value if sent is None else sent.code)


def _decrease(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def _token_of(request: Request) -> str | None:
    """Return the token of a request: from its header, its query, or its subprotocols (browsers)."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if values := parse_qs(urlsplit(request.path).query).get("token"):
        return values[0]
    for offer in ",".join(request.headers.get_all("Sec-WebSocket-Protocol")).split(","):
        if offer.strip().startswith(_TOKEN_PROTOCOL):
            text = offer.strip().removeprefix(_TOKEN_PROTOCOL)
            with suppress(ValueError):
                return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode(errors="replace")
    return None


def _host_name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _response(
    status: int, content_type: str, body: bytes, headers: Sequence[tuple[str, str]] = ()
) -> Response:
    fields = Headers(
        [
            ("Connection", "close"),
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
        ]
    )
    return Response(status, http.HTTPStatus(status).phrase, fields, body)


def _page_response(answer: PageAnswer, head_only: bool) -> Response:
    response = _response(answer.status, answer.content_type, answer.body)
    del response.headers["Cache-Control"]  # the page's own is among its headers
    response.headers.update(answer.headers)
    if head_only:
        response.body = b""
    return response
