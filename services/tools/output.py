"""Standard output as a tool's reader sees it."""

import asyncio
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """A reader that has seen enough (`| head`) ends the tool, and is no error."""
    try:
        yield
    except* BrokenPipeError:
        _discard_output()


def stop_with_pipe(stopping: asyncio.Event) -> None:
    """Set `stopping` when the reader of our output is gone, also while there is nothing to print."""
    loop, output = asyncio.get_running_loop(), sys.stdout.fileno()

    def closed() -> None:
        loop.remove_reader(output)
        _discard_output()
        stopping.set()

    if stat.S_ISFIFO(os.fstat(output).st_mode):
        loop.add_reader(output, closed)  # nothing can be read from a pipe's writing end but that the other is closed


def _discard_output() -> None:
    """Python flushes once more at its own end, and must not complain then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
