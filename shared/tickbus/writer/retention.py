"""The retention sweep: entries leave the streams by age, by number, and by a byte budget for all streams together.

A sweep of its own, outside the transactions: at maxmemory Redis refuses XADD, but takes XTRIM.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tickbus.errors import RedisError
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.resp import milliseconds
from tickbus.units import MILLISECOND, SECOND
from tickbus.writer.retention_policy import Retention

log = logging.getLogger("tickbus.retention")

_PIECE = 200
"""Streams per round trip: a sweep must not hold up Redis."""


@dataclass
class Swept:
    """What one sweep did, or all of them so far."""

    removed: int = 0
    bytes: int = 0
    """Memory of the streams, about, after the newest sweep."""


class Sweeper:
    """Sweeps the streams of one writer, a feed or a service, while it runs."""

    def __init__(
        self,
        owner: str,
        policy: Retention,
        keys: Keys,
        connect: Callable[[], Awaitable[Connection]],
        streams: Callable[[], Sequence[bytes]],
    ) -> None:
        self.total = Swept()
        self._policy = policy
        self._owner = owner
        self._keys = keys
        self._connect = connect
        self._streams = streams

    async def declare(self) -> None:
        """Tell others how long the entries stay: the headroom of a reader is measured by it."""
        link = await self._connect()
        await self._declare(link)
        link.close()

    async def _declare(self, link: Connection) -> None:
        await link.ask(
            "HSET",
            self._keys.meta,
            f"retention:{self._owner}",
            f"{self._policy.age // MILLISECOND},{self._policy.entries}",
        )

    async def run(self) -> None:
        """For ever. Redis away is no error: the next sweep does it."""
        link: Connection | None = None
        while True:
            await asyncio.sleep(self._policy.interval / SECOND)
            try:
                if link is None or link.closed:
                    link = await self._connect()
                await self._declare(link)  # again: Redis may have been flushed since
                swept = await sweep(link, self._streams(), self._policy)
                self.total.removed += swept.removed
                self.total.bytes = swept.bytes
            except (RedisError, ReplyError) as error:
                log.debug("retention sweep: %s", error)


async def sweep(link: Connection, keys: Sequence[bytes], policy: Retention) -> Swept:
    """Trim every stream of `keys`, quiet ones too, by the server's own time. By number whole nodes only: a little more may stay."""
    now_ms = milliseconds(await link.ask("TIME"))
    age_ms = policy.age // MILLISECOND
    swept = Swept()
    for start in range(0, len(keys), _PIECE):
        piece = keys[start : start + _PIECE]
        # exact by age: else up to 100 entries of a quiet stream stay for ever
        removed = await link.ask_all([("XTRIM", key, "MINID", max(0, now_ms - age_ms)) for key in piece])
        # without LIMIT 0 it ends after 10,000 entries, and a busy stream grows by more than that between two sweeps
        removed += await link.ask_all(
            [("XTRIM", key, "MAXLEN", "~", policy.entries, "LIMIT", 0) for key in piece]
        )
        swept.removed += sum(removed)
    swept.bytes = await _memory(link, keys)
    if policy.bytes:
        await _shrink(link, keys, policy, now_ms, swept)
    return swept


async def _shrink(
    link: Connection, keys: Sequence[bytes], policy: Retention, now_ms: int, swept: Swept
) -> None:
    """While the streams take more than the budget, remove their older half-lives: the oldest time goes first, from all alike."""
    for _ in range(20):
        if swept.bytes <= policy.bytes:
            return
        oldest = await _oldest_ms(link, keys)
        if oldest is None:
            return
        # drop the share of the time span that is over the budget, a little more so that this ends
        over = 1 - policy.bytes / swept.bytes
        cut = oldest + int((now_ms - oldest) * min(1.0, over + 0.05)) + 1
        log.info(
            "streams take %d bytes, %d are allowed: removing what is older than %d ms",
            swept.bytes,
            policy.bytes,
            now_ms - cut,
        )
        for start in range(0, len(keys), _PIECE):
            swept.removed += sum(
                await link.ask_all([("XTRIM", key, "MINID", cut) for key in keys[start : start + _PIECE]])
            )
        swept.bytes = await _memory(link, keys)


async def _memory(link: Connection, keys: Sequence[bytes]) -> int:
    total = 0
    for start in range(0, len(keys), _PIECE):
        total += sum(
            size or 0
            for size in await link.ask_all([("MEMORY", "USAGE", key) for key in keys[start : start + _PIECE]])
        )
    return total


async def _oldest_ms(link: Connection, keys: Sequence[bytes]) -> int | None:
    oldest = None
    for start in range(0, len(keys), _PIECE):
        for rows in await link.ask_all(
            [("XRANGE", key, "-", "+", "COUNT", 1) for key in keys[start : start + _PIECE]]
        ):
            if rows:
                ms = int(rows[0][0].partition(b"-")[0])
                oldest = ms if oldest is None else min(oldest, ms)
    return oldest
