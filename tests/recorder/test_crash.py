"""A recorder killed at any point continues as if nothing had happened: each row once, in order, all files
readable.

Even if the bus is lost at that moment, and what was read cannot be read again.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from recorder.crashing import market
from recorder.recorded import UNREPRESENTABLE_PRICE, plain_files, rows_of
from support.paths import ROOT

from tickbus.protocol.messages import Gap
from tickbus.protocol.names import StreamId

ROWS = 60
BOUNDARIES = range(1, 38)
"""Every step of a life's first two commits, and of the rounds before them."""


def run_lives(bus: str, folders: dict[Path, list[str]]) -> list[int]:
    """Record the market to its end. Return, per folder, how many lives were killed or paused."""
    command = [sys.executable, str(Path(__file__).with_name("crashing.py")), str(ROWS), bus]
    command += [",".join([str(data_dir), *plans]) for data_dir, plans in folders.items()]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": "."}, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def assert_exactly_once(data_dir: Path) -> None:
    sent: dict[str, list[tuple[str, StreamId]]] = {"trade": [], "quote": [], "gap": [], "aside": []}
    for stream, id, message in market(ROWS):
        kind = (
            "gap"
            if isinstance(message, Gap)
            else "aside"
            if getattr(message, "price_text", "") == UNREPRESENTABLE_PRICE
            else stream.kind
        )
        sent[kind].append((stream.name, id))
    for kind in ("trade", "quote", "gap"):
        rows = rows_of(data_dir, kind)
        stored = [
            (f"{row.get('stream', kind)}:{row['feed']}:{row['symbol']}", StreamId(row["id_ms"], row["seq"]))
            for row in rows
        ]
        assert sorted(stored) == sorted(sent[kind]), kind
    lines = [
        json.loads(line)
        for path in (data_dir / "_aside").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted((line["stream"], StreamId.parse(line["id"])) for line in lines) == sorted(sent["aside"])
    assert not [name for name in plain_files(data_dir) if name.endswith((".tmp", ".spool"))]


@pytest.mark.parametrize(("bus", "steps"), [("there", BOUNDARIES[1::4]), ("lost", BOUNDARIES[::2])])
def test_recorder_killed_at_every_step_records_exactly_once(tmp_path: Path, bus: str, steps: range) -> None:
    folders = {tmp_path / str(number): [f"step:{number}"] for number in steps}
    assert run_lives(bus, folders) == [1] * len(folders)
    for data_dir in folders:
        assert_exactly_once(data_dir)


@pytest.mark.parametrize("bus", ["there", "lost"])
def test_recorder_killed_repeatedly_records_exactly_once(tmp_path: Path, bus: str) -> None:
    """One data folder, killed at each step in turn and then at random moments."""
    rng = random.Random(7)
    plans = [f"step:{number}" for number in range(1, 9)] + [f"ms:{rng.randint(2, 40)}" for _ in range(12)]
    (killed,) = run_lives(bus, {tmp_path: plans})
    assert killed >= 8
    assert_exactly_once(tmp_path)


@pytest.mark.parametrize(("bus", "times"), [("there", 2), ("lost", 4)])
def test_recorder_resumed_after_takeover_records_exactly_once(tmp_path: Path, bus: str, times: int) -> None:
    """Each resumes once its successor committed, died or was paused; then it reads, spools, tries to
    commit.
    """
    rng = random.Random(11)
    folders = {
        tmp_path / str(number): [f"{how}:{rng.randint(1, 30)}" for how in ("stop", "stop", "step", "stop")]
        for number in range(times)
    }
    # some finish the market before their step comes
    assert sum(run_lives(bus, folders)) >= 2 * times
    for data_dir in folders:
        assert_exactly_once(data_dir)
