"""Killed at any moment: what append had returned True for is there, in order, behind nothing that was not delivered."""

import random
import subprocess
import sys
from pathlib import Path

from gateway.spill.spilled import entries, files, seqs, stream_of
from gateway.spill.spilling import MOST
from support.paths import ROOT

from services.gateway.spill.spill import Budget, Spill
from services.gateway.spill.spill_folder import find

LIVES = 60


def test_what_was_appended_outlives_a_kill(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    root = ROOT
    command = [
        sys.executable,
        str(Path(__file__).with_name("spilling.py")),
        str(tmp_path),
        str(seed),
        str(LIVES),
    ]
    done = subprocess.run(
        command,
        cwd=root,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {held.owner.epoch: held for held in find(tmp_path, "vendor") if held.owner}
    kept = 0
    for line in done.stdout.splitlines():
        epoch, appended, released = map(int, line.split())
        if epoch not in found:
            assert released == appended
            continue
        held = found[epoch]
        assert held.damage is None and not held.locked
        spill = Spill.reopen(held, Budget(1 << 30), stream_of)
        rest = spill.peek(1 << 30)
        if rest:
            kept += 1
            first, last = seqs(rest)[0], seqs(rest)[-1]
            # one append may have been under way; of what was released, only whole segments are gone
            assert first <= released + 1
            assert appended <= last <= appended + MOST
            assert rest == entries(first, last)
        spill.release(len(rest))
    assert kept > LIVES // 2
    assert files(tmp_path) == []
