"""Standard output of the command-line tools: closed pipes and full disks."""

import asyncio
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tickbus.errors import TickbusError

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """End the tool without an error when its reader has gone (`| head`).

    Raises TickbusError if the output cannot be written.
    """
    if sys.stdout is None:
        raise TickbusError("standard output is closed: open it, or redirect it to a file")
    failed: OSError | None = None
    try:
        yield
        sys.stdout.flush()
    except* BrokenPipeError:
        _discard_output()
    except* OSError as group:
        failed = _first(group)
        if failed.errno not in _WRITE_ERRORS:
            raise
        _discard_output()
    if failed is not None:
        raise TickbusError(f"cannot write to standard output: {failed.strerror}")


def _first(group: "ExceptionGroup[OSError]") -> OSError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def stop_with_pipe(stopping: asyncio.Event) -> None:
    """Set `stopping` when the reader of our output has gone, even while there is nothing to print."""
    loop, output = asyncio.get_running_loop(), sys.stdout.fileno()

    def closed() -> None:
        loop.remove_reader(output)
        _discard_output()
        stopping.set()

    if stat.S_ISFIFO(os.fstat(output).st_mode):
        # the only thing to read from the write end of a pipe is that the read end was closed
        loop.add_reader(output, closed)


def _discard_output() -> None:
    """Redirect the output to /dev/null: Python flushes once more at exit, and must not complain then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
