"""Directories, and names in them, that survive a power cut. All functions raise OSError."""

import os
from contextlib import suppress
from pathlib import Path


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path) -> None:
    """Create a directory and its parents durably, unless they exist."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    fsync_dir(path.parent)
