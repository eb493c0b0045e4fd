from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from services.simulator.parquet import ParquetTicks
from services.simulator.tick import Tick
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Side, Trade

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

DECIMAL = pyarrow.decimal128(38, 18)
TIME = pyarrow.timestamp("ns", tz="UTC")
DAY = int(datetime(2024, 8, 9, tzinfo=UTC).timestamp()) * 10**9


Columns = dict[str, tuple[object, list[object]]]
"""Name -> (type, values)."""


def write(folder: Path, kind: str, columns: Columns) -> None:
    target = folder / kind / "date=2024-08-09"
    target.mkdir(parents=True)
    table = pyarrow.table(
        {name: pyarrow.array(values, type=type_) for name, (type_, values) in columns.items()}
    )
    parquet.write_table(table, target / "00-1.parquet", compression="zstd")


def test_recorded_files_become_a_market(tmp_path: Path) -> None:
    symbols = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    trades: Columns = {
        "feed": (symbols, ["binance", "binance"]),
        "symbol": (symbols, ["BTC-USDT", "BTC-USDT"]),
        "price": (DECIMAL, [Decimal("61837.63"), Decimal("61838")]),
        "size": (DECIMAL, [Decimal("0.020000001"), Decimal("100")]),
        "side": (pyarrow.string(), ["sell", None]),
        "trade_id": (pyarrow.string(), ["7", None]),
        "ts_event": (TIME, [DAY + 1, DAY + 2]),
        "ts_recv": (TIME, [DAY + 10, DAY + 30]),
    }
    quotes: Columns = {
        "symbol": (symbols, ["BTC-USDT"]),
        "bid": (DECIMAL, [Decimal("61837.6")]),
        "bid_size": (DECIMAL, [Decimal("1")]),
        "ask": (DECIMAL, [None]),
        "ask_size": (DECIMAL, [None]),
        "ts_event": (TIME, [DAY + 3]),
        "ts_recv": (TIME, [DAY + 20]),
    }
    write(tmp_path, "trade", trades)
    write(tmp_path, "quote", quotes)
    trade, quote = ("trade:BTCUSDT", "BTC-USDT"), ("quote:BTCUSDT", "BTC-USDT")
    assert list(ParquetTicks(tmp_path)) == [
        Tick(
            *trade,
            7,
            DAY + 10,
            Trade("BTC-USDT", "61837.63", "0.020000001", Side.SELL, "7", DAY + 1, DAY + 10),
        ),
        Tick(*quote, 1, DAY + 20, Quote("BTC-USDT", "61837.6", "1", None, None, DAY + 3, DAY + 20)),
        Tick(*trade, 2, DAY + 30, Trade("BTC-USDT", "61838", "100", Side.UNKNOWN, None, DAY + 2, DAY + 30)),
    ]


def test_folder_without_recordings_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no files in .*, with trade/date="):
        ParquetTicks(tmp_path)


def test_recording_without_a_readable_file_is_a_config_error(tmp_path: Path) -> None:
    folder = tmp_path / "trade" / "date=2024-08-09"
    folder.mkdir(parents=True)
    (folder / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="no recorded trade or quote in "):
        list(ParquetTicks(tmp_path))
