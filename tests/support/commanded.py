"""A helper program in a process of its own: it takes one command a line, and answers each with one line,
`ok ...` or `error: ...`.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

_TESTS = Path(__file__).parents[1]


class CommandedProcess:
    """The process, as a test sees it. What the program says on standard error goes to `log`."""

    def __init__(self, module: str, log: Path) -> None:
        """`module`: below `tests`, like `support.proxy`; run as a program it calls `serve`."""
        paths = (str(_TESTS), os.environ.get("PYTHONPATH", ""))
        self._module = module
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def command(self, line: str) -> str:
        """Return what comes after `ok`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().decode().strip()
        assert answer.startswith("ok"), f"{self._module}: {line}: {answer or 'it has exited'}"
        return answer.removeprefix("ok").strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()


async def serve(answer: Callable[[str], Awaitable[str]]) -> None:
    """Answer the commands on standard input until it ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        sys.stdout.write(await answer(line) + "\n")
        sys.stdout.flush()
