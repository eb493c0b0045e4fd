"""Parts of commits whose master is away: they go on by themselves while the other shards are worked.

Of a shard one part is on its way; what is committed of it meanwhile gathers behind that one. If a part fails nothing follows it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from tickbus.errors import Fenced
from tickbus.writer.transaction import Transaction

_MOST = 10_000
"""Entries that gather behind a part; then the next commit waits."""


class InFlight:
    def __init__(self, commit: Callable[[int, Transaction], Awaitable[None]]) -> None:
        """`commit` stores a part of a shard, however long that takes."""
        self._commit = commit
        self._parts: dict[int, asyncio.Task[None]] = {}
        self._behind: dict[int, Transaction] = {}

    @property
    def shards(self) -> Collection[int]:
        """Those with something that is not stored, also if it never will be."""
        return self._parts.keys()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def begin(self, shard: int, part: Transaction) -> "asyncio.Task[None]":
        """Store a part, or put it behind the one that is on its way; -> what to wait for before another one may come."""
        running = self._parts.get(shard)
        if running is None:
            running = self._parts[shard] = asyncio.ensure_future(self._store(shard, part))
            running.add_done_callback(
                lambda ended: ended.cancelled() or ended.exception()
            )  # seen, also if nobody asks any more
        elif (behind := self._behind.get(shard)) is None:
            self._behind[shard] = part
        else:
            behind.add(part)
        return running

    def is_full(self, shard: int) -> bool:
        return shard in self._behind and len(self._behind[shard].entries) > _MOST

    async def _store(self, shard: int, part: Transaction) -> None:
        while True:
            await self._commit(shard, part)
            if shard not in self._behind:
                break
            part = self._behind.pop(shard)
        del self._parts[shard]

    def check(self) -> None:
        """Raise what went wrong; of the shards in a Fenced nothing is on its way any more."""
        failed = {shard: part for shard, part in self._parts.items() if part.done()}
        for shard in failed:
            self.forget(shard)
        raise_failed(failed.values())

    def forget(self, shard: int) -> None:
        self._parts.pop(shard, None)
        self._behind.pop(shard, None)

    async def finish(self, seconds: float) -> None:
        """Wait for all, so long at most."""
        if parts := list(self._parts.values()):
            await asyncio.wait(parts, timeout=seconds)

    def cancel(self, shards: Collection[int]) -> "list[asyncio.Task[None]]":
        """Whoever works these shards next begins with what is stored; -> what is still to be awaited."""
        parts = [self._parts[shard] for shard in shards if shard in self._parts]
        for shard in shards:
            self.forget(shard)
        for part in parts:
            part.cancel()
        return parts


def raise_failed(parts: "Iterable[asyncio.Task[Any]]") -> None:
    """What went wrong with parts that have ended; Fenced, with the shards of all, only if nothing else did."""
    errors = [error for part in parts if not part.cancelled() and (error := part.exception()) is not None]
    if other := next((error for error in errors if not (isinstance(error, Fenced) and error.shards)), None):
        raise other
    if errors:
        raise Fenced(
            str(errors[0]), {shard for error in errors if isinstance(error, Fenced) for shard in error.shards}
        )
