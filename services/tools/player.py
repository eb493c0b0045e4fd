"""Plays recorded ticks onto a bus at their own pace, and rings the bells so that time passes there."""

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

_BATCH = 2_000
"""Steps in one transaction at most."""
_PIECE = 10_000
"""Steps read from the files at once, in a thread, while those before are played."""
_RING_SECONDS = 0.9


class Player:
    def __init__(
        self, rewriter: Rewriter, publisher: Publisher, clock: BusClock, speed: float | None
    ) -> None:
        self._rewriter = rewriter
        self._publisher = publisher
        self._clock = clock
        self._speed = speed
        """None: as fast as Redis takes it."""
        self._rang = 0.0
        self._storing: asyncio.Task[None] | None = None
        self.ticks = 0
        self.gaps = 0
        self.at = 0
        """ts_recv of the newest tick played, ns."""
        self.late = 0.0
        """Seconds that the newest tick was behind its time."""

    async def play(self, steps: Iterator[Step], linger: float) -> None:
        """Everything, then only the bus clock for `linger` seconds, so that bars of the last ticks can close."""
        first: int | None = None
        started = 0.0
        coming = asyncio.create_task(asyncio.to_thread(_take, steps))
        while piece := await coming:
            coming = asyncio.create_task(asyncio.to_thread(_take, steps))
            if first is None:
                first, started = piece[0][0], time.monotonic()
            while piece:
                due = (
                    None
                    if self._speed is None
                    else first + int((time.monotonic() - started) * SECOND * self._speed)
                )
                await self._put(_due(piece, due))
                if piece and due is not None:
                    await self._wait_for(piece[0][0] - due)
        ends = time.monotonic() + linger
        while (left := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _RING_SECONDS))
            await self._put([])

    async def close(self) -> None:
        """Let the transaction under way be stored, then say that nothing more comes."""
        if self._storing is not None:
            await self._storing
        await self._store([], False)

    async def _wait_for(self, recorded: int) -> None:
        """Until the next tick, so many ns of recorded time away, but no longer than until the bells are due."""
        seconds = recorded / SECOND / (self._speed or 1)
        self.late = max(0.0, -seconds)
        if seconds > 0:
            await asyncio.sleep(min(seconds, _RING_SECONDS))

    async def _put(self, steps: list[Step]) -> None:
        """Shielded: a replay that is told to stop ends between two transactions, not in one."""
        self._storing = asyncio.create_task(self._store(steps, True))
        await asyncio.shield(self._storing)

    async def _store(self, steps: list[Step], up: bool) -> None:
        transaction = Transaction(self._clock.now_ms(), up)
        transaction.ring_all = not up or time.monotonic() - self._rang >= _RING_SECONDS
        messages = [message for _, of_step in steps for message in of_step]
        transaction.entries, transaction.heads = self._rewriter.entries(messages, transaction.bus_ms)
        if not messages and not transaction.ring_all:
            return
        await self._publisher.commit(transaction)
        if transaction.ring_all:
            self._rang = time.monotonic()
        gaps = sum(isinstance(message, Gap) for _, message in messages)
        self.gaps += gaps
        self.ticks += len(messages) - gaps
        self.at = steps[-1][0] if steps else self.at


def _take(steps: Iterator[Step]) -> deque[Step]:
    return deque(islice(steps, _PIECE))


def _due(piece: deque[Step], due: int | None) -> list[Step]:
    """Takes what is due out of `piece`, a batch at most."""
    taken: list[Step] = []
    while piece and len(taken) < _BATCH and (due is None or piece[0][0] <= due):
        taken.append(piece.popleft())
    return taken
