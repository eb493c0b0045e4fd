"""`make fuzz`: hostile input for everything that others write, for a given time. See docs/faults.md."""

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from fuzz.engine import Failure, Pieces, Run, Target, attempt
from fuzz.targets import choose

_SLICE_SECONDS = 2.0
"""Targets take turns of this length."""
_HANG_SECONDS = 30.0
"""An input that takes this long hangs: a fault like an exception."""
_PROGRESS_SECONDS = 30.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for this long (default 5)")
    parser.add_argument("--rounds", type=int, default=0, help="this many inputs of each target instead")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(1 << 30),
        help="seed of all inputs (default random; printed)",
    )
    parser.add_argument("--first", type=int, default=1, help="number of the first input, to repeat one")
    parser.add_argument(
        "--targets", default="", help="prefixes of the targets, e.g. mapper,reader (default all)"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for the failures (default a new temporary folder)"
    )
    parser.add_argument("--list", action="store_true", help="list the targets and exit")
    return parser.parse_args()


class Hang(Exception):
    """Raised in the code that does not end."""


def limited(run: Run) -> Run:
    """Make a run that hangs raise Hang."""

    def raise_hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"not done within {_HANG_SECONDS:.0f} s")

    def within(pieces: Pieces) -> None:
        signal.signal(signal.SIGALRM, raise_hang)
        signal.setitimer(signal.ITIMER_REAL, _HANG_SECONDS)
        try:
            run(pieces)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return within


class Fuzz:
    """The targets in turn, and what they have found: each fault once."""

    def __init__(self, folder: Path, seed: int, first: int) -> None:
        self.done: Counter[str] = Counter()
        self.failures: dict[tuple[str, str], Failure] = {}
        self.repeats: Counter[tuple[str, str]] = Counter()
        self._folder = folder
        self._seed = seed
        self._first = first

    def run(self, targets: list[Target], minutes: float, rounds: int) -> None:
        end = time.monotonic() + minutes * 60
        shown = time.monotonic()
        with ExitStack() as stack:
            opened = {
                target.name: limited(stack.enter_context(target.open(self._work(target))))
                for target in targets
            }
            left = list(targets)
            while left and (rounds or time.monotonic() < end):
                for target in list(left):
                    self._turn(target, opened[target.name], rounds)
                    if rounds and self.done[target.name] >= rounds:
                        left.remove(target)
                if time.monotonic() - shown > _PROGRESS_SECONDS:
                    shown = time.monotonic()
                    print(f"  {sum(self.done.values()):,} inputs, {len(self.failures)} faults", flush=True)

    def _work(self, target: Target) -> Path:
        folder = self._folder / "work" / target.name
        folder.mkdir(parents=True)
        return folder

    def _turn(self, target: Target, run: Run, rounds: int) -> None:
        until = time.monotonic() + _SLICE_SECONDS
        while time.monotonic() < until and not (rounds and self.done[target.name] >= rounds):
            number = self._first + self.done[target.name]
            self.done[target.name] += 1
            failure = attempt(target, run, self._seed, number, lambda found: self._is_known(target, found))
            if failure is not None:
                self._note(failure)

    def _is_known(self, target: Target, found: str) -> bool:
        known = (target.name, found) in self.failures
        self.repeats[target.name, found] += known
        return known

    def _note(self, failure: Failure) -> None:
        key = failure.target, failure.signature
        if key in self.failures:
            return
        self.failures[key] = failure
        path = self._folder / f"{failure.target}-{failure.iteration}.txt"
        path.write_text(str(failure), errors="backslashreplace")
        print(f"FAULT {path}\n{str(failure).encode('utf-8', 'backslashreplace').decode()}", flush=True)


def main() -> int:
    arguments = options()
    try:
        targets = choose(arguments.targets)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.list:
        print("\n".join(target.name for target in targets))
        return 0
    logging.disable(logging.CRITICAL)  # they reject nearly everything, and say so
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="tickbus-fuzz-"))
    print(f"seed {arguments.seed}, {len(targets)} targets; failures in {folder}", flush=True)
    fuzz = Fuzz(folder, arguments.seed, arguments.first)
    try:
        fuzz.run(targets, arguments.minutes, arguments.rounds)
    finally:
        shutil.rmtree(folder / "work", ignore_errors=True)
    for name, count in fuzz.done.items():
        print(f"{name:20} {count:>12,} inputs")
    for (target, found), failure in fuzz.failures.items():
        times = 1 + fuzz.repeats[target, found]
        print(f"FAULT {target}: {found}: {times} times, first at --first {failure.iteration}")
    if fuzz.failures:
        return 1
    if arguments.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
