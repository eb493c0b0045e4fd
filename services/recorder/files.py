"""Durable file operations: what returned is on the disk, under its name, after a power cut too. All raise OSError."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from tickbus.durable import fsync_dir, make_dir
from tickbus.errors import ConfigError


def write(path: Path, data: bytes | memoryview) -> None:
    """A new file with this content; its name is durable only after fsync_dir. What fails half-way is removed again."""
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
    """As far as it goes: a folder that became unwritable keeps them, and the next start sets them aside."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def link_exclusively(temporary: Path, final: Path) -> bool:
    """Give the file its final name too, unless that is taken -> whether it was free."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        # over NFS the answer to a link that was made may be lost, and the retry then finds it
        return temporary.samefile(final)
    return True


def rename_forward(temporary: Path, final: Path) -> None:
    """Rename, unless that is done already. FileNotFoundError if there is neither."""
    try:
        temporary.rename(final)
    except FileNotFoundError:
        if not final.exists():
            raise


def set_aside(path: Path, aside: Path) -> Path | None:
    """Move a file out of the readers' way, never over another one -> its new path; None if somebody else moved it first."""
    target = aside / f"{path.parent.name}.{path.name}.{uuid4().hex[:8]}.aside"
    try:
        path.rename(target)
    except FileNotFoundError:
        return None
    return target


def check_writable(data_dir: Path) -> None:
    """ConfigError, in one line, unless files can be made, linked and renamed here."""
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
            f"--data-dir {data_dir}: {reason}; name a folder on a file system with hard links that this user may write to"
        ) from None
    finally:
        remove([probe, linked])
