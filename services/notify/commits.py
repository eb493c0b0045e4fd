"""Stores positions and states: many streams' at once, one commit in flight, the next gathers meanwhile."""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from tickbus.consumer.consumer import ShardConsumer
from tickbus.protocol.names import Stream, StreamId

_IDLE_SECONDS = 0.25
"""Positions past entries that are not sent are stored this often."""


class Commits:
    def __init__(self, consumer: ShardConsumer) -> None:
        self._consumer = consumer
        self._positions: dict[Stream, StreamId] = {}
        self._states: dict[Stream, bytes] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._urgent = asyncio.Event()

    def note(self, stream: Stream, position: StreamId) -> None:
        """Store this position within a moment; nobody waits for it."""
        self._positions[stream] = position

    async def store(
        self, stream: Stream, position: StreamId | None = None, state: bytes | None = None
    ) -> None:
        """Store position and state, as far as they are given. Returns when that is done, or another process
        owns the stream. Empty bytes delete the state."""
        if position is not None:
            self._positions[stream] = position
        if state is not None:
            self._states[stream] = state
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(stored)
        self._urgent.set()
        await stored

    def forget(self, shards: Collection[int]) -> None:
        """Another process owns these shards: what is not stored of them never will be."""
        shard_of = self._consumer.keys.shard
        self._positions = {s: id for s, id in self._positions.items() if shard_of(s.symbol) not in shards}
        self._states = {s: value for s, value in self._states.items() if shard_of(s.symbol) not in shards}

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._urgent.wait()
            await self.flush()

    async def flush(self) -> None:
        """Store everything that is noted so far. Even if cancelled, it is stored unless Redis is away."""
        self._urgent.clear()
        positions, self._positions = self._positions, {}
        states, self._states = self._states, {}
        waiting, self._waiting = self._waiting, []
        if positions or states:
            await self._consumer.commit(positions, (), states)
        for stored in waiting:
            if not stored.done():
                stored.set_result(None)
