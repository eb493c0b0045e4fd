"""After a kill at any moment, every entry whose append returned True is there, in order, or was released."""

import random
import subprocess
import sys
from pathlib import Path

from gateway.spill.spilled import entries, files, seqs, stream_of
from gateway.spill.spilling import MAX_BATCH
from support.paths import ROOT

from services.gateway.spill.spill import Budget, Spill
from services.gateway.spill.spill_folder import find

LIVES = 60


def test_appended_entries_survive_kill(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    command = [
        sys.executable,
        str(Path(__file__).with_name("spilling.py")),
        str(tmp_path),
        str(seed),
        str(LIVES),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {folder.owner.epoch: folder for folder in find(tmp_path, "vendor") if folder.owner}
    nonempty = 0
    for line in done.stdout.splitlines():
        epoch, appended, released = map(int, line.split())
        if epoch not in found:
            assert released == appended
            continue
        folder = found[epoch]
        assert folder.damage is None and not folder.locked
        spill = Spill.reopen(folder, Budget(1 << 30), stream_of)
        rest = spill.peek(1 << 30)
        if rest:
            nonempty += 1
            first, last = seqs(rest)[0], seqs(rest)[-1]
            # one append may have been in progress; only whole segments of what was released are gone
            assert first <= released + 1
            assert appended <= last <= appended + MAX_BATCH
            assert rest == entries(first, last)
        spill.release(len(rest))
    assert nonempty > LIVES // 2
    assert files(tmp_path) == []
