"""The commands of tickbus as real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.waiting import until

_TICKBUS = [sys.executable, "-m", "services.cli"]


def tickbus(*args: str, timeout: float = 30.0, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends."""
    return subprocess.run(
        [*_TICKBUS, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environ},
        check=False,
    )


class Process:
    """A running command. Its output goes to a file, so that it never blocks on a full pipe."""

    command: Sequence[str] = _TICKBUS
    """The program and its first arguments; a subclass runs another one."""

    def __init__(self, log: Path, *args: str, **environ: str) -> None:
        self._log = log
        self._args = args
        self._environ = environ
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._log_offset = output.tell()
            self.process = subprocess.Popen(
                [*self.command, *self._args],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environ},
            )

    @property
    def output(self) -> str:
        """Everything printed since the last start."""
        return self._log.read_bytes()[self._log_offset :].decode(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 20.0) -> "re.Match[str]":
        """Wait until the output matches `pattern` and return the match."""

        def found() -> "re.Match[str] | None":
            match = re.search(pattern, self.output)
            if match is None and self.process.poll() is not None:
                raise AssertionError(
                    f"exited with {self.process.returncode} before {pattern!r}:\n{self.output}"
                )
            return match

        return until(found, seconds, f"{pattern!r} in:\n{self.output}")

    @property
    def metrics_port(self) -> int:
        return int(self.wait_for(r"metrics on http://[\d.]+:(\d+)/")[1])

    def get(self, path: str) -> tuple[int, str]:
        """Request `path` from the metrics port and return status and body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
            if (
                match
                and match[1] == name
                and all(f'{key}="{value}"' in (match[2] or "") for key, value in labels.items())
            ):
                total += float(match[3])
        return total

    def caught_up(self) -> bool:
        """Return whether a consumer has committed everything on the bus."""
        return (
            self.metric("tickbus_consumer_read_total") > 0 and self.metric("tickbus_consumer_lag_ticks") == 0
        )

    def wait_ready(self, seconds: float = 20.0) -> "Process":
        until(lambda: self.get("/readyz")[0] == 200, seconds, f"{self._args[0]} is ready:\n{self.output}")
        return self

    def send_line(self, line: str) -> None:
        """Write a line to standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, seconds: float = 20.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.wait(10)

    def wait(self, seconds: float = 20.0) -> int:
        code = self.process.wait(seconds)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.wait(10)


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a simulator's ledger."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]
