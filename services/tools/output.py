"""Standard output as a tool's reader sees it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """A reader that has seen enough (`| head`) ends the tool, and is no error."""
    try:
        yield
    except* BrokenPipeError:
        # Python flushes once more at its own end, and must not complain then
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
