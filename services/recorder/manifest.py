"""Manifests: the commits of a shard, small JSON files `_manifests/<NN>/<number>.json`, numbered without gaps.

A manifest is written whole under a temporary name and then linked to its own, which only one writer can do:
creating number n + 1 is the commit, and the fence. The last one alone is the shard's position.
"""

import logging
import os
import re
from pathlib import Path

import msgspec

from services.recorder import files
from tickbus.durable import fsync_dir
from tickbus.errors import ConfigError
from tickbus.protocol.names import Stream, StreamId

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"(\d{8,})\.json")


class File(msgspec.Struct, frozen=True):
    kind: str
    """trade, quote, bar, signal, gap; or `aside`: messages that do not fit their columns, as JSON lines."""
    name: str
    """Final name and temporary name, relative to the data folder."""
    temporary: str
    rows: int
    bytes: int
    crc32: int
    streams: dict[str, tuple[str, str]]
    """Name of each stream in the file -> the IDs of its first and last row there."""


class Manifest(msgspec.Struct, frozen=True):
    number: int
    shard: str
    epoch: int
    """The recorder's, for this shard; 0 where it runs alone."""
    writer: str
    """Random per start of a store: distinguishes two writers."""
    files: list[File]
    """Empty in the manifest with which a store takes a shard over."""
    positions: dict[str, str]
    """Each stream of the shard ever recorded -> ID of its last entry in the files."""
    format: int = FORMAT


_decode = msgspec.json.Decoder(Manifest).decode


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.json"


def create(folder: Path, manifest: Manifest, temporary: Path) -> bool:
    """Commit. Return whether the number was free. The temporary file stays. OSError: nothing was committed.

    The name is durable only after fsync_dir(folder).
    """
    files.write(temporary, msgspec.json.encode(manifest))
    try:
        return files.link_exclusively(temporary, path_of(folder, manifest.number))
    except OSError:
        files.remove([temporary])
        raise


def last(folder: Path, quarantine_dir: Path) -> Manifest | None:
    """Return the newest manifest. An unreadable one at the end (a broken disk: manifests are linked whole) is
    quarantined and logged, if the one before it is there. ConfigError if it is not, or if a newer version
    wrote it.
    """
    while number := _newest(folder):
        path = path_of(folder, number)
        try:
            return _read(path, number)
        except (msgspec.MsgspecError, ValueError) as error:
            if number > 1 and not path_of(folder, number - 1).exists():
                # stepping further back would take every file in between for an orphan
                raise ConfigError(
                    f"{path} is unreadable: {error}; the commit before it was deleted, so the shard has no "
                    "position: restore this file, or delete it to begin again with what Redis has "
                    "(the shard's files then go to _aside)"
                ) from None
            log.error("%s is unreadable: %s; quarantined, resuming from the previous commit", path, error)
            files.quarantine(path, quarantine_dir)
            fsync_dir(folder)
    return None


def peek_positions(folder: Path) -> dict[str, StreamId] | None:
    """Return the positions in the newest manifest, without changing anything; None if it is unreadable."""
    try:
        number = _newest(folder)
        positions = _read(path_of(folder, number), number).positions if number else {}
    except (OSError, ConfigError, msgspec.MsgspecError, ValueError):
        return None
    return {name: StreamId.parse(id) for name, id in positions.items()}


def _read(path: Path, number: int) -> Manifest:
    """Return a manifest. MsgspecError or ValueError if it is none, ConfigError if it is a newer version's."""
    manifest = _decode(path.read_bytes())
    if manifest.format > FORMAT:
        raise ConfigError(
            f"{path} has format {manifest.format}, this program reads up to {FORMAT}: upgrade tickbus"
        )
    if manifest.number != number:
        raise ValueError(f"its number is {manifest.number}")
    for name, id in manifest.positions.items():
        Stream.parse(name)
        StreamId.parse(id)
    for file in manifest.files:
        for name in (file.name, file.temporary):
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"it names {name!r}, outside of the data folder")
    return manifest


def _newest(folder: Path) -> int:
    """Return its number; 0 if there is none."""
    # names only, no Path each: years of commits are millions of files
    names = os.listdir(folder)  # noqa: PTH208
    return max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)
