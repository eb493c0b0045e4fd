"""Parts of commits whose master is away: they go on by themselves, in their order, while the other shards are worked."""

import asyncio
from collections.abc import Collection, Iterable

from tickbus.errors import Fenced

_MOST = 100
"""Parts of one shard that are held; then the next commit waits for them."""


class Held:
    def __init__(self) -> None:
        self._parts: dict[int, list[asyncio.Task[None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def shards(self) -> frozenset[int]:
        """Those with a part that is not stored yet."""
        return frozenset(shard for shard, parts in self._parts.items() if not all(part.done() for part in parts))

    @property
    def full(self) -> frozenset[int]:
        """Those that can hold no more."""
        return frozenset(shard for shard, parts in self._parts.items() if sum(not part.done() for part in parts) >= _MOST)

    def add(self, shard: int, part: "asyncio.Task[None]") -> None:
        self._parts.setdefault(shard, []).append(part)
        part.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen, also if nobody asks any more

    def check(self) -> None:
        """Forget what is stored, and raise what went wrong: Fenced with all shards that another process took over."""
        ended = [(shard, part) for shard, parts in self._parts.items() for part in parts if part.done()]
        self._parts = {shard: left for shard, parts in self._parts.items() if (left := [part for part in parts if not part.done()])}
        raise_failed(part for _, part in ended)

    async def finish(self, seconds: float) -> None:
        """Wait for all, so long at most."""
        if parts := self._of(self._parts):
            await asyncio.wait(parts, timeout=seconds)

    def cancel(self, shards: Collection[int]) -> "list[asyncio.Task[None]]":
        """Whoever works these shards next begins with what is stored; -> what is still to be awaited."""
        parts = self._of(shards)
        for shard in shards:
            self._parts.pop(shard, None)
        for part in parts:
            part.cancel()
        return parts

    def _of(self, shards: Collection[int]) -> "list[asyncio.Task[None]]":
        return [part for shard in shards for part in self._parts.get(shard, ())]


def raise_failed(parts: "Iterable[asyncio.Task[None]]") -> None:
    """What went wrong with parts that have ended; Fenced only if nothing else did, with the shards of all."""
    errors = [error for part in parts if not part.cancelled() and (error := part.exception()) is not None]
    if other := next((error for error in errors if not isinstance(error, Fenced)), None):
        raise other
    if errors:
        raise Fenced(str(errors[0]), {shard for error in errors if isinstance(error, Fenced) for shard in error.shards})
