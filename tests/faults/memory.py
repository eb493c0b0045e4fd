"""The memory of every process, and its bound: what its buffers may hold by their options.

docs/guarantees.md lists them.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tickbus.units import parse_size

_INTERVAL = 0.5
_MB = 1 << 20
_FACTOR = 1.5
"""Memory per byte that a buffer counts: fragmentation, and copies while a batch is packed or written."""
RING, CLIENT = "64MB", "4MB"
"""The defaults of --ring-bytes and --client-bytes; a relay has two clients."""
REPLAY, ROWS = "64MB", "256MB"
"""The default of --replay-bytes, and four times that of --flush-bytes: where a recorder stops reading."""
SLACK = {"gateway": 96 * _MB, "bars": 96 * _MB, "recorder": 192 * _MB, "app": 96 * _MB}
SLACK |= {"relay": 96 * _MB, "remote": 96 * _MB, "raw": 96 * _MB}
"""One reply of Redis, one frame, one Parquet file being written, the interpreter's own growth."""


class Sizes(Protocol):
    @property
    def backlog(self) -> str: ...


def buffers(role: str, sizes: Sizes) -> int:
    """Return how many bytes the buffers of a process may hold."""
    texts = {"gateway": (sizes.backlog, REPLAY), "bars": (REPLAY,), "recorder": (ROWS,), "app": ()}
    texts |= {"relay": (RING, CLIENT, CLIENT), "remote": (), "raw": ()}
    return sum(parse_size(text) for text in texts[role])


class Memory:
    """Samples the resident memory of processes, by name; those of roles without a bound are left out."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._sampled_at = 0.0
        self._most: dict[str, int] = {}
        self._base: dict[str, int] = {}

    def begin(self) -> None:
        """Take what was sampled so far as what the processes need when nothing happens."""
        self._base, self._most = self._most, {}

    def sample(self, pids: dict[str, int], now: float) -> None:
        if now - self._sampled_at < _INTERVAL:
            return
        self._sampled_at = now
        for name, pid in pids.items():
            if _role(name) in SLACK:
                self._most[name] = max(self._most.get(name, 0), resident(pid))

    def bound(self, name: str) -> int:
        role = _role(name)
        base = max((size for other, size in self._base.items() if _role(other) == role), default=0)
        return base + int(_FACTOR * buffers(role, self._sizes)) + SLACK[role]

    def most(self) -> dict[str, tuple[int, int]]:
        """Return by role the most that a process had, and its bound."""
        found: dict[str, tuple[int, int]] = {}
        for name, size in self._most.items():
            found[_role(name)] = max(found.get(_role(name), (0, 0)), (size, self.bound(name)))
        return found

    def exceeded(self) -> list[tuple[str, str]]:
        return [
            (name, f"{size >> 20} MB, the bound is {self.bound(name) >> 20} MB")
            for name, size in self._most.items()
            if size > self.bound(name)
        ]


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    with suppress(OSError):
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(match[1]) << 10 if match else 0
    return 0


def _role(name: str) -> str:
    return name.partition("-")[0]
