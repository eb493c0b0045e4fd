"""The replicas of a service: each announces that it is alive, and sees who else is and who holds which shard.

Heartbeats are stored in the hash `tickbus:members:<service>`: token of the process -> bus ms until which it
counts as alive, by the server's own time, so that no machine's clock matters; negative once it has ended.
The holder of a shard is stored in its fence pair (tickbus.writer.fences). What to do about it is decided in
tickbus.consumer.assignment.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from tickbus.consumer.assignment import Plan, Watch, assign, plan
from tickbus.errors import RedisError
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.registry import read_heartbeat
from tickbus.redis.resp import milliseconds, pairs
from tickbus.units import MILLISECOND, SECOND, Duration
from tickbus.writer.fences import Fence, read_fence

log = logging.getLogger("tickbus.members")

_EXPIRY_TTLS = 10
"""The heartbeat of a dead member stays visible for this many TTLs."""


class Membership:
    """One replica as a member of its service. Call `beat` once before anything else, then `run`."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        keys: Keys,
        service: str,
        ttl: Duration,
        token: str,
    ) -> None:
        self.token = token
        self.fences: dict[int, Fence] = {}
        """As last seen."""
        self._connect = connect
        self._keys = keys
        self._service = service
        self._ttl_ms = max(1, ttl // MILLISECOND)
        self.interval = ttl / SECOND / 6
        """Seconds between two beats."""
        self._watch = Watch(token, ttl / SECOND)
        self._link: Connection | None = None
        self._alive: frozenset[str] = frozenset()
        self._assigned: dict[int, str] = {}
        self._highest_epoch: dict[int, int] = {}
        self._refresh_done = asyncio.Event()
        self.version = 0
        """Incremented whenever there may be something new to act on."""

    @property
    def alive(self) -> frozenset[str]:
        """Live members as this replica sees them, including itself; empty before the first beat."""
        return self._alive

    @property
    def wanted(self) -> frozenset[int]:
        """The shards that this replica should own."""
        return frozenset(shard for shard, member in self._assigned.items() if member == self.token)

    def plan(self, owned: Mapping[int, int]) -> Plan:
        """Return what to do, according to what was last seen. `owned`: shard -> epoch."""
        return plan(self.token, self.wanted, owned, self.fences, self._watch.free)

    def choose(self, found: Mapping[int, Fence]) -> dict[int, int]:
        """Return the shards that may be taken, with their new epochs. `found`: the fences at this moment."""
        self.update(found)
        return {
            shard: 1 + self._highest_epoch[shard]
            for shard, fence in found.items()
            if self._watch.free(fence.holder)
        }

    def update(self, fences: Mapping[int, Fence]) -> None:
        """Take in fences that are newer than what was last seen."""
        if not fences.items() <= self.fences.items():
            self.fences |= fences
            self.version += 1
        for shard, fence in fences.items():
            # Redis may lose an epoch, which must not be assigned again
            self._highest_epoch[shard] = max(self._highest_epoch.get(shard, 0), fence.epoch)

    async def run(self) -> None:
        """Send heartbeats forever, even while Redis is unavailable."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await self.beat()
            except (RedisError, ReplyError) as error:
                log.debug("%s: no heartbeat: %s", self._service, error)

    async def beat(self) -> None:
        """Announce that we are alive, and see what the others do. RedisError or ReplyError if that fails."""
        link = await self._ensure_link()
        heartbeats, bus_ms, fences = await self._read_state(link)
        now = time.monotonic()
        self._watch.observe(heartbeats, bus_ms, now)
        expired = [
            member
            for member, until in heartbeats.items()
            if abs(until) < bus_ms - _EXPIRY_TTLS * self._ttl_ms
        ]
        await self._write(link, bus_ms + self._ttl_ms, expired)
        self.update(fences)
        if self._watch.alive != self._alive:
            self._alive = self._watch.alive
            self._assigned = assign(self._alive, range(self._keys.shards))
        self.version += 1  # a holder may count as dead by now
        self._refresh_done.set()
        self._refresh_done = asyncio.Event()

    async def refreshed(self) -> None:
        """Wait for state that was read after this call."""
        await self._refresh_done.wait()  # this refresh may have sent its query before the call
        await self._refresh_done.wait()

    async def next_refresh(self) -> None:
        await self._refresh_done.wait()

    async def leave(self) -> None:
        """Announce that this replica ends. Best effort."""
        try:
            link = await self._ensure_link()
            await self._write(link, -milliseconds(await link.ask("TIME")), ())
        except (RedisError, ReplyError) as error:
            log.info("%s: cannot announce to other replicas that this one ends: %s", self._service, error)
        self.close()

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    async def _read_state(self, link: Connection) -> tuple[dict[str, int], int, dict[int, Fence]]:
        shards = range(self._keys.shards)
        fences = [
            ("MGET", self._keys.fence(shard, self._service), self._keys.holder(shard, self._service))
            for shard in shards
        ]
        key = self._keys.members(self._service)
        time, flat, *found = await link.ask_each([("TIME",), ("HGETALL", key), *fences])
        if isinstance(flat, ReplyError):  # heartbeats are worth nothing after a few seconds
            log.error("%s: %s is no hash: some other program wrote it; deleting it", self._service, key)
            await link.ask("DEL", key)
            flat = []
        stored = {
            shard: read_fence(epoch, holder) for shard, (epoch, holder) in zip(shards, found, strict=True)
        }
        return read_heartbeats(flat), milliseconds(time), stored

    async def _write(self, link: Connection, until: int, expired: Collection[str]) -> None:
        key = self._keys.members(self._service)
        deletions = [("HDEL", key, *expired)] if expired else []
        await link.ask_all(
            [("HSET", key, self.token, until), ("PEXPIRE", key, _EXPIRY_TTLS * self._ttl_ms), *deletions]
        )

    async def _ensure_link(self) -> Connection:
        if self._link is None or self._link.closed:
            self._watch.interrupt()
            self._link = await self._connect()
        return self._link


def read_heartbeats(flat: Sequence[bytes]) -> dict[str, int]:
    """Return a reply to HGETALL as member -> bus ms until which it is alive; negative: it has ended."""
    return {member.decode(errors="backslashreplace"): read_heartbeat(until) for member, until in pairs(flat)}
