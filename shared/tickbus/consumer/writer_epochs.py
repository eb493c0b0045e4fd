"""The epochs under which the entries of a stream were written, as far as its head knows them. Pure.

A head that is read right after Redis lost its newest data names fewer epochs than were known before, and
resent entries ring no bell that would make a reader refresh it. So a known epoch is never forgotten.
"""

from collections.abc import Callable, Collection, Sequence


class WriterEpochs:
    def __init__(self) -> None:
        self._newest: dict[str, int] = {}
        """Stream name -> the epoch of the newest entry so far."""

    def epochs(self, stream: str, known: Sequence[tuple[int, int]], seqs: Sequence[int]) -> list[int]:
        """Return the epochs of a stream's next entries, by their counters; 0 if unknown. They never decrease.

        `known`: as `Head.epochs`.
        """
        floor = self._newest.get(stream, 0)

        def epoch_of(seq: int) -> int:
            return max(floor, *(epoch for epoch, first in known if first <= seq), 0)

        oldest, newest = epoch_of(seqs[0]), epoch_of(seqs[-1])
        self._newest[stream] = newest
        return [oldest] * len(seqs) if oldest == newest else [epoch_of(seq) for seq in seqs]

    def forget(self, streams: Collection[str]) -> None:
        for stream in streams:
            self._newest.pop(stream, None)

    def forget_if(self, is_gone: Callable[[str], bool]) -> None:
        self.forget([stream for stream in self._newest if is_gone(stream)])
