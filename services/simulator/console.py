"""Commands on standard input, one a line, each answered by one line on standard output."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def listen_on_stdin(command: Callable[[str], str]) -> None:
    """From now on `command` answers each line, in the running loop. The end of standard input ends nothing.

    A thread reads, and by os.read: a pipe, a terminal, a file and /dev/null can all stand there, which no event loop takes
    alike, and a thread inside sys.stdin would hold its lock while the interpreter ends.
    """
    loop = asyncio.get_running_loop()
    # a background job that reads its terminal would be stopped; so it gets an error instead, and has no commands
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)

    def answer(line: str) -> None:
        say(command(line))

    def read() -> None:
        waiting = b""
        # OSError: no terminal to read from. RuntimeError: the loop has ended.
        with suppress(OSError, RuntimeError):
            while piece := os.read(0, 65536):
                *lines, waiting = (waiting + piece).split(b"\n")
                for line in lines:
                    loop.call_soon_threadsafe(answer, line.decode(errors="replace"))

    threading.Thread(target=read, name="stdin", daemon=True).start()
