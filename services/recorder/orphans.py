"""Files that no manifest names: what a killed or fenced writer left, or what a lost manifest had named. They are set aside."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from services.archive.schema import KINDS
from services.recorder import files, manifest
from tickbus.durable import fsync_dir
from tickbus.units import SECOND

_FILE = re.compile(r"s(\d+)-(\d{8,})\.parquet")


def set_aside(data_dir: Path, shard: str, number: int) -> list[Path]:
    """Clear the way for the writer whose first manifest is `number` -> where the files are now."""
    aside = data_dir / "_aside"
    found = [*_temporary(data_dir / "_tmp" / shard, number), *_final(data_dir, shard, number)]
    moved = [target for path in found if (target := files.set_aside(path, aside))]
    if moved:
        fsync_dir(aside)
    for folder in {path.parent for path in found}:
        # two starts at once clear the same folders
        with suppress(FileNotFoundError):
            fsync_dir(folder)
    for emptied in _before(data_dir / "_tmp" / shard, number):
        with suppress(OSError):
            emptied.rmdir()
    return moved


def _temporary(folder: Path, number: int) -> Iterator[Path]:
    """Those of writers before this one: fenced, so nobody will name them any more."""
    for of_writer in _before(folder, number):
        with suppress(FileNotFoundError):
            files.remove(
                of_writer.glob("*.json.tmp")
            )  # a manifest that was not linked: nothing that anybody misses
            yield from sorted(of_writer.iterdir())


def _before(folder: Path, number: int) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if int(path.name) < number]


def _final(data_dir: Path, shard: str, number: int) -> Iterator[Path]:
    """Parquet files with a number above the last manifest's: they appear only where manifests were lost.

    Only folders that changed since the manifest before ours need a look: a file is renamed into its folder after its manifest
    was written. So a recording of years starts as fast as one of a day.
    """
    manifests = data_dir / "_manifests" / shard
    before = manifest.path_of(manifests, number - 1)
    since = before.stat().st_mtime_ns - SECOND if before.exists() else 0
    for kind in KINDS:
        for folder in sorted((data_dir / kind).glob("date=*")):
            if folder.stat().st_mtime_ns >= since:
                yield from _unnamed(folder, manifests, shard, number)


def _unnamed(folder: Path, manifests: Path, shard: str, number: int) -> Iterator[Path]:
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 (names only, no Path each)
        match = _FILE.fullmatch(name)
        # a manifest of that number by now: a writer after us took over and committed; the file is his
        if (
            match
            and match[1] == shard
            and int(match[2]) >= number
            and not _named(manifests, int(match[2]), number)
        ):
            yield folder / name


def _named(manifests: Path, file_number: int, own: int) -> bool:
    return file_number != own and manifest.path_of(manifests, file_number).exists()
