from pathlib import Path

import pytest

from services.vendors.binance.client import Binance
from services.vendors.symbols import SymbolMap, read_symbol_map, read_symbols
from tickbus.errors import ConfigError


def test_symbols_from_the_command_line_and_from_files(tmp_path: Path) -> None:
    path = tmp_path / "symbols"
    path.write_text("AAPL.US, 700.HK  # two\n\n# none\nBTC-USDT\nAAPL.US\n")
    assert read_symbols(("GOLD", f"@{path}", "GOLD")) == ["GOLD", "AAPL.US", "700.HK", "BTC-USDT"]


def test_a_map_and_the_vendors_own_rule() -> None:
    symbols = SymbolMap(
        ["BTC-USDT", "ETH-USDT", "GOLD"], Binance.to_vendor_symbol, {"GOLD": "XAU/USD", "OTHER": "unused"}
    )
    assert symbols.vendor == {"BTC-USDT": "BTCUSDT", "ETH-USDT": "ETHUSDT", "GOLD": "XAU/USD"}
    assert symbols.canonical == {theirs: ours for ours, theirs in symbols.vendor.items()}


def test_a_map_file(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text("EUR-USD = EUR/USD  # forex\n\nGOLD=XAU = x\n")
    assert read_symbol_map(path) == {"EUR-USD": "EUR/USD", "GOLD": "XAU = x"}
    assert read_symbol_map(None) == {}


def test_files_that_an_editor_began_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "symbols"
    path.write_bytes(b"\xef\xbb\xbfAAPL\r\nMSFT\r\n")
    assert read_symbols((f"@{path}",)) == ["AAPL", "MSFT"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("GOLD", "line 2: 'GOLD' is not of the form"),
        ("= X", "line 2"),
        ("GOLD =", "line 2"),
        ("gold = X", "symbol 'gold'"),
        ("A = C", "line 2: A is 'B' already"),
    ],
)
def test_a_bad_map_names_the_line(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "map"
    path.write_text(f"A = B\n{line}\n")
    with pytest.raises(ConfigError, match=told):
        read_symbol_map(path)


@pytest.mark.parametrize("given", [(), ("@/no/such/file",), ("@/",), ("@",)])
def test_symbols_that_cannot_be_read(given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--symbols"):
        read_symbols(given)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    for read in (lambda: read_symbols((f"@{path}",)), lambda: read_symbol_map(path)):
        with pytest.raises(ConfigError, match="binary"):
            read()


@pytest.mark.parametrize("symbol", ["btc-usdt", "", "A B", "A:B", "A" * 65, "{A}", "Ä", "A\n"])
def test_symbols_that_no_key_can_hold(symbol: str) -> None:
    with pytest.raises(ConfigError, match="use A-Z 0-9"):
        SymbolMap([symbol], str, {})


def test_two_symbols_with_one_spelling() -> None:
    with pytest.raises(ConfigError, match="BTC-USDT and BTCUSDT are both 'BTCUSDT' at the vendor"):
        SymbolMap(["BTC-USDT", "BTCUSDT"], Binance.to_vendor_symbol, {})
