import contextlib
import csv
import gzip
import io
import json
import zipfile
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.recordings import Capture, TapeTicks
from services.simulator.tick import Tick
from tickbus.errors import ConfigError

TRADE = b'{"stream":"btcusdt@trade","data":{"e":"trade","E":2,"s":"BTCUSDT","t":5,"p":"61837.63000000","q":"0.02000000","T":1723161255342,"m":true}}'
BOOK = b'{"stream":"btcusdt@bookTicker","data":{"u":9,"s":"BTCUSDT","b":"1.10","B":"2","a":"1.20","A":"3"}}'
DEPTH = b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","b":[["1","0"]],"a":[]}}'
LINES = b"10 " + TRADE + b"\n12 " + BOOK + b'\n13 {"lastUpdateId":5}\n14 ' + DEPTH + b"\n"
MIDNIGHT = int(datetime(2013, 10, 9, tzinfo=ZoneInfo("America/New_York")).timestamp()) * 10**9

EXPECTED = [
    Tick("trade", "btcusdt@trade", "BTCUSDT", 5, 1723161255342 * 10**6, 10, "61837.63000000", "0.02000000", "sell", raw=TRADE),
    Tick("quote", "btcusdt@bookTicker", "BTCUSDT", 9, 12, 12, bid="1.10", bid_size="2", ask="1.20", ask_size="3", raw=BOOK),
    Tick("other", "btcusdt@depth@100ms", "BTCUSDT", 0, 14, 14, raw=DEPTH),
]


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\n\n"])
def test_a_capture_is_ticks_and_frames(tmp_path: Path, end: bytes) -> None:
    plain, packed = tmp_path / "c.txt", tmp_path / "c.gz"
    plain.write_bytes(LINES.rstrip(b"\n") + end)
    packed.write_bytes(gzip.compress(LINES))
    ticks = list(Capture([plain, packed]))
    for tick in ticks:
        assert tick.raw is not None
        tick.raw = tick.raw.rstrip(b"\r")
    assert ticks == EXPECTED * 2


@pytest.mark.parametrize("line", [b"no number {}", b'1 {"stream":"a@trade","data":{"s":1}}', b'1 {"stream":"a@trade"', b'1 {"stream":"\xff@trade","data":{}}'])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(LINES + line)
    with pytest.raises(ConfigError, match=r"c\.txt, line 5: "):
        list(Capture([path]))


@given(st.binary())
def test_any_file_is_a_capture_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "c.txt"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        list(Capture([path]))


def test_a_cut_gzip_file_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "c.gz"
    path.write_bytes(gzip.compress(LINES)[:-20])
    with pytest.raises(ConfigError, match="cannot be read"):
        list(Capture([path]))


def tape(tmp_path: Path) -> list[Path]:
    trades, quotes = tmp_path / "20131009_xy_trade.csv", tmp_path / "20131009_xy_quote.zip"
    trades.write_text("1000,137850,100,P,0,0\n1000,137850,100,P,0,0\n1002,5,7,P,0,0\n")
    with zipfile.ZipFile(quotes, "w") as archive:
        archive.writestr("a.csv", "1000,137400,3100,0,0,P,1,0\n1001,0,0,138500,500,P,1,0\n")
    return [trades, quotes]


def test_tape_rows_are_merged_by_time_with_exact_prices(tmp_path: Path) -> None:
    at = MIDNIGHT + 10**9
    trade, quote = ("trade", "xy.us@trade", "XY.US"), ("quote", "xy.us@bookTicker", "XY.US")
    assert list(TapeTicks(tape(tmp_path), "XY.US")) == [
        Tick(*trade, 1, at, at, "13.7850", "100"),
        Tick(*trade, 2, at, at, "13.7850", "100"),
        Tick(*quote, 1, at, at, bid="13.7400", bid_size="3100"),
        Tick(*quote, 2, at + 10**6, at + 10**6, ask="13.8500", ask_size="500"),
        Tick(*trade, 3, at + 2 * 10**6, at + 2 * 10**6, "0.0005", "7"),
    ]


def test_sides_can_be_merged(tmp_path: Path) -> None:
    quotes = [tick for tick in TapeTicks(tape(tmp_path), "XY.US", merge_sides=True) if tick.kind == "quote"]
    assert [(tick.bid, tick.bid_size, tick.ask, tick.ask_size) for tick in quotes] == [("13.7400", "3100", None, None), ("13.7400", "3100", "13.8500", "500")]


def test_what_a_tape_needs_is_said(tmp_path: Path) -> None:
    paths = tape(tmp_path)
    with pytest.raises(ConfigError, match="--symbol"):
        TapeTicks(paths, "")
    with pytest.raises(ConfigError, match="no file"):
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
def test_the_capture_has_every_trade(data: Path) -> None:
    ticks = list(Capture([data / "spot_btcusdt_20240808.gz", data / "spot_btcusdt_20240809.gz"]))
    assert [tick.id for tick in ticks if tick.kind == "trade"] == list(range(3735683259, 3735703163))
    assert sum(tick.kind == "quote" for tick in ticks) == 73_174
    for tick in ticks[::500]:
        if tick.kind == "trade":
            assert tick.raw is not None
            frame = json.loads(tick.raw)["data"]
            assert (tick.price, tick.size, tick.time, tick.side) == (frame["p"], frame["q"], frame["T"] * 10**6, "sell" if frame["m"] else "buy")


@pytest.mark.data
def test_the_tape_has_every_row_in_order(data: Path) -> None:
    path = data / "bac_20131009_trade.zip"
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.reader(io.TextIOWrapper(archive.open(archive.namelist()[0]))))
    ticks = list(TapeTicks([path], "BAC.US"))
    read = [(tick.time - MIDNIGHT, Decimal(tick.price), tick.size) for tick in ticks]
    assert read == [(int(row[0]) * 10**6, Decimal(row[1]) / 10000, row[2]) for row in rows]
    assert max(len(list(run)) for _, run in groupby(read)) > 10  # equal trades in a row are real, and kept
