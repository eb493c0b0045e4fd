"""Killed at any point, the recorder goes on as if nothing had happened: each row once, in order, and every file readable.

Also where the bus is lost at that moment, and what was read cannot be read again.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from recorder.crashing import market
from recorder.recorded import plain_files, rows_of
from support.paths import ROOT

from tickbus.protocol.messages import Gap
from tickbus.protocol.names import StreamId

ROWS = 60
BOUNDARIES = range(1, 38)
"""Every step of the first two commits of a life, and of the rounds before them."""


def outlive(bus: str, folders: dict[Path, list[str]]) -> list[int]:
    """-> per folder, how many lives were killed or paused; the market is recorded to its end then."""
    command = [sys.executable, str(Path(__file__).with_name("crashing.py")), str(ROWS), bus]
    command += [",".join([str(data_dir), *plans]) for data_dir, plans in folders.items()]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": "."}, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def assert_exactly_once(data_dir: Path) -> None:
    told: dict[str, list[tuple[str, StreamId]]] = {"trade": [], "quote": [], "gap": [], "aside": []}
    for stream, id, message in market(ROWS):
        kind = (
            "gap"
            if isinstance(message, Gap)
            else "aside"
            if getattr(message, "price_text", "") == "0.1234567890123456789"
            else stream.kind
        )
        told[kind].append((stream.name, id))
    for kind in ("trade", "quote", "gap"):
        rows = rows_of(data_dir, kind)
        stored = [
            (f"{row.get('stream', kind)}:{row['feed']}:{row['symbol']}", StreamId(row["id_ms"], row["seq"]))
            for row in rows
        ]
        assert sorted(stored) == sorted(told[kind]), kind
    lines = [
        json.loads(line)
        for path in (data_dir / "_aside").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted((line["stream"], StreamId.parse(line["id"])) for line in lines) == sorted(told["aside"])
    assert not [name for name in plain_files(data_dir) if name.endswith((".tmp", ".spool"))]


@pytest.mark.parametrize(("bus", "steps"), [("there", BOUNDARIES[1::4]), ("lost", BOUNDARIES[::2])])
def test_killed_at_every_step(tmp_path: Path, bus: str, steps: range) -> None:
    folders = {tmp_path / str(number): [f"step:{number}"] for number in steps}
    assert outlive(bus, folders) == [1] * len(folders)
    for data_dir in folders:
        assert_exactly_once(data_dir)


@pytest.mark.parametrize("bus", ["there", "lost"])
def test_killed_again_and_again(tmp_path: Path, bus: str) -> None:
    """One data folder, killed at each step in turn and then at random moments."""
    chance = random.Random(7)
    plans = [f"step:{number}" for number in range(1, 9)] + [f"ms:{chance.randint(2, 40)}" for _ in range(12)]
    (killed,) = outlive(bus, {tmp_path: plans})
    assert killed >= 8
    assert_exactly_once(tmp_path)


@pytest.mark.parametrize(("bus", "times"), [("there", 2), ("lost", 4)])
def test_paused_past_a_takeover_and_woken(tmp_path: Path, bus: str, times: int) -> None:
    """Each is woken when its successor has committed, is dead, or is paused itself; and reads, spools and tries to commit on."""
    chance = random.Random(11)
    folders = {
        tmp_path / str(number): [f"{how}:{chance.randint(1, 30)}" for how in ("stop", "stop", "step", "stop")]
        for number in range(times)
    }
    # one or the other is done with the market before its step comes
    assert sum(outlive(bus, folders)) >= 2 * times
    for data_dir in folders:
        assert_exactly_once(data_dir)
