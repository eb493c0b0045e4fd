"""The relay's place on the bus: once a second it reports itself for `tickbus status`, sets its bus clock, and
sees whether Redis answers. It has a connection of its own, and no delivery waits for it."""

import asyncio
import logging
from contextlib import suppress

from services.relay.census import Census, take_census
from services.relay.hub import Hub
from services.relay.server import RelayServer
from tickbus.errors import RedisError, RedisMisconfigured
from tickbus.monitoring.relays import RelayReport, remove_relay, write_relay
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, ReplyError, set_clock
from tickbus.redis.topology import Redis
from tickbus.service.runner import Service
from tickbus.writer.holder import new_holder

log = logging.getLogger("tickbus.relay")

_SECONDS = 1.0
_TTL_MS = 5_000


class Presence:
    def __init__(self, redis: Redis, keys: Keys, hub: Hub, server: RelayServer, service: Service) -> None:
        """service: its readiness follows that of Redis."""
        self.census = Census()
        """The newest."""
        self.url = ""
        """Where the relay listens."""
        self._redis = redis
        self._keys = keys
        self._hub = hub
        self._server = server
        self._service = service
        self._name = new_holder()
        self._connection: Connection | None = None
        self._refused = ""

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self.census = await take_census(self._hub, self._server)
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = await self._redis.connect()
                await set_clock(self._connection, self._hub.clock)
                await self._report(self._connection)
                self._service.ready = True
            except RedisError:
                # the reader of the bus logs it; clients stay connected
                self._service.ready, self._service.why_not_ready = False, "Redis is unavailable"
            await asyncio.sleep(_SECONDS)

    def status(self, with_clients: bool) -> dict[str, object]:
        """Return what `/api/status` says. with_clients: whether it names the clients."""
        census = self.census
        status: dict[str, object] = {
            "up": self._service.ready,
            "clients": self._server.clients,
            "streams": len(self._hub.followed),
            "protocols": census.protocols,
            "subscriptions": census.subscriptions,
            "in_flight": sum(census.in_flight.values()),
        }
        return status | {"listed": census.listed} if with_clients else status

    async def close(self) -> None:
        """Take the report back, if Redis takes it now; else it expires."""
        if self._connection is not None:
            with suppress(RedisError, ReplyError, TimeoutError):
                async with asyncio.timeout(1):
                    await remove_relay(self._connection, self._keys, self._name)
            self._connection.close()

    async def _report(self, connection: Connection) -> None:
        census, hub = self.census, self._hub
        report = RelayReport(
            self._name, self.url, census.clients, len(hub.followed), dict(census.subscriptions),
            sum(census.in_flight.values()), census.listed,
        )  # fmt: skip
        try:
            await write_relay(connection, self._keys, report, hub.clock.now_ms(), _TTL_MS)
            self._refused = ""
        except (RedisMisconfigured, ReplyError) as error:
            if str(error) != self._refused:
                self._refused = str(error)
                log.warning("tickbus status cannot show this relay: %s; see docs/security.md", error)
