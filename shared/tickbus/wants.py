"""Wants: an app asks the gateway of a feed to subscribe to symbols, for as long as it keeps asking."""

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Collection, Iterable
from contextlib import suppress
from types import TracebackType

from tickbus.errors import ConfigError, RedisError
from tickbus.protocol.names import FEED_KINDS, Keys, check_name, check_symbol
from tickbus.protocol.wants import WANT_TTL_MS, Topic, check_holder, check_ttl
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.topology import locate
from tickbus.redis.wants import drop_wants, next_score, put_wants, renew_wants, take_wants

log = logging.getLogger("tickbus")

_CLOSE_SECONDS = 2.0
_RETRY_SECONDS = 0.5


def make_holder(name: str = "") -> str:
    """Return a name for a holder of wants that no other process has: `name-host-pid-random`."""
    host = "".join(char if char.isalnum() or char in ".-" else "-" for char in socket.gethostname())[:64]
    parts = [name, host or "host", str(os.getpid()), secrets.token_hex(3)]
    return check_holder("-".join(part for part in parts if part))


def make_topics(kind: str | Collection[str], symbols: Collection[str]) -> list[Topic]:
    """Return the topics. ConfigError for invalid arguments."""
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    for one in kinds:
        if one not in FEED_KINDS:
            raise ConfigError(
                f"invalid kind {one!r}: expected {' or '.join(FEED_KINDS)}; services make the others"
            )
    if isinstance(symbols, str) or not symbols:
        raise ConfigError(f"invalid symbols {symbols!r}: expected a list of at least one, e.g. ['BTC-USDT']")
    return [Topic(one, check_symbol(symbol)) for one in kinds for symbol in dict.fromkeys(symbols)]


class WantLease:
    """What one holder wants of one feed, kept alive by a thread of its own: a busy loop does not end it.

    `add` and `take` return at once; Redis is told as soon as it answers.
    """

    def __init__(self, url: str, keys: Keys, feed: str, holder: str, ttl_ms: int = WANT_TTL_MS) -> None:
        self.feed = check_name(feed)
        self.holder = check_holder(holder)
        self._url = url
        self._keys = keys
        self._ttl_ms = check_ttl(ttl_ms)
        self._wants: dict[Topic, int] = {}
        self._taken: set[Topic] = set()
        """Those that are not wanted any more, and that Redis may still have."""
        self._new: set[Topic] = set()
        """Those that Redis may not have yet."""
        self._score = 0
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stopping = False
        self._told = threading.Condition(self._lock)
        self._revision = self._told_revision = 0
        self._thread: threading.Thread | None = None

    def add(self, topics: Iterable[Topic]) -> None:
        """Want these too."""
        now = time.time_ns() // 1_000_000
        with self._lock:
            new = [topic for topic in topics if topic not in self._wants]
            self._wants |= dict.fromkeys(new, now)
            self._new |= set(new)
            self._taken -= set(new)
            self._revision += bool(new)
        self._wake()

    def take(self, topics: Iterable[Topic]) -> None:
        """Do not want these any more."""
        with self._lock:
            for topic in topics:
                if self._wants.pop(topic, None) is not None:
                    self._taken.add(topic)
                    self._new.discard(topic)
                    self._revision += 1
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        if self._thread is None and self._wants:
            self._thread = threading.Thread(target=self._run, name="tickbus-wants", daemon=True)
            self._thread.start()

    def wait_until_told(self, timeout: float) -> bool:
        """Wait until Redis has what is wanted now. Return whether it has."""
        with self._told:
            wanted = self._revision
            return self._told.wait_for(lambda: self._told_revision >= wanted or self._stopping, timeout)

    def stop(self) -> None:
        """End all wants, without waiting until Redis has been told."""
        self._stopping = True
        self._changed.set()

    def close(self) -> None:
        """End all wants. Waits a moment for Redis to be told; if it is away, they end by themselves."""
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._keep())

    async def _keep(self) -> None:
        connection: Connection | None = None
        failed = ""
        while not self._stopping:
            wait = self._ttl_ms / 3000
            try:
                if connection is None or connection.closed:
                    connection = await locate(self._url).connect()
                await self._tell(connection)
                if failed:
                    log.info("wants of %s are kept alive again", self.holder)
                failed = ""
            except (RedisError, ReplyError, OSError) as error:
                if not failed:
                    log.warning(
                        "wants of %s for %s cannot be kept alive: %s; retrying", self.holder, self.feed, error
                    )
                failed, wait = str(error), _RETRY_SECONDS
            await asyncio.to_thread(self._changed.wait, wait)
            if failed:
                await asyncio.sleep(_RETRY_SECONDS / 5)  # also if something changes all the time
        if connection is not None:
            with suppress(RedisError, ReplyError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS / 2):
                    await connection.ask_all(drop_wants(self._keys, self.feed, self.holder))
            connection.close()

    async def _tell(self, connection: Connection) -> None:
        with self._lock:
            self._changed.clear()
            revision, wants = self._revision, dict(self._wants)
            new, taken = dict.fromkeys(self._new), set(self._taken)
        if new or taken:
            self._score = next_score(self._score)
        if taken:
            await connection.ask_all(take_wants(self._keys, self.feed, self.holder, taken, self._score))
        if not wants:
            pass  # the hash is empty, and so gone
        elif new:
            fields = {topic: wants[topic] for topic in new if topic in wants}
            if fields:
                await connection.ask_all(
                    put_wants(self._keys, self.feed, self.holder, fields, self._score, self._ttl_ms)
                )
        else:
            renewed, _ = await connection.ask_all(
                renew_wants(self._keys, self.feed, self.holder, self._score, self._ttl_ms)
            )
            if not renewed:  # Redis lost them
                self._score = next_score(self._score)
                await connection.ask_all(
                    put_wants(self._keys, self.feed, self.holder, wants, self._score, self._ttl_ms)
                )
        with self._told:
            self._new -= new.keys()
            self._taken -= taken
            self._told_revision = max(self._told_revision, revision)
            self._told.notify_all()


