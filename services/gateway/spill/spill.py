"""Entries on disk that Redis has not accepted and memory has no room for: first in, first out, durable.

File work is blocking, by one caller at a time (several spills may be used at once). The segments of a
folder form one sequence of entries; a release is not recorded: after a restart everything still on disk is
offered again, and what Redis already has is recognized by its ID.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from services.gateway.batching import keep_pairs
from services.gateway.spill.dir_lock import clear, lock_folder, log, remove_folder
from services.gateway.spill.segment import (
    HEAD_BYTES,
    Header,
    Owner,
    SpillError,
    body_length,
    decode_entries,
    encode_entries,
    encode_header,
)
from services.gateway.spill.spill_folder import Damage, Segment, SpillFolder, spill_folder_path, survey_folder
from tickbus.durable import fsync_dir
from tickbus.writer.entry import Entry, StreamWriter

SEGMENT_BYTES = 32 << 20


class Budget:
    """Bytes that all spills of a process may use on disk together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._lock = Lock()

    def reserve(self, size: int) -> bool:
        """Reserve `size` bytes. Return False, and reserve nothing, if that would exceed the limit."""
        with self._lock:
            if self.used + size > self.max_bytes:
                return False
            self.used += size
            return True

    def charge(self, size: int) -> None:
        """Count what is on disk already, even past the limit."""
        with self._lock:
            self.used += size

    def free(self, size: int) -> None:
        with self._lock:
            self.used -= size


