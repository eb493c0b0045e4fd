"""Under which epoch the entries of a stream were written, as far as its head knows. Pure.

Heads that are looked at right after Redis lost its newest data know less than was read before; what is sent again brings no
bell that would make a reader look again. So what was once known stays.
"""

from collections.abc import Callable, Collection, Sequence


class WriterEpochs:
    def __init__(self) -> None:
        self._newest: dict[str, int] = {}
        """Stream name -> the epoch of the newest entry so far."""

    def epochs(self, stream: str, known: Sequence[tuple[int, int]], seqs: Sequence[int]) -> list[int]:
        """Of the next entries of a stream, by their counters; 0 where nobody knows. They never fall. `known`: as Head.epochs."""
        least = self._newest.get(stream, 0)

        def of(seq: int) -> int:
            return max(least, *(epoch for epoch, first in known if first <= seq), 0)

        oldest, newest = of(seqs[0]), of(seqs[-1])
        self._newest[stream] = newest
        return [oldest] * len(seqs) if oldest == newest else [of(seq) for seq in seqs]

    def forget(self, streams: Collection[str]) -> None:
        for stream in streams:
            self._newest.pop(stream, None)

    def forget_if(self, is_gone: Callable[[str], bool]) -> None:
        self.forget([stream for stream in self._newest if is_gone(stream)])
