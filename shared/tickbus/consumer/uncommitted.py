"""What a service was given and has not committed yet. Pure."""

from collections import deque
from collections.abc import Callable, Mapping

from tickbus.protocol.names import Stream, StreamId

_MOST = 1_000
"""Batches told apart; of a service that never commits older ones are merged."""


class UncommittedPositions:
    def __init__(self) -> None:
        self._batches: deque[tuple[int, dict[Stream, StreamId]]] = deque()
        """(number of the batch, its positions), oldest first."""

    def add(self, number: int, positions: Mapping[Stream, StreamId]) -> None:
        if positions:
            self._batches.append((number, dict(positions)))
        if len(self._batches) > _MOST:
            _, oldest = self._batches.popleft()
            later, merged = self._batches.popleft()
            oldest.update(merged)
            self._batches.appendleft((later, oldest))

    def up_to(self, number: int) -> dict[Stream, StreamId]:
        """Positions after batch `number` and all before it, of what is not committed yet."""
        positions: dict[Stream, StreamId] = {}
        for at, of_batch in self._batches:
            if at > number:
                break
            positions |= of_batch
        return positions

    def committed(self, number: int) -> None:
        while self._batches and self._batches[0][0] <= number:
            self._batches.popleft()

    def forget(self, gone: Callable[[Stream], bool]) -> None:
        """These streams are another process's now: it reads them again."""
        for _, positions in self._batches:
            for stream in [stream for stream in positions if gone(stream)]:
                del positions[stream]
