"""How the bus is, for everybody who looks at a page: read once a second while somebody does. A reading that
takes long is followed by a pause 19 times as long, at most half a minute. It runs in a thread of its own."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from services.relay.selection import Scope
from tickbus.errors import RedisError
from tickbus.monitoring.status import BusStatus, FeedStatus, read_status
from tickbus.redis.link import ReplyError
from tickbus.redis.topology import locate

log = logging.getLogger("tickbus.relay")

_SECONDS = 1.0
_SHARE = 20
"""A reading that takes a second is followed by 19 without one."""
_MOST_SECONDS = 30.0
_FAULTS = 20

Told = Callable[[Mapping[str, Any]], None]


class Watch:
    """Somebody who is told, until `end`."""

    def __init__(self, health: "Health", scope: Scope, told: Told) -> None:
        self.scope = scope
        self.told = told
        self._health = health

    def end(self) -> None:
        self._health.leave(self)


class Health:
    def __init__(self, url: str, prefix: str, names_all: bool) -> None:
        """names_all: whether texts are shown that may name any stream; false where tokens allow only some."""
        self._url = url
        self._prefix = prefix
        self._names_all = names_all
        self._watches: dict[Watch, None] = {}
        self._wanted = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._status: BusStatus | None = None
        self._failure = "nobody has written to this bus yet"
        self._read_at = float("-inf")
        self._cost = 0.0
        self._states: dict[str, tuple[str, int | None]] = {}
        """Of each feed: its state, and since when, in ms of the bus; None: longer than we have looked."""

    def watch(self, scope: Scope, told: Told) -> Watch:
        """Tell somebody from now on, each time that the bus was read. scope: which feeds it may see."""
        watch = Watch(self, scope, told)
        self._watches[watch] = None
        self._wanted.set()
        return watch

    def leave(self, watch: Watch) -> None:
        self._watches.pop(watch, None)

    async def current(self, scope: Scope) -> Mapping[str, Any]:
        """Return how the bus is, read at most a second ago, or as long as reading it costs much."""
        if time.monotonic() - self._read_at > self._pause():
            await self._read()
        return self._describe(scope)

    async def run(self) -> None:
        """Tell those who watch, until cancelled."""
        while True:
            if not self._watches:
                self._wanted.clear()
                await self._wanted.wait()
            await self._read()
            described: dict[Scope, Mapping[str, Any]] = {}
            for watch in list(self._watches):
                if watch.scope not in described:
                    described[watch.scope] = self._describe(watch.scope)
                watch.told(described[watch.scope])
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        return min(max(_SECONDS, _SHARE * self._cost), _MOST_SECONDS)

    async def _read(self) -> None:
        """Read the bus, once for all who ask meanwhile."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_once(), name="health")
        await asyncio.shield(self._reading)

    async def _read_once(self) -> None:
        try:
            began = time.monotonic()
            self._status = await asyncio.to_thread(_read_in_thread, self._url, self._prefix)
            self._failure = "nobody has written to this bus yet"
            self._cost = time.monotonic() - began
        except (RedisError, ReplyError) as error:
            if self._status is not None or str(error) != self._failure:
                log.warning("the page cannot show how the bus is: %s", error)
            self._status, self._failure = None, str(error)
        self._read_at = time.monotonic()
        if self._status is not None:
            self._follow_states(self._status)

    def _follow_states(self, status: BusStatus) -> None:
        first = not self._states
        for feed in status.feeds:
            before = self._states.get(feed.name)
            if before is None or before[0] != feed.state:
                self._states[feed.name] = feed.state, None if first else status.time_ms

    def _describe(self, scope: Scope) -> Mapping[str, Any]:
        status = self._status
        if status is None:
            reason = self._failure if self._names_all else "the bus cannot be read now"
            return {"time": None, "reason": reason, "feeds": [], "services": [], "relays": [], "faults": []}
        return {
            "time": status.time_ms,
            "reason": "",
            "feeds": [
                self._feed(feed) for feed in status.feeds if not scope.feeds or feed.name in scope.feeds
            ],
            "services": [
                {
                    "name": service.name,
                    "replicas": sum(member.alive for member in service.members),
                    "free": service.free,
                    "ticks": service.ticks,
                    "seconds": round(service.seconds, 3),
                    "lost": service.lost,
                    "headroom": None if service.headroom is None else round(service.headroom, 1),
                }
                for service in status.services
            ],
            "relays": [
                {
                    "clients": relay.clients,
                    "streams": relay.streams,
                    "in_flight": relay.in_flight,
                    "subscriptions": relay.subscriptions,
                }
                for relay in status.relays
            ],
            "faults": [*status.refusals, *status.faults][:_FAULTS] if self._names_all else [],
        }

    def _feed(self, feed: FeedStatus) -> Mapping[str, Any]:
        return {
            "name": feed.name,
            "state": feed.state,
            "since": self._states[feed.name][1],
            "clock_age": feed.clock_age,
            "last_tick_age": feed.last_tick_age,
            "streams": len(feed.streams),
            "silent": len(feed.silent),
            "gaps": feed.gaps,
            "missing": feed.missing,
            "repaired": feed.repaired,
            "subscriptions": feed.subscribed,
            "standby": feed.standby is not None,
        }


def _read_in_thread(url: str, prefix: str) -> BusStatus | None:
    return asyncio.run(_ask(url, prefix))


async def _ask(url: str, prefix: str) -> BusStatus | None:
    connection = await locate(url).connect()
    try:
        return await read_status(connection, prefix)
    finally:
        connection.close()
