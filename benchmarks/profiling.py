"""Where the time of our gateway goes: `python -m benchmarks gateway --profile`."""

import io
import os
import pstats
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from benchmarks.frames import FrameFile
from benchmarks.processes import PYTHON, Lab
from benchmarks.publishers import Tickbus, publish

_TOP = 30


def gateway(file: FrameFile, lab: Lab) -> str:
    """Profile one run with cProfile, which overstates calls, and one with py-spy, where it is installed."""
    report = [_traced(file, lab)]
    sampler = shutil.which(
        "py-spy", path=os.pathsep.join((str(Path(PYTHON).parent), os.environ.get("PATH", os.defpath)))
    )
    report.append(
        _sampled(sampler, file, lab) if sampler else "install py-spy for a profile that does not distort"
    )
    return "\n".join(report)


def _traced(file: FrameFile, lab: Lab) -> str:
    dump = lab.folder / "profile"
    run = publish(Tickbus(wrapper=(PYTHON, "-m", "cProfile", "-o", str(dump))), file, lab)
    text = io.StringIO()
    pstats.Stats(str(dump), stream=text).strip_dirs().sort_stats("tottime").print_stats(_TOP)
    return f"under cProfile {file.frames / run.seconds:,.0f} ticks/s\n{text.getvalue()}"


def _sampled(program: str, file: FrameFile, lab: Lab) -> str:
    raw = lab.folder / "samples"
    samplers: list[subprocess.Popen[bytes]] = []

    def attach(pid: int) -> None:
        command = [
            program, "record", "--rate", "400", "--nonblocking", "--format", "raw", "--output", str(raw),
            "--pid", str(pid),
        ]  # fmt: skip
        samplers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    run = publish(Tickbus(), file, lab, started=attach)
    for sampler in samplers:
        try:
            sampler.wait(20)
        finally:
            sampler.kill()
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        functions = [frame.rpartition(":")[0] for frame in stack.split(";")]
        own[functions[-1]] += int(samples)
        within.update(dict.fromkeys(functions, int(samples)))
    total = own.total()
    rows = [
        f"{share / total:7.1%} {within[name] / total:7.1%}  {name}" for name, share in own.most_common(_TOP)
    ]
    head = f"sampled by py-spy {file.frames / run.seconds:,.0f} ticks/s\n    own    with calls\n"
    return head + "\n".join(rows)
