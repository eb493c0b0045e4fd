"""Wants: an app asks the gateway of a feed to subscribe to symbols, for as long as it keeps asking."""

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from types import TracebackType

from tickbus.errors import ConfigError, RedisError, RedisMisconfigured, RelayRefused
from tickbus.protocol.names import FEED_KINDS, Keys, check_name, check_symbol
from tickbus.protocol.wants import WANT_TTL_MS, Topic, check_holder, check_ttl
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.topology import locate
from tickbus.redis.wants import drop_wants, next_score, put_wants, renew_wants, take_wants
from tickbus.units import MILLISECOND

log = logging.getLogger("tickbus")

_CLOSE_SECONDS = 2.0
_RETRY_SECONDS = 0.5


def make_holder(name: str = "") -> str:
    """Return a name for a holder of wants that no other process has: `name-host-pid-random`."""
    host = "".join(char if char.isalnum() or char in ".-" else "-" for char in socket.gethostname())[:64]
    parts = [name, host or "host", str(os.getpid()), secrets.token_hex(3)]
    return check_holder("-".join(part for part in parts if part))


def make_topics(kind: str | Collection[str], symbols: Collection[str]) -> list[Topic]:
    """Return the topics of some symbols, each once. ConfigError for invalid arguments."""
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    for one in kinds:
        if one not in FEED_KINDS:
            raise ConfigError(
                f"invalid kind {one!r}: expected {' or '.join(FEED_KINDS)}; services make the others"
            )
    if isinstance(symbols, str) or not symbols:
        raise ConfigError(f"invalid symbols {symbols!r}: expected a list of at least one, e.g. ['BTC-USDT']")
    return [Topic(one, check_symbol(symbol)) for one in kinds for symbol in dict.fromkeys(symbols)]


class Lease(ABC):
    """What one holder wants of one feed, kept alive by a thread of its own: a busy loop does not end it.

    `add` and `take` return at once; the bus is told as soon as it answers.
    """

    errors: tuple[type[Exception], ...] = (OSError,)
    """What is raised while the bus does not answer, or refuses."""
    refusals: tuple[type[Exception], ...] = (RedisMisconfigured, RelayRefused)
    """Those of them that trying again hardly changes: `wait_until_told` raises them."""

    def __init__(self, feed: str, holder: str, ttl_ms: int = WANT_TTL_MS) -> None:
        """ttl_ms: how long the wants outlive the last renewal. ConfigError for invalid arguments."""
        self.feed = check_name(feed)
        self.holder = check_holder(holder)
        self._ttl_ms = check_ttl(ttl_ms)
        self._wants: dict[Topic, int] = {}
        self._new: set[Topic] = set()
        """Those that the bus may not know yet."""
        self._taken: set[Topic] = set()
        """Those that are not wanted any more, and that the bus may still have."""
        self._changed = threading.Event()
        self._stopping = False
        self._told = threading.Condition()
        self._revision = self._told_revision = 0
        self._refusal: Exception | None = None
        self._thread: threading.Thread | None = None

    def add(self, topics: Iterable[Topic]) -> None:
        """Want these too."""
        now = time.time_ns() // MILLISECOND
        with self._told:
            new = [topic for topic in topics if topic not in self._wants]
            self._wants |= dict.fromkeys(new, now)
            self._new |= set(new)
            self._taken -= set(new)
            self._revision += bool(new)
        self._wake()

    def take(self, topics: Iterable[Topic]) -> None:
        """Do not want these any more."""
        with self._told:
            for topic in topics:
                if self._wants.pop(topic, None) is not None:
                    self._taken.add(topic)
                    self._new.discard(topic)
                    self._revision += 1
        self._wake()

    def wait_until_told(self, timeout: float) -> bool:
        """Wait, for so many seconds, until the bus knows what is wanted now. Return whether it does.

        RedisMisconfigured or RelayRefused if it refuses.
        """
        with self._told:
            wanted = self._revision
            self._told.wait_for(lambda: self._told_revision >= wanted or self._refusal is not None, timeout)
            if self._refusal is not None:
                raise self._refusal
            return self._told_revision >= wanted

    @property
    def stopped(self) -> bool:
        return self._stopping

    def stop(self) -> None:
        """End all wants, without waiting until the bus has been told."""
        self._stopping = True
        self._changed.set()

    def close(self) -> None:
        """End all wants. Waits a moment for the bus to be told; if it is away, they end by themselves."""
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)

    def _wake(self) -> None:
        self._changed.set()
        if self._thread is None and self._wants:
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._keep()), name="tickbus-wants", daemon=True
            )
            self._thread.start()

    async def _keep(self) -> None:
        failed = False
        while not self._stopping:
            wait = self._ttl_ms / 3000
            try:
                await self._tell_all()
                if failed:
                    log.info("wants of %s are kept alive again", self.holder)
                failed = False
            except self.errors as error:
                self._note_refusal(error)
                if not failed:
                    log.warning("wants of %s cannot be kept alive: %s; retrying", self.holder, error)
                failed, wait = True, _RETRY_SECONDS
                await asyncio.sleep(_RETRY_SECONDS / 5)  # also if something changes all the time
            await asyncio.to_thread(self._changed.wait, wait)
        with suppress(TimeoutError, *self.errors):
            async with asyncio.timeout(_CLOSE_SECONDS / 2):
                await self._end()
        await asyncio.sleep(0)  # sockets close in the next turn of the loop, which ends now

    def _note_refusal(self, error: Exception) -> None:
        if isinstance(error, self.refusals):
            with self._told:
                self._refusal = error
                self._told.notify_all()

    async def _tell_all(self) -> None:
        with self._told:
            self._changed.clear()
            revision, wants = self._revision, dict(self._wants)
            new, taken = set(self._new), set(self._taken)
        await self._tell(wants, new, taken)
        with self._told:
            self._new -= new
            self._taken -= taken
            self._told_revision, self._refusal = max(self._told_revision, revision), None
            self._told.notify_all()

    @abstractmethod
    async def _tell(
        self, wants: Mapping[Topic, int], new: Collection[Topic], taken: Collection[Topic]
    ) -> None:
        """Tell the bus what is wanted, since when (ms); of that, what is new, and what is wanted no more."""

    @abstractmethod
    async def _end(self) -> None:
        """Tell the bus that nothing is wanted any more, if it is connected."""


