"""The demo's folder: its server's data, its recorded files, its logs. One demo at a time uses it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tickbus.errors import ConfigError


@dataclass(frozen=True)
class Folder:
    path: Path

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def data(self) -> Path:
        """The recorded files."""
        return self.path / "data"

    @property
    def spill(self) -> Path:
        """Ticks that the gateway could not store in the server."""
        return self.path / "spill"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


@contextmanager
def claimed(path: Path) -> Iterator[Folder]:
    """Create and lock the folder. Raises ConfigError if another demo uses it or it is not writable."""
    folder = Folder(path.resolve())
    try:
        for subfolder in (folder.redis, folder.data, folder.logs):
            subfolder.mkdir(parents=True, exist_ok=True)
        lock = (path / "demo.lock").open("w")
    except OSError as error:
        raise ConfigError(f"--data-dir {path}: {error.strerror}; choose a writable folder") from None
    with lock:
        try:
            # the kernel releases it however this process ends
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another demo is running in {path}; stop it, or choose another --data-dir"
            ) from None
        yield folder
