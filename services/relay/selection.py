"""Which streams a subscription selects: symbols or globs, feeds, specs, and what its token allows. Pure."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from tickbus.protocol.names import KINDS, Stream

MAX_GLOB = 64
"""Longest glob."""
MAX_STARS = 2
MAX_GLOBS = 32
"""Of one selection: each is compared with every stream."""
_SYMBOL_OR_GLOB = re.compile(r"[A-Z0-9._*-]+")


class Glob:
    """A pattern in which `*` stands for any text, at most twice. Matched without backtracking.

    Glob("BTC-*").matches("BTC-USDT")
    """

    __slots__ = ("_first", "_last", "_middle", "text")

    def __init__(self, text: str) -> None:
        """Raise ValueError unless the pattern is valid."""
        if len(text) > MAX_GLOB or text.count("*") > MAX_STARS or not _SYMBOL_OR_GLOB.fullmatch(text):
            raise ValueError(
                f"invalid symbol {text[:80]!r}: expected A-Z 0-9 . _ - and at most {MAX_STARS} of *, "
                f"{MAX_GLOB} characters in all, e.g. BTC-USDT or BTC-*"
            )
        self.text = text
        self._first, *middle, self._last = text.split("*") if "*" in text else (text, text)
        self._middle = middle[0] if middle else ""

    def matches(self, symbol: str) -> bool:
        if "*" not in self.text:
            return symbol == self.text
        first, last = self._first, self._last
        if len(symbol) < len(first) + len(last) or not symbol.startswith(first) or not symbol.endswith(last):
            return False
        return not self._middle or symbol.find(self._middle, len(first), len(symbol) - len(last)) >= 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glob) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


@dataclass(frozen=True)
class Symbols:
    """Symbols by name or glob; all of them where both are empty."""

    names: frozenset[str] = frozenset()
    globs: tuple[Glob, ...] = ()

    @classmethod
    def parse(cls, texts: Collection[str]) -> "Symbols":
        """Return them. ValueError for an invalid one."""
        parsed = [Glob(text) for text in texts]
        if sum("*" in glob.text for glob in parsed) > MAX_GLOBS:
            raise ValueError(
                f"too many globs: at most {MAX_GLOBS}, e.g. BTC-* and ETH-*; names have no such limit"
            )
        return cls(
            frozenset(glob.text for glob in parsed if "*" not in glob.text),
            tuple(sorted({glob for glob in parsed if "*" in glob.text}, key=lambda glob: glob.text)),
        )

    def __contains__(self, symbol: str) -> bool:
        if symbol in self.names:
            return True
        if not self.globs:
            return not self.names
        return any(glob.matches(symbol) for glob in self.globs)


@dataclass(frozen=True)
class Scope:
    """What a token allows to read."""

    kinds: frozenset[str] = frozenset(KINDS)
    symbols: Symbols = Symbols()
    feeds: frozenset[str] = frozenset()
    """Empty: all."""

    def __call__(self, stream: Stream) -> bool:
        return (
            stream.kind in self.kinds
            and (not self.feeds or stream.feed in self.feeds)
            and stream.symbol in self.symbols
        )


@dataclass(frozen=True)
class Selection:
    """The streams of one subscription. Equal ones share their encoded data."""

    kind: str
    symbols: Symbols
    feeds: frozenset[str]
    specs: frozenset[str]
    scope: Scope

    def __call__(self, stream: Stream) -> bool:
        return (
            stream.kind == self.kind
            and (not self.feeds or stream.feed in self.feeds)
            and (not self.specs or stream.spec in self.specs)
            and stream.symbol in self.symbols
            and self.scope(stream)
        )
