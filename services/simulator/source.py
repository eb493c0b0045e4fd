"""The market's input: anything that yields ticks in the order they are due. Pure."""

from collections.abc import Iterator
from typing import Protocol

from services.simulator.tick import Tick


class Source(Protocol):
    live: bool
    """Whether its ticks happen now: the market stamps them when they are due."""

    def __iter__(self) -> Iterator[Tick]:
        """Yield the ticks from the first one on; each call starts over."""
        ...

    def knows(self, symbol: str) -> bool:
        """Return whether a client may request this symbol."""
        ...

    def open(self, symbol: str) -> None:
        """Start generating a symbol that a client requests, if the source can."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing can be due before a symbol is opened."""
        ...


class RecordedSource:
    """What recordings have in common: their symbols and times are fixed."""

    live = False
    idle = False

    def __init__(self, symbols: frozenset[str] | None = None) -> None:
        self._symbols = symbols

    def knows(self, symbol: str) -> bool:
        return self._symbols is None or symbol in self._symbols

    def open(self, symbol: str) -> None:
        pass
