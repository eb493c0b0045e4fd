"""Bar builder ticks/s against nautilus_trader's TimeBarAggregator, on the same ticks.

The ticks are SPY's 250,601 trades of 2013-10-07 if the capture exists, otherwise as many of a seeded random
walk. Each side is one process, and they run in turns. Both get their tick objects in batches, which are
created, untimed, just before they are processed, and return finished bars. Time is processor time, so that a
busy machine disturbs both alike; the medians and the ratio of rates are printed.

    python -m benchmarks.bars [--nautilus-python PYTHON] [--rounds 5] [--quick]
"""

import argparse
import csv
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.figures import Part, table
from services.bars.builder import StreamBars
from tickbus.protocol.bar_specs import parse
from tickbus.protocol.messages import Gap, Side, Trade
from tickbus.protocol.names import StreamId
from tickbus.service.runner import tune_gc
from tickbus.units import HOUR, MILLISECOND, SECOND

ROOT = Path(__file__).parents[1]
CAPTURE = ROOT.parent / "shared" / "data" / "spy_20131007_trade.zip"
NAUTILUS = "nautilus_trader==1.221.0"
MIDNIGHT = 1_381_118_400 * SECOND
"""2013-10-07 in New York, ns."""
BATCH = 1024
"""Ticks created, and passed to our builder, at a time: as many as the service may get from one read."""

Ticks = list[tuple[int, str, str]]
"""(ts_event, price, size)"""
STEPS = ("1m", "1s")
MANY_SPECS = ("time:1s", "time:1m", "time:5m", "time:1h", "time:1d", "tick:100")


def load_ticks(capture: Path) -> Ticks:
    """Return the trades of a capture; synthetic ones if it does not exist."""
    if not capture.exists():
        return synthetic(250_601)
    with zipfile.ZipFile(capture) as archive:
        rows = csv.reader(io.TextIOWrapper(archive.open(archive.namelist()[0])))
        return [
            (MIDNIGHT + int(row[0]) * MILLISECOND, f"{Decimal(row[1]) / 10000:.4f}", row[2]) for row in rows
        ]


def synthetic(count: int) -> Ticks:
    """Return a day of one share: a random walk in cents, three quarters of the trades in runs of one ms."""
    rng, price, ts, ticks = random.Random(1), 1_675_000, MIDNIGHT + 4 * HOUR, []
    for _ in range(count):
        price += rng.choice((-100, 0, 0, 100))
        ts += 0 if rng.random() < 0.75 else int(rng.expovariate(1 / 800)) * MILLISECOND
        ticks.append(
            (ts, f"{price // 10000}.{price % 10000:04d}", str(rng.choice((100, 100, 100, 200, 300, 1000))))
        )
    return ticks


def ours(encoded: Sequence[bytes], specs: Sequence[str], batch: int) -> float:
    """Return the seconds of one pass; a batch of trades is decoded just before it, as in the service."""
    decode = msgspec.msgpack.Decoder(Trade).decode
    bars = StreamBars("SPY.US", [parse(spec) for spec in specs], 2 * SECOND, 60 * SECOND)
    spent = seq = 0
    for start in range(0, len(encoded), BATCH):
        entries: list[tuple[StreamId, Trade | Gap]] = []
        for trade in map(decode, encoded[start : start + BATCH]):
            seq += 1
            entries.append((StreamId(trade.ts_event // MILLISECOND, seq), trade))
        started = time.process_time_ns()
        for position in range(0, len(entries), batch):
            bars.apply_many(entries[position : position + batch])
        spent += time.process_time_ns() - started
    return spent / SECOND


@contextmanager
def nautilus(python: Path, ticks: Ticks) -> "Iterator[subprocess.Popen[str]]":
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.writelines(f"{ts},{price},{size}\n" for ts, price, size in ticks)
        file.flush()
        command = [str(python), str(Path(__file__).with_name("nautilus_peer.py")), file.name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            assert peer.stdout is not None and peer.stdout.readline() == "ready\n", (
                "the peer did not start; see its errors above"
            )
            yield peer


def theirs(peer: "subprocess.Popen[str]", step: str) -> float:
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write(step + "\n")
    peer.stdin.flush()
    return float(json.loads(peer.stdout.readline())["seconds"])


def nautilus_python(path: Path | None) -> Path:
    """Return the Python of a venv with nautilus_trader: `path`, or .bench/nautilus, created on first use."""
    if path is not None:
        return path
    python = ROOT / ".bench" / "nautilus" / "bin" / "python"
    if not python.exists():
        print(f"installing {NAUTILUS} into {python.parents[1]}, once", file=sys.stderr, flush=True)
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", NAUTILUS], check=True)
    return python


def measure(ticks: Ticks, python: Path, rounds: int) -> Part:
    tune_gc()  # as every service does
    encoded = [
        msgspec.msgpack.encode(Trade("SPY.US", price, size, Side.UNKNOWN, None, ts, ts))
        for ts, price, size in ticks
    ]
    part = Part(
        "bars",
        f"{len(ticks):,} trades through the pure builder and {NAUTILUS}, ticks per second of processor time",
    )
    rate = len(ticks)
    with nautilus(python, ticks) as peer:
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for step in STEPS:
                samples.setdefault(f"ours {step}", []).append(rate / ours(encoded, [f"time:{step}"], BATCH))
                samples.setdefault(f"nautilus {step}", []).append(rate / theirs(peer, step))
            samples.setdefault("ours 1m, one entry at a time", []).append(
                rate / ours(encoded, ["time:1m"], 1)
            )
            samples.setdefault(f"ours, {len(MANY_SPECS)} specs at once", []).append(
                rate / ours(encoded, MANY_SPECS, BATCH)
            )
    for name, values in samples.items():
        part.figure(name, "ticks/s", values)
    for step in STEPS:
        part.ratio(
            f"time:{step} ÷ nautilus", samples[f"ours {step}"], samples[f"nautilus {step}"], wanted=0.5
        )
    part.notes.append(
        f"medians of {rounds}; ours in batches of {BATCH} entries; median ns a tick: "
        + ", ".join(f"{n} {1e9 / median(v):.0f}" for n, v in samples.items())
    )
    return part


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.bars", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nautilus-python",
        type=Path,
        help="a Python with nautilus_trader 1.221 (default: .bench/nautilus, created on first use)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each side (default 5)")
    parser.add_argument("--quick", action="store_true", help="50,000 trades, 3 rounds")
    parser.add_argument(
        "--trades",
        type=Path,
        default=CAPTURE,
        help="a zip of trades as in ../shared/data (default: SPY's, otherwise synthetic)",
    )
    options = parser.parse_args(argv)
    ticks = load_ticks(options.trades)
    if options.quick:
        ticks = ticks[len(ticks) // 2 :][:50_000]
    rounds = 3 if options.quick else options.rounds
    print(table([measure(ticks, nautilus_python(options.nautilus_python), rounds)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
