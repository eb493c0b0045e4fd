"""A small disk of its own, to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted_at(folder: Path) -> Iterator[Path]:
    """Mount 256 KB at `folder`; the test is skipped where that is not permitted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk requires permission to mount: {mounted.stderr.strip()}")
    yield folder
    # lazily: a failed test may have a file open
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Use up all space but `leave` bytes. Return the file that does."""
    space = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - leave)))
    return ballast
