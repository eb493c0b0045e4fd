from pathlib import Path

import pytest

from services.vendors.binance.client import Binance
from services.vendors.symbols import SymbolMap, read_symbol_map, read_symbols
from tickbus.errors import ConfigError


def test_symbols_from_the_command_line_and_from_files(tmp_path: Path) -> None:
    path = tmp_path / "symbols"
    path.write_text("AAPL.US, 700.HK  # two\n\n# none\nBTC-USDT\nAAPL.US\n")
    assert read_symbols(("GOLD", f"@{path}", "GOLD")) == ["GOLD", "AAPL.US", "700.HK", "BTC-USDT"]


def test_symbol_map_overrides_the_vendors_rule() -> None:
    symbols = SymbolMap(
        ["BTC-USDT", "ETH-USDT", "GOLD"], Binance.to_vendor_symbol, {"GOLD": "XAU/USD", "OTHER": "unused"}
    )
    assert symbols.vendor == {"BTC-USDT": "BTCUSDT", "ETH-USDT": "ETHUSDT", "GOLD": "XAU/USD"}
    assert symbols.canonical == {theirs: ours for ours, theirs in symbols.vendor.items()}


def test_symbol_map_file_allows_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text("EUR-USD = EUR/USD  # forex\n\nGOLD=XAU = x\n")
    assert read_symbol_map(path) == {"EUR-USD": "EUR/USD", "GOLD": "XAU = x"}
    assert read_symbol_map(None) == {}


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "symbols"
    path.write_bytes(b"\xef\xbb\xbfAAPL\r\nMSFT\r\n")
    assert read_symbols((f"@{path}",)) == ["AAPL", "MSFT"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("GOLD", "line 2: invalid entry 'GOLD': expected canonical = vendor"),
        ("= X", "line 2"),
        ("GOLD =", "line 2"),
        ("gold = X", "symbol 'gold'"),
        ("A = C", "line 2: A already maps to 'B'"),
    ],
)
def test_error_in_a_symbol_map_names_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "map"
    path.write_text(f"A = B\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        read_symbol_map(path)


@pytest.mark.parametrize("given", [("@/no/such/file",), ("@/",), ("@",)])
def test_unreadable_symbols_are_a_config_error(given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--symbols"):
        read_symbols(given)


def test_binary_file_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    for read in (lambda: read_symbols((f"@{path}",)), lambda: read_symbol_map(path)):
        with pytest.raises(ConfigError, match="binary"):
            read()


@pytest.mark.parametrize("symbol", ["btc-usdt", "", "A B", "A:B", "A" * 65, "{A}", "Ä", "A\n"])
def test_invalid_canonical_symbol_is_a_config_error(symbol: str) -> None:
    with pytest.raises(ConfigError, match="expected A-Z 0-9"):
        SymbolMap([symbol], str, {})


def test_two_symbols_with_the_same_spelling_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="BTC-USDT and BTCUSDT both map to 'BTCUSDT' at the vendor"):
        SymbolMap(["BTC-USDT", "BTCUSDT"], Binance.to_vendor_symbol, {})
