"""Entries that Redis has not taken and memory has no room for, on the disk: first in, first out, each durable once it is in.

Blocking file work, by one caller at a time (several spills may work at once). The segments of a folder are one row of entries;
release is not written down: after a restart all that still lies there is offered again, and what Redis has is known by its ID.
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
from services.gateway.spill.spill_folder import Damage, Segment, SpillFolder, folder_of, survey_folder
from tickbus.durable import fsync_dir
from tickbus.writer.entry import Entry, StreamWriter

SEGMENT_BYTES = 32 << 20


class Budget:
    """Bytes that all spills of a process may take on the disk together."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.used = 0
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """False if it would go past the bound; then nothing is taken."""
        with self._lock:
            if self.used + size > self.bound:
                return False
            self.used += size
            return True

    def charge(self, size: int) -> None:
        """What is on the disk already, past the bound too."""
        with self._lock:
            self.used += size

    def give(self, size: int) -> None:
        with self._lock:
            self.used -= size


class Spill:
    """A row of entries on the disk. `resolve` gives the stream of a name when entries are read back."""

    def __init__(
        self,
        spill_dir: Path,
        owner: Owner,
        budget: Budget,
        resolve: Callable[[str], StreamWriter],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Touches no disk; the folder is there from the first append until it is empty."""
        self.owner = owner
        self.folder = folder_of(spill_dir, owner)
        self.bytes = 0
        """On the disk."""
        self.appended = 0
        """Entries ever appended."""
        self.trouble = ""
        """Why the last append was refused; empty if it was not."""
        self.damage: Damage | None = None
        """Of a reopened one: what is set aside once all before it is released."""
        self._budget = budget
        self._resolve = resolve
        self._segment_bytes = segment_bytes
        self._segments: deque[Segment] = deque()
        self._held = 0
        self._ahead: list[Entry] = []
        """The oldest entries, read and not released."""
        self._reading = 0
        """Which segment the next record is read from."""
        self._writer: int | None = None
        self._number = 0
        self._lock: int | None = None
        self._drain_only = False

    @classmethod
    def reopen(cls, held: SpillFolder, budget: Budget, resolve: Callable[[str], StreamWriter]) -> "Spill":
        """Somebody else's spill, to be drained. SpillError if a live process has it or it tells no owner; OSError."""
        try:
            lock = lock_folder(held.folder, make=False)
        except FileNotFoundError:
            raise SpillError(f"{held.folder} is gone") from None
        if lock is None:
            raise SpillError(f"{held.folder} belongs to a live process")
        try:
            found = survey_folder(held.folder)  # again, now that nobody else can write
            if found.owner is None:
                raise SpillError(f"{held.folder}: no segment tells whose it is")
        except BaseException:
            os.close(lock)
            raise
        spill = cls(held.folder.parents[1], found.owner, budget, resolve)
        spill.folder, spill._lock, spill._drain_only, spill.damage = held.folder, lock, True, found.damage
        spill._segments.extend(found.segments)
        spill._held, spill.bytes = found.entries, found.bytes
        budget.charge(found.bytes)
        clear(found.litter)
        if not found.segments:
            spill._vacate()
        return spill

    def __len__(self) -> int:
        """Entries held."""
        return self._held

    def append(self, entries: Sequence[Entry]) -> bool:
        """All of them, durable on return, or none: False if the budget or the disk is full, with the reason in `trouble`. Ask again later."""
        if self._drain_only:
            raise ValueError("a reopened spill is drained: new entries belong to another epoch")
        if not entries:
            return True
        records = encode_entries(entries)
        fresh = self._writer is None or self._segments[-1].end >= self._segment_bytes
        header = encode_header(Header(self.owner, self.appended)) if fresh else b""
        size = len(header) + len(records)
        if not self._budget.take(size):
            self.trouble = f"--spill-bytes {self._budget.bound} are used up"
            return False
        try:
            if fresh:
                self._begin(header, records)
            else:
                self._extend(records)
        except OSError as error:
            self._budget.give(size)
            self.trouble = f"{self.folder}: {error.strerror or error}"
            return False
        self._segments[-1].left += len(entries)
        self._held += len(entries)
        self.appended += len(entries)
        self.bytes += size
        self.trouble = ""
        return True

    def _begin(self, header: bytes, records: bytes) -> None:
        """The next segment, with its first records."""
        if self._lock is None:
            self._occupy()
        self._number += 1
        path = self.folder / f"{self._number:08}.segment"
        try:
            writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
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
                self._vacate()
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
                # what is behind its end may now be anything: the header of the next segment says that it does not count
                self._finish_writing()
            raise
        segment.end = segment.size = segment.end + len(records)

    def peek(self, most: int) -> list[Entry]:
        """Up to `most` (services.gateway.batching: or one more) of the oldest entries that are not released; none only if none is held. SpillError if the disk no longer gives
        what it took (end, and let the next start set it aside); OSError."""
        try:
            while len(self._ahead) <= most and self._load():
                pass
        except (SpillError, OSError):
            if not self._ahead:  # what is sound in front of it goes out first
                raise
        return self._ahead[: keep_pairs(self._ahead, most)]

    def _load(self) -> bool:
        """One more record into memory; -> whether there was one."""
        while self._reading < len(self._segments):
            segment = self._segments[self._reading]
            if segment.read < segment.end:
                self._ahead += self._read(segment)
                return True
            if self._reading == len(self._segments) - 1:
                return False  # more may be written to it
            self._reading += 1
        return False

    def _read(self, segment: Segment) -> list[Entry]:
        with segment.path.open("rb", buffering=0) as file:
            fd = file.fileno()
            try:
                size = HEAD_BYTES + body_length(os.pread(fd, HEAD_BYTES, segment.read))
                entries = decode_entries(os.pread(fd, size, segment.read), self._resolve)
            except SpillError as error:
                raise SpillError(f"{segment.path}, byte {segment.read}: {error}") from None
        segment.read += size
        return entries

    def release(self, count: int) -> None:
        """The oldest `count` entries, of those that the last peek gave, are stored in Redis."""
        if not 0 <= count <= len(self._ahead):
            raise ValueError(f"{count} entries released, {len(self._ahead)} were read")
        del self._ahead[:count]
        self._held -= count
        while count:
            front = self._segments[0]
            part = min(count, front.left)
            front.left -= part
            count -= part
            if not front.left:
                self._drop_front()
        if not self._segments:
            self._vacate()

    def _drop_front(self) -> None:
        segment = self._segments.popleft()
        if not self._segments:
            self._finish_writing()
        self._reading = max(0, self._reading - 1)
        self.bytes -= segment.size
        self._budget.give(segment.size)
        if self.damage is None or segment.path != self.damage.path:
            clear([segment.path])

    def _occupy(self) -> None:
        self._lock = lock_folder(self.folder)
        if self._lock is None:
            raise FileExistsError(17, "a live process has this spill open", str(self.folder))
        if any(self.folder.glob("*.segment*")):
            self._let_go()
            raise FileExistsError(17, "an earlier spill of this owner lies here; reopen it", str(self.folder))

    def _vacate(self) -> None:
        """Nothing is left to deliver: leave no file but those that are set aside."""
        try:
            if self.damage is not None:
                # the damaged one last: while it has its name, what is behind it is not taken for sound
                for path in reversed((self.damage.path, *self.damage.behind)):
                    path.rename(path.with_name(f"{path.name}.corrupt"))
                fsync_dir(self.folder)
                self.damage = None
            if self._lock is not None:
                remove_folder(self.folder)
        except OSError as error:
            log.error("%s: cannot be cleared away (%s); nothing in it is needed any more", self.folder, error)
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _finish_writing(self) -> None:
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    def close(self) -> None:
        """What is held stays on the disk."""
        self._finish_writing()
        self._budget.give(self.bytes)
        self._segments.clear()
        self._ahead.clear()
        self.bytes = self._held = self._reading = 0
        self._let_go()


def _write(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written
