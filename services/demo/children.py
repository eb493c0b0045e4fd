"""Processes that the demo starts, and that never outlive it."""

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
    """A process of the demo ended by itself."""


class Child:
    """One process with a log of its own."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._command = command
        self.log = log
        self._from = 0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # a configuration that is meant for the user's own services must not reach these
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TICKBUS_")}
        with self.log.open("ab") as output:
            self._from = output.tell()
            self.process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=asyncio.subprocess.STDOUT, env=environ,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which stops the others in their order
                preexec_fn=_die_with_parent(),
            )  # fmt: skip

    async def says(self, pattern: str, seconds: float = 20.0) -> "re.Match[str]":
        """Wait for this in what it prints since its start. ChildDied if it ends before, or stays silent."""
        for _ in range(int(seconds / 0.05)):
            if (match := re.search(pattern, self._output())) is not None:
                return match
            if self.process is not None and self.process.returncode is not None:
                break
            await asyncio.sleep(0.05)
        raise self._died("did not start")

    async def ended(self) -> None:
        """Raises ChildDied when it ends."""
        assert self.process is not None
        await self.process.wait()
        raise self._died(f"ended with {self.process.returncode}")

    async def stop(self, seconds: float) -> None:
        """SIGTERM; after `seconds` SIGKILL."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def _output(self) -> str:
        return self.log.read_bytes()[self._from :].decode(errors="replace")

    def _died(self, what: str) -> ChildDied:
        last = "\n".join(f"  {line}" for line in self._output().splitlines()[-_LAST_LINES:])
        return ChildDied(f"{self.name} {what}; the end of its log {self.log}:\n{last}")


def part(name: str, log: Path, *args: str) -> Child:
    """`tickbus NAME ARGS` as a child."""
    return Child(name, [sys.executable, "-m", "services.cli", name, *args], log)


def _die_with_parent() -> "Callable[[], None] | None":
    """On Linux the kernel kills a child whose parent is gone, however that came. Nothing is lost: every part survives that."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it went between the fork and here

    return ask
