"""Standard output as a tool's reader sees it."""

import asyncio
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tickbus.errors import TickbusError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """A reader that has seen enough (`| head`) ends the tool, and is no error. TickbusError if the output cannot be written."""
    if sys.stdout is None:
        raise TickbusError("the standard output is closed: nobody would see anything")
    failed: OSError | None = None
    try:
        yield
        sys.stdout.flush()
    except* BrokenPipeError:
        _discard_output()
    except* OSError as group:
        failed = _first(group)
        if failed.errno not in _FULL:
            raise
        _discard_output()
    if failed is not None:
        raise TickbusError(f"cannot write to the standard output: {failed.strerror}")


def _first(group: "ExceptionGroup[OSError]") -> OSError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def stop_with_pipe(stopping: asyncio.Event) -> None:
    """Set `stopping` when the reader of our output is gone, also while there is nothing to print."""
    loop, output = asyncio.get_running_loop(), sys.stdout.fileno()

    def closed() -> None:
        loop.remove_reader(output)
        _discard_output()
        stopping.set()

    if stat.S_ISFIFO(os.fstat(output).st_mode):
        loop.add_reader(
            output, closed
        )  # nothing can be read from a pipe's writing end but that the other is closed


def _discard_output() -> None:
    """Python flushes once more at its own end, and must not complain then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
