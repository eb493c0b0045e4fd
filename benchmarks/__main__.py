"""`make bench`: the whole suite in one run. Prints medians and ratios; docs/benchmarks.md explains them."""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bars, frames, gateway, latency, profiling, reader, relay, relay_load
from benchmarks.figures import Part, table
from benchmarks.processes import BenchmarkError, open_lab
from benchmarks.publishers import cryptofeed_python

PARTS = ("gateway", "reader", "bars", "relay", "fanout", "latency")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default all")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes and two rounds: seconds instead of minutes, rough figures",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each comparison (default 3)")
    parser.add_argument(
        "--frames", type=int, help="frames of a gateway run, ticks of a reader run (default 1,000,000)"
    )
    parser.add_argument(
        "--symbols", type=int, default=100, help="number of their symbols, at most 199 (default 100)"
    )
    parser.add_argument("--seconds", type=float, help="length of one latency run (default 5)")
    parser.add_argument("--rates", help="latency: ticks per second (default 2000,20000)")
    parser.add_argument("--counts", help="latency: numbers of symbols (default 10,1000,10000)")
    parser.add_argument(
        "--cryptofeed-python",
        type=Path,
        help="a Python with cryptofeed[redis] 2.4 (default: .bench/cryptofeed, created on first use)",
    )
    parser.add_argument("--no-cryptofeed", action="store_true", help="skip this peer")
    parser.add_argument(
        "--nautilus-python",
        type=Path,
        help="a Python with nautilus_trader 1.221 (default: .bench/nautilus, created on first use)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="gateway only: profile one run and show where the time goes",
    )
    options = parser.parse_args(argv)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: expected any of {', '.join(PARTS)}")
    if not 0 < options.symbols < 200:
        parser.error(
            f"--symbols: {options.symbols} is out of range: expected 1 to 199, as cryptofeed opens a second "
            "connection from 200 on"
        )
    options.parts = options.parts or list(PARTS)
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.frames = options.frames or (50_000 if options.quick else 1_000_000)
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)
    options.rates = [int(text) for text in (options.rates or "2000,20000").split(",")]
    options.counts = [
        int(text) for text in (options.counts or ("10,1000" if options.quick else "10,1000,10000")).split(",")
    ]
    return options


def measure_bars(options: argparse.Namespace) -> Part:
    """Run the `bars` part. It needs no Redis; `python -m benchmarks.bars` runs the same part alone."""
    ticks = bars.load_ticks(bars.CAPTURE)
    python = bars.nautilus_python(options.nautilus_python)
    return bars.measure(ticks[len(ticks) // 2 :][:50_000] if options.quick else ticks, python, options.rounds)


def run(options: argparse.Namespace) -> list[Part]:
    parts: list[Part] = []
    # on disk, not in memory: the frames of a full run are 180 MB
    with tempfile.TemporaryDirectory(prefix="tickbus-bench-", ignore_cleanup_errors=True) as path:
        folder = Path(path)
        symbols = frames.symbols(options.symbols)
        file = (
            frames.render(folder / "frames", symbols, options.frames)
            if {"gateway", "reader"} & set(options.parts)
            else None
        )
        with open_lab(folder) as lab:
            if options.profile and file is not None:
                print(profiling.gateway(file, lab))
                return []
            for name in options.parts:
                load = os.getloadavg()[0]
                print(f"{name} ...", file=sys.stderr, flush=True)
                if name == "gateway" and file is not None:
                    peer = None if options.no_cryptofeed else cryptofeed_python(options.cryptofeed_python)
                    part = gateway.measure(file, lab, options.rounds, peer)
                elif name == "reader" and file is not None:
                    part = reader.measure(file, lab, options.rounds)
                elif name == "relay":
                    part = relay.measure(options.rounds)
                elif name == "fanout":
                    part = (
                        relay_load.measure(lab, 2, clients=100, seconds=1.0)
                        if options.quick
                        else relay_load.measure(lab, max(10, options.rounds))
                    )
                elif name == "latency":
                    part = latency.measure(
                        lab, options.rounds, options.rates, options.counts, options.seconds
                    )
                else:
                    part = measure_bars(options)
                part.notes.append(
                    f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after, "
                    f"on {os.cpu_count()} cores"
                )
                parts.append(part)
                print(table([part]), file=sys.stderr, flush=True)
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up on the way out
    try:
        parts = run(options)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if parts:
        print(
            f"medians (lowest .. highest of {options.rounds} rounds), "
            f"Python {platform.python_version()}, {platform.machine()}\n"
        )
        print(table(parts))
    if options.json:
        machine = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
        }
        options.json.write_text(
            json.dumps({"machine": machine, "parts": [part.as_json() for part in parts]}, indent=2)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
