"""The demo's folder: one demo at a time, its server's data, its recordings, its logs."""

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
        """What the recorder writes."""
        return self.path / "data"

    @property
    def spill(self) -> Path:
        """What the gateway could not hand to the server."""
        return self.path / "spill"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


@contextmanager
def claimed(path: Path) -> Iterator[Folder]:
    """The folder, made and locked; ConfigError if another demo has it, or it cannot be written."""
    folder = Folder(path.resolve())
    try:
        for needed in (folder.redis, folder.data, folder.logs):
            needed.mkdir(parents=True, exist_ok=True)
        lock = (path / "demo.lock").open("w")
    except OSError as error:
        raise ConfigError(f"--data-dir {path}: {error.strerror}; name a folder that can be written") from None
    with lock:
        try:
            # the kernel lets go of it however this process ends
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another demo runs in {path}; stop it, or give this one another --data-dir"
            ) from None
        yield folder
