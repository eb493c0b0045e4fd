import csv
import io
import zipfile
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from services.simulator.tape import TapeTicks
from services.simulator.tick import quote_tick, trade_tick
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Quote, Trade

MIDNIGHT = int(datetime(2013, 10, 9, tzinfo=ZoneInfo("America/New_York")).timestamp()) * 10**9


def tape(tmp_path: Path) -> list[Path]:
    trades, quotes = tmp_path / "20131009_xy_trade.csv", tmp_path / "20131009_xy_quote.zip"
    trades.write_text("1000,137850,100,P,0,0\n1000,137850,100,P,0,0\n1002,5,7,P,0,0\n")
    with zipfile.ZipFile(quotes, "w") as archive:
        archive.writestr("a.csv", "1000,137400,3100,0,0,P,1,0\n1001,0,0,138500,500,P,1,0\n")
    return [trades, quotes]


def test_rows_are_merged_by_time_with_exact_prices(tmp_path: Path) -> None:
    at = MIDNIGHT + 10**9
    trade, quote = ("trade:XY.US", "XY.US"), ("quote:XY.US", "XY.US")
    assert list(TapeTicks(tape(tmp_path), "XY.US")) == [
        trade_tick(*trade, 1, at, at, "13.7850", "100"),
        trade_tick(*trade, 2, at, at, "13.7850", "100"),
        quote_tick(*quote, 1, at, at, "13.7400", "3100", None, None),
        quote_tick(*quote, 2, at + 10**6, at + 10**6, None, None, "13.8500", "500"),
        trade_tick(*trade, 3, at + 2 * 10**6, at + 2 * 10**6, "0.0005", "7"),
    ]


def test_merge_sides_fills_the_missing_side(tmp_path: Path) -> None:
    messages = [tick.message for tick in TapeTicks(tape(tmp_path), "XY.US", merge_sides=True)]
    quotes = [message for message in messages if isinstance(message, Quote)]
    assert [
        (quote.bid_text, quote.bid_size_text, quote.ask_text, quote.ask_size_text) for quote in quotes
    ] == [
        ("13.7400", "3100", None, None),
        ("13.7400", "3100", "13.8500", "500"),
    ]


def test_error_names_what_a_tape_requires(tmp_path: Path) -> None:
    paths = tape(tmp_path)
    with pytest.raises(ConfigError, match="--symbol"):
        TapeTicks(paths, "")
    with pytest.raises(ConfigError, match="no such file"):
        TapeTicks([tmp_path / "none"], "A")
    other = tmp_path / "trade.csv"
    other.write_text("1,2,x\n")
    with pytest.raises(ConfigError, match="--date"):
        TapeTicks([other], "A")
    with pytest.raises(ConfigError, match=r"trade\.csv, line 1"):
        list(TapeTicks([other], "A", date="2013-10-09"))
    nameless = tmp_path / "20131009.csv"
    nameless.write_text("")
    with pytest.raises(ConfigError, match="trade"):
        TapeTicks([nameless], "A")


@pytest.mark.data
def test_real_tape_has_every_row_in_order(data: Path) -> None:
    path = data / "bac_20131009_trade.zip"
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.reader(io.TextIOWrapper(archive.open(archive.namelist()[0]))))
    messages = [tick.message for tick in TapeTicks([path], "BAC.US")]
    read = [
        (trade.ts_event - MIDNIGHT, trade.price, trade.size_text)
        for trade in messages
        if isinstance(trade, Trade)
    ]
    assert read == [(int(row[0]) * 10**6, Decimal(row[1]) / 10000, row[2]) for row in rows]
    assert max(len(list(run)) for _, run in groupby(read)) > 10  # runs of equal trades are real, and kept
