"""What was delivered to a service and is not committed yet. Pure."""

from collections import deque
from collections.abc import Callable, Mapping

from tickbus.protocol.names import Stream, StreamId

_MAX_BATCHES = 1_000
"""Batches tracked separately; if a service never commits, older ones are merged."""


class UncommittedPositions:
    def __init__(self) -> None:
        self._batches: deque[tuple[int, dict[Stream, StreamId]]] = deque()
        """(number of the batch, its positions), oldest first."""

    def add(self, number: int, positions: Mapping[Stream, StreamId]) -> None:
        if positions:
            self._batches.append((number, dict(positions)))
        if len(self._batches) > _MAX_BATCHES:
            _, oldest = self._batches.popleft()
            later, merged = self._batches.popleft()
            oldest.update(merged)
            self._batches.appendleft((later, oldest))

    def up_to(self, number: int) -> dict[Stream, StreamId]:
        """Return the uncommitted positions after batch `number` and all before it."""
        positions: dict[Stream, StreamId] = {}
        for batch, of_batch in self._batches:
            if batch > number:
                break
            positions |= of_batch
        return positions

    def committed(self, number: int) -> None:
        while self._batches and self._batches[0][0] <= number:
            self._batches.popleft()

    def forget(self, gone: Callable[[Stream], bool]) -> None:
        """Another process owns these streams now and reads them again."""
        for _, positions in self._batches:
            for stream in [stream for stream in positions if gone(stream)]:
                del positions[stream]
