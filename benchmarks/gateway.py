"""Part `gateway`: ticks/s from a saturating upstream into Redis, against cryptofeed and the bare server."""

from pathlib import Path

from benchmarks import floor
from benchmarks.figures import Part
from benchmarks.frames import FrameFile
from benchmarks.processes import Lab
from benchmarks.publishers import Cryptofeed, Publisher, Run, Tickbus, publish


def measure(file: FrameFile, lab: Lab, rounds: int, cryptofeed: Path | None, ours: bool = True) -> Part:
    """Run interleaved rounds of cryptofeed (if given), our gateway (if `ours`) and the bare server."""
    part = Part(
        "gateway",
        f"{file.frames:,} frames, {len(file.counts)} symbols, {rounds} rounds; "
        "first frame sent until last tick stored",
    )
    peers: list[Publisher] = []
    if cryptofeed:
        peers.append(Cryptofeed(cryptofeed))
    if ours:
        peers.append(Tickbus())
    runs: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    bare: list[float] = []
    for _ in range(rounds):
        for peer in peers:
            runs[peer.name].append(publish(peer, file, lab))
        if floor.find_program():
            bare.append(floor.xadds_per_second(lab.client, file.last, file.frames))
    rates = {name: [file.frames / run.seconds for run in done] for name, done in runs.items()}
    for name, done in runs.items():
        part.figure(name, "ticks/s", rates[name])
        part.figure(f"{name}: its own CPU", "us/tick", [run.cpu_seconds * 1e6 / file.frames for run in done])
    if bare:
        part.figure("redis-benchmark -P 256 -c 1 XADD", "entries/s", bare)
    else:
        part.notes.append("redis-benchmark is not installed: the bare server was not measured")
    if ours:
        mine = rates[Tickbus.name]
        for peer in peers[:-1]:
            part.ratio(f"gateway / {peer.name}", mine, rates[peer.name], wanted=2.5)
        if bare:
            part.ratio("gateway / one-connection XADD", mine, bare, wanted=0.2)
    return part
