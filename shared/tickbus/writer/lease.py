"""A lease: at most one process at a time is the one that should write for an owner (a feed or a service).

It only says who should; the fences say who may (tickbus.writer.fences). So an expired lease takes nothing away from its holder
until somebody else takes over, and a holder that was cut off from Redis goes on if nobody did.

A lease that is gone proves nothing by itself: a failover of Redis may have lost it. So a standby takes it only after it has
watched for a whole TTL, on one connection, that nobody renews it; at once where the holder said that it ended.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from tickbus.errors import Fenced, RedisError, RedisMisconfigured
from tickbus.protocol.names import Keys
from tickbus.redis.link import Link, ReplyError
from tickbus.units import MILLISECOND, SECOND, Duration, format_duration
from tickbus.writer.holder import new_holder

log = logging.getLogger("tickbus.lease")

_WILL_NOT_PASS = ("NOPERM", "WRONGTYPE")


class Lease:
    def __init__(
        self,
        connect: Callable[[], Awaitable[Link]],
        keys: Keys,
        owner: str,
        ttl: Duration,
        holder: str | None = None,
    ) -> None:
        self._connect = connect
        self._key = keys.lease(owner)
        self._owner = owner
        self._ttl = ttl
        self._link: Link | None = None
        self._watching_since = 0.0
        self._looked_at = 0.0
        self._renewed_at = 0.0
        """When the holder renewed it last, as far as could be seen."""
        self._fences_seen_at = float("-inf")
        self.holder = holder or new_holder()

    async def acquire(self, released: Callable[[], Awaitable[bool]] | None = None) -> bool:
        """Wait until nobody holds it, then hold it. A holder that is alive is waited for, for ever: that is a standby.

        `released`: whether the last holder said that it ended, or there never was one; without it a free lease is taken at once.
        -> whether it was taken from a holder that did not say so: it died, or stands still.
        """
        said = ""
        while True:
            try:
                link = await self._linked()
                held, left = await link.ask_all([("GET", self._key), ("PTTL", self._key)])
                self._look(held, left)
                if held is None:
                    ended = released is None or await released()
                    if (ended or self._watched_a_ttl) and await self._take(link) is None:
                        return not ended
                elif released is not None and self._looked_at - self._fences_seen_at > self._ttl / SECOND:
                    self._fences_seen_at = self._looked_at
                    await (
                        released()
                    )  # not for the answer: what stands in the fences must be known, should they be lost
                waits_for = (
                    "the lease was not given back; waiting whether it is renewed"
                    if held is None
                    else f"{held.decode()} holds the lease; standing by"
                )
            except (RedisError, ReplyError) as error:
                waits_for = str(error)
                self.close()
                if isinstance(error, RedisMisconfigured) and any(
                    sign in waits_for for sign in _WILL_NOT_PASS
                ):
                    raise
            if waits_for != said:
                log.info("%s: %s", self._owner, waits_for)
                said = waits_for
            await asyncio.sleep(self._ttl / SECOND / 6)

    def _look(self, held: bytes | None, left: int) -> None:
        """`left`: ms until it ends. A process that stood still has not watched."""
        now = time.monotonic()
        if held is not None:
            self._renewed_at = now - max(0, self._ttl // MILLISECOND - left) / 1000 if left >= 0 else now
        if now - self._looked_at > self._ttl / SECOND / 2:
            self._watching_since = now
        self._looked_at = now

    @property
    def _watched_a_ttl(self) -> bool:
        """Whether nobody renewed it for so long. One that is gone before its time was flushed: its holder may be well."""
        return self._looked_at - max(self._watching_since, self._renewed_at) >= self._ttl / SECOND

    async def keep(self) -> None:
        """Renew it, for ever. Fenced if another process holds it."""
        while True:
            await asyncio.sleep(self._ttl / SECOND / 3)
            try:
                link = await self._linked()
                held = await link.ask("GET", self._key)
                if held == self.holder.encode():
                    await link.ask("PEXPIRE", self._key, self._ttl // MILLISECOND)
                else:
                    # expired while we were away: ours again unless somebody took it
                    held = await self._take(link)
                    if held is not None:
                        raise Fenced(
                            f"{self._owner}: {held.decode()} holds the lease now; this process steps down"
                        )
            except (RedisError, ReplyError) as error:
                log.debug("%s: lease not renewed: %s", self._owner, error)
                self.close()

    async def release(self) -> None:
        try:
            link = await self._linked()
            if await link.ask("GET", self._key) == self.holder.encode():
                await link.ask("DEL", self._key)
        except (RedisError, ReplyError) as error:
            log.info(
                "%s: lease not released, it ends by itself in %s: %s",
                self._owner,
                format_duration(self._ttl),
                error,
            )
        self.close()

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    async def _take(self, link: Link) -> bytes | None:
        """-> None if it is ours now, else who holds it."""
        if await link.ask("SET", self._key, self.holder, "NX", "PX", self._ttl // MILLISECOND):
            return None
        held: bytes | None = await link.ask("GET", self._key)
        return b"somebody" if held is None else (None if held == self.holder.encode() else held)

    async def _linked(self) -> Link:
        if self._link is None or self._link.closed:
            self._link = await self._connect()
            self._looked_at = 0.0  # an interrupted watch begins again
        return self._link
