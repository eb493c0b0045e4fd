"""Which files below a data folder hold recorded rows, of which kind, and which do not and why.

Every Parquet file counts whose columns fit a kind, wherever it lies and whatever its name: files that users
merged, moved or compacted too. Left out are the recorder's own folders (`_...`) and hidden ones.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from services.archive.schema import KINDS, Kind, misfit
from tickbus.sanitize import clean

log = logging.getLogger("tickbus.archive")

_RECORDED = re.compile(r"s(\d+)-(\d{8,})\.parquet")
_FOLDER = re.compile(r"date=(\d{4}-\d\d-\d\d)")
_MAGIC = (b"PAR1", b"PARE")
BOUNDED = ("symbol", "feed", "id_ms", "ts_recv", "ts_event", "from_ts", "start")
"""Columns whose bounds in the footer may be asked for."""
_NAMED = 10
"""So many files that are left out are named; then their number."""
_SCHEMAS = {name: kind.schema for name, kind in KINDS.items()}
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class RecordedFile:
    path: Path
    kind: Kind
    footer: pq.FileMetaData
    commit: tuple[str, str] | None
    """Shard and number, of a file as the recorder wrote it: no row in it is in another such file."""
    schema: pa.Schema


class LeftOut:
    """Names files that cannot be played: one line each, for the first ones."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.count = 0

    def add(self, path: Path, reason: object) -> None:
        self.count += 1
        if self.count <= _NAMED:
            name = str(path.relative_to(self._data_dir))
            # one line, also where a name or a reason has several
            words = " ".join(str(reason).split())
            log.warning("left out: %s: %s", clean(" ".join(name.split())), clean(words, 500))
        elif self.count == _NAMED + 1:
            log.warning("left out: more files below %s, not named", self._data_dir)


class Unnamed(LeftOut):
    """For a first look at the files: whoever reads them afterwards names what is left out."""

    def add(self, path: Path, reason: object) -> None:
        self.count += 1


def find(
    data_dir: Path,
    kinds: Collection[str],
    first_day: int,
    last_day: int,
    left_out: LeftOut,
    is_known: Callable[[Path], bool] = lambda path: False,
) -> Iterator[RecordedFile]:
    """Yield the files of these kinds that may have rows of these days (since the epoch), by their footers.

    is_known: says which ones need not be looked at again.
    """
    for path, kind_name, day in _paths(data_dir):
        match = _RECORDED.fullmatch(path.name)
        is_in_place = match is not None and day is not None
        if is_in_place and not (kind_name in kinds and first_day <= (day or 0) <= last_day):
            continue
        if is_known(path):
            continue
        try:
            if not path.name.endswith(".parquet") and not _is_parquet(path):
                if ".parquet" in path.name:
                    left_out.add(path, "no Parquet file")
                continue
            with pq.ParquetFile(path) as parquet:
                footer = parquet.metadata
                about = footer.metadata or {}
                commit: tuple[str, str] | None
                if match and kind_name in KINDS and _is_as_recorded(match, kind_name, about):
                    kind, schema, commit = KINDS[kind_name], _SCHEMAS[kind_name], (match[1], match[2])
                else:
                    schema, commit = footer.schema.to_arrow_schema(), None
                    found, reason = _kind_of(schema, kind_name)
                    if found is None:
                        left_out.add(path, reason)
                        continue
                    kind = found
                if kind.name in kinds:
                    _check_bounds(parquet, schema)
        except (OSError, pa.ArrowException, ValueError) as error:
            left_out.add(path, f"no Parquet file that can be read: {error}")
            continue
        if kind.name in kinds:
            yield RecordedFile(path, kind, footer, commit, schema)


def _check_bounds(parquet: pq.ParquetFile, schema: pa.Schema) -> None:
    """Read the first row of the columns whose statistics choose what is read; OSError if that is impossible.

    A damaged footer becomes an exception when rows are read. When pyarrow (26) is asked for the statistics of
    such a column, it ends the process.
    """
    columns = [name for name in BOUNDED if name in schema.names]
    for number in range(parquet.metadata.num_row_groups):
        next(parquet.iter_batches(batch_size=1, row_groups=[number], columns=columns), None)


def _is_as_recorded(name: "re.Match[str]", kind: str, about: Mapping[bytes, bytes]) -> bool:
    """Whether the key-value metadata are those of the recorder's file of this name."""
    shard, number = name.groups()
    return (about.get(b"tickbus.kind"), about.get(b"tickbus.shard"), about.get(b"tickbus.number")) == (
        kind.encode(),
        shard.encode(),
        str(int(number)).encode(),
    )


def _kind_of(schema: pa.Schema, expected: str) -> tuple[Kind | None, str]:
    """Return the kind that the columns fit, first the one whose folder this is; or None and the reason."""
    order = sorted(KINDS.values(), key=lambda kind: kind.name != expected)
    fitting = [kind for kind in order if not misfit(kind, schema)]
    if fitting:
        return fitting[0], ""
    if expected in KINDS:
        return None, f"not the columns of a {expected}: {misfit(KINDS[expected], schema)}"
    return None, f"not the columns of any kind ({', '.join(KINDS)})"


def _paths(data_dir: Path) -> Iterator[tuple[Path, str, int | None]]:
    """Yield each file with the name of the folder at the top, and the day if it lies in a folder of one day:
    `<kind>/date=.../`.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(data_dir, followlinks=True):
        here = Path(folder)
        parts = here.relative_to(data_dir).parts
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (parts or not name.startswith("_"))
        )
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        day = _day_of(parts[1]) if len(parts) > 1 else None
        for name in sorted(names):
            if parts or not name.startswith("_"):
                yield here / name, parts[0] if parts else "", day


def _day_of(folder: str) -> int | None:
    match = _FOLDER.fullmatch(folder)
    try:
        return date.fromisoformat(match[1]).toordinal() - _EPOCH if match else None
    except ValueError:
        return None


def _is_parquet(path: Path) -> bool:
    # a named pipe or a device would wait for ever
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in _MAGIC