class WantLease(Lease):
    """A lease in Redis: a hash that expires, renewed every third of its life."""

    errors = (RedisError, ReplyError, OSError)

    def __init__(self, url: str, keys: Keys, feed: str, holder: str, ttl_ms: int = WANT_TTL_MS) -> None:
        super().__init__(feed, holder, ttl_ms)
        self._url = url
        self._keys = keys
        self._score = 0
        self._connection: Connection | None = None

    async def _tell(
        self, wants: Mapping[Topic, int], new: Collection[Topic], taken: Collection[Topic]
    ) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = await locate(self._url).connect()
        ask, names = self._connection.ask_all, (self._keys, self.feed, self.holder)
        if new or taken:
            self._score = next_score(self._score)
        if taken:
            await ask(take_wants(*names, taken, self._score))
        if new:
            await ask(put_wants(*names, {topic: wants[topic] for topic in new}, self._score, self._ttl_ms))
        elif wants:
            renewed, _ = await ask(renew_wants(*names, self._score, self._ttl_ms))
            if not renewed:  # Redis lost them
                self._score = next_score(self._score)
                await ask(put_wants(*names, wants, self._score, self._ttl_ms))

    async def _end(self) -> None:
        if self._connection is not None and not self._connection.closed:
            try:
                await self._connection.ask_all(drop_wants(self._keys, self.feed, self.holder))
            finally:
                self._connection.close()


class Want:
    """What an app wants of a feed while it is inside: `with bus.want(...)`, or `async with`.

    The gateway subscribes to it within a second or so, as fast as the vendor allows, and ends it a while
    after nobody wants it any more (its `--linger`). `bus.subscriptions` says what became of it. A thread
    renews it, so it lasts however busy the program is. Should the process die, its wants end by themselves
    after `lease`; should the bus be away, they are told to it when it is back.

        async with bus.want("trade", symbols=["ETH-USDT"], feed="binance"):
            async for tick in bus.read("trade", symbols=["ETH-USDT"]):
                ...
    """

    def __init__(self, lease: Lease, topics: Collection[Topic]) -> None:
        self._lease = lease
        self._topics = topics
        # whoever loses it without leaving it wants nothing any more
        self._finalizer = weakref.finalize(self, lease.stop)

    @property
    def holder(self) -> str:
        """The name under which the wants stand in Redis; behind a relay they stand under the relay's."""
        return self._lease.holder

    def add(self, symbols: Collection[str], kind: str | Collection[str] = "trade") -> None:
        """Want these too; returns at once. ConfigError for invalid arguments, and once it has ended."""
        self._check_open()
        self._lease.add(make_topics(kind, symbols))

    def drop(self, symbols: Collection[str], kind: str | Collection[str] = "trade") -> None:
        """Do not want these any more; what is not wanted is no error. ConfigError for invalid arguments."""
        self._lease.take(make_topics(kind, symbols))

    def open(self) -> None:
        """Begin to want; returns when the bus has been told, or after two seconds while it is away.

        RedisMisconfigured or RelayRefused if it refuses. ConfigError if it has ended before.
        """
        self._check_open()
        self._lease.add(self._topics)
        try:
            self._lease.wait_until_told(_CLOSE_SECONDS)
        except (RedisMisconfigured, RelayRefused):
            self.stop()
            raise

    def _check_open(self) -> None:
        if self._lease.stopped:
            raise ConfigError("this want has ended: make a new one with bus.want(...)")

    def stop(self) -> None:
        """End the wants, without waiting until the bus has been told."""
        self._finalizer()

    def close(self) -> None:
        """End the wants; waits a moment, until the bus has been told."""
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
