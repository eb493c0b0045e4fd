"""Makes inputs from a seed, runs them, and reduces the one that fails to its smallest form.

An input is a list of pieces of bytes (frames, commands, files, requests), so that any of them can be reduced
in the same way: leave out pieces, then leave out bytes. Iteration n of a target depends on the seed, its name
and n alone, so that it can be repeated by itself.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

Pieces = list[bytes]
Run = Callable[[Pieces], None]
"""Gives an input to the product. Returns if it did as documented; raises anything else."""

_REDUCE_SECONDS = 10.0
_ROOTS = ("/services/", "/tickbus/")


@dataclass(frozen=True)
class Target:
    name: str
    make: Callable[[Random], Pieces]
    """Returns an input; the same for the same state of Random."""
    open: Callable[[Path], AbstractContextManager[Run]]
    """Given an empty folder, yields how an input is run; keeps a server or an event loop meanwhile."""
    short: int = 300
    """Iterations in `make test`: about a second."""


@dataclass(frozen=True)
class Failure:
    target: str
    seed: int
    iteration: int
    pieces: Pieces
    """Reduced."""
    error: BaseException

    @property
    def signature(self) -> str:
        return signature(self.error)

    def __str__(self) -> str:
        trace = "".join(traceback.format_exception(self.error))
        shown = "\n".join(f"    {piece!r}," for piece in self.pieces)
        return (
            f"{self.target}: {self.signature}\n"
            f"repeat with --targets {self.target} --seed {self.seed} --first {self.iteration} --rounds 1\n"
            f"smallest input:\n[\n{shown}\n]\n{trace}"
        )


def signature(error: BaseException) -> str:
    """Return what tells one fault from another: the type, and the innermost line of the product.

    An assertion of a target has no such line, or one that says nothing: there its text counts.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(root in frame.filename for root in _ROOTS)]
    if isinstance(error, AssertionError) or not ours:
        return f"{type(error).__name__} {str(error).partition(':')[0][:100]}"
    return f"{type(error).__name__} in {Path(ours[-1].filename).name}, {ours[-1].name}"


@contextmanager
def pure(run: Run, folder: Path) -> Iterator[Run]:
    """Open a target that needs nothing: `Target(..., partial(pure, run))`."""
    yield run


def attempt(
    target: Target, run: Run, seed: int, iteration: int, known: Callable[[str], bool] = lambda found: False
) -> Failure | None:
    """Run one iteration. Return the failure with its smallest input; None if its signature is known."""
    pieces = target.make(Random(f"{seed}:{target.name}:{iteration}"))
    error = _error(run, pieces)
    if error is None or known(signature(error)):
        return None
    return Failure(target.name, seed, iteration, *reduced(run, pieces, error))


def _error(run: Run, pieces: Pieces) -> Exception | None:
    try:
        run(pieces)
    except Exception as error:  # noqa: BLE001  # any exception is what this looks for
        return error
    return None


def reduced(run: Run, pieces: Pieces, error: Exception) -> tuple[Pieces, Exception]:
    """Return the smallest input found that fails in the same place, and its error."""
    deadline = time.monotonic() + _REDUCE_SECONDS
    wanted = signature(error)

    def fails(candidate: Pieces) -> bool:
        nonlocal pieces, error
        if time.monotonic() > deadline:
            return False
        found = _error(run, candidate)
        if found is None or signature(found) != wanted:
            return False
        pieces, error = candidate, found
        return True

    for at in reversed(range(len(pieces))):
        fails(pieces[:at] + pieces[at + 1 :])
    for at in range(len(pieces)):
        size = max(1, len(pieces[at]) // 2)
        while size:
            start = 0
            while start < len(pieces[at]):
                piece = pieces[at]
                shorter = piece[:start] + piece[start + size :]
                if not fails([*pieces[:at], shorter, *pieces[at + 1 :]]):
                    start += size
            size //= 2
    return pieces, error
