"""Spill folders on disk: what is in them, who owns it, and whether it is locked.

    <spill-dir>/<feed>/<epoch>-<holder>[-<lane>]/
        NNNNNNNN.segment            entries that Redis has not accepted
        NNNNNNNN.segment.corrupt    set aside: damaged, or written behind damage
        lock                        locked (flock) by the process that has the folder open

The names are for people; the owner of a folder is stored in its segments.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.gateway.spill.dir_lock import clear, is_locked, lock_folder, remove_folder
from services.gateway.spill.segment import Header, Owner, SpillError, read_header, survey

_MAX_HEADER = 8192


@dataclass(slots=True)
class Segment:
    path: Path
    remaining: int
    """Number of entries not released."""
    position: int
    """Offset of the next record to read."""
    end: int
    """End of the last whole record."""
    size: int
    """Bytes on disk."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that cannot be read, with more behind them: what follows cannot be delivered in order."""

    path: Path
    offset: int
    bytes: int
    """Unreadable bytes of this file, from the offset on."""
    behind: tuple[Path, ...]
    """Segments that were written after it."""
    bytes_behind: int


@dataclass(slots=True)
class SpillFolder:
    """What one folder contains."""

    path: Path
    owner: Owner | None = None
    """None: no readable segment names it."""
    segments: list[Segment] = field(default_factory=list)
    """Those with entries to deliver, in order."""
    torn: int = 0
    """Bytes behind the last whole record, ignored: a writer was killed before its append returned."""
    empty: list[Path] = field(default_factory=list)
    """Segments that were begun and contain no entry."""
    damage: Damage | None = None
    aside: int = 0
    """Bytes in files that were set aside earlier."""
    locked: bool = False
    """A live process has it open. The rest is then only an estimate."""

    @property
    def entries(self) -> int:
        return sum(segment.remaining for segment in self.segments)

    @property
    def bytes(self) -> int:
        return sum(segment.size for segment in self.segments)

    def __str__(self) -> str:
        owner = f"epoch {self.owner.epoch} of {self.owner.holder}" if self.owner else "owner unknown"
        text = f"{self.path}: {self.entries} entries in {self.bytes} bytes, {owner}"
        if self.locked:
            text += ", locked by a live process"
        if self.torn:
            text += f"; {self.torn} bytes at the end are a torn write"
        if self.damage:
            damage = self.damage
            text += f"; {damage.path.name} is unreadable from byte {damage.offset} on ({damage.bytes} bytes)"
            if damage.behind:
                text += (
                    f", and {len(damage.behind)} segments ({damage.bytes_behind} bytes) behind it "
                    "cannot be delivered"
                )
        if self.aside:
            text += f"; {self.aside} bytes set aside"
        return text


def spill_folder_path(spill_dir: Path, owner: Owner) -> Path:
    name = "-".join(filter(None, (str(owner.epoch), _sanitize(owner.holder), _sanitize(owner.lane))))
    return spill_dir / owner.feed / name


def _sanitize(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:100]


def find(spill_dir: Path, feed: str) -> list[SpillFolder]:
    """Return every non-empty folder of a feed, by epoch. Remove empty ones that are not locked. OSError."""
    found = []
    for path in sorted((spill_dir / feed).glob("*/")):
        with suppress(FileNotFoundError):  # another process just finished with it
            folder = _inspect(path)
            if folder.segments or folder.damage or folder.aside:
                found.append(folder)
            elif not folder.locked:
                _remove_if_empty(path)
    return sorted(found, key=lambda folder: (folder.owner.epoch if folder.owner else -1, folder.path))


def _inspect(path: Path) -> SpillFolder:
    # the lock is not held while everything is read: the owner may want it
    locked = is_locked(path)
    while True:
        with suppress(FileNotFoundError):  # its owner removes segments as they are delivered
            folder = survey_folder(path)
            folder.locked = locked
            return folder


def _remove_if_empty(path: Path) -> None:
    lock = lock_folder(path, make=False)
    if lock is None:
        return
    try:
        folder = survey_folder(path)
        if not (folder.segments or folder.damage):
            clear(folder.empty)
            remove_folder(path)
    finally:
        os.close(lock)


def survey_folder(folder_path: Path) -> SpillFolder:
    """Read all of a folder, checksums included."""
    aside = sum(path.stat().st_size for path in folder_path.glob("*.corrupt"))
    folder = SpillFolder(folder_path, aside=aside)
    paths = sorted(folder_path.glob("*.segment"))
    firsts = [header.first if (header := _header(path)) else None for path in paths]
    for at, path in enumerate(paths):
        data = path.read_bytes()
        is_last = at == len(paths) - 1
        found = survey(data, None if is_last else firsts[at + 1])
        owner = found.header.owner if found.header else None
        folder.owner = folder.owner or owner
        is_ours = owner is not None and owner == folder.owner
        damaged = found.damaged or (not is_ours and not (owner is None and is_last))
        if is_ours and found.entries:
            folder.segments.append(Segment(path, found.entries, found.start, found.end, len(data)))
        elif not damaged:
            folder.empty.append(path)
        if damaged:
            behind = tuple(paths[at + 1 :])
            bytes_behind = sum(segment.stat().st_size for segment in behind)
            folder.damage = Damage(path, found.end, len(data) - found.end, behind, bytes_behind)
            break
        if is_last:
            folder.torn = len(data) - found.end
    return folder


def _header(path: Path) -> Header | None:
    with path.open("rb") as file:
        try:
            return read_header(file.read(_MAX_HEADER))[0]
        except SpillError:
            return None
