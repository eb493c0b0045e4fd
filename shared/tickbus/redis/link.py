"""One raw connection to Redis: packed commands out, replies in, in order, nothing in between.

redis-py opens, secures and authenticates it (TLS, ACL, database); then hiredis packs and parses directly,
which on the hot path is several times faster than a client's own layers. It never retries: only the caller
knows what a repeat means.
"""

import asyncio
import re
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol, cast

import hiredis
import redis.asyncio as redis_py
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    RedisError,
    TimeoutError,
)

from tickbus.clock import BusClock, monotonic_ns
from tickbus.errors import RedisMisconfigured, RedisUnavailable
from tickbus.redis.client_options import REPLY_SECONDS, check_url, remedy, share_tls
from tickbus.redis.resp import Command, pack
from tickbus.sanitize import clean, redact

Reply = Any
ReplyError = hiredis.ReplyError


class Connection(Protocol):
    """Carries single commands: a Link, or on a cluster a ClusterLink, which routes each to its node."""

    @property
    def closed(self) -> bool: ...

    async def ask(self, *command: "bytes | str | int", timeout: float = REPLY_SECONDS) -> Reply: ...

    async def ask_all(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]: ...

    async def ask_each(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]: ...

    async def masters(self) -> "list[tuple[str, Link]]":
        """Return a link to each server that takes writes, with its address; '' if there is only one."""
        ...

    def close(self) -> None: ...


class Link(asyncio.Protocol):
    """An open connection. When it ends, every pending `ask` raises RedisUnavailable."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._waiting: deque[tuple[asyncio.Future[list[Reply]], int, float]] = deque()
        self._replies: list[Reply] = []
        self._loop = asyncio.get_running_loop()
        self._watchdog: asyncio.TimerHandle | None = None
        self._received_at = 0.0
        self._why = "closed"
        self._background: asyncio.Task[None] | None = None
        self.closed = False

    @classmethod
    async def open(cls, url: str) -> "Link":
        """Connect. RedisUnavailable if the server is down, RedisMisconfigured if it refuses the connection.

        ConfigError if `url` is invalid.
        """
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        pool = check_url(url)
        connection: redis_py.Connection | None = None
        try:
            # files are read here too, which fails while the process is out of descriptors
            connection = cast(redis_py.Connection, pool.make_connection())  # type: ignore[no-untyped-call]
            if isinstance(connection, redis_py.SSLConnection):
                share_tls(connection, url)
            await connection.connect()  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            if connection is not None:
                await connection.disconnect(nowait=True)
            raise
        except (AuthenticationError, AuthorizationError) as error:
            raise RedisMisconfigured(
                f"Redis at {redact(url)} rejected the login: {error}; put user and password into the URL"
            ) from None
        except (ConnectionError, TimeoutError, OSError) as error:
            why = str(error).rstrip(".") or "no reply"
            raise RedisUnavailable(f"no Redis at {redact(url)}: {why}; {remedy(url, error)}") from None
        except RedisError as error:
            raise RedisMisconfigured(f"Redis at {redact(url)}: {error}") from None
        link = cls()
        # the layer that is crossed: redis-py has no public way to hand over its socket
        link._writer = cast(asyncio.StreamWriter, connection._writer)
        link._transport = cast(asyncio.Transport, link._writer.transport)
        connection._reader = connection._writer = None
        link._transport.set_protocol(link)
        link._transport.resume_reading()
        # redis-py swallows a cancellation during its handshake
        if task is not None and task.cancelling() > cancelled:
            link.close()
            raise asyncio.CancelledError
        return link

    def send(
        self, packed: bytes, replies: int, timeout: float = REPLY_SECONDS
    ) -> "asyncio.Future[list[Reply]]":
        """Send commands. The future gives their replies, in order, with errors as ReplyError values."""
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        if self.closed:
            future.set_exception(RedisUnavailable(self._why))
            future.exception()  # retrieved, as in _end
            return future
        self._waiting.append((future, replies, self._loop.time() + timeout))
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(timeout, self._check)
        self._transport.write(packed)
        return future

    async def ask(self, *command: "bytes | str | int", timeout: float = REPLY_SECONDS) -> Reply:
        """Send one command and return its reply. Error replies are raised, as by `raise_error`."""
        (reply,) = await self.send(pack(command), 1, timeout)
        raise_error(reply)
        return reply

    async def ask_all(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]:
        """Send many commands at once and return their replies. Like `ask`, raise the first error reply."""
        packed = [pack(command) for command in commands]
        replies = await self.send(b"".join(packed), len(packed), timeout) if packed else []
        for reply in replies:
            raise_error(reply)
        return replies

    async def ask_each(self, commands: Iterable[Command], timeout: float = REPLY_SECONDS) -> list[Reply]:
        """Like `ask_all`, but what is wrong with one key alone is its reply: see `raise_common`."""
        packed = [pack(command) for command in commands]
        replies = await self.send(b"".join(packed), len(packed), timeout) if packed else []
        for reply in replies:
            raise_common(reply)
        return replies

    async def masters(self) -> "list[tuple[str, Link]]":
        return [("", self)]

    def close(self, why: str = "closed") -> None:
        if not self.closed:
            self._why = why
            self._transport.abort()
            self._end()

    def while_open(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the background; it is cancelled when the link ends."""
        self._background = self._loop.create_task(work)

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

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self._why = f"lost the connection to Redis ({exc or 'closed by the server'})"
            self._end()

    def eof_received(self) -> bool:
        return False

    def _end(self) -> None:
        self.closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._background is not None:
            self._background.cancel()
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(RedisUnavailable(self._why))
                future.exception()  # retrieved: a caller that pipelined may never await the reply

    def _check(self) -> None:
        """One timer for the whole connection: a timer per command would cost more than the command."""
        self._watchdog = None
        if not self._waiting:
            return
        # a loop that stalled finds old deadlines and fresh replies: any data proves that the server is up
        deadline = max(self._waiting[0][2], self._received_at + REPLY_SECONDS)
        if self._loop.time() >= deadline:
            self.close("Redis did not respond")
        else:
            self._watchdog = self._loop.call_at(deadline, self._check)

    _transport: asyncio.Transport
    _writer: asyncio.StreamWriter


