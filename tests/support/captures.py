"""The captures beside the repository as plain rows."""

import csv
import gzip
import io
import json
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

TradeRow = tuple[str, Decimal, Decimal, str | None, int]
"""(trade_id, price, size, side, ts_event)"""

FIRST_ID, LAST_ID = 3735683259, 3735703162


def binance_files(data: Path) -> list[Path]:
    return [data / f"spot_btcusdt_2024080{day}.gz" for day in (8, 9)]


def binance_trades(data: Path) -> list[TradeRow]:
    """Return (id, price, size, side, ts_event) of every trade frame, in order."""
    return [
        (
            str(event["t"]),
            Decimal(event["p"]),
            Decimal(event["q"]),
            "sell" if event["m"] else "buy",
            event["T"] * 1_000_000,
        )
        for event in _events(data, "@trade")
    ]


def binance_quotes(data: Path) -> list[tuple[Decimal, Decimal, Decimal, Decimal]]:
    """Return (bid, bid size, ask, ask size) of every bookTicker frame, in order."""
    return [
        (Decimal(event["b"]), Decimal(event["B"]), Decimal(event["a"]), Decimal(event["A"]))
        for event in _events(data, "@bookTicker")
    ]


def _events(data: Path, suffix: str) -> list[dict[str, Any]]:
    found = []
    for path in binance_files(data):
        with gzip.open(path, "rt") as lines:
            for line in lines:
                frame = json.loads(line.partition(" ")[2])
                if frame.get("stream", "").endswith(suffix):
                    found.append(frame["data"])
    return found


def bac_trades(data: Path) -> list[tuple[Decimal, Decimal]]:
    """Return (price, size) of each of the 122,832 trades of BAC, in order."""
    return [(Decimal(row[1]) / 10_000, Decimal(row[2])) for row in _rows(data / "bac_20131009_trade.zip")]


def _rows(path: Path) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive:
        (name,) = archive.namelist()
        return list(csv.reader(io.TextIOWrapper(archive.open(name), "utf-8")))


def frames_of_all(data: Path, limit: int) -> list[bytes]:
    """Return the first frames of every capture, of whatever vendor: this many of each."""
    frames = []
    for path in [*binance_files(data), *sorted(data.glob("*.jsonl.zst"))]:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else "zstd") as file:
            lines = [line for line in file.read(limit * 4_000).split(b"\n")[:-1] if line]
        if path.suffix == ".gz":
            frames += [line.partition(b" ")[2] for line in lines[:limit]]
        else:
            rows = [row for row in map(json.loads, lines) if row.get("t") == "recv"]
            frames += [row["data"].encode() for row in rows[:limit]]
    return frames
