"""The processes that the demo starts. They never outlive it."""

import asyncio
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tickbus.errors import TickbusError

_LAST_LINES = 12
_PR_SET_PDEATHSIG = 1


class ChildDied(TickbusError):
    """A process of the demo exited on its own."""


class Child:
    """One process with its own log."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._command = command
        self.log = log
        self._log_offset = 0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as output:
            self._log_offset = output.tell()
            self.process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C reaches only the demo, which stops the others in order
                preexec_fn=_die_with_parent(),
            )

    async def wait_for(self, pattern: str, seconds: float = 20.0) -> "re.Match[str]":
        """Return the first match in the output since the start. Raises ChildDied on exit or timeout."""
        for _ in range(int(seconds / 0.05)):
            if (match := self.printed(pattern)) is not None:
                return match
            if self.process is not None and self.process.returncode is not None:
                break
            await asyncio.sleep(0.05)
        raise self._died("did not start")

    def printed(self, pattern: str) -> "re.Match[str] | None":
        """Return the first match in the output since the start."""
        return re.search(pattern, self._output())

    async def watch(self) -> None:
        """Raise ChildDied when the process exits."""
        assert self.process is not None
        await self.process.wait()
        raise self._died(f"exited with {self.process.returncode}")

    async def stop(self, seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after `seconds`."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def _output(self) -> str:
        return self.log.read_bytes()[self._log_offset :].decode(errors="replace")

    def _died(self, what: str) -> ChildDied:
        last = "\n".join(f"  {line}" for line in self._output().splitlines()[-_LAST_LINES:])
        return ChildDied(f"{self.name} {what}; the end of its log {self.log}:\n{last}")


def tickbus(name: str, log: Path, *args: str) -> Child:
    """Return `tickbus NAME ARGS` as a child, not started yet."""
    return Child(name, [sys.executable, "-m", "services.cli", name, *args], log)


def child_environment() -> dict[str, str]:
    """Return the environment without configuration, which is meant for the user's own services."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TICKBUS_")}


def _die_with_parent() -> "Callable[[], None] | None":
    """On Linux the kernel kills a child whose parent has died, for whatever reason.

    Nothing is lost: every service survives that.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def request_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent died between the fork and here

    return request_signal