class Want:
    """What an app wants of a feed while it is inside: `with bus.want(...)`, or `async with`.

    The gateway subscribes to it within a second or so, as fast as the vendor allows, and ends it a while
    after nobody wants it any more (its `--linger`). `bus.subscriptions` says what became of it. Should the
    process die, its wants end by themselves after `lease`.

        async with bus.want("trade", symbols=["ETH-USDT"], feed="binance"):
            async for tick in bus.read("trade", symbols=["ETH-USDT"]):
                ...
    """

    def __init__(self, lease: WantLease, topics: Collection[Topic]) -> None:
        self._lease = lease
        self._topics = topics
        # whoever loses it without leaving it wants nothing any more
        self._finalizer = weakref.finalize(self, lease.stop)

    @property
    def holder(self) -> str:
        """The name under which the wants stand in Redis."""
        return self._lease.holder

    def add(self, symbols: Collection[str], kind: str | Collection[str] = "trade") -> None:
        """Want these too."""
        self._lease.add(make_topics(kind, symbols))

    def drop(self, symbols: Collection[str], kind: str | Collection[str] = "trade") -> None:
        """Do not want these any more."""
        self._lease.take(make_topics(kind, symbols))

    def open(self) -> None:
        """Begin to want; returns when Redis has been told, or after two seconds while it is away."""
        self._lease.add(self._topics)
        self._lease.wait_until_told(_CLOSE_SECONDS)

    def stop(self) -> None:
        """End the wants, without waiting until Redis has been told."""
        self._finalizer()

    def close(self) -> None:
        """End the wants."""
        self._finalizer()
        self._lease.close()

    def __enter__(self) -> "Want":
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> "Want":
        await asyncio.to_thread(self.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
