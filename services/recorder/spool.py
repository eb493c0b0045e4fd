"""Rows read but not yet committed, on disk: `_spool/<NN>/<writer's first manifest>-<n>.spool`, append-only.

A commit starts a new file and removes the older ones once its manifest is durable. So a spool file belongs to
the window since the last commit, or to a writer that died; the successor reads it (`inherit`), and removes it
when a commit of its own contains it. No writer writes to another writer's file. A paused one that resumes may
append to its own, or start another: these rows were read from the bus like any others, and the next writer to
take over takes those that are not in the files yet.

Two threads work here, and correctness depends on the order: rows are in the buffer before they are appended
here, and a commit starts the new file before it reads the buffer. So that commit has all rows of older files.
"""

import logging
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.recorder import files
from services.recorder.buffer import Buffer, Run
from services.recorder.spool_format import MAGIC, Damage, pack, unpack
from tickbus.durable import fsync_dir

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{8,})-(\d{8,})\.spool")


class _OpenFile:
    __slots__ = ("fd", "path", "size", "window")

    def __init__(self, path: Path, window: int) -> None:
        self.path = path
        self.window = window
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.size = 0
        """Bytes of complete records. What a failed write left after them is overwritten."""

    def append(self, record: bytearray) -> None:
        rest = memoryview(record if self.size else MAGIC + record)
        size = self.size
        while rest:
            written = os.pwrite(self.fd, rest, size)
            size += written
            rest = rest[written:]
        self.size = size


class Spool:
    """The files of one writer. The reading thread calls `append` and `write`, the committing thread
    `rotate` and `release`.
    """

    def __init__(self, folder: Path, number: int) -> None:
        """`number`: of the writer's first manifest."""
        self._folder = folder
        self._number = number
        self._window = 1
        """Which commit will contain what is appended now: the number of the file."""
        self._released = 1
        """Windows before this one are in durable files."""
        self._pending: list[tuple[int, Run]] = []
        self._open: list[_OpenFile] = []
        """The last one is written to."""
        self._lock = threading.Lock()
        """Guards that list and writes to its files: a closed descriptor may be another file's by then."""
        self._unsynced = False

    def append(self, run: Run) -> None:
        """Queue rows for the next `write`. They are in the buffer already."""
        self._pending.append((self._window, run))

    def write(self) -> None:
        """Hand all appended rows to the operating system: they outlive this process. OSError: they stay
        pending until the next call, or a commit.
        """
        released = self._released
        self._pending = [pending for pending in self._pending if pending[0] >= released]
        if self._pending:
            with self._lock:
                self._current().append(pack([run for _, run in self._pending]))
            self._unsynced = True
            self._pending.clear()

    def rotate(self) -> int:
        """Start a new file with the next `write`. Call before a commit reads the buffer. Return the number
        of the new file, for `release`.
        """
        self._window += 1
        return self._window

    def release(self, window: int) -> None:
        """Remove the files before this window: a durable manifest contains their rows."""
        self._released = window
        for file in self._detach(window):
            files.remove([file.path])
            os.close(file.fd)

    def sync(self) -> None:
        """Make what was written outlive a power cut too. From any thread; a no-op if nothing new was written.

        OSError: rows written since the last sync may be gone; the next commit writes them again, from memory.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        with self._lock:
            fds = [os.dup(file.fd) for file in self._open]
        try:
            for fd in fds:
                os.fsync(fd)
        finally:
            for fd in fds:
                os.close(fd)
        fsync_dir(self._folder)

    def close(self) -> None:
        """Close the files; they stay for the next owner of the shard."""
        for file in self._detach(self._window + 1):
            os.close(file.fd)

    def _current(self) -> _OpenFile:
        window = self._window
        if not self._open or self._open[-1].window != window:
            self._open.append(_OpenFile(self._folder / f"{self._number:08d}-{window:08d}.spool", window))
        return self._open[-1]

    def _detach(self, window: int) -> list[_OpenFile]:
        """Return the files before this window, no longer used by anyone else."""
        with self._lock:
            detached = [file for file in self._open if file.window < window]
            self._open = [file for file in self._open if file.window >= window]
        return detached


@dataclass(frozen=True)
class InheritedFile:
    """A spool file of an earlier writer, with its rows in the buffer."""

    path: Path
    size: int
    """When it was read."""
    intact: bool
    """Whether all of it could be used."""


def inherit(folder: Path, number: int, buffer: Buffer) -> list[InheritedFile]:
    """Add the uncommitted rows of writers before `number` to the buffer. What cannot be used is logged."""
    runs: list[tuple[Path, Run]] = []
    sizes: dict[Path, int] = {}
    damaged: set[Path] = set()
    for path in _earlier_files(folder, number):
        # a concurrent takeover or the previous owner may have just committed and removed it
        with suppress(FileNotFoundError), path.open("rb") as file:
            for found in unpack(file):
                if isinstance(found, Damage):
                    damaged.add(path)
                    log.error(
                        "%s: %s at byte %d; its rows are read again if Redis still has them",
                        path,
                        found.reason,
                        found.start,
                    )
                else:
                    runs.append((path, found))
            sizes[path] = file.tell()
    # a paused writer that resumed may have read past rows only its successor had: stream order uses both
    for path, (before, rows) in sorted(runs, key=lambda run: run[1].rows.ids.id(0)):
        if before <= buffer.last_id(rows.stream):
            buffer.add(rows)
        else:
            # adding them would move the position past the missing rows
            damaged.add(path)
            log.error(
                "%s: rows of %s before %s are missing; later ones are read again if Redis has them",
                path,
                rows.stream.name,
                rows.ids.id(0),
            )
    return [InheritedFile(path, size, path not in damaged) for path, size in sizes.items()]


def discard(inherited: list[InheritedFile], quarantine_dir: Path) -> None:
    """Remove these files: a commit contains their rows. Damaged ones are quarantined. One that grew since
    it was read belongs to a paused writer, and stays for the next takeover.
    """
    for path, size, intact in ((file.path, file.size, file.intact) for file in inherited):
        with suppress(OSError):
            if path.stat().st_size != size:
                continue
            if intact:
                path.unlink()
            else:
                files.quarantine(path, quarantine_dir)


def _earlier_files(folder: Path, number: int) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and int(match[1]) < number
    )
