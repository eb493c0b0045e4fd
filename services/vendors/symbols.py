"""Canonical symbols <-> a vendor's spelling, built from the options without a call to the vendor.

Pure except for reading files.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from tickbus.errors import ConfigError
from tickbus.protocol.names import check_symbol


class SymbolMap:
    """`vendor[canonical]` and `canonical[vendor]` for the requested symbols."""

    def __init__(
        self, symbols: Iterable[str], to_vendor_symbol: Callable[[str], str], exceptions: dict[str, str]
    ) -> None:
        self.vendor: dict[str, str] = {}
        self.canonical: dict[str, str] = {}
        self._to_vendor_symbol = to_vendor_symbol
        self._exceptions = exceptions
        for symbol in symbols:
            self.add(symbol)

    def add(self, symbol: str) -> None:
        """Add a symbol, unless it is there. ConfigError if its spelling is that of another one."""
        if symbol in self.vendor:
            return
        check_symbol(symbol)
        spelling = self._exceptions.get(symbol) or self._to_vendor_symbol(symbol)
        if (other := self.canonical.setdefault(spelling, symbol)) != symbol:
            raise ConfigError(
                f"symbols {other} and {symbol} both map to {spelling!r} at the vendor: "
                "remove one or change --symbol-map"
            )
        self.vendor[symbol] = spelling


class AnySymbol(SymbolMap):
    """Accepts every symbol, under the vendor's own spelling."""

    def __init__(self) -> None:
        super().__init__((), str, {})
        self.canonical = _Identity()


class _Identity(dict[str, str]):
    """Maps every text to itself."""

    def get(self, spelling: str, default: object = None) -> str:
        return spelling

    def __contains__(self, spelling: object) -> bool:
        return True


def read_symbols(items: tuple[str, ...]) -> list[str]:
    """Return the symbols of `--symbols A,B` or `--symbols @file`, without duplicates.

    A file has one or more symbols per line; # starts a comment.
    """
    symbols: list[str] = []
    for item in items:
        symbols += _words(Path(item[1:]), "--symbols") if item.startswith("@") else [item]
    return list(dict.fromkeys(symbols))


def read_symbol_map(path: Path | None) -> dict[str, str]:
    """Return the lines `canonical = vendor` of a file as a dict."""
    if path is None:
        return {}
    pairs: dict[str, str] = {}
    for number, line in enumerate(_lines(path, "--symbol-map"), 1):
        if not line:
            continue
        canonical, equals, vendor = (part.strip() for part in line.partition("="))
        if not (canonical and equals and vendor):
            raise ConfigError(
                f"--symbol-map {path}, line {number}: invalid entry {line!r}: expected canonical = vendor"
            )
        if pairs.setdefault(check_symbol(canonical), vendor) != vendor:
            raise ConfigError(
                f"--symbol-map {path}, line {number}: {canonical} already maps to {pairs[canonical]!r}: "
                "remove one of the lines"
            )
    return pairs


def _words(path: Path, flag: str) -> list[str]:
    return [word for line in _lines(path, flag) for word in line.replace(",", " ").split()]


def _lines(path: Path, flag: str) -> list[str]:
    try:
        return [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path}: {getattr(error, 'strerror', None) or error}") from None
