"""Subscription recorded files: plain, gzip or zip, line by line, without holding more than a piece of them."""

import gzip
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tickbus.errors import ConfigError

_PIECE = 1 << 20


def existing(paths: Sequence[Path]) -> list[Path]:
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"--source: there is no file {path}")
    return list(paths)


def pieces(path: Path) -> Iterator[list[bytes]]:
    """The lines of a plain, gzip or zip (its first member) file, some thousands at a time; without line ends or empty lines."""
    rest = b""
    with _opened(path) as file:
        while piece := file.read(_PIECE):
            *lines, rest = (rest + piece).split(b"\n")
            yield [line for line in lines if line]
    if rest:
        yield [rest]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
                yield member
        elif path.suffix == ".gz":
            with gzip.open(path) as unpacked:
                yield unpacked  # type: ignore[misc]  # its stub is no IO[bytes], but it reads
        else:
            with path.open("rb") as file:
                yield file
    except (OSError, EOFError, zipfile.BadZipFile, IndexError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
