"""What one shard's rows go through on their way to the disk: buffered and spooled, written, committed by a manifest, named.
Exactly once.

A commit: (1) write the files under temporary names and fsync them, (2) create manifest n + 1 exclusively: this is the commit,
(3) fsync it, rename the files to their final names, fsync the folders. Killed before 2, nothing happened: the temporary
files are set aside at the next start, and the rows are read again from the position of manifest n. Killed after 2, the next
start does step 3.

`recover` takes the shard over with an empty manifest of its own. From then on a paused writer that wakes finds its number
taken and commits nothing more; and as each writer's temporary files lie in a folder named after its first manifest, those with
a lower number can be moved without a race. What earlier writers had read and not committed comes from their spools.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from services.recorder import files, manifest
from services.recorder import orphans as strays
from services.recorder.buffer import Buffer, Rows
from services.recorder.manifest import File, Manifest
from services.recorder.parquet_writer import Row
from services.recorder.partition import ASIDE, PendingFile, pending_files
from services.recorder.spool import Inherited, Spool, discard, inherit
from tickbus.durable import fsync_dir, make_dir
from tickbus.errors import Fenced, TickbusError
from tickbus.protocol.names import Stream, StreamId

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Committed:
    """What one commit put into the files."""

    number: int
    rows: dict[str, int]
    """By kind: trade, quote, bar, gap; not those set aside."""
    files: dict[str, int]
    bytes: int
    """Of these files."""
    aside: dict[str, int]
    """Messages that no row can hold, by reason: decimal, integer."""
    positions: dict[str, StreamId]
    """Of the streams that moved, by name."""


class ShardStore:
    """Blocking. One thread may `add_many` and `spool` while another one runs `commit`; two commits at once are not allowed."""

    def __init__(
        self,
        data_dir: Path,
        shard_tag: str,
        *,
        epoch: int = 0,
        step: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`epoch`: the recorder's own for this shard. `step` is told of each step of a commit when it is done (tests end or
        pause the process there)."""
        self._data_dir = data_dir
        self._shard = shard_tag
        self._epoch = epoch
        self._step = step
        self._writer = uuid4().hex[:8]
        self._manifests = data_dir / "_manifests" / shard_tag
        self._aside = data_dir / "_aside"
        self._temporary = data_dir / "_tmp" / shard_tag / "0"
        """The folder in there that is named after our first manifest, as soon as there is one."""
        self._number = 0
        self._attempt = 0
        self._positions: dict[str, StreamId] = {}
        self._buffer = Buffer(self._positions)
        self._spool_dir = data_dir / "_spool" / shard_tag
        self._spool = Spool(self._spool_dir, 0)
        self._inherited: list[Inherited] = []
        self._unnamed: tuple[Manifest, Committed, int] | None = None
        """A commit whose files do not all have their names yet, and the first window of the spool that it does not hold."""
        self._fenced = False

    @property
    def rows(self) -> int:
        """Waiting for a commit, those included whose files a commit could not name yet: 0 means that `commit` has nothing to do."""
        return self._buffer.rows + (sum(file.rows for file in self._unnamed[0].files) if self._unnamed else 0)

    @property
    def bytes(self) -> int:
        """Memory that the waiting rows take, about."""
        return self._buffer.size

    @property
    def repeated(self) -> int:
        """Messages that `add` dropped because they had been added before, ever."""
        return self._buffer.repeated

    @property
    def committed(self) -> dict[str, StreamId]:
        """Position by name of stream: what the last manifest says."""
        return dict(self._positions)

    def recover(self) -> dict[str, StreamId]:
        """Once: finish the last commit, take the shard over, set aside what no manifest names, buffer what earlier writers had
        spooled -> by name of stream, the ID to read on from. It is beyond `committed` where rows wait here for the first commit.

        Any other store on this shard is fenced from then on. OSError, or TickbusError where a named file is missing.
        """
        if self._number:
            raise RuntimeError("a store recovers once; after Fenced, open another one")
        for folder in (self._manifests, self._aside, self._temporary.parent, self._spool_dir):
            make_dir(folder)
        last = self._take_over()
        self._positions.update({name: StreamId.parse(id) for name, id in last.positions.items()})
        if moved := strays.set_aside(self._data_dir, self._shard, last.number):
            log.warning(
                "shard %s: no manifest names %d files that an earlier writer left: set aside as %s ...",
                self._shard,
                len(moved),
                moved[0],
            )
        self._inherited = inherit(self._spool_dir, last.number, self._buffer)
        if rows := self._buffer.rows:
            log.info(
                "shard %s: %d rows that an earlier writer had read are committed with the next ones",
                self._shard,
                rows,
            )
        else:
            self._forget_inherited()
        self._spool = Spool(self._spool_dir, last.number)
        self._number = last.number
        return self._positions | self._buffer.lasts()

    def newest(self, stream: Stream) -> StreamId:
        """ID of its newest row, in the files or waiting."""
        return self._buffer.last(stream)

    def add_many(self, rows: Rows) -> None:
        """Buffer what a read brought; `spool` makes it outlive this process.

        Rows at or below the stream's position, or added before, are dropped: a repeated read is harmless. ValueError for a
        stream of a kind that is not recorded.
        """
        if new := self._buffer.add(rows):
            self._spool.note(new)

    def spool(self) -> None:
        """What was added counts as read when this returns: it comes into the files even if this process is killed and Redis lost.

        OSError (no room, no access): nothing is lost. Read no more until this or a commit has succeeded; either makes it good.
        """
        if not self._number:
            raise RuntimeError("recover() comes first")
        self._spool.write()

    def sync(self) -> None:
        """What was spooled outlives a power cut too. From any thread; at once if there is nothing new. OSError: commit."""
        self._spool.sync()

    def close(self) -> None:
        """The last call, while no other runs. What is not committed stays in the spool, for who takes the shard over next."""
        if not (self.rows or self._unnamed or self._fenced):
            self._spool.covered(
                self._spool.cut()
            )  # a read that was cut by a commit may have been noted after it
        self._spool.close()

    def commit(self) -> Committed | None:
        """Make what is buffered durable -> what that was; None if nothing waited.

        OSError (no room, no access): nothing is lost and nothing half-visible; call again when that is mended, until `rows` is 0.
        Fenced: another store took the shard over; what is buffered here is his to read again, and this store is done.
        """
        if not self._number:
            raise RuntimeError("recover() comes first")
        if self._fenced:
            raise self._fence(self._number + 1)
        if self._unnamed is None:
            window = self._spool.cut()
            cuts = self._buffer.cut()
            if not cuts:
                return None
            self._commit(cuts, window)
        assert self._unnamed is not None
        made, committed, window = self._unnamed
        self._name(made)
        files.remove([self._manifest_draft(made.number)])
        self._unnamed = None
        self._spool.covered(window)
        self._forget_inherited()
        self._step("forgotten")
        return committed

    def _forget_inherited(self) -> None:
        """They were in the buffer before the first row of our own, and so in the first commit, whichever it was."""
        discard(self._inherited, self._aside)
        self._inherited = []

    def _take_over(self) -> Manifest:
        """-> our own, empty manifest, the last of the shard. Whatever comes before it is complete."""
        while True:
            last = manifest.last(self._manifests, self._aside) or Manifest(0, self._shard, 0, "", [], {})
            self._name(last)
            own = Manifest(last.number + 1, self._shard, self._epoch, self._writer, [], last.positions)
            self._temporary = self._temporary.with_name(f"{own.number:08d}")
            try:
                make_dir(self._temporary)
                won = manifest.create(self._manifests, own, self._manifest_draft(own.number))
            except OSError:
                if not self._taken(own.number):
                    raise
                won = False
            files.remove([self._manifest_draft(own.number)])
            if won:
                fsync_dir(self._manifests)
                # of starts that were killed right here
                files.remove(self._temporary.glob("*.json.tmp"))
                return own

    def _commit(self, cuts: list[Rows], window: int) -> None:
        """Steps 1 and 2. After an OSError everything is as it was before."""
        number = self._number + 1
        made, unfit = pending_files(cuts, self._shard, number)
        self._attempt += 1
        moved = {cut.stream.name: cut.entries.id(-1) for cut in cuts}
        positions = {name: str(id) for name, id in (self._positions | moved).items()}
        named = [self._describe(draft) for draft in made]
        own = Manifest(number, self._shard, self._epoch, self._writer, named, positions)
        written = [self._data_dir / file.temporary for file in named]
        try:
            for draft, path in zip(made, written, strict=True):
                make_dir((self._data_dir / draft.name).parent)
                files.write(path, draft.data)
                self._step("written")
            fsync_dir(self._temporary)
            self._step("fsynced")
            won = manifest.create(self._manifests, own, self._manifest_draft(number))
        except OSError:
            if not self._taken(number):
                files.remove(written)
                raise
            won = False
        if not won:
            self._fenced = True
            for path in (*written, self._manifest_draft(number)):
                files.set_aside(path, self._aside)
            raise self._fence(number)
        # committed: from here on these rows are the files', whatever happens
        self._unnamed = own, _summary(number, made, unfit, moved), window
        self._number = number
        self._positions.update(moved)
        self._buffer.drop(cuts)
        self._step("committed")

    def _describe(self, draft: PendingFile) -> File:
        temporary = (self._temporary / f"{draft.name.replace('/', '.')}-{self._attempt}.tmp").relative_to(
            self._data_dir
        )
        streams = {name: (str(first), str(last)) for name, (first, last) in draft.streams.items()}
        return File(
            draft.kind,
            draft.name,
            str(temporary),
            draft.rows,
            len(draft.data),
            zlib.crc32(draft.data),
            streams,
        )

    def _name(self, committed: Manifest) -> None:
        """Step 3; harmless where it was done before, or is being done by another store."""
        fsync_dir(self._manifests)
        self._step("durable")
        for file in committed.files:
            final = self._data_dir / file.name
            try:
                files.rename_forward(self._data_dir / file.temporary, final)
            except FileNotFoundError:
                where = manifest.path_of(self._manifests, committed.number)
                raise TickbusError(
                    f"{final} is missing, with {file.rows} rows that {where} names; bring it back, then start again"
                ) from None
            self._step("named")
        for folder in sorted({(self._data_dir / file.name).parent for file in committed.files}):
            fsync_dir(folder)
        self._step("done")

    def _taken(self, number: int) -> bool:
        """A successor clears our folder away: an error that this explains is no fault of the disk."""
        return manifest.path_of(self._manifests, number).exists()

    def _manifest_draft(self, number: int) -> Path:
        return self._temporary / f"{number:08d}.{self._writer}.json.tmp"

    def _fence(self, number: int) -> Fenced:
        return Fenced(
            f"shard {self._shard} of {self._data_dir}: another recorder has written commit {number}; what this one held is set aside, never merged"
        )


def _summary(number: int, made: list[PendingFile], unfit: list[Row], moved: dict[str, StreamId]) -> Committed:
    if unfit:
        row = unfit[0]
        log.warning(
            "commit %d: %d messages fit no row and are in _aside; the first is %s %s: %s",
            number,
            len(unfit),
            row.stream.name,
            row.id,
            row.unfit,
        )
    tables = [draft for draft in made if draft.kind != ASIDE]
    rows: Counter[str] = Counter()
    for draft in tables:
        rows[draft.kind] += draft.rows
    counted = Counter(draft.kind for draft in tables)
    size = sum(len(draft.data) for draft in tables)
    return Committed(
        number, dict(rows), dict(counted), size, dict(Counter(row.unfit.reason for row in unfit)), moved
    )
