"""Commands on standard input, one per line, each answered by one line on standard output."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress


def print_line(line: str) -> None:
    """Print a line to standard output and flush it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve_stdin(command: Callable[[str], str]) -> None:
    """Answer each line of standard input by `command`, in the running loop. End of file stops only this.

    A thread reads, using os.read: standard input can be a pipe, a terminal, a file or /dev/null, which no
    event loop handles alike, and a thread inside sys.stdin would hold its lock while the interpreter exits.
    """
    loop = asyncio.get_running_loop()
    # a background job that reads its terminal would be stopped; like this it gets an error, and no commands
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)

    def answer(line: str) -> None:
        print_line(command(line))

    def read() -> None:
        rest = b""
        # OSError: no terminal to read from. RuntimeError: the loop has ended.
        with suppress(OSError, RuntimeError):
            while chunk := os.read(0, 65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    loop.call_soon_threadsafe(answer, line.decode(errors="replace"))

    threading.Thread(target=read, name="stdin", daemon=True).start()
