"""The processes of a benchmark: started here, ended here, also when the suite itself is killed."""

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import redis

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable


class BenchmarkError(Exception):
    """A run that proves nothing: something did not start, stopped, or stored something else."""


class Process:
    """A child with its log in a file and its news on standard output, one JSON object a line. A context manager: leaving ends it."""

    def __init__(
        self, name: str, command: Sequence[str | Path], folder: Path, env: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._buffer = b""
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                preexec_fn=_die_with_parent,
                start_new_session=True,  # a group of its own, to be ended as one
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, and after `seconds` SIGKILL; then SIGKILL to whatever it started itself. -> The exit code."""
        try:
            if self.popen.poll() is None:
                self.popen.terminate()
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            for pipe in (self.popen.stdin, self.popen.stdout):
                if pipe is not None:
                    pipe.close()
        return self.popen.returncode

    def news(self, key: str, seconds: float, needs: "Process | None" = None) -> dict[str, int]:
        """The next line of news that has `key`. BenchmarkError if none comes within `seconds`, or `needs` ends meanwhile."""
        assert self.popen.stdout is not None
        end = time.monotonic() + seconds
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                if line.startswith(b"{") and key in (found := json.loads(line)):
                    return dict(found)
            if not select.select([self.popen.stdout], [], [], 0.1)[0]:
                if needs is not None:
                    needs.check_alive()
                if time.monotonic() < end:
                    continue
                raise BenchmarkError(
                    f"{self.name} did not say {key!r} within {seconds:g} s; {self.log_tail()}"
                )
            piece = os.read(self.popen.stdout.fileno(), 65536)
            if not piece:
                raise BenchmarkError(f"{self.name} ended before it said {key!r}; {self.log_tail()}")
            self._buffer += piece

    def cpu_seconds(self) -> float:
        """User and system time so far, its own; 0 where /proc is absent."""
        try:
            fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def check_alive(self) -> None:
        if self.popen.poll() is not None:
            raise BenchmarkError(
                f"{self.name} ended with exit code {self.popen.returncode}; {self.log_tail()}"
            )

    def log_tail(self) -> str:
        tail = self._log.read_text(errors="replace")[-1500:].strip()
        return f"its log ends:\n{tail}" if tail else "its log is empty"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: nothing is left behind if the suite is killed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_until(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchmarkError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(every)


@dataclass(frozen=True)
class Lab:
    """What every measurement needs: a Redis server of the suite's own, a client of it, a folder for logs and files."""

    url: str
    client: redis.Redis
    folder: Path


@contextmanager
def open_lab(folder: Path) -> Iterator[Lab]:
    """A Redis server on loopback TCP, nothing persisted."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise BenchmarkError("no redis-server in the path; install it (Debian: apt-get install redis-server)")
    port = free_port()
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    with Process("redis", [*command, "--maxmemory-policy", "noeviction"], folder) as server:
        client = redis.Redis(port=port, socket_timeout=60)

        def answers() -> bool:
            server.check_alive()
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_until("redis-server", answers, 10)
        try:
            yield Lab(f"redis://127.0.0.1:{port}/0", client, folder)
        finally:
            client.close()


def upstream(folder: Path, *args: str | Path) -> Process:
    """An upstream that listens; its port is the next news."""
    return Process("upstream", [PYTHON, "-m", "benchmarks.upstream", *args], folder)


def stolen_seconds() -> float:
    """Processor time that the hypervisor gave to other machines since this one was started, over all cores; 0 where Linux does not say."""
    try:
        return int(Path("/proc/stat").read_text().split(None, 9)[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