class Spill:
    """A queue of entries on disk. `resolve` returns the stream of a name when entries are read back."""

    def __init__(
        self,
        spill_dir: Path,
        owner: Owner,
        budget: Budget,
        resolve: Callable[[str], StreamWriter],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Touches no disk; the folder exists from the first append until the spill is empty."""
        self.owner = owner
        self.folder = spill_folder_path(spill_dir, owner)
        self.bytes = 0
        """On disk."""
        self.appended = 0
        """Entries ever appended."""
        self.last_error = ""
        """Why the last append was refused; empty if it was not."""
        self.damage: Damage | None = None
        """Damage of a reopened spill, set aside once everything before it is released."""
        self._budget = budget
        self._resolve = resolve
        self._segment_bytes = segment_bytes
        self._segments: deque[Segment] = deque()
        self._count = 0
        self._loaded: list[Entry] = []
        """The oldest entries, read and not released."""
        self._reading = 0
        """Index of the segment from which the next record is read."""
        self._writer: int | None = None
        self._number = 0
        self._lock: int | None = None
        self._drain_only = False

    @classmethod
    def reopen(cls, folder: SpillFolder, budget: Budget, resolve: Callable[[str], StreamWriter]) -> "Spill":
        """Open another owner's spill to drain it. SpillError if locked or of unknown owner; OSError."""
        try:
            lock = lock_folder(folder.path, make=False)
        except FileNotFoundError:
            raise SpillError(f"{folder.path} no longer exists") from None
        if lock is None:
            raise SpillError(f"{folder.path} is locked by a live process")
        try:
            found = survey_folder(folder.path)  # again, now that nobody else can write
            if found.owner is None:
                raise SpillError(f"{folder.path}: no readable segment names its owner")
        except BaseException:  # whatever ends this, a cancellation too, must not keep the folder locked
            os.close(lock)
            raise
        spill = cls(folder.path.parents[1], found.owner, budget, resolve)
        spill.folder, spill._lock, spill._drain_only, spill.damage = folder.path, lock, True, found.damage
        spill._segments.extend(found.segments)
        spill._count, spill.bytes = found.entries, found.bytes
        budget.charge(found.bytes)
        clear(found.empty)
        if not found.segments:
            spill._release_folder()
        return spill

    def __len__(self) -> int:
        """Number of entries not released."""
        return self._count

    def append(self, entries: Sequence[Entry]) -> bool:
        """Append all entries, durable on return, or none.

        Return False if the budget or the disk is full, with the reason in `last_error`; retry later.
        """
        if self._drain_only:
            raise ValueError("a reopened spill is only drained: new entries belong to another epoch")
        if not entries:
            return True
        records = encode_entries(entries)
        fresh = self._writer is None or self._segments[-1].end >= self._segment_bytes
        header = encode_header(Header(self.owner, self.appended)) if fresh else b""
        size = len(header) + len(records)
        if not self._budget.reserve(size):
            self.last_error = f"--spill-bytes {self._budget.max_bytes} used up"
            return False
        try:
            if fresh:
                self._begin(header, records)
            else:
                self._extend(records)
        except OSError as error:
            self._budget.free(size)
            self.last_error = f"{self.folder}: {error.strerror or error}"
            return False
        self._segments[-1].remaining += len(entries)
        self._count += len(entries)
        self.appended += len(entries)
        self.bytes += size
        self.last_error = ""
        return True

    def _begin(self, header: bytes, records: bytes) -> None:
        """Begin the next segment with its first records."""
        if self._lock is None:
            self._acquire_folder()
        self._number += 1
        path = self.folder / f"{self._number:08}.segment"
        try:
            writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _write(writer, header + records, 0)
                os.fsync(writer)
                fsync_dir(self.folder)
            except OSError:
                os.close(writer)
                with suppress(OSError):
                    path.unlink()
                raise
        except OSError:
            if not self._segments:
                self._release_folder()
            raise
        self._finish_writing()
        self._writer = writer
        size = len(header) + len(records)
        self._segments.append(Segment(path, 0, len(header), size, size))

    def _extend(self, records: bytes) -> None:
        segment, writer = self._segments[-1], self._writer
        assert writer is not None
        try:
            _write(writer, records, segment.end)
            os.fsync(writer)
        except OSError:
            try:
                os.ftruncate(writer, segment.end)
            except OSError:
                # what is behind its end may now be anything: the next segment's header excludes it
                self._finish_writing()
            raise
        segment.end = segment.size = segment.end + len(records)

    def peek(self, limit: int) -> list[Entry]:
        """Return up to `limit` (services.gateway.batching: or one more) of the oldest entries not released.

        Empty only if there are none. SpillError if the disk no longer returns what it stored (exit, and let
        the next start set it aside); OSError.
        """
        try:
            while len(self._loaded) <= limit and self._load():
                pass
        except (SpillError, OSError):
            if not self._loaded:  # the intact entries before it go out first
                raise
        return self._loaded[: keep_pairs(self._loaded, limit)]

    def _load(self) -> bool:
        """Load one more record into memory. Return whether there was one."""
        while self._reading < len(self._segments):
            segment = self._segments[self._reading]
            if segment.position < segment.end:
                self._loaded += self._read(segment)
                return True
            if self._reading == len(self._segments) - 1:
                return False  # more may be written to it
            self._reading += 1
        return False

    def _read(self, segment: Segment) -> list[Entry]:
        with segment.path.open("rb", buffering=0) as file:
            fd = file.fileno()
            try:
                size = HEAD_BYTES + body_length(os.pread(fd, HEAD_BYTES, segment.position))
                entries = decode_entries(os.pread(fd, size, segment.position), self._resolve)
            except SpillError as error:
                raise SpillError(f"{segment.path}, byte {segment.position}: {error}") from None
        segment.position += size
        return entries

    def release(self, count: int) -> None:
        """Release the oldest `count` entries of the last peek: they are stored in Redis."""
        if not 0 <= count <= len(self._loaded):
            raise ValueError(f"cannot release {count} entries: only {len(self._loaded)} were read")
        del self._loaded[:count]
        self._count -= count
        while count:
            front = self._segments[0]
            part = min(count, front.remaining)
            front.remaining -= part
            count -= part
            if not front.remaining:
                self._drop_front()
        if not self._segments:
            self._release_folder()

    def _drop_front(self) -> None:
        segment = self._segments.popleft()
        if not self._segments:
            self._finish_writing()
        self._reading = max(0, self._reading - 1)
        self.bytes -= segment.size
        self._budget.free(segment.size)
        if self.damage is None or segment.path != self.damage.path:
            clear([segment.path])

    def _acquire_folder(self) -> None:
        self._lock = lock_folder(self.folder)
        if self._lock is None:
            raise FileExistsError(17, "locked by a live process", str(self.folder))
        if any(self.folder.glob("*.segment*")):
            self._unlock()
            raise FileExistsError(17, "an earlier spill of this owner is here; reopen it", str(self.folder))

    def _release_folder(self) -> None:
        """Clean up when nothing is left to deliver: keep no file but those that are set aside."""
        try:
            if self.damage is not None:
                # the damaged one last: while it keeps its name, what is behind it is not taken for intact
                for path in reversed((self.damage.path, *self.damage.behind)):
                    path.rename(path.with_name(f"{path.name}.corrupt"))
                fsync_dir(self.folder)
                self.damage = None
            if self._lock is not None:
                remove_folder(self.folder)
        except OSError as error:
            log.error("cannot remove %s: %s; it is no longer needed, delete it", self.folder, error)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _finish_writing(self) -> None:
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    def close(self) -> None:
        """Close the files; what is not released stays on disk."""
        self._finish_writing()
        self._budget.free(self.bytes)
        self._segments.clear()
        self._loaded.clear()
        self.bytes = self._count = self._reading = 0
        self._unlock()


def _write(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written
