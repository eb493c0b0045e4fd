"""A writer at a steady rate, in a process of its own: `Load` starts it.

The trades of each symbol are numbered from 1: the number is the price, the id and the counter of the entry.
"""

import asyncio
import re
import sys
import time
from pathlib import Path

from support.processes import Process
from support.writing import KEYS, Writer

_STEP_SECONDS = 0.005


class Load(Process):
    """Writes until `finish`. Symbols are L0, L1, ..., of the feed `test`."""

    command = (sys.executable, __file__)

    def __init__(self, log: Path, redis: str, rate: int, symbols: int) -> None:
        path = Path(__file__).parent.parent
        super().__init__(log, redis, str(rate), str(symbols), PYTHONPATH=f"{path}:{path.parent}")
        self.wait_for("writing")

    def finish(self) -> tuple[int, float]:
        """End it. Return how many trades each symbol has, and how many a second were written in all."""
        self.send_line("enough")
        match = self.wait_for(r"wrote (\d+) of each, ([\d.]+) a second")
        self.wait()
        return int(match[1]), float(match[2])


def written(output: str) -> int:
    """Return how many trades of each symbol there are by now, as far as it has said."""
    found = re.findall(r"^(\d+)$", output, re.MULTILINE)
    return int(found[-1]) if found else 0


async def main(redis: str, rate: int, symbols: int) -> None:
    writer = await Writer(redis, keys=KEYS).open()
    names = [f"L{number}" for number in range(symbols)]
    loop = asyncio.get_running_loop()
    enough = loop.run_in_executor(None, sys.stdin.readline)
    print("writing", flush=True)
    began, number = time.monotonic(), 0
    while not enough.done():
        due = int((time.monotonic() - began) * rate / symbols) + 1
        if due <= number:
            await asyncio.sleep(_STEP_SECONDS)
            continue
        for name in names:
            await writer.write(*range(number + 1, due + 1), symbol=name)
        number = due
        print(number, flush=True)
    seconds = time.monotonic() - began
    print(f"wrote {number} of each, {number * symbols / seconds:.0f} a second", flush=True)
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
