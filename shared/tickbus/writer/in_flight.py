"""Parts of commits whose master is unavailable: they complete in the background while other shards continue.

Each shard has one part in flight; later ones are queued behind it. If a part fails, nothing follows it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from tickbus.errors import Fenced
from tickbus.writer.transaction import Transaction

_MAX_QUEUED = 10_000
"""Entries queued behind a part; beyond that the next commit waits."""


class InFlight:
    """The parts of one publisher's commits that are not stored yet."""

    def __init__(self, commit: Callable[[int, Transaction], Awaitable[object]]) -> None:
        """`commit` stores a part of a shard, however long it takes."""
        self._commit = commit
        self._parts: dict[int, asyncio.Task[None]] = {}
        self._queued: dict[int, Transaction] = {}

    @property
    def shards(self) -> Collection[int]:
        """Shards with a part that is not stored, including those that failed."""
        return self._parts.keys()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def begin(self, shard: int, part: Transaction) -> "asyncio.Task[None]":
        """Store a part, or queue it behind the one in flight. Return the task to await before the next."""
        running = self._parts.get(shard)
        if running is None:
            running = self._parts[shard] = asyncio.ensure_future(self._store(shard, part))
            # retrieved, even if nobody awaits it any more
            running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        elif (queued := self._queued.get(shard)) is None:
            self._queued[shard] = part
        else:
            queued.add(part)
        return running

    def is_full(self, shard: int) -> bool:
        return shard in self._queued and len(self._queued[shard].entries) > _MAX_QUEUED

    async def _store(self, shard: int, part: Transaction) -> None:
        while True:
            await self._commit(shard, part)
            if shard not in self._queued:
                break
            part = self._queued.pop(shard)
        del self._parts[shard]

    def check(self) -> None:
        """Raise the error of a failed part. The shards of a Fenced have nothing in flight any more."""
        failed = {shard: part for shard, part in self._parts.items() if part.done()}
        for shard in failed:
            self.forget(shard)
        raise_failed(failed.values())

    def forget(self, shard: int) -> None:
        self._parts.pop(shard, None)
        self._queued.pop(shard, None)

    async def finish(self, timeout: float) -> None:
        """Wait for all parts, at most `timeout` seconds."""
        if parts := list(self._parts.values()):
            await asyncio.wait(parts, timeout=timeout)

    def cancel(self, shards: Collection[int]) -> "list[asyncio.Task[None]]":
        """Cancel and return the parts of these shards: their next owner resumes from what is stored."""
        parts = [self._parts[shard] for shard in shards if shard in self._parts]
        for shard in shards:
            self.forget(shard)
        for part in parts:
            part.cancel()
        return parts


def raise_failed(parts: "Iterable[asyncio.Task[Any]]") -> None:
    """Raise the error of finished parts: Fenced, with the shards of all, only if there is no other error."""
    errors = [error for part in parts if not part.cancelled() and (error := part.exception()) is not None]
    if other := next((error for error in errors if not (isinstance(error, Fenced) and error.shards)), None):
        raise other
    if errors:
        raise Fenced(
            str(errors[0]), {shard for error in errors if isinstance(error, Fenced) for shard in error.shards}
        )
