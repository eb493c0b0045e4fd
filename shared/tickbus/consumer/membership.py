"""The replicas of a service: each says that it is alive, and sees who else is and who holds which shard.

Heartbeats stand in the hash `tickbus:members:<service>`: the token of the process -> bus ms until which it counts as alive, by
the server's own time, so that no clock of a machine matters; negative once it has ended. Who holds a shard stands in the
shard's fence pair (tickbus.writer.fences). What to do about it is decided in tickbus.consumer.assignment.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from tickbus.consumer.assignment import Plan, Watch, assign, plan
from tickbus.errors import RedisError
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.resp import milliseconds, pairs
from tickbus.units import MILLISECOND, SECOND, Duration
from tickbus.writer.fences import Fence

log = logging.getLogger("tickbus.members")

_KEPT_TTLS = 10
"""For so long the heartbeat of a dead member stays to be seen."""


class Membership:
    """One replica's place among the others. `beat` once before anything else, then `run`."""

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
        """As they were seen last."""
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
        self._known: dict[int, int] = {}
        self._seen = asyncio.Event()
        self.version = 0
        """Counts up whenever something may be seen that was not known."""

    @property
    def alive(self) -> frozenset[str]:
        """Members as this replica sees them, itself among them; empty before the first beat."""
        return self._alive

    @property
    def wanted(self) -> frozenset[int]:
        """The shards that this replica should work."""
        return frozenset(shard for shard, member in self._assigned.items() if member == self.token)

    def plan(self, held: Mapping[int, int]) -> Plan:
        """What to do, by what was seen last. `held`: shard -> epoch."""
        return plan(self.token, self.wanted, held, self.fences, self._watch.free)

    def choose(self, found: Mapping[int, Fence]) -> dict[int, int]:
        """Of fences as they stand at this moment: those that may be taken, with their new epochs."""
        self.note(found)
        return {
            shard: 1 + self._known[shard] for shard, fence in found.items() if self._watch.free(fence.holder)
        }

    def note(self, fences: Mapping[int, Fence]) -> None:
        """These are newer than what was seen last."""
        if not fences.items() <= self.fences.items():
            self.fences |= fences
            self.version += 1
        for shard, fence in fences.items():
            # Redis may lose an epoch; it must not be given out again
            self._known[shard] = max(self._known.get(shard, 0), fence.epoch)

    async def run(self) -> None:
        """For ever, also while Redis is away."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await self.beat()
            except (RedisError, ReplyError) as error:
                log.debug("%s: no heartbeat: %s", self._service, error)

    async def beat(self) -> None:
        """Say that we are alive, and look around. RedisError or ReplyError if that cannot be done."""
        link = await self._linked()
        heartbeats, bus_ms, fences = await self._look(link)
        now = time.monotonic()
        self._watch.see(heartbeats, bus_ms, now)
        old = [
            member for member, until in heartbeats.items() if abs(until) < bus_ms - _KEPT_TTLS * self._ttl_ms
        ]
        await self._write(link, bus_ms + self._ttl_ms, old)
        self.note(fences)
        if self._watch.alive != self._alive:
            self._alive = self._watch.alive
            self._assigned = assign(self._alive, range(self._keys.shards))
        self.version += 1  # a holder may count as dead by now
        self._seen.set()
        self._seen = asyncio.Event()

    async def refreshed(self) -> None:
        """Wait until what is known is newer than this call."""
        await self._seen.wait()  # of this one the question may have been asked before
        await self._seen.wait()

    async def next_refresh(self) -> None:
        await self._seen.wait()

    async def leave(self) -> None:
        """Say that this replica ends. Best effort."""
        try:
            link = await self._linked()
            await self._write(link, -milliseconds(await link.ask("TIME")), ())
        except (RedisError, ReplyError) as error:
            log.info("%s: the others are not told that this replica ends: %s", self._service, error)
        self.close()

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    async def _look(self, link: Connection) -> tuple[dict[str, int], int, dict[int, Fence]]:
        shards = range(self._keys.shards)
        fences = [
            ("MGET", self._keys.fence(shard, self._service), self._keys.holder(shard, self._service))
            for shard in shards
        ]
        time, flat, *found = await link.ask_all(
            [("TIME",), ("HGETALL", self._keys.members(self._service)), *fences]
        )
        stored = {
            shard: Fence(int(epoch or 0), (holder or b"").decode())
            for shard, (epoch, holder) in zip(shards, found, strict=True)
        }
        return read_heartbeats(flat), milliseconds(time), stored

    async def _write(self, link: Connection, until: int, old: Collection[str]) -> None:
        key = self._keys.members(self._service)
        gone = [("HDEL", key, *old)] if old else []
        await link.ask_all(
            [("HSET", key, self.token, until), ("PEXPIRE", key, _KEPT_TTLS * self._ttl_ms), *gone]
        )

    async def _linked(self) -> Connection:
        if self._link is None or self._link.closed:
            self._watch.interrupt()
            self._link = await self._connect()
        return self._link


def read_heartbeats(flat: list[bytes]) -> dict[str, int]:
    """The reply to HGETALL: member -> bus ms until which it is alive; negative: it ended."""
    return {member.decode(): int(until) for member, until in pairs(flat)}
