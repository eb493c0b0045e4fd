"""Spill folders as they lie on the disk: what is in them, whose it is, and who has them locked.

    <spill-dir>/<feed>/<epoch>-<holder>[-<lane>]/NNNNNNNN.segment     entries that Redis has not taken
                                                 NNNNNNNN.segment.corrupt   set aside: damaged, or written behind damage
                                                 lock                 held (flock) by the process that has the folder open

The names are for people; who owns a folder stands in its segments.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.gateway.spill.dir_lock import clear, is_locked, lock_folder, remove_folder
from services.gateway.spill.segment import Header, Owner, SpillError, read_header, survey

_LONGEST_HEADER = 8192


@dataclass(slots=True)
class Segment:
    path: Path
    left: int
    """Entries that are not released."""
    read: int
    """Where the next record to read begins."""
    end: int
    """End of the last whole record."""
    size: int
    """Bytes on the disk."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that cannot be read, with more behind them: what follows cannot be delivered in order."""

    path: Path
    offset: int
    bytes: int
    """Unreadable: of this file, from the offset on."""
    behind: tuple[Path, ...]
    """Segments that were written after it."""
    bytes_behind: int


@dataclass(slots=True)
class SpillFolder:
    """What one folder holds."""

    folder: Path
    owner: Owner | None = None
    """None: no segment tells it."""
    segments: list[Segment] = field(default_factory=list)
    """Those with entries to deliver, in order."""
    torn: int = 0
    """Bytes behind the last whole record: a writer was killed in an append that had not returned. They are ignored."""
    litter: list[Path] = field(default_factory=list)
    """A segment that was begun and holds nothing."""
    damage: Damage | None = None
    aside: int = 0
    """Bytes in files that were set aside earlier."""
    locked: bool = False
    """A live process has it open. What is read of it is then only an estimate."""

    @property
    def entries(self) -> int:
        return sum(segment.left for segment in self.segments)

    @property
    def bytes(self) -> int:
        return sum(segment.size for segment in self.segments)

    def __str__(self) -> str:
        owner = f"epoch {self.owner.epoch} of {self.owner.holder}" if self.owner else "owner unknown"
        text = f"{self.folder}: {self.entries} entries in {self.bytes} bytes, {owner}"
        if self.locked:
            text += ", locked by a live process"
        if self.torn:
            text += f"; {self.torn} bytes at the end are the rest of a write that was cut off"
        if self.damage:
            text += f"; {self.damage.path.name} is unreadable from byte {self.damage.offset} on ({self.damage.bytes} bytes)"
            if self.damage.behind:
                text += f", and {len(self.damage.behind)} segments ({self.damage.bytes_behind} bytes) behind it cannot be delivered"
        if self.aside:
            text += f"; {self.aside} bytes were set aside"
        return text


def folder_of(spill_dir: Path, owner: Owner) -> Path:
    name = "-".join(filter(None, (str(owner.epoch), _sanitised(owner.holder), _sanitised(owner.lane))))
    return spill_dir / owner.feed / name


def _sanitised(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:100]


def find(spill_dir: Path, feed: str) -> list[SpillFolder]:
    """Every folder of a feed that holds something, ordered by epoch. What holds nothing and is nobody's is removed. OSError."""
    found = []
    for folder in sorted((spill_dir / feed).glob("*/")):
        with suppress(FileNotFoundError):  # another process finished with it just now
            held = _look(folder)
            if held.segments or held.damage or held.aside:
                found.append(held)
            elif not held.locked:
                _remove_if_empty(folder)
    return sorted(found, key=lambda held: (held.owner.epoch if held.owner else -1, held.folder))


def _look(folder: Path) -> SpillFolder:
    # the lock is not kept while all is read: the owner may want it
    locked = is_locked(folder)
    while True:
        with suppress(FileNotFoundError):  # its owner removes segments as they are delivered
            held = survey_folder(folder)
            held.locked = locked
            return held


def _remove_if_empty(folder: Path) -> None:
    lock = lock_folder(folder, make=False)
    if lock is None:
        return
    try:
        held = survey_folder(folder)
        if not (held.segments or held.damage):
            clear(held.litter)
            remove_folder(folder)
    finally:
        os.close(lock)


def survey_folder(folder: Path) -> SpillFolder:
    """Read all of it, checksums included."""
    held = SpillFolder(folder, aside=sum(path.stat().st_size for path in folder.glob("*.corrupt")))
    paths = sorted(folder.glob("*.segment"))
    firsts = [header.first if (header := _header(path)) else None for path in paths]
    for at, path in enumerate(paths):
        data = path.read_bytes()
        is_last = at == len(paths) - 1
        found = survey(data, None if is_last else firsts[at + 1])
        owner = found.header.owner if found.header else None
        held.owner = held.owner or owner
        is_ours = owner is not None and owner == held.owner
        damaged = found.damaged or (not is_ours and not (owner is None and is_last))
        if is_ours and found.entries:
            held.segments.append(Segment(path, found.entries, found.start, found.end, len(data)))
        elif not damaged:
            held.litter.append(path)
        if damaged:
            behind = tuple(paths[at + 1 :])
            held.damage = Damage(
                path, found.end, len(data) - found.end, behind, sum(one.stat().st_size for one in behind)
            )
            break
        if is_last:
            held.torn = len(data) - found.end
    return held


def _header(path: Path) -> Header | None:
    with path.open("rb") as file:
        try:
            return read_header(file.read(_LONGEST_HEADER))[0]
        except SpillError:
            return None
