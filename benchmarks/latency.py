"""Part `latency`: from the upstream's socket to the consumer, against a bare XADD -> blocked XREAD at the same rate."""

from array import array
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Part, percentile
from benchmarks.frames import symbols
from benchmarks.processes import PYTHON, BenchmarkError, Lab, Process, upstream
from benchmarks.publishers import Tickbus

_SETTLE_NS = 500_000_000
"""The first half second of a run is not counted."""


class Latency(NamedTuple):
    """Microseconds."""

    p50: float
    p99: float


def measure(lab: Lab, rounds: int, rates: list[int], counts: list[int], seconds: float) -> Part:
    """Every rate with every number of symbols, `rounds` times, and the bare pair at every rate; all of a round side by side."""
    part = Part("latency", f"upstream's write until the consumer has the tick; {seconds:g} s a run, {rounds} rounds, json feed")
    for rate in rates:
        ours: dict[int, list[Latency]] = {count: [] for count in counts}
        bare: list[Latency] = []
        for _ in range(rounds):
            bare.append(_bare(lab, rate, int(rate * seconds)))
            for count in counts:
                ours[count].append(_through_the_bus(lab, count, rate, int(rate * seconds)))
        _report(part, f"{rate:,}/s", ours, bare)
    return part


def _report(part: Part, at: str, ours: dict[int, list[Latency]], bare: list[Latency]) -> None:
    for share in ("p50", "p99"):
        floor = [getattr(run, share) for run in bare]
        part.figure(f"bare XADD -> XREAD {share}, {at}", "us", floor)
        for count, runs in ours.items():
            part.figure(f"tickbus {share}, {at}, {count:,} symbols", "us", [getattr(run, share) for run in runs])
            part.ratio(f"{share} / bare, {at}, {count:,} symbols", [getattr(run, share) for run in runs], floor)
    fewest, most = min(ours), max(ours)
    if most > fewest:
        many, few = ([run.p50 for run in ours[count]] for count in (most, fewest))
        part.ratio(f"p50 {most:,} symbols / p50 {fewest:,}, {at}", many, few, wanted=1.5, at_most=True)


def _through_the_bus(lab: Lab, names: int, rate: int, count: int) -> Latency:
    """Consumer first, then the gateway: every symbol ticks once, then the paced trades. All must arrive."""
    lab.client.flushall()
    gateway, path = Tickbus(feed="json"), lab.folder / "receipts"
    paced = ["paced", "--dialect", "json", "--symbols", str(names), "--rate", str(rate), "--count", str(count)]
    stamp = [PYTHON, "-m", "benchmarks.readers", "stamp", lab.url, str(names + count), str(path)]
    with upstream(lab.folder, *paced) as source, Process("consumer", stamp, lab.folder) as consumer:
        url = f"ws://127.0.0.1:{source.news('port', 30)['port']}"
        consumer.news("ready", 30)
        with Process("publisher", gateway.command(url, lab.url, symbols(names), lab.folder), lab.folder) as process:
            begun = source.news("first_sent", 120, needs=process)
            consumer.news("ns", count / rate + 60, needs=process)
    return _latency(path, begun["first_sent"], begun["stamp_offset"])


def _bare(lab: Lab, rate: int, count: int) -> Latency:
    lab.client.flushall()
    path = lab.folder / "receipts"
    run = [PYTHON, "-m", "benchmarks.bare"]
    with Process("bare-consumer", [*run, "consume", lab.url, str(count), str(path)], lab.folder) as consumer:
        consumer.news("ready", 30)
        with Process("bare-producer", [*run, "produce", lab.url, str(rate), str(count)], lab.folder) as producer:
            begun = producer.news("first_sent", 30)
            consumer.news("ns", count / rate + 60)
    return _latency(path, begun["first_sent"], 0)


def _latency(path: Path, begun: int, offset: int) -> Latency:
    receipts = array("q", path.read_bytes())
    path.unlink()
    sent = [stamp - offset for stamp in receipts[::2]]
    settled = begun + min(_SETTLE_NS, (max(sent) - begun) // 4)
    spans = sorted((received - at) / 1000 for at, received in zip(sent, receipts[1::2], strict=True) if at >= settled)
    if not spans:
        raise BenchmarkError("no tick was received after the first half second")
    return Latency(percentile(spans, 0.5), percentile(spans, 0.99))
