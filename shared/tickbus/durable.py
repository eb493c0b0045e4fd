"""Directories, and names in them, that survive a power cut; their modes. All functions raise OSError."""

import os
import re
from contextlib import suppress
from pathlib import Path

from tickbus.errors import ConfigError

DEFAULT_UMASK = "027"
"""Files 0640, folders 0750: the owner writes, the group reads."""


def set_umask(text: str) -> None:
    """Set the permissions that files and folders made from now on by this process do not get, in octal.

    ConfigError unless it is an octal number that leaves the owner all of them.
    """
    if not re.fullmatch(r"0?0?[0-7]{2}|0", text):
        raise ConfigError(
            f"invalid --umask {text}: expected octal, and all permissions for the owner, e.g. 027 or 077"
        )
    os.umask(int(text, 8))


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
