"""Folders and names in them that outlive a power cut. All raise OSError."""

import os
from contextlib import suppress
from pathlib import Path


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path) -> None:
    """Make a folder, and those above it, if absent; durable."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    fsync_dir(path.parent)
