"""A lease: at most one process at a time is the one that should write for an owner (a feed or a service).

It only says who should; the fences say who may (tickbus.publisher). So an expired lease takes nothing away from its holder
until somebody else takes over, and a holder that was cut off from Redis goes on if nobody did.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable

from tickbus.errors import Fenced, RedisError
from tickbus.link import Link, ReplyError
from tickbus.names import Keys
from tickbus.units import MILLISECOND, SECOND, Duration, format_duration

log = logging.getLogger("tickbus.lease")


class Lease:
    def __init__(self, connect: Callable[[], Awaitable[Link]], keys: Keys, owner: str, ttl: Duration) -> None:
        self._connect = connect
        self._key = keys.lease(owner)
        self._owner = owner
        self._ttl = ttl
        self._link: Link | None = None
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    async def acquire(self) -> None:
        """Wait until nobody holds it, then hold it. A holder that is alive is waited for, for ever: that is a standby."""
        said = False
        while True:
            try:
                link = await self._linked()
                held = await self._take(link)
            except (RedisError, ReplyError) as error:
                log.warning("%s: %s", self._owner, error)
                held = None
            else:
                if held is None:
                    return
            if not said and held is not None:
                log.info("%s: %s holds the lease; waiting until it ends or dies", self._owner, held.decode())
                said = True
            await asyncio.sleep(self._ttl / SECOND / 6)

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
                        raise Fenced(f"{self._owner}: {held.decode()} holds the lease now; this process steps down")
            except (RedisError, ReplyError) as error:
                log.debug("%s: lease not renewed: %s", self._owner, error)

    async def release(self) -> None:
        try:
            link = await self._linked()
            if await link.ask("GET", self._key) == self.holder.encode():
                await link.ask("DEL", self._key)
        except (RedisError, ReplyError) as error:
            log.info("%s: lease not released, it ends by itself in %s: %s", self._owner, format_duration(self._ttl), error)
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
        return self._link
