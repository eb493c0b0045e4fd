"""Durable file operations: the file is on disk, under its name, even after a power cut. All raise OSError."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from tickbus.durable import fsync_dir, make_dir
from tickbus.errors import ConfigError


def write(path: Path, data: bytes | memoryview) -> None:
    """Create a file with this content. Its name is durable only after fsync_dir. No partial file remains."""
    try:
        with path.open("xb", buffering=0) as file:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
    except OSError:
        remove([path])
        raise


def remove(paths: Iterable[Path]) -> None:
    """Best effort: in a folder that became unwritable they stay, and the next start quarantines them."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def link_exclusively(temporary: Path, final: Path) -> bool:
    """Link the file to its final name unless that is taken. Return whether it was free."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        # over NFS the reply to a successful link may be lost, and the retry then finds it
        return temporary.samefile(final)
    return True


def ensure_renamed(temporary: Path, final: Path) -> bool:
    """Rename unless already done. Return whether the file is there: False if neither exists any more."""
    with suppress(FileNotFoundError):
        temporary.rename(final)
        return True
    if temporary.exists():
        # somebody removed the folder between the commit and this start
        make_dir(final.parent)
        with suppress(FileNotFoundError):
            temporary.rename(final)
    return final.exists()


def quarantine(path: Path, quarantine_dir: Path) -> Path | None:
    """Move a file out of the readers' way, never over another. Return its new path; None if already moved."""
    target = quarantine_dir / f"{path.parent.name}.{path.name}.{uuid4().hex[:8]}.aside"
    try:
        path.rename(target)
    except FileNotFoundError:
        return None
    return target


def check_writable(data_dir: Path) -> None:
    """ConfigError, in one line, unless files can be created, linked and renamed here."""
    probe = data_dir / f"_probe-{uuid4().hex[:8]}"
    linked = probe.with_suffix(".link")
    try:
        make_dir(data_dir)
        write(probe, b"tickbus")
        if not link_exclusively(probe, linked):
            raise FileExistsError(17, "a fresh name is taken", str(linked))
        probe.rename(linked)
        fsync_dir(data_dir)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--data-dir {data_dir}: {reason}; use a writable folder on a file system with hard links"
        ) from None
    finally:
        remove([probe, linked])
