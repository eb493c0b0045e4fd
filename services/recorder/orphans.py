"""Files named by no manifest: left by a killed or fenced writer, or their manifest was lost. Quarantined."""

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
_NUMBER = re.compile(r"\d+", re.ASCII)


def quarantine(data_dir: Path, shard: str, number: int) -> list[Path]:
    """Clear the way for the writer whose first manifest is `number`. Return the new paths of the files."""
    quarantine_dir = data_dir / "_aside"
    found = [*_temporary(data_dir / "_tmp" / shard, number), *_final(data_dir, shard, number)]
    moved = [target for path in found if (target := files.quarantine(path, quarantine_dir))]
    if moved:
        fsync_dir(quarantine_dir)
    for folder in {path.parent for path in found}:
        # two concurrent starts clear the same folders
        with suppress(FileNotFoundError):
            fsync_dir(folder)
    for folder in _folders_before(data_dir / "_tmp" / shard, number):
        with suppress(OSError):
            folder.rmdir()
    return moved


def _temporary(folder: Path, number: int) -> Iterator[Path]:
    """Yield the files of earlier writers: these are fenced, so nobody will name them any more."""
    for writer_dir in _folders_before(folder, number):
        with suppress(FileNotFoundError):
            # a manifest that was never linked: nobody needs it
            files.remove(writer_dir.glob("*.json.tmp"))
            yield from sorted(writer_dir.iterdir())


def _folders_before(folder: Path, number: int) -> list[Path]:
    """Return those of earlier writers. Anything else in there is not ours and stays."""
    return [
        path
        for path in sorted(folder.iterdir())
        if _NUMBER.fullmatch(path.name) and int(path.name) < number and path.is_dir()
    ]


def _final(data_dir: Path, shard: str, number: int) -> Iterator[Path]:
    """Yield Parquet files numbered above the last manifest: they exist only where manifests were lost.

    Only folders that changed since the manifest before ours are scanned: a file is renamed into its folder
    after its manifest was written. So a recording of years starts as fast as one of a day.
    """
    manifests = data_dir / "_manifests" / shard
    before = manifest.path_of(manifests, number - 1)
    since = before.stat().st_mtime_ns - SECOND if before.exists() else 0
    for kind in KINDS:
        for folder in sorted((data_dir / kind).glob("date=*/")):
            # somebody may be removing old days right now
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime_ns >= since:
                    yield from _unnamed(folder, manifests, shard, number)


def _unnamed(folder: Path, manifests: Path, shard: str, number: int) -> Iterator[Path]:
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 (names only, no Path each)
        match = _FILE.fullmatch(name)
        # a manifest of that number by now: a later writer took over and committed; the file is its own
        if (
            match
            and match[1] == shard
            and int(match[2]) >= number
            and not _is_named(manifests, int(match[2]), number)
        ):
            yield folder / name


def _is_named(manifests: Path, file_number: int, own: int) -> bool:
    return file_number != own and manifest.path_of(manifests, file_number).exists()
