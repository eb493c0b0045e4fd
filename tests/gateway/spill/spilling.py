"""Writers that are killed: `python spilling.py DIR SEED LIVES`.

Each life appends batches to a spill of its own epoch, releases some, and reports each append that returned
and each release that begins; it gets SIGKILL at a random moment. Prints `epoch appended released` per life.
"""

import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from gateway.spill.spilled import entries, stream_of

from services.gateway.spill.segment import Owner
from services.gateway.spill.spill import Budget, Spill

REPORT = struct.Struct("=II")
MAX_BATCH = 400
"""Maximum entries in one batch."""


def live(spill_dir: Path, epoch: int, report: int) -> None:
    chance = random.Random(epoch)
    spill = Spill(spill_dir, Owner("vendor", epoch, "host:1:ab"), Budget(1 << 30), stream_of, 40_000)
    appended = released = 0
    while True:
        count = chance.randint(1, MAX_BATCH)
        assert spill.append(entries(appended + 1, appended + count))
        appended += count
        os.write(report, REPORT.pack(appended, released))
        if chance.random() < 0.5:
            some = spill.peek(chance.randint(1, MAX_BATCH))
            # reported first: what is released may be gone from then on
            released += len(some)
            os.write(report, REPORT.pack(appended, released))
            spill.release(len(some))


def killed(spill_dir: Path, epoch: int, chance: random.Random) -> tuple[int, int]:
    """Return the number of entries whose append had returned, and of those whose release had begun."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        live(spill_dir, epoch, writing)
    os.close(writing)
    reports = os.read(reading, REPORT.size)
    # the moment is random: anywhere in the next few appends
    until = time.monotonic_ns() + chance.randrange(8_000_000)
    while time.monotonic_ns() < until:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 1 << 16):
        reports += more
    os.close(reading)
    appended, released = REPORT.unpack(reports[-REPORT.size :])
    return appended, released


def main() -> None:
    spill_dir, seed, lives = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    for epoch in range(1, lives + 1):
        print(epoch, *killed(spill_dir, epoch, chance))


if __name__ == "__main__":
    main()
