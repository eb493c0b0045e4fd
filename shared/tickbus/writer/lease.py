"""A lease: at most one process at a time should write for an owner (a feed or a service).

It decides who should write; the fences decide who may (tickbus.writer.fences). So an expired lease costs
its holder nothing until another process takes over, and a holder that was cut off from Redis continues if
none did.

A missing lease proves nothing by itself: a failover of Redis may have lost it. So a standby takes it only
after it has observed for a whole TTL, on one connection, that it is not renewed; or at once if the holder
released it.
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

_PERMANENT = ("NOPERM", "WRONGTYPE")


class Lease:
    """The lease of one owner, as seen by one process."""

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
        self._checked_at = 0.0
        self._renewed_at = 0.0
        """When the holder last renewed it, as far as observed."""
        self._fences_seen_at = float("-inf")
        self.holder = holder or new_holder()

    async def acquire(self, released: Callable[[], Awaitable[bool]] | None = None) -> bool:
        """Wait until no process holds it, then take it. A standby waits forever for a holder that is alive.

        `released`: whether the last holder released it, or there never was one; without this a free lease
        is taken at once. Return whether it was taken from a holder that did not release it: that process
        died or stalled.
        """
        logged = ""
        while True:
            try:
                link = await self._linked()
                held, left = await self._look(link)
                self._observe(held, left)
                if held is None:
                    is_released = released is None or await released()
                    if (is_released or self._watched_full_ttl) and await self._take(link) is None:
                        return not is_released
                elif released is not None and self._checked_at - self._fences_seen_at > self._ttl / SECOND:
                    self._fences_seen_at = self._checked_at
                    # not for its result: the fences must be known in case Redis loses them
                    await released()
                status = (
                    "lease is missing but was not released; waiting to see whether it is renewed"
                    if held is None
                    else f"{_text(held)} holds the lease; standing by"
                )
            except (RedisError, ReplyError) as error:
                status = str(error)
                self.close()
                if isinstance(error, RedisMisconfigured) and any(sign in status for sign in _PERMANENT):
                    raise
            if status != logged:
                log.info("%s: %s", self._owner, status)
                logged = status
            await asyncio.sleep(self._ttl / SECOND / 6)

    async def _look(self, link: Link) -> tuple[bytes | None, int]:
        """Return the holder of the lease, and the ms until it expires.

        Every holder sets an expiry. What never expires, or is no text, was written by some other program, and
        nobody would ever renew or release it.
        """
        held, left = await link.ask_each([("GET", self._key), ("PTTL", self._key)])
        if left == -1:
            log.error(
                "%s: %s holds %s without an expiry: some other program wrote it; deleting it",
                self._owner, self._key, "another type" if isinstance(held, ReplyError) else repr(held[:64]),
            )  # fmt: skip
            await link.ask("DEL", self._key)
            return None, left
        if isinstance(held, ReplyError):  # it expires by itself
            return b"another program", left
        return held, left

    def _observe(self, held: bytes | None, left: int) -> None:
        """Record one check. `left`: ms until it expires. A process that stalled has not watched meanwhile."""
        now = time.monotonic()
        if held is not None:
            self._renewed_at = now - max(0, self._ttl // MILLISECOND - left) / 1000 if left >= 0 else now
        if now - self._checked_at > self._ttl / SECOND / 2:
            self._watching_since = now
        self._checked_at = now

    @property
    def _watched_full_ttl(self) -> bool:
        """Whether it was not renewed for a whole TTL.

        If it vanished before its TTL, it was flushed: its holder may be alive.
        """
        return self._checked_at - max(self._watching_since, self._renewed_at) >= self._ttl / SECOND

    async def keep(self) -> None:
        """Renew it forever. Fenced if another process holds it."""
        while True:
            await asyncio.sleep(self._ttl / SECOND / 3)
            try:
                link = await self._linked()
                held, _ = await self._look(link)
                if held == self.holder.encode():
                    await link.ask("PEXPIRE", self._key, self._ttl // MILLISECOND)
                else:
                    # expired while Redis was unavailable: taken again unless another process has it
                    held = await self._take(link)
                    if held is not None:
                        raise Fenced(
                            f"{self._owner}: {_text(held)} holds the lease now; this process steps down"
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
                "%s: lease not released, it expires in %s: %s",
                self._owner,
                format_duration(self._ttl),
                error,
            )
        self.close()

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    async def _take(self, link: Link) -> bytes | None:
        """Take it. Return None on success, else its holder."""
        if await link.ask("SET", self._key, self.holder, "NX", "PX", self._ttl // MILLISECOND):
            return None
        held: bytes | None = await link.ask("GET", self._key)
        return b"another process" if held is None else (None if held == self.holder.encode() else held)

    async def _linked(self) -> Link:
        if self._link is None or self._link.closed:
            self._link = await self._connect()
            self._checked_at = 0.0  # an interrupted watch starts over
        return self._link


def _text(holder: bytes) -> str:
    """Return a holder for a log: anybody may have written it."""
    return holder[:128].decode(errors="backslashreplace")
