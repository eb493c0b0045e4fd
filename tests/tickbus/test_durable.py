"""Modes of files and folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tickbus.durable import make_dir, set_umask
from tickbus.errors import ConfigError


@pytest.fixture(autouse=True)
def shell_umask() -> Iterator[None]:
    """The umask of whoever started the process, which must not matter."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [
        ("027", 0o640, 0o750),
        ("0027", 0o640, 0o750),
        ("077", 0o600, 0o700),
        ("22", 0o644, 0o755),
        ("0", 0o666, 0o777),
    ],
)
def test_umask_is_what_new_names_do_not_get(tmp_path: Path, umask: str, file: int, folder: int) -> None:
    set_umask(umask)
    make_dir(tmp_path / "a/b")
    (tmp_path / "a/b/c").touch()
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/c")] == [
        folder,
        folder,
        file,
    ]


@pytest.mark.parametrize("umask", ["", "8", "127", "777", "0x1f", "u=rwx", "-27", "00027"])
def test_anything_else_is_refused(umask: str) -> None:
    with pytest.raises(ConfigError, match=f"invalid --umask {umask}: expected octal"):
        set_umask(umask)
