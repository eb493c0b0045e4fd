"""The retention sweep: removes entries by age, by number, and by a byte budget for all streams together.

It runs outside the transactions: at maxmemory Redis rejects XADD, but accepts XTRIM.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tickbus.errors import RedisError
from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, Reply, ReplyError
from tickbus.redis.registry import read_stream_names
from tickbus.redis.resp import milliseconds
from tickbus.units import MILLISECOND, SECOND
from tickbus.writer.retention_policy import Retention

log = logging.getLogger("tickbus.retention")

_CHUNK = 200
"""Streams per round trip: a sweep must not block Redis."""


@dataclass
class SweepResult:
    """The result of one sweep, or the total so far."""

    removed: int = 0
    bytes: int = 0
    """Approximate memory of the streams after the newest sweep."""


class Sweeper:
    """Sweeps the streams of one writer, a feed or a service, while it runs."""

    def __init__(
        self,
        owner: str,
        policy: Retention,
        keys: Keys,
        connect: Callable[[], Awaitable[Connection]],
        streams: Callable[[Connection], Awaitable[Sequence[bytes]]],
    ) -> None:
        """streams: returns the keys of all streams of the owner."""
        self.total = SweepResult()
        self._policy = policy
        self._owner = owner
        self._keys = keys
        self._connect = connect
        self._streams = streams

    async def announce(self) -> None:
        """Announce how long entries are retained: the headroom of a reader is computed from it."""
        link = await self._connect()
        await self._announce(link)
        link.close()

    async def _announce(self, link: Connection) -> None:
        await link.ask(
            "HSET",
            self._keys.meta,
            f"retention:{self._owner}",
            f"{self._policy.age // MILLISECOND},{self._policy.entries}",
        )

    async def run(self) -> None:
        """Sweep forever. Redis being unavailable is not an error: the next sweep catches up."""
        link: Connection | None = None
        while True:
            await asyncio.sleep(self._policy.interval / SECOND)
            try:
                if link is None or link.closed:
                    link = await self._connect()
                await self._announce(link)  # again: Redis may have been flushed since
                result = await sweep(link, await self._streams(link), self._policy)
                self.total.removed += result.removed
                self.total.bytes = result.bytes
            except (RedisError, ReplyError) as error:
                log.debug("retention sweep: %s", error)


async def stream_keys(link: Connection, *, keys: Keys, owner: str) -> list[bytes]:
    """Return the keys of all streams that a feed or a service has ever written."""
    return [keys.stream(stream).encode() for stream in await read_stream_names(link, keys, owner)]


async def sweep(link: Connection, keys: Sequence[bytes], policy: Retention) -> SweepResult:
    """Trim all streams of `keys`, quiet ones too, by the server's own time.

    By number only whole nodes are trimmed: slightly more entries may stay.
    """
    now_ms = milliseconds(await link.ask("TIME"))
    age_ms = policy.age // MILLISECOND
    result = SweepResult()
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        # exact by age: otherwise up to 100 entries of a quiet stream stay forever
        removed = await link.ask_each([("XTRIM", key, "MINID", max(0, now_ms - age_ms)) for key in chunk])
        # without LIMIT 0 it stops after 10,000 entries, and a busy stream grows faster than that per sweep
        removed += await link.ask_each(
            [("XTRIM", key, "MAXLEN", "~", policy.entries, "LIMIT", 0) for key in chunk]
        )
        result.removed += _sum(removed)
    result.bytes = await _memory(link, keys)
    if policy.bytes:
        await _shrink(link, keys, policy, now_ms, result)
    return result


async def _shrink(
    link: Connection, keys: Sequence[bytes], policy: Retention, now_ms: int, result: SweepResult
) -> None:
    """While the streams exceed the budget, remove the oldest part of their time span, from all alike."""
    for _ in range(20):
        if result.bytes <= policy.bytes:
            return
        oldest = await _oldest_ms(link, keys)
        if oldest is None:
            return
        # drop the share of the time span that is over budget, and slightly more so that this terminates
        over = 1 - policy.bytes / result.bytes
        cut = oldest + int((now_ms - oldest) * min(1.0, over + 0.05)) + 1
        log.info(
            "streams use %d bytes, budget is %d: removing entries older than %d ms",
            result.bytes,
            policy.bytes,
            now_ms - cut,
        )
        for start in range(0, len(keys), _CHUNK):
            result.removed += _sum(
                await link.ask_each([("XTRIM", key, "MINID", cut) for key in keys[start : start + _CHUNK]])
            )
        result.bytes = await _memory(link, keys)


def _sum(removed: Sequence[Reply]) -> int:
    """Add up what was removed, of keys that are still streams: some other program may have written them."""
    return sum(number for number in removed if isinstance(number, int))


async def _memory(link: Connection, keys: Sequence[bytes]) -> int:
    total = 0
    for start in range(0, len(keys), _CHUNK):
        total += sum(
            size or 0
            for size in await link.ask_all([("MEMORY", "USAGE", key) for key in keys[start : start + _CHUNK]])
        )
    return total


async def _oldest_ms(link: Connection, keys: Sequence[bytes]) -> int | None:
    oldest = None
    for start in range(0, len(keys), _CHUNK):
        for rows in await link.ask_each(
            [("XRANGE", key, "-", "+", "COUNT", 1) for key in keys[start : start + _CHUNK]]
        ):
            if rows and not isinstance(rows, ReplyError):
                ms = int(rows[0][0].partition(b"-")[0])
                oldest = ms if oldest is None else min(oldest, ms)
    return oldest
