"""Looks twice a second what is wanted, and lets the gateway subscribe to it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from services.gateway.subscriptions.streams import Streams
from services.gateway.subscriptions.table import SubscriptionTable
from services.gateway.subscriptions.wants import WantBook
from tickbus.errors import RedisError
from tickbus.protocol.names import Keys
from tickbus.protocol.wants import Topic
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.wants import MARK, WantsReader
from tickbus.units import SECOND

log = logging.getLogger("tickbus.gateway")

_SECONDS = 0.5
_PAUSE_NS = 5 * SECOND
"""A longer pause between two looks is an interruption: Redis was away, or holders were paused with us."""
__all__ = ["MARK", "SubscriptionKeeper"]


class SubscriptionKeeper:
    """The task that turns wants into subscriptions: `run`."""

    def __init__(
        self,
        name: str,
        keys: Keys,
        table: SubscriptionTable,
        book: WantBook,
        streams: Streams,
        connect: Callable[[], Awaitable[Connection]],
        now_ms: Callable[[], int],
        stamp: Callable[[], int],
        histories_lost: Callable[[], int],
    ) -> None:
        """now_ms: returns the time of the bus, which nobody sets.

        stamp: returns a receive time. histories_lost: how often Redis lost its data.
        """
        self._name = name
        self._table = table
        self._book = book
        self._streams = streams
        self._connect = connect
        self._now_ms = now_ms
        self._stamp = stamp
        self._histories_lost = histories_lost
        self._lost = 0
        self._reader = WantsReader(keys, name)
        self._failing = False
        self._looked_at = 0
        """When it looked last, by the wall clock: also a machine that sleeps is a pause."""

    async def read_wanted(self, link: Connection) -> Collection[Topic]:
        """Return what is wanted now, of what may be; nothing if it cannot be read."""
        if self._book.policy.enabled:
            with suppress(RedisError, ReplyError):  # `run` says so
                await self._read(link, self._now_ms())
        return self._book.wanted().topics

    async def run(self) -> None:
        """Look until cancelled. While Redis is away nothing changes: what is subscribed to stays so."""
        link: Connection | None = None
        try:
            while True:
                try:
                    if link is None or link.closed:
                        self._book.interrupt()
                        link = await self._connect()
                    await self._look(link)
                    self._failing = False
                except (RedisError, ReplyError) as error:
                    self._book.interrupt()
                    if not self._failing:
                        log.warning("%s: wants cannot be read: %s; retrying", self._name, error)
                    self._failing = True
                await asyncio.sleep(_SECONDS)
        finally:
            if link is not None:
                link.close()

    async def _look(self, link: Connection) -> None:
        now, wall = self._now_ms(), time.time_ns()
        if not 0 <= wall - self._looked_at <= _PAUSE_NS:
            self._book.interrupt()
        self._looked_at = wall
        if self._lost != (lost := self._histories_lost()):
            self._lost = lost
            self._book.interrupt()
            self._table.store_again()
        if self._book.policy.enabled:
            if self._book.policy.reload():
                self._reader.read_all_again()
            await self._read(link, now)
        self._book.read(now)
        self._book.forget_idle(now)
        wanted = self._book.wanted()
        self._table.update(wanted.topics, wanted.rejected, self._book.settled(now), now)
        self._streams.end(self._table.take_ended(), self._stamp())
        if opening := self._table.to_open():
            refused = await self._streams.open(link, opening)
            for topic, why in refused.items():
                log.warning("%s: %s %s is refused: %s", self._name, topic.kind, topic.symbol, why)
                self._table.refuse([topic], why)
            self._table.open([topic for topic in opening if topic not in refused])
            self._streams.end(self._table.take_ended(), self._stamp())
        self.store_changes()

    async def _read(self, link: Connection, now: int) -> None:
        found = await self._reader.read(link)
        if found.were_lost:
            self._book.interrupt()
        for holder, wants in found.changed.items():
            self._book.put(holder, wants, now)
        for holder in found.ended:
            self._book.forget(holder)

    def store_changes(self) -> None:
        """Let the states that changed be stored."""
        if changes := self._table.take_changes():
            self._streams.store(changes)
