"""Canonical symbols <-> a vendor's spelling, built from the options without a call to the vendor. Pure but for reading files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tickbus.errors import ConfigError
from tickbus.protocol.names import check_symbol


class SymbolMap:
    """`vendor[canonical]` and `canonical[vendor]`, for the wanted symbols."""

    def __init__(
        self, symbols: Iterable[str], to_vendor_symbol: Callable[[str], str], exceptions: dict[str, str]
    ) -> None:
        self.vendor: dict[str, str] = {}
        self.canonical: dict[str, str] = {}
        for symbol in symbols:
            spelling = exceptions.get(symbol) or to_vendor_symbol(symbol)
            if (other := self.canonical.setdefault(spelling, symbol)) != symbol:
                raise ConfigError(
                    f"symbols {other} and {symbol} are both {spelling!r} at the vendor; drop one or change --symbol-map"
                )
            self.vendor[check_symbol(symbol)] = spelling


class AnySymbol(SymbolMap):
    """For who wants all there is: each symbol is what the vendor calls it."""

    def __init__(self) -> None:
        super().__init__((), str, {})
        self.canonical = _Same()


class _Same(dict[str, str]):
    """Every text is in it, as itself."""

    def get(self, spelling: str, default: object = None) -> str:
        return spelling

    def __contains__(self, spelling: object) -> bool:
        return True


def read_symbols(given: tuple[str, ...]) -> list[str]:
    """`--symbols A,B` or `--symbols @file` (one or more a line, # begins a comment) -> symbols without repeats."""
    symbols: list[str] = []
    for item in given:
        symbols += _words(Path(item[1:]), "--symbols") if item.startswith("@") else [item]
    if not symbols:
        raise ConfigError(
            "--symbols is missing (also TICKBUS_SYMBOLS): name what to subscribe, like BTC-USDT,ETH-USDT or @file"
        )
    return list(dict.fromkeys(symbols))


def read_symbol_map(path: Path | None) -> dict[str, str]:
    """A file of lines `canonical = vendor` -> the same as a dict."""
    if path is None:
        return {}
    pairs: dict[str, str] = {}
    for number, line in enumerate(_lines(path, "--symbol-map"), 1):
        if not line:
            continue
        canonical, equals, vendor = (part.strip() for part in line.partition("="))
        if not (canonical and equals and vendor):
            raise ConfigError(
                f"--symbol-map {path}, line {number}: {line!r} is not of the form canonical = vendor"
            )
        if pairs.setdefault(check_symbol(canonical), vendor) != vendor:
            raise ConfigError(
                f"--symbol-map {path}, line {number}: {canonical} is {pairs[canonical]!r} already"
            )
    return pairs


def _words(path: Path, flag: str) -> list[str]:
    return [word for line in _lines(path, flag) for word in line.replace(",", " ").split()]


def _lines(path: Path, flag: str) -> list[str]:
    try:
        return [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path}: {getattr(error, 'strerror', None) or error}") from None
