"""The retention sweep: entries leave the streams by age, by number, and by a byte budget for all streams together.

A sweep of its own, outside the transactions: at maxmemory Redis refuses XADD, but takes XTRIM.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tickbus.link import Link
from tickbus.units import MILLISECOND, Duration, Size

log = logging.getLogger("tickbus.retention")

_PIECE = 200
"""Streams per round trip: a sweep must not hold up Redis."""


@dataclass(frozen=True)
class Retention:
    age: Duration
    entries: int
    bytes: Size = Size(0)
    """For all streams together; 0 = no bound."""


@dataclass
class Swept:
    removed: int = 0
    bytes: int = 0


async def sweep(link: Link, keys: Sequence[bytes], policy: Retention) -> Swept:
    """Trim every stream of `keys`, quiet ones too, by the server's own time. Whole nodes only: a little more may stay."""
    seconds, micros = await link.ask("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    age_ms = policy.age // MILLISECOND
    swept = Swept()
    for start in range(0, len(keys), _PIECE):
        piece = keys[start : start + _PIECE]
        removed = await link.ask_all([("XTRIM", key, "MINID", "~", max(0, now_ms - age_ms)) for key in piece])
        removed += await link.ask_all([("XTRIM", key, "MAXLEN", "~", policy.entries) for key in piece])
        swept.removed += sum(removed)
    if policy.bytes:
        await _shrink(link, keys, policy, now_ms, swept)
    return swept


async def _shrink(link: Link, keys: Sequence[bytes], policy: Retention, now_ms: int, swept: Swept) -> None:
    """While the streams take more than the budget, remove their older half-lives: the oldest time goes first, from all alike."""
    for _ in range(20):
        swept.bytes = await _memory(link, keys)
        if swept.bytes <= policy.bytes:
            return
        oldest = await _oldest_ms(link, keys)
        if oldest is None:
            return
        # drop the share of the time span that is over the budget, a little more so that this ends
        over = 1 - policy.bytes / swept.bytes
        cut = oldest + int((now_ms - oldest) * min(1.0, over + 0.05)) + 1
        log.info("streams take %d bytes, %d are allowed: removing what is older than %d ms", swept.bytes, policy.bytes, now_ms - cut)
        for start in range(0, len(keys), _PIECE):
            swept.removed += sum(await link.ask_all([("XTRIM", key, "MINID", cut) for key in keys[start : start + _PIECE]]))


async def _memory(link: Link, keys: Sequence[bytes]) -> int:
    total = 0
    for start in range(0, len(keys), _PIECE):
        total += sum(size or 0 for size in await link.ask_all([("MEMORY", "USAGE", key) for key in keys[start : start + _PIECE]]))
    return total


async def _oldest_ms(link: Link, keys: Sequence[bytes]) -> int | None:
    oldest = None
    for start in range(0, len(keys), _PIECE):
        for rows in await link.ask_all([("XRANGE", key, "-", "+", "COUNT", 1) for key in keys[start : start + _PIECE]]):
            if rows:
                ms = int(rows[0][0].partition(b"-")[0])
                oldest = ms if oldest is None else min(oldest, ms)
    return oldest
