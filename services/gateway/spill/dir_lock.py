"""Folders that one process has open at a time, with names that survive a power failure. All raise OSError."""

import fcntl
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from tickbus.durable import fsync_dir, make_dir
from tickbus.errors import ConfigError

log = logging.getLogger("tickbus.gateway")

LOCK = "lock"


def is_locked(folder: Path) -> bool:
    """Whether a live process holds the lock."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # an exclusive one would need write permission
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)


def lock_folder(folder: Path, make: bool = True) -> int | None:
    """Return the descriptor that holds the lock; None if a live process holds it.

    FileNotFoundError if the folder is gone and `make` is false.
    """
    while True:
        if make:
            make_dir(folder)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # another process may have removed the folder between the two calls; the lock then guards nothing
            if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            if not make:
                os.close(lock)
                raise
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def remove_folder(folder: Path) -> None:
    """Remove the lock, which the caller holds, and the folder if nothing else is in it."""
    (folder / LOCK).unlink()
    # files that were set aside stay; or another process has just opened the folder, and will remove it
    with suppress(OSError):
        folder.rmdir()
        fsync_dir(folder.parent)


def clear(paths: Iterable[Path]) -> None:
    """Remove files of delivered entries. A leftover is harmless: what Redis has is skipped by its ID."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.error("cannot remove %s: %s; it is no longer needed, delete it", path, error)


def check_spill_dir(spill_dir: Path) -> None:
    """Raise ConfigError, in one line, unless files can be created here."""
    probe = spill_dir / f"_probe-{uuid4().hex[:8]}"
    try:
        make_dir(spill_dir)
        with probe.open("xb", buffering=0) as file:
            file.write(b"tickbus")
            os.fsync(file.fileno())
        probe.unlink()
        fsync_dir(spill_dir)
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise ConfigError(
            f"--spill-dir {spill_dir}: {error.strerror or error}; "
            "name a folder on a local disk that this user may write to"
        ) from None
