"""What was read and is in no file yet, on the disk: `_spool/<NN>/<writer's first manifest>-<n>.spool`, append-only.

A commit begins a new file and removes those before it when its manifest is durable. So what lies there belongs to the window
since the last commit, or to a writer that died; its successor reads it (`inherit`), and removes it when a commit of his own holds
it. Nobody writes to a file of another writer. A paused one that wakes may append to its own, or begin another: these rows
were read from the bus like any others, and whoever takes over next takes those that are in no file yet.

Two threads work here, and the order makes it right: rows are in the buffer before they are noted here, and a commit begins the
new file before it looks at the buffer. So all that stands in older files is in that commit.
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


class _Open:
    __slots__ = ("fd", "path", "size", "window")

    def __init__(self, path: Path, window: int) -> None:
        self.path = path
        self.window = window
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.size = 0
        """Of what was written whole. What a failed write left behind that is written over."""

    def append(self, record: bytearray) -> None:
        rest = memoryview(record if self.size else MAGIC + record)
        size = self.size
        while rest:
            written = os.pwrite(self.fd, rest, size)
            size += written
            rest = rest[written:]
        self.size = size


class Spool:
    """The files of one writer. `note` and `write` are the reading thread's, `cut` and `covered` the committing one's."""

    def __init__(self, folder: Path, number: int) -> None:
        """`number`: of the writer's first manifest."""
        self._folder = folder
        self._number = number
        self._window = 1
        """Which commit will hold what is noted now: the number of the file."""
        self._covered = 1
        """Windows before this one are in durable files."""
        self._waiting: list[tuple[int, Run]] = []
        self._open: list[_Open] = []
        """The last one is written to."""
        self._lock = threading.Lock()
        """Over that list, and while one of its files is written to: a number of a closed file may be another file's by then."""
        self._unsynced = False

    def note(self, run: Run) -> None:
        """To be written with the next `write`. Its rows are in the buffer already."""
        self._waiting.append((self._window, run))

    def write(self) -> None:
        """Hand all that was noted to the system: it outlives this process. OSError: it waits for the next call, or for a commit."""
        covered = self._covered
        self._waiting = [noted for noted in self._waiting if noted[0] >= covered]
        if self._waiting:
            with self._lock:
                self._current().append(pack([run for _, run in self._waiting]))
            self._unsynced = True
            self._waiting.clear()

    def cut(self) -> int:
        """Begin a new file with the next `write` -> its number, for `covered`. Before the commit looks at the buffer."""
        self._window += 1
        return self._window

    def covered(self, window: int) -> None:
        """A durable manifest holds all before this window: its files go."""
        self._covered = window
        for file in self._taken(window):
            files.remove([file.path])
            os.close(file.fd)

    def sync(self) -> None:
        """What was written outlives a power cut too. Any thread; nothing to do if nothing was written since.

        OSError: what was written since the last sync may be gone; the next commit writes it anew, from memory.
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
        """The files stay, for who takes the shard over next."""
        for file in self._taken(self._window + 1):
            os.close(file.fd)

    def _current(self) -> _Open:
        window = self._window
        if not self._open or self._open[-1].window != window:
            self._open.append(_Open(self._folder / f"{self._number:08d}-{window:08d}.spool", window))
        return self._open[-1]

    def _taken(self, window: int) -> list[_Open]:
        """Those before this window; nobody else uses them any more."""
        with self._lock:
            taken = [file for file in self._open if file.window < window]
            self._open = [file for file in self._open if file.window >= window]
        return taken


@dataclass(frozen=True)
class Inherited:
    """A file of an earlier writer, whose rows are in the buffer."""

    path: Path
    size: int
    """As it was read."""
    whole: bool
    """Whether all of it could be used."""


def inherit(folder: Path, number: int, buffer: Buffer) -> list[Inherited]:
    """Take what the writers before `number` had read and not committed into the buffer. What cannot be used is told."""
    runs: list[tuple[Path, Run]] = []
    sizes: dict[Path, int] = {}
    damaged: set[Path] = set()
    for path in _earlier(folder, number):
        # another one that takes over at this moment, or he who was before us, may have just committed and removed it
        with suppress(FileNotFoundError), path.open("rb") as file:
            for found in unpack(file):
                if isinstance(found, Damage):
                    damaged.add(path)
                    log.error(
                        "%s: %s at byte %d; what was there is read again if Redis still has it",
                        path,
                        found.why,
                        found.start,
                    )
                else:
                    runs.append((path, found))
            sizes[path] = file.tell()
    # a paused writer that woke may have read on beyond rows that only its successor had: in stream order both are taken
    for path, (before, rows) in sorted(runs, key=lambda run: run[1].rows.entries.id(0)):
        if before <= buffer.last(rows.stream):
            buffer.add(rows)
        else:
            # were it taken, the position would jump over what is missing
            damaged.add(path)
            log.error(
                "%s: rows of %s before %s are missing; what follows is read again if Redis still has it",
                path,
                rows.stream.name,
                rows.entries.id(0),
            )
    return [Inherited(path, size, path not in damaged) for path, size in sizes.items()]


def discard(inherited: list[Inherited], aside: Path) -> None:
    """A commit holds these rows. A file that grew since belongs to one who was paused, and stays for the next takeover."""
    for path, size, whole in ((file.path, file.size, file.whole) for file in inherited):
        with suppress(OSError):
            if path.stat().st_size != size:
                continue
            if whole:
                path.unlink()
            else:
                files.set_aside(path, aside)


def _earlier(folder: Path, number: int) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and int(match[1]) < number
    )
