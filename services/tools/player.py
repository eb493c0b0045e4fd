"""Plays recorded ticks onto a bus at their own pace, and rings the bells so that time advances there."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

from services.tools.rewriting import Rewriter, Step
from tickbus.clock import BusClock
from tickbus.protocol.messages import Gap
from tickbus.units import SECOND
from tickbus.writer.publisher import Publisher
from tickbus.writer.transaction import Transaction

_MAX_BATCH = 2_000
"""Steps in one transaction."""
_CHUNK = 10_000
"""Steps read from the files at once, in a thread, while the previous chunk is played."""
_RING_SECONDS = 0.9


class Player:
    def __init__(
        self, rewriter: Rewriter, publisher: Publisher, clock: BusClock, speed: float | None
    ) -> None:
        self._rewriter = rewriter
        self._publisher = publisher
        self._clock = clock
        self._speed = speed
        """None: as fast as Redis accepts them."""
        self._rang = 0.0
        self._storing: asyncio.Task[None] | None = None
        self.ticks = 0
        self.gaps = 0
        self.played_to = 0
        """ts_recv of the newest tick played, ns."""
        self.late = 0.0
        """How far the newest tick was behind schedule, in seconds."""

    async def play(self, steps: Iterator[Step], linger: float) -> None:
        """Play all steps, then only the bus clock for `linger` seconds, so that the last bars can close."""
        first: int | None = None
        started = 0.0
        next_chunk = asyncio.create_task(asyncio.to_thread(_read_chunk, steps))
        while chunk := await next_chunk:
            next_chunk = asyncio.create_task(asyncio.to_thread(_read_chunk, steps))
            if first is None:
                first, started = chunk[0][0], time.monotonic()
            while chunk:
                due = (
                    None
                    if self._speed is None
                    else first + int((time.monotonic() - started) * SECOND * self._speed)
                )
                await self._store_shielded(_take_due(chunk, due))
                if chunk and due is not None:
                    await self._wait(chunk[0][0] - due)
        ends = time.monotonic() + linger
        while (left := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _RING_SECONDS))
            await self._store_shielded([])

    async def close(self) -> None:
        """Let the transaction in flight be stored, then announce the end of the feed."""
        if self._storing is not None:
            await self._storing
        await self._store([], False)

    async def _wait(self, recorded_ns: int) -> None:
        """Wait for the next tick, `recorded_ns` of recorded time away, at most until the next ring."""
        seconds = recorded_ns / SECOND / (self._speed or 1)
        self.late = max(0.0, -seconds)
        if seconds > 0:
            await asyncio.sleep(min(seconds, _RING_SECONDS))

    async def _store_shielded(self, steps: list[Step]) -> None:
        """Store uninterrupted: a replay that is stopped ends between two transactions, not within one."""
        self._storing = asyncio.create_task(self._store(steps, True))
        await asyncio.shield(self._storing)

    async def _store(self, steps: list[Step], up: bool) -> None:
        transaction = Transaction(self._clock.now_ms(), up)
        transaction.ring_all = not up or time.monotonic() - self._rang >= _RING_SECONDS
        messages = [message for _, due in steps for message in due]
        transaction.entries, transaction.heads = self._rewriter.entries(messages, transaction.bus_ms)
        if not messages and not transaction.ring_all:
            return
        await self._publisher.commit(transaction)
        if transaction.ring_all:
            self._rang = time.monotonic()
        gaps = sum(isinstance(message, Gap) for _, message in messages)
        self.gaps += gaps
        self.ticks += len(messages) - gaps
        self.played_to = steps[-1][0] if steps else self.played_to


def _read_chunk(steps: Iterator[Step]) -> deque[Step]:
    return deque(islice(steps, _CHUNK))


def _take_due(chunk: deque[Step], due: int | None) -> list[Step]:
    """Remove the steps that are due from `chunk` and return them, one batch at most."""
    batch: list[Step] = []
    while chunk and len(batch) < _MAX_BATCH and (due is None or chunk[0][0] <= due):
        batch.append(chunk.popleft())
    return batch
