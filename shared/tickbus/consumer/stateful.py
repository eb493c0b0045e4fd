"""A service with a state per stream: what a batch changes is committed together with the positions."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from tickbus.consumer.batch import Batch
from tickbus.consumer.consumer import ShardConsumer
from tickbus.consumer.outputs import Output
from tickbus.errors import Fenced
from tickbus.protocol.names import StatePart, Stream

_LAST_COMMIT_SECONDS = 2.0
"""How long the last commit may take."""

States = tuple[dict[Stream, bytes], dict[StatePart, bytes]]


class StatefulService(ABC):
    """Outputs are committed at once, states alone every `commit_seconds`, and before a shard is released.

    The subclass keeps the state of each stream in memory, and adds a stream to `dirty` when that changes.
    """

    def __init__(self, consumer: ShardConsumer, log: logging.Logger, commit_seconds: float) -> None:
        self._consumer = consumer
        self._log = log
        self._commit_seconds = commit_seconds
        self.dirty: set[Stream] = set()
        """Streams that differ from the committed state."""
        self._applied: Batch | None = None
        """The newest batch that was applied."""

    @abstractmethod
    def restore(self, fields: Mapping[str, bytes]) -> None:
        """Continue a shard from what was committed: the states of its streams and their parts, by name."""

    async def meet(self, batch: Batch) -> None:  # noqa: B027  # most services need nothing
        """Prepare for a batch before it is applied."""

    @abstractmethod
    def apply(self, batch: Batch) -> list[Output]:
        """Apply the entries and clocks of a batch. Return what they cause."""

    @abstractmethod
    def states(self, streams: Collection[Stream]) -> States:
        """Return the states of these streams, and the parts that changed since the last call."""

    @abstractmethod
    def release(self, shards: Collection[int]) -> None:
        """Forget these shards; another replica continues from their committed state."""

    async def process(self) -> None:
        """Work until cancelled; then commit what was applied: the next owner need not read it again."""
        try:
            await self._take_batches()
        except asyncio.CancelledError:
            await self._commit_last()
            raise

    async def _take_batches(self) -> None:
        committed = time.monotonic()
        async for batch in self._consumer.batches():
            for fields in batch.gained.values():
                self.restore(fields)
            await self.meet(batch)
            outputs = self.apply(batch)
            self._applied = batch
            # commit before releasing shards: the next owner need not reread these entries
            waited = time.monotonic() - committed > self._commit_seconds
            if outputs or (self.dirty and (batch.lost or waited)):
                await self._commit(batch, outputs)
                committed = time.monotonic()
            if batch.lost:
                self.release(batch.lost)

    async def _commit(self, batch: Batch, outputs: list[Output]) -> None:
        """Commit everything up to this batch. Even if cancelled, it is stored unless Redis is unavailable."""
        dirty, self.dirty = self.dirty, set()
        await batch.commit(outputs, *self.states(dirty))

    async def _commit_last(self) -> None:
        if self._applied is None or not self.dirty:
            return
        try:
            async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                await self._commit(self._applied, [])
        except TimeoutError:
            self._log.info("the last positions are not committed: Redis did not accept them in time")
        except Fenced as error:
            self._log.info("the last positions are not committed: %s", error)
