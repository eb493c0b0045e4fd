"""Real days: the last revision of every bar equals the bar from sorting the trades into intervals."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from itertools import groupby

import pytest
from bars.reference import Entry, as_row, numbers
from support.paths import DATA

from services.bars.builder import Emitted, StreamBars
from tickbus.protocol.bar_specs import parse
from tickbus.protocol.messages import Side, Trade
from tickbus.protocol.names import StreamId
from tickbus.units import MILLISECOND, SECOND, canonical

pytestmark = [pytest.mark.data, pytest.mark.skipif(not DATA.exists(), reason="captures not found")]

MIDNIGHT = 1_381_118_400 * SECOND
"""2013-10-07T00:00 in New York."""


def btcusdt() -> list[Entry]:
    entries: list[Entry] = []
    for day in ("20240808", "20240809"):
        for line in gzip.decompress((DATA / f"spot_btcusdt_{day}.gz").read_bytes()).decode().splitlines():
            received, _, frame = line.partition(" ")
            if "@trade" in frame:
                t = json.loads(frame)["data"]
                ts, side = t["T"] * MILLISECOND, Side.SELL if t["m"] else Side.BUY
                trade = Trade(
                    "BTC-USDT", canonical(t["p"]), canonical(t["q"]), side, str(t["t"]), ts, int(received)
                )
                entries.append((StreamId(int(received) // MILLISECOND, len(entries) + 1), trade))
    return entries


def spy() -> list[Entry]:
    with zipfile.ZipFile(DATA / "spy_20131007_trade.zip") as archive:
        rows = list(csv.reader(io.TextIOWrapper(archive.open(archive.namelist()[0]))))
    entries: list[Entry] = []
    for row in rows:
        ts = MIDNIGHT + int(row[0]) * MILLISECOND
        trade = Trade("SPY.US", f"{row[1][:-4]}.{row[1][-4:]}", row[2], Side.UNKNOWN, None, ts, ts)
        entries.append((StreamId(ts // MILLISECOND, len(entries) + 1), trade))
    return entries


@pytest.mark.parametrize("load", [btcusdt, spy])
def test_time_bars_of_real_tape(load: Callable[[], list[Entry]]) -> None:
    entries = load()
    symbol, specs = entries[0][1].symbol, [parse("time:1s"), parse("time:1m")]
    bars = StreamBars(symbol, specs, 2 * SECOND, 60 * SECOND)
    emitted: list[Emitted] = []
    for start in range(0, len(entries), 500):
        emitted += bars.apply_many(entries[start : start + 500])
        if start % 50_000 == 0:
            bars = StreamBars(symbol, specs, 2 * SECOND, 60 * SECOND, bars.state())
    emitted += bars.clock(entries[-1][0].ms + 100_000)
    first = entries[0][1]
    assert isinstance(first, Trade)
    last = {(bar.spec, bar.start): as_row(bar) for _, bar in emitted}
    for spec in specs:
        length = int(spec.size)
        ordered = sorted(
            (trade for _, trade in entries if isinstance(trade, Trade) and trade.price and trade.size),
            key=lambda trade: trade.ts_event // length,
        )
        expected = {
            start * length: numbers(list(group))
            for start, group in groupby(ordered, key=lambda trade: trade.ts_event // length)
        }
        found = {start: row for (text, start), row in last.items() if text == spec.text}
        assert sorted(found) == list(expected)
        for start, row in expected.items():
            assert found[start] == row | {
                "spec": spec.text,
                "start": start,
                "end": start + length,
                "revision": found[start]["revision"],
                # nobody says when it was subscribed
                "quality": ("partial",) if start <= first.ts_event else (),
            }
    assert bars.counters["too_late"] == 0
