"""The processes of a benchmark. They never outlive the suite, even if it is killed."""

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
    """An invalid run: something did not start, stopped, or stored something else."""


class Process:
    """A child that logs to a file and reports events on standard output, one JSON object per line.

    A context manager: leaving it stops the child.
    """

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
                start_new_session=True,  # its own process group, to be killed as one
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, seconds: float = 15.0) -> int:
        """Send SIGTERM, SIGKILL after `seconds`, SIGKILL to whatever it started; return the exit code."""
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

    def wait_event(self, key: str, seconds: float, needs: "Process | None" = None) -> dict[str, int]:
        """Return the next event that has `key`.

        Raises BenchmarkError if there is none within `seconds`, or if `needs` ends meanwhile.
        """
        assert self.popen.stdout is not None
        end = time.monotonic() + seconds
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                if line.startswith(b"{") and key in (event := json.loads(line)):
                    return dict(event)
            if not select.select([self.popen.stdout], [], [], 0.1)[0]:
                if needs is not None:
                    needs.check_alive()
                if time.monotonic() < end:
                    continue
                raise BenchmarkError(
                    f"{self.name} did not report {key!r} within {seconds:g} s; {self.log_tail()}"
                )
            chunk = os.read(self.popen.stdout.fileno(), 65536)
            if not chunk:
                raise BenchmarkError(f"{self.name} ended before it reported {key!r}; {self.log_tail()}")
            self._buffer += chunk

    def cpu_seconds(self) -> float:
        """Return its own user and system time so far; 0 where /proc is missing."""
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
        # PR_SET_PDEATHSIG: nothing is left behind if the suite is killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_until(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchmarkError(f"timed out after {seconds:g} s waiting for {what}")
        time.sleep(every)


@dataclass(frozen=True)
class Lab:
    """What every measurement needs: the suite's own Redis server, a client, a folder for logs and files."""

    url: str
    client: redis.Redis
    folder: Path


@contextmanager
def open_lab(folder: Path) -> Iterator[Lab]:
    """Run a Redis server on loopback TCP, without persistence."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise BenchmarkError(
            "redis-server is not in the PATH; install it (Debian: apt-get install redis-server)"
        )
    port = free_port()
    command = [
        program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
        "--dir", str(folder), "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    with Process("redis", command, folder) as server:
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
    """Start an upstream; its port is its first event."""
    return Process("upstream", [PYTHON, "-m", "benchmarks.upstream", *args], folder)


def stolen_seconds() -> float:
    """Return the processor time that the hypervisor has given to other machines since boot, over all cores.

    It is 0 where Linux does not report it.
    """
    try:
        return int(Path("/proc/stat").read_text().split(None, 9)[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
