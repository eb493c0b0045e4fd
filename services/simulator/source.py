"""What the market is made of: anything that yields ticks in the order they are due. Pure."""

from collections.abc import Iterator
from typing import Protocol

from services.simulator.tick import Tick


class Source(Protocol):
    live: bool
    """Its ticks happen now: the market stamps them when they are due."""

    def __iter__(self) -> Iterator[Tick]:
        """From the first tick on; each call begins anew."""
        ...

    def knows(self, symbol: str) -> bool:
        """Whether a client may ask for this symbol."""
        ...

    def open(self, symbol: str) -> None:
        """A client asks for this symbol; a source that can make it up does."""
        ...

    @property
    def idle(self) -> bool:
        """Nothing can be due before a symbol is opened."""
        ...


class Recorded:
    """What recordings have in common: their symbols and times are given."""

    live = False
    idle = False

    def __init__(self, symbols: frozenset[str] | None = None) -> None:
        self._symbols = symbols

    def knows(self, symbol: str) -> bool:
        return self._symbols is None or symbol in self._symbols

    def open(self, symbol: str) -> None:
        pass
