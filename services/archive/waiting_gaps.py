"""Gaps whose place is not known from their own file: they wait for the next tick of their stream. Pure."""

from collections import deque
from collections.abc import Iterable, Iterator

from tickbus.protocol.messages import Message
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import MINUTE

RecordedMessage = tuple[Stream, StreamId, Message]

_OVERDUE = MINUTE
"""A Gap whose stream has no tick for this long after it is not kept back any longer."""


class WaitingGaps:
    def __init__(self, rows: Iterable[tuple[int, RecordedMessage]]) -> None:
        """`rows`: order time and Gap; copies of one Gap count once."""
        found = {(stream, id): (order, (stream, id, gap)) for order, (stream, id, gap) in rows}
        self._by_time = deque(sorted(found.values(), key=lambda row: (row[0], row[1][1])))
        self._by_stream: dict[Stream, deque[RecordedMessage]] = {}
        self._left = set(found)
        self._known = frozenset(found)
        for (stream, _), (_, gap) in sorted(found.items()):
            self._by_stream.setdefault(stream, deque()).append(gap)

    def __contains__(self, key: tuple[Stream, StreamId]) -> bool:
        """Whether this Gap waits here, or did: a copy elsewhere is not needed."""
        return key in self._known

    def before(self, order: int, stream: Stream, id: StreamId) -> Iterator[RecordedMessage]:
        """Yield what comes right before this row: Gaps of its stream, and overdue ones of others."""
        while self._by_time and self._by_time[0][0] + _OVERDUE < order:
            yield from self._take(self._by_time.popleft()[1])
        gaps = self._by_stream.get(stream)
        while gaps and gaps[0][1] < id:
            yield from self._take(gaps.popleft())

    def rest(self) -> Iterator[RecordedMessage]:
        """Yield those after which no tick of their stream came."""
        while self._by_time:
            yield from self._take(self._by_time.popleft()[1])

    def _take(self, gap: RecordedMessage) -> Iterator[RecordedMessage]:
        if gap[:2] in self._left:
            self._left.remove(gap[:2])
            yield gap
