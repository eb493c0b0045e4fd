"""Part `reader`: ticks per second of `bus.read` against a raw hiredis loop over the same streams."""

from benchmarks.figures import Part
from benchmarks.frames import FrameFile
from benchmarks.processes import PYTHON, BenchmarkError, Lab, Process
from benchmarks.publishers import Tickbus, publish

_KINDS = ("raw", "library")


def measure(file: FrameFile, lab: Lab, rounds: int) -> Part:
    """Fill the streams once, through our gateway, then run interleaved rounds of the two readers.

    Each run is a new process.
    """
    part = Part(
        "reader",
        f"{file.frames:,} ticks in {len(file.counts)} streams, {rounds} rounds; "
        "connect until last tick decoded",
    )
    publish(Tickbus(), file, lab)
    rates: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    sums = set()
    for _ in range(rounds):
        for kind in _KINDS:
            command = [
                PYTHON, "-m", "benchmarks.readers", kind, lab.url, str(len(file.counts)), str(file.frames),
            ]  # fmt: skip
            with Process(f"reader-{kind}", command, lab.folder) as process:
                result = process.wait_event("ns", 120)
            if result["ticks"] != file.frames:
                raise BenchmarkError(f"the {kind} reader read {result['ticks']:,} of {file.frames:,} ticks")
            sums.add(result["sum"])
            rates[kind].append(result["ticks"] * 1e9 / result["ns"])
    if len(sums) != 1:
        raise BenchmarkError("the two readers did not read the same ticks")
    part.figure("tickbus: async for tick in bus.read(...)", "ticks/s", rates["library"])
    part.figure("raw hiredis loop, XREAD COUNT 1000", "ticks/s", rates["raw"])
    part.ratio("reader / raw hiredis loop", rates["library"], rates["raw"], wanted=0.8)
    return part
