"""Part `gateway`: ticks a second from a saturating upstream into Redis, against cryptofeed and against the bare server."""

from pathlib import Path

from benchmarks import floor
from benchmarks.figures import Part
from benchmarks.frames import FrameFile
from benchmarks.processes import Lab
from benchmarks.publishers import Cryptofeed, Publisher, Run, Tickbus, publish


def measure(file: FrameFile, lab: Lab, rounds: int, cryptofeed: Path | None, ours: bool = True) -> Part:
    """Interleaved rounds: cryptofeed (where there is one), our gateway (unless `ours` is false), the floor."""
    part = Part(
        "gateway",
        f"{file.frames:,} frames, {len(file.counts)} symbols, {rounds} rounds; first frame sent until last tick stored",
    )
    peers: list[Publisher] = ([Cryptofeed(cryptofeed)] if cryptofeed else []) + ([Tickbus()] if ours else [])
    runs: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    bare: list[float] = []
    for _ in range(rounds):
        for peer in peers:
            runs[peer.name].append(publish(peer, file, lab))
        if floor.program():
            bare.append(floor.xadds_per_second(lab.client, file.last, file.frames))
    rates = {name: [file.frames / run.seconds for run in done] for name, done in runs.items()}
    for name, done in runs.items():
        part.figure(name, "ticks/s", rates[name])
        part.figure(f"{name}: its own CPU", "us/tick", [run.cpu_seconds * 1e6 / file.frames for run in done])
    if bare:
        part.figure("redis-benchmark -P 256 -c 1 XADD", "entries/s", bare)
    else:
        part.notes.append("redis-benchmark is not installed: no floor")
    if ours:
        mine = rates[Tickbus.name]
        for peer in peers[:-1]:
            part.ratio(f"gateway / {peer.name}", mine, rates[peer.name], wanted=2.5)
        if bare:
            part.ratio("gateway / one-connection XADD", mine, bare, wanted=0.2)
    return part
