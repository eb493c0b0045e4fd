"""The path of one shard's rows to disk, exactly once: buffer and spool, write, commit by a manifest, rename.

A commit: (1) write the files under temporary names and fsync them, (2) create manifest n + 1 exclusively:
this is the commit, (3) fsync it, rename the files to their final names, fsync the folders. If killed before
2, nothing happened: the next start quarantines the temporary files, and the rows are read again from the
position of manifest n. If killed after 2, the next start does step 3.

`recover` takes the shard over with an empty manifest of its own. From then on a paused writer that resumes
finds its number taken and commits nothing more. Each writer's temporary files are in a folder named after its
first manifest, so those with a lower number can be moved without a race. Rows that earlier writers read and
did not commit come from their spools.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from services.archive.schema import KINDS
from services.recorder import files, manifest, orphans
from services.recorder.buffer import Buffer, Rows
from services.recorder.manifest import File, Manifest
from services.recorder.parquet_writer import QuarantinedEntry
from services.recorder.partition import MAX_DAYS, QUARANTINE, PendingFile, pending_files
from services.recorder.spool import InheritedFile, Spool, discard, inherit
from tickbus.durable import fsync_dir, make_dir
from tickbus.errors import Fenced
from tickbus.protocol.names import Stream, StreamId

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommitSummary:
    """What one commit added to the files."""

    number: int
    rows: dict[str, int]
    """By kind: trade, quote, bar, signal, gap; without the quarantined ones."""
    files: dict[str, int]
    bytes: int
    """Size of these files."""
    quarantined: dict[str, int]
    """Messages that do not fit their columns, by reason: decimal, integer, text, unreadable."""
    positions: dict[str, StreamId]
    """New position of each stream that advanced, by name."""
    is_cut: bool = False
    """Whether rows were left: commit again."""


class ShardStore:
    """Blocking. One thread may `add_many` and `spool` while another runs `commit`; commits never overlap."""

    def __init__(
        self,
        data_dir: Path,
        shard_tag: str,
        *,
        epoch: int = 0,
        step: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`epoch`: the recorder's own for this shard. `step` is called after each step of a commit (tests
        end or pause the process there).
        """
        self._data_dir = data_dir
        self._shard = shard_tag
        self._epoch = epoch
        self._step = step
        self._writer = uuid4().hex[:8]
        self._manifests = data_dir / "_manifests" / shard_tag
        self._quarantine_dir = data_dir / "_aside"
        self._temporary = data_dir / "_tmp" / shard_tag / "0"
        """Named after this store's first manifest, once there is one."""
        self._number = 0
        self._attempt = 0
        self._positions: dict[str, StreamId] = {}
        self._buffer = Buffer(self._positions)
        self._spool_dir = data_dir / "_spool" / shard_tag
        self._spool = Spool(self._spool_dir, 0)
        self._inherited: list[InheritedFile] = []
        self._unfinished: tuple[Manifest, CommitSummary, int | None] | None = None
        """A commit without all final file names yet, and the first spool window that it lacks; None if it
        took only some of the rows."""
        self._cut_reported = False
        self._fenced = False
        self.missing_files = 0
        """Files that a manifest names and that were gone when they were to get their final names."""

    @property
    def rows(self) -> int:
        """Rows to commit, including those of files not renamed yet. 0: `commit` has nothing to do."""
        return self._buffer.rows + (
            sum(file.rows for file in self._unfinished[0].files) if self._unfinished else 0
        )

    @property
    def bytes(self) -> int:
        """Approximate memory of the buffered rows."""
        return self._buffer.size

    @property
    def duplicates(self) -> int:
        """Rows that `add_many` dropped because they had been added before, ever."""
        return self._buffer.duplicates

    @property
    def committed(self) -> dict[str, StreamId]:
        """Position by stream name, as in the last manifest."""
        return dict(self._positions)

    def recover(self) -> dict[str, StreamId]:
        """Finish the last commit, take the shard over, quarantine files that no manifest names, buffer what
        earlier writers had spooled. Call once.

        Return the ID to resume reading from, by stream name. It is beyond `committed` where rows wait here
        for the first commit. Any other store on this shard is fenced from then on. OSError, or ConfigError
        if the operator must mend the manifests first; open another store then. A file that the last manifest
        names and that somebody removed is reported, counted in `missing_files` and left out: its rows are
        before the position, and whoever restores it needs no recorder for that.
        """
        if self._number:
            raise RuntimeError("recover() was already called; after Fenced, open another store")
        for folder in (self._manifests, self._quarantine_dir, self._temporary.parent, self._spool_dir):
            make_dir(folder)
        last = self._take_over()
        self._positions.update({name: StreamId.parse(id) for name, id in last.positions.items()})
        if moved := orphans.quarantine(self._data_dir, self._shard, last.number):
            log.warning(
                "shard %s: quarantined %d files of an earlier writer that no manifest names, e.g. %s",
                self._shard,
                len(moved),
                moved[0],
            )
        self._inherited = inherit(self._spool_dir, last.number, self._buffer)
        if rows := self._buffer.rows:
            log.info(
                "shard %s: recovered %d uncommitted rows of an earlier writer; the next commit includes them",
                self._shard,
                rows,
            )
        else:
            self._discard_inherited()
        self._spool = Spool(self._spool_dir, last.number)
        self._number = last.number
        return self._positions | self._buffer.last_ids()

    def newest(self, stream: Stream) -> StreamId:
        """Return the ID of its newest row, in the files or buffered."""
        return self._buffer.last_id(stream)

    def add_many(self, rows: Rows) -> None:
        """Buffer the rows of a read; `spool` makes them outlive this process.

        Rows at or below the stream's position, or added before, are dropped: a repeated read is harmless.
        ValueError for a stream of a kind that is not recorded.
        """
        if new := self._buffer.add(rows):
            self._spool.append(new)

    def spool(self) -> None:
        """Make added rows count as read: they reach the files even if this process is killed and Redis lost.

        OSError (no space, no access): nothing is lost. Read no more until this or a commit has succeeded.
        """
        if not self._number:
            raise RuntimeError("call recover() first")
        self._spool.write()

    def sync(self) -> None:
        """Make spooled rows outlive a power cut too. From any thread; a no-op if none. OSError: commit."""
        self._spool.sync()

    def close(self) -> None:
        """Close, as the last call, while no other runs. Uncommitted rows stay spooled for the next owner."""
        if not (self.rows or self._unfinished or self._fenced):
            # a commit may have taken rows of a read before they were appended to the spool
            self._spool.release(self._spool.rotate())
        self._spool.close()

    def commit(self) -> CommitSummary | None:
        """Make the buffered rows durable, of at most MAX_DAYS days. Return a summary; None if nothing was
        buffered.

        OSError (no space, no access): nothing is lost and nothing is half-visible; call again once that is
        fixed, until `rows` is 0. Fenced: another store took the shard over and will read the buffered rows
        again; this store is finished.
        """
        if not self._number:
            raise RuntimeError("call recover() first")
        if self._fenced:
            raise self._fenced_error(self._number + 1)
        if self._unfinished is None:
            window = self._spool.rotate()
            pending = self._buffer.pending()
            if not pending:
                return None
            self._commit(pending, window)
        assert self._unfinished is not None
        committed, summary, released = self._unfinished
        self._rename_files(committed)
        files.remove([self._temporary_manifest(committed.number)])
        self._unfinished = None
        if released is not None:
            self._spool.release(released)
            self._discard_inherited()
        self._step("forgotten")
        return summary

    def _discard_inherited(self) -> None:
        """Their rows were buffered before the first of our own, and so are in our first commit, whichever."""
        discard(self._inherited, self._quarantine_dir)
        self._inherited = []

    def _take_over(self) -> Manifest:
        """Return our own, empty manifest, the last of the shard. All commits before it are complete."""
        while True:
            last = manifest.last(self._manifests, self._quarantine_dir) or Manifest(
                0, self._shard, 0, "", [], {}
            )
            self._rename_files(last)
            own = Manifest(last.number + 1, self._shard, self._epoch, self._writer, [], last.positions)
            self._temporary = self._temporary.with_name(f"{own.number:08d}")
            try:
                make_dir(self._temporary)
                created = manifest.create(self._manifests, own, self._temporary_manifest(own.number))
            except OSError:
                if not self._number_taken(own.number):
                    raise
                created = False
            files.remove([self._temporary_manifest(own.number)])
            if created:
                fsync_dir(self._manifests)
                # left by starts that were killed right here
                files.remove(self._temporary.glob("*.json.tmp"))
                return own

    def _commit(self, pending: list[Rows], window: int) -> None:
        """Do steps 1 and 2. After an OSError everything is as before."""
        number = self._number + 1
        part = pending_files(pending, self._shard, number)
        new_files, quarantined, pending = part.files, part.quarantined, part.taken
        if part.is_cut and not self._cut_reported:
            self._cut_reported = True
            self._report_cut(new_files)
        self._attempt += 1
        advanced = {rows.stream.name: rows.ids.id(-1) for rows in pending}
        positions = {name: str(id) for name, id in (self._positions | advanced).items()}
        described = [self._describe(file) for file in new_files]
        own = Manifest(number, self._shard, self._epoch, self._writer, described, positions)
        written = [self._data_dir / file.temporary for file in described]
        try:
            for new, path in zip(new_files, written, strict=True):
                make_dir((self._data_dir / new.name).parent)
                files.write(path, new.data)
                self._step("written")
            fsync_dir(self._temporary)
            self._step("fsynced")
            created = manifest.create(self._manifests, own, self._temporary_manifest(number))
        except OSError:
            if not self._number_taken(number):
                files.remove(written)
                raise
            created = False
        if not created:
            self._fenced = True
            for path in (*written, self._temporary_manifest(number)):
                files.quarantine(path, self._quarantine_dir)
            raise self._fenced_error(number)
        # committed: from here on these rows belong to the files, whatever happens
        summary = _summary(number, new_files, quarantined, advanced, part.is_cut)
        self._unfinished = own, summary, None if part.is_cut else window
        self._number = number
        self._positions.update(advanced)
        self._buffer.drop(pending)
        self._step("committed")

    def _report_cut(self, new_files: list[PendingFile]) -> None:
        days = sorted(
            file.name.split("/")[1].removeprefix("date=") for file in new_files if file.kind in KINDS
        )
        log.warning(
            "shard %s: rows of more than %d days wait at once, e.g. of %s and %s; they are written %d days a "
            "commit; check the times of this feed (ts_event) unless it is a replay",
            self._shard,
            MAX_DAYS,
            days[0],
            days[-1],
            MAX_DAYS,
        )

    def _describe(self, file: PendingFile) -> File:
        temporary = (self._temporary / f"{file.name.replace('/', '.')}-{self._attempt}.tmp").relative_to(
            self._data_dir
        )
        streams = {name: (str(first), str(last)) for name, (first, last) in file.streams.items()}
        return File(
            file.kind,
            file.name,
            str(temporary),
            file.rows,
            len(file.data),
            zlib.crc32(file.data),
            streams,
        )

    def _rename_files(self, committed: Manifest) -> None:
        """Do step 3; harmless if it was already done, or another store is doing it."""
        fsync_dir(self._manifests)
        self._step("durable")
        missing: list[File] = []
        for file in committed.files:
            if not files.ensure_renamed(self._data_dir / file.temporary, self._data_dir / file.name):
                missing.append(file)
            self._step("named")
        for folder in sorted({(self._data_dir / file.name).parent for file in committed.files}):
            with suppress(FileNotFoundError):
                fsync_dir(folder)
        if missing:
            self.missing_files += len(missing)
            log.error(
                "shard %s: %d files of its newest commit (%d) are gone, e.g. %s with %d rows; recording goes "
                "on after them; fix: none if they were pruned on purpose, else put them back from a copy",
                self._shard,
                len(missing),
                committed.number,
                self._data_dir / missing[0].name,
                missing[0].rows,
            )
        self._step("done")

    def _number_taken(self, number: int) -> bool:
        """Return whether a successor committed it: it clears our folder, which can explain an OSError."""
        return manifest.path_of(self._manifests, number).exists()

    def _temporary_manifest(self, number: int) -> Path:
        return self._temporary / f"{number:08d}.{self._writer}.json.tmp"

    def _fenced_error(self, number: int) -> Fenced:
        return Fenced(
            f"shard {self._shard} of {self._data_dir}: another recorder wrote commit {number}; "
            "files of this one are quarantined, never merged"
        )


def _summary(
    number: int,
    new_files: list[PendingFile],
    quarantined: list[QuarantinedEntry],
    advanced: dict[str, StreamId],
    is_cut: bool,
) -> CommitSummary:
    if quarantined:
        entry = quarantined[0]
        log.warning(
            "commit %d: quarantined %d messages that do not fit their columns in _aside, e.g. %s %s: %s",
            number,
            len(quarantined),
            entry.stream.name,
            entry.id,
            entry.error,
        )
    tables = [file for file in new_files if file.kind != QUARANTINE]
    rows: Counter[str] = Counter()
    for file in tables:
        rows[file.kind] += file.rows
    by_kind = Counter(file.kind for file in tables)
    size = sum(len(file.data) for file in tables)
    reasons = Counter(entry.error.reason for entry in quarantined)
    return CommitSummary(number, dict(rows), dict(by_kind), size, dict(reasons), advanced, is_cut)
