"""One raw connection to Redis: packed commands out, replies in, in order, nothing in between.

redis-py opens, secures and authenticates it (TLS, ACL, database); then hiredis packs and parses directly, which on the hot
path is several times faster than a client's own layers. There is no retry in here: whoever calls knows what a repeat means.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, urlsplit

import hiredis
import redis.asyncio as redis_py
from redis.asyncio.connection import RedisSSLContext
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, ConnectionError, RedisError, TimeoutError

from tickbus.clock import BusClock, monotonic_ns
from tickbus.errors import ConfigError, RedisAway, RedisUnfit
from tickbus.options import redact
from tickbus.resp import Command, pack

log = logging.getLogger("tickbus.redis")

Reply = Any
ReplyError = hiredis.ReplyError

_CONNECT_SECONDS = 2.0
REPLY_SECONDS = 5.0
"""A server that has not answered for this long counts as away."""


class Connection(Protocol):
    """What carries single commands: a Link, or on a cluster something that finds the node of each."""

    @property
    def closed(self) -> bool: ...

    async def ask(self, *command: "bytes | str | int", timeout: float = REPLY_SECONDS) -> Reply: ...

    async def ask_all(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]: ...

    def close(self) -> None: ...


class Link(asyncio.Protocol):
    """An open connection. `ask` returns the replies; when the connection ends, every waiting `ask` raises RedisAway."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._waiting: deque[tuple[asyncio.Future[list[Reply]], int, float]] = deque()
        self._replies: list[Reply] = []
        self._loop = asyncio.get_running_loop()
        self._watchdog: asyncio.TimerHandle | None = None
        self._received_at = 0.0
        self._why = "closed"
        self._beside: asyncio.Task[None] | None = None
        self.closed = False

    @classmethod
    async def open(cls, url: str) -> "Link":
        """Connect; RedisAway if the server is not there, RedisUnfit if it does not let us in, ConfigError if `url` is none."""
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        connection = cast(redis_py.Connection, check_url(url).make_connection())  # type: ignore[no-untyped-call]
        if isinstance(connection, redis_py.SSLConnection):
            _share_tls(connection, url)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            await connection.disconnect(nowait=True)
            raise
        except (AuthenticationError, AuthorizationError) as error:
            raise RedisUnfit(f"Redis at {redact(url)} refuses the login: {error}; put user and password into the URL") from None
        except (ConnectionError, TimeoutError, OSError) as error:
            why = str(error).rstrip(".") or "no answer"
            raise RedisAway(f"no Redis at {redact(url)}: {why}; {_remedy(url, error)}") from None
        except RedisError as error:
            raise RedisUnfit(f"Redis at {redact(url)}: {error}") from None
        link = cls()
        # the layer that is crossed: redis-py has no public way to hand its socket over
        link._writer = cast(asyncio.StreamWriter, connection._writer)
        link._transport = cast(asyncio.Transport, link._writer.transport)
        connection._reader = connection._writer = None
        link._transport.set_protocol(link)
        link._transport.resume_reading()
        if task is not None and task.cancelling() > cancelled:  # redis-py swallows it while it says hello
            link.close()
            raise asyncio.CancelledError
        return link

    def send(self, packed: bytes, replies: int, timeout: float = REPLY_SECONDS) -> "asyncio.Future[list[Reply]]":
        """Send commands; -> their replies, in order, errors among them as ReplyError values."""
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        if self.closed:
            future.set_exception(RedisAway(self._why))
            future.exception()  # seen, as in _end
            return future
        self._waiting.append((future, replies, self._loop.time() + timeout))
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(timeout, self._check)
        self._transport.write(packed)
        return future

    async def ask(self, *command: "bytes | str | int", timeout: float = REPLY_SECONDS) -> Reply:
        """Send one command; -> its reply. An error reply is raised: RedisAway while this server cannot serve it, RedisUnfit, else ReplyError."""
        (reply,) = await self.send(pack(command), 1, timeout)
        raise_error(reply)
        return reply

    async def ask_all(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]:
        """Send many commands at once; -> their replies. The first error reply is raised as by `ask`."""
        packed = [pack(command) for command in commands]
        replies = await self.send(b"".join(packed), len(packed), timeout) if packed else []
        for reply in replies:
            raise_error(reply)
        return replies

    def close(self, why: str = "closed") -> None:
        if not self.closed:
            self._why = why
            self._transport.abort()
            self._end()

    def while_open(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside this link; it is cancelled when the link ends."""
        self._beside = self._loop.create_task(work)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._received_at = self._loop.time()
        reader = self._reader
        reader.feed(data)
        replies = self._replies
        gets = reader.gets
        waiting = self._waiting
        while waiting:
            future, wanted, _ = waiting[0]
            while len(replies) < wanted:
                reply = gets()
                if reply is Ellipsis:
                    return
                replies.append(reply)
            waiting.popleft()
            self._replies = []
            if not future.done():  # a caller that gave up must not shift the replies of the next
                future.set_result(replies)
            replies = self._replies

    def connection_lost(self, error: BaseException | None) -> None:
        if not self.closed:
            self._why = f"the connection to Redis was lost ({error or 'closed by the server'})"
            self._end()

    def eof_received(self) -> bool:
        return False

    def _end(self) -> None:
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._beside is not None:
            self._beside.cancel()
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(RedisAway(self._why))
                future.exception()  # seen: whoever asked ahead may never come for the answer

    def _check(self) -> None:
        """One timer for the whole connection: a timer per command would cost more than the command."""
        self._watchdog = None
        if not self._waiting:
            return
        # a loop that stood still finds old deadlines and fresh answers: what arrives proves that the server is there
        deadline = max(self._waiting[0][2], self._received_at + REPLY_SECONDS)
        if self._loop.time() >= deadline:
            self.close("Redis does not answer")
        else:
            self._watchdog = self._loop.call_at(deadline, self._check)

    _transport: asyncio.Transport
    _writer: asyncio.StreamWriter


def check_url(url: str) -> redis_py.ConnectionPool:
    """ConfigError unless `url` names one server. Nothing is connected."""
    try:
        database = urlsplit(url)
        if database.scheme in ("redis", "rediss") and not re.fullmatch(r"/?|/\d+", database.path):
            # redis-py takes what is no number for database 0
            if "@" in database.path:  # the rest of a password: not to be shown
                raise ConfigError(f"--redis {redact(url)}: write / ? # @ in user and password as %2F %3F %23 %40")
            raise ConfigError(f"--redis {redact(url)}: the database {database.path[1:]!r} is no number; write redis://host:port/0")
        return redis_py.ConnectionPool.from_url(
            url, protocol=2, retry=Retry(NoBackoff(), 0), socket_connect_timeout=_CONNECT_SECONDS, socket_timeout=REPLY_SECONDS
        )
    except ValueError as error:
        raise ConfigError(f"--redis {redact(url)}: {error}") from None


_OPTIONS = frozenset(("username", "password", "db", "client_name", "socket_timeout", "socket_connect_timeout", "socket_keepalive"))
"""What may stand after the `?`, besides redis-py's `ssl_...`. The rest of redis-py's options are settled here (`protocol`: what is parsed
is RESP2) or do nothing on a raw connection."""
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def check_options(url: str) -> None:
    """ConfigError unless what `url` says after its `?` is known, fits its scheme, and names files that can be read."""
    shown, tls = redact(url), url.startswith("rediss://")
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name.startswith("ssl_"):
            if not tls:
                raise ConfigError(f"--redis {shown}: {name} is for TLS; write rediss instead of redis")
        elif name not in _OPTIONS:
            raise ConfigError(f"--redis {shown}: unknown option {name!r}; there are ssl_..., {', '.join(sorted(_OPTIONS))}")
        if name in _FILES:
            try:
                Path(value).open("rb").close()
            except OSError as error:
                raise ConfigError(f"--redis {shown}: {name}: cannot read {value}: {error.strerror}") from None
    try:
        check_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError) as error:  # TypeError: it has no such ssl_ option
        raise ConfigError(f"--redis {shown}: {str(error).partition('() ')[2] or error}") from None


_tls_contexts: dict[tuple[object, ...], RedisSSLContext] = {}


def _share_tls(connection: redis_py.SSLConnection, url: str) -> None:
    """All connections of one URL use one TLS context, until a file of it changes. redis-py makes one per connection and each time
    reads all the CAs of the system: 20 to 60 ms in which the loop stands still, for 64 shards on a cluster longer than they wait."""
    options = [(name, value) for name, value in parse_qsl(urlsplit(url).query) if name.startswith("ssl_")]
    files = (Path(value) for name, value in options if name in _FILES)
    key = (*options, *(file.stat().st_mtime_ns if file.exists() else 0 for file in files))
    if key not in _tls_contexts:
        _tls_contexts.clear()
        _tls_contexts[key] = connection.ssl_context
    connection.ssl_context = _tls_contexts[key]


def _remedy(url: str, error: Exception) -> str:
    """What the operator can do about a server that could not be reached."""
    if "CERTIFICATE_VERIFY" in str(error):
        return "name the file of the CA that signed its certificate: rediss://...?ssl_ca_certs=FILE"
    if "CERTIFICATE_REQUIRED" in str(error):
        return "it wants a certificate of ours: rediss://...?ssl_certfile=FILE&ssl_keyfile=FILE"
    # it hung up on our first words; which error that is depends on who is faster
    hung_up = any(sign in str(error) for sign in ("reset by peer", "Connection lost", "closed by server", "Broken pipe"))
    if hung_up and not url.startswith("rediss:"):
        return "if it speaks TLS, write rediss instead of redis"
    if isinstance(error, TimeoutError) and url.startswith("rediss:"):
        return "if it speaks no TLS, write redis instead of rediss"
    return "start one, or name another with --redis"


NOT_HERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED")
"""This server does not serve this key, or not now: it is starting, was demoted, or the slot is on its way to another node. The
command was not executed; another server will take it, or this one a little later."""
_REFUSALS = ("MISCONF", "NOPERM", "NOREPLICAS", "OOM", "WRONGTYPE")
"""What the operator can mend; any other error reply to a command of ours is a bug."""


def raise_error(reply: Reply) -> None:
    """RedisAway, RedisUnfit or the ReplyError itself if `reply` is an error."""
    if isinstance(reply, ReplyError):
        if str(reply).startswith(NOT_HERE):
            raise RedisAway(f"Redis is not ready: {reply}")
        if str(reply).startswith("NOAUTH"):
            raise RedisUnfit("Redis wants a password; put it into the URL: redis://:password@host:port/0")
        if str(reply).startswith(_REFUSALS):
            raise RedisUnfit(f"Redis refuses: {reply}")
        raise reply


async def open_checked(url: str) -> Link:
    """Connect and make sure that this server may carry a bus; RedisUnfit says the command that mends it."""
    link = await Link.open(url)
    await check_fit(link, redact(url))
    return link


_SENTINEL_TOLD = "is a sentinel; write redis+sentinel://host:port/<master name>/0"
_CLUSTER_TOLD = "is a node of a cluster; write redis+cluster://host:port"


async def check_alone(link: Link, where: str) -> None:
    """Closes the link and raises RedisUnfit if this server is a sentinel or part of a cluster. For those who only read: any user may ask."""
    try:
        fields = await link.ask("HELLO")
    except (ReplyError, RedisUnfit):  # not even that is allowed: what follows will tell
        return
    mode = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"mode")
    if mode in (b"sentinel", b"cluster"):
        link.close()
        raise RedisUnfit(f"Redis at {where} {_SENTINEL_TOLD if mode == b'sentinel' else _CLUSTER_TOLD}")


async def check_fit(link: Link, where: str, cluster: bool = False) -> None:
    """Closes the link and raises RedisUnfit, with the remedy, unless this server may carry a bus. `cluster`: it may be a node of one."""
    info = _parse_info(await ask_permitted(link, "INFO"))
    if problem := _problem(info, cluster):
        link.close()
        raise RedisUnfit(f"Redis at {where} {problem}")
    if info.get("aof_enabled") == "0":
        log.warning("Redis at %s keeps no append-only file: a restart of it loses the bus; mend it with: redis-cli CONFIG SET appendonly yes", where)


async def ask_permitted(link: Link, command: str) -> Reply:
    """As `ask`; closes the link on an error, and says how to allow what the user may not do."""
    try:
        return await link.ask(command)
    except RedisUnfit as error:
        link.close()
        raise RedisUnfit(f"{error}{f'; allow it: ACL SETUSER <user> +{command.lower()}' if 'NOPERM' in str(error) else ''}") from None
    except RedisAway:
        link.close()
        raise


def _problem(info: dict[str, str], cluster: bool) -> str | None:
    version = info.get("valkey_version") or info.get("redis_version", "0")
    if int(version.partition(".")[0]) < 7:
        return f"is version {version}; tickbus needs Redis or Valkey 7 or newer"
    if info.get("redis_mode") == "sentinel":
        return _SENTINEL_TOLD
    if info.get("loading") == "1":
        return "is still loading its data; wait and start again"
    if info.get("cluster_enabled") == "1" and not cluster:
        return _CLUSTER_TOLD
    if info.get("cluster_enabled") == "0" and cluster:
        return "is no node of a cluster; write redis://host:port/0"
    if info.get("role") == "slave":
        return "is a replica; name the master"
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        return (
            f"has maxmemory-policy {policy}, which deletes ticks when memory is short; mend it with: redis-cli CONFIG SET maxmemory-policy noeviction"
        )
    return None


async def set_clock(link: Link, clock: BusClock) -> None:
    asked = monotonic_ns()
    seconds, micros = await link.ask("TIME")
    clock.set((int(seconds), int(micros)), asked, monotonic_ns())


def _parse_info(text: bytes) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}
