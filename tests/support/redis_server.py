"""A real redis-server per test: its own folder, its own port, killed and restarted at will."""

import os
import random
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from support.client import connect
from support.waiting import until


def free_port() -> int:
    """Return a port that nobody listens on, outside the ephemeral range, so that nobody gets it meanwhile."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = random.randrange(10_000, 20_000)
            probe.bind(("127.0.0.1", port))
            return port


def require_program(program: str) -> str:
    """Return the path of a program. Where it is missing, fail the test in CI and skip it on a laptop."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not installed"
        if os.environ.get("CI") == "true" or os.environ.get("TICKBUS_REQUIRE_SERVERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class RedisServer:
    def __init__(self, folder: Path, *options: str) -> None:
        self._program = require_program("redis-server")
        self._folder = folder
        self._options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self.synced_size = 0
        """A size of the log, for a test to record and to truncate to later."""

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder),
             "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", *self._options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.client = connect(self.port)
        until(self._answers, what="redis-server answers")

    def _answers(self) -> bool:
        try:
            return self.client.ping()
        except (redis.ConnectionError, redis.BusyLoadingError):
            return False

    def stop(self) -> None:
        """Stop it as an operator does: everything is on the disk."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    @property
    def _log(self) -> Path:
        """The newest file of the append-only log."""
        return max(self._folder.glob("appendonlydir/*.incr.aof"))

    def log_size(self) -> int:
        """Return the size of the log once it holds everything that Redis has answered.

        With `appendfsync everysec` Redis answers before it writes while an fsync of a slow disk goes on.
        """
        until(lambda: self.client.info("persistence")["aof_buffer_length"] == 0, what="the log to be written")
        return self._log.stat().st_size

    def truncate_log(self, size: int) -> None:
        """Simulate a power loss on a killed server: drop what was written since the log had `size` bytes."""
        os.truncate(self._log, size)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        if self.process is not None:
            self.client.close()