NOT_HERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED")
"""This server does not serve this key, or not now: it is starting, was demoted, or the slot is migrating.
The command was not executed; another server will accept it, or this one a little later."""
_REFUSALS = ("MISCONF", "NOPERM", "NOREPLICAS", "OOM", "WRONGTYPE")
"""Errors that the operator can fix; any other error reply is a bug of tickbus."""


REFUSALS = (*_REFUSALS, "NOAUTH", "READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN")
"""The words with which a server begins its refusal of a command that it could execute otherwise."""
_REFUSAL = re.compile(rf"\b(?:{'|'.join(REFUSALS)})\b.*", re.DOTALL)


def refusal_in(problem: object) -> str:
    """Return the server's own words, if a problem is its refusal; empty if it does not answer at all."""
    found = _REFUSAL.search(str(problem))
    return clean(found[0]) if found is not None else ""


def raise_error(reply: Reply) -> None:
    """Raise an error reply: as RedisUnavailable while this server cannot serve the command, as
    RedisMisconfigured if the operator can fix it, else the ReplyError itself."""
    if isinstance(reply, ReplyError):
        if str(reply).startswith(NOT_HERE):
            raise RedisUnavailable(f"Redis is not ready: {reply}")
        if str(reply).startswith("NOAUTH"):
            raise RedisMisconfigured(
                f"Redis requires a password ({reply}); put it into the URL: redis://:password@host:port/0"
            )
        if str(reply).startswith(_REFUSALS):
            raise RedisMisconfigured(f"Redis rejected the command: {reply}")
        raise reply


def raise_common(reply: Reply) -> None:
    """Like `raise_error`, unless the error concerns only the key of the command: another type is stored
    there, as some other program wrote it, or nothing."""
    if not is_of_key(reply):
        raise_error(reply)


def is_of_key(reply: Reply) -> bool:
    """Whether this is an error reply about the key of the command alone."""
    return isinstance(reply, ReplyError) and str(reply).startswith(("WRONGTYPE", "ERR no such key"))


async def set_clock(link: "Connection", clock: BusClock) -> None:
    sent_ns = monotonic_ns()
    seconds, micros = await link.ask("TIME")
    clock.set((int(seconds), int(micros)), sent_ns, monotonic_ns())
