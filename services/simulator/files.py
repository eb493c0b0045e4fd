"""Reading recorded files line by line: plain, gzip or zip, never more than a chunk in memory."""

import gzip
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tickbus.errors import ConfigError

_CHUNK_BYTES = 1 << 20


def check_files(paths: Sequence[Path]) -> list[Path]:
    """Return the paths. ConfigError if one of them is not a file."""
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"--source: no such file: {path}")
    return list(paths)


def line_batches(path: Path) -> Iterator[list[bytes]]:
    """Yield the lines of a plain, gzip or zip (its first member) file, some thousands at a time.

    Without line ends and empty lines. ConfigError if the file cannot be read.
    """
    rest = b""
    with _open(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            yield [line for line in lines if line]
    if rest:
        yield [rest]


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
                yield member
        elif path.suffix == ".gz":
            with gzip.open(path) as unpacked:
                yield unpacked  # type: ignore[misc]  # not an IO[bytes] in its stub, but it can be read
        else:
            with path.open("rb") as file:
                yield file
    except (OSError, EOFError, zipfile.BadZipFile, IndexError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
