"""Pages of one recorded stream: bars by their start, or entries by their ID. Nothing else is kept in memory.

A page reads row groups in the order of their first rows until no other one can hold a row of the page, by the
statistics in the footers. These are read once: later requests look only for files that are new.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from services.archive.files import LeftOut, find
from services.archive.page import Page, Row
from services.archive.reader import RowGroup, Selection, row_groups
from tickbus.protocol.json_form import json_object
from tickbus.protocol.messages import Bar, Message
from tickbus.protocol.names import Stream, StreamId

_FIRST, _LAST = -(1 << 63), (1 << 63) - 1
_PAGE_SECONDS = 2.0
"""After this time a page ends with what is certain, and the next one goes on."""
_TRIES = 3


@dataclass(frozen=True)
class _Known:
    stamp: tuple[int, int]
    groups: tuple[RowGroup, ...]


class _Moved(Exception):
    """A file has gone since it was found: its rows are in another one now, or nowhere."""


class _NamedOnce(LeftOut):
    """Names each file once, however often it is read."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._paths: set[Path] = set()

    def add(self, path: Path, reason: object) -> None:
        if isinstance(reason, FileNotFoundError):
            raise _Moved
        if path not in self._paths:
            self._paths.add(path)
            super().add(path, reason)


_Key = tuple[int, int]
_Found = dict[_Key, tuple[StreamId, Message]]


class RecordedPages:
    """The recorded files below a folder. Blocking."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._known: dict[Path, _Known] = {}
        self._left_out = _NamedOnce(data_dir)

    def bars(self, stream: Stream, begin: int, end: int, limit: int) -> Page:
        """Return the first `limit` bars with begin <= start < end (ns): the newest revision of each.

        OSError if the files cannot be read.
        """
        return self._again_if_moved(lambda: self._bars(stream, begin, end, limit))

    def entries(self, stream: Stream, after: StreamId, before: StreamId | None, limit: int) -> Page:
        """Return the first `limit` entries, Gaps included, with IDs above `after` and below `before`.

        OSError if the files cannot be read.
        """
        return self._again_if_moved(lambda: self._entries(stream, after, before, limit))

    @staticmethod
    def _again_if_moved(read: Callable[[], Page]) -> Page:
        for _ in range(_TRIES):
            try:
                return read()
            except _Moved:
                continue
        raise OSError(f"files moved away while they were read, {_TRIES} times")

    def _bars(self, stream: Stream, begin: int, end: int, limit: int) -> Page:
        def read(group: RowGroup) -> Iterable[tuple[_Key, StreamId, Message]]:
            for id, message in self._rows(group, stream, begin, end):
                if isinstance(message, Bar):
                    yield (message.start, 0), id, message

        groups = [
            (group.days[0], group)
            for group in self._groups({"bar"})
            if group.days[0] < end and group.days[1] >= begin
        ]
        found, certain = _collect(groups, read, begin, limit)
        keys = sorted(key for key in found if certain is None or key[0] < certain)
        rows = [_row(stream, key[0], *found[key]) for key in keys[:limit]]
        following = keys[limit][0] if len(keys) > limit else certain
        return Page(rows, None if following is None or following >= end else str(following))

    def _entries(self, stream: Stream, after: StreamId, before: StreamId | None, limit: int) -> Page:
        def read(group: RowGroup) -> Iterable[tuple[_Key, StreamId, Message]]:
            for id, message in self._rows(group, stream, _FIRST, _LAST):
                if id > after and (before is None or id < before):
                    yield id, id, message

        groups = [
            (group.ids[0], group)
            for group in self._groups({stream.kind, "gap"})
            if group.ids[1] >= after.ms and (before is None or group.ids[0] <= before.ms)
        ]
        found, certain = _collect(groups, read, after.ms, limit)
        keys = sorted(key for key in found if certain is None or key[0] < certain)
        rows = [_row(stream, key[0], *found[key]) for key in keys[:limit]]
        if len(keys) > limit:
            return Page(rows, rows[-1].id)
        return Page(rows, None if certain is None else str(max(StreamId(certain, 0), after)))

    def _rows(
        self, group: RowGroup, stream: Stream, begin: int, end: int
    ) -> Iterable[tuple[StreamId, Message]]:
        kinds = {stream.kind}
        selection = Selection(kinds, {stream.symbol}, {stream.feed}, begin, end)
        for found, id, message in group.rows(selection, self._left_out):
            if found == stream:
                yield id, message

    def _groups(self, kinds: Collection[str]) -> list[RowGroup]:
        """Return the row groups of all files of these kinds."""
        present: set[Path] = set()

        def is_known(path: Path) -> bool:
            present.add(path)
            known = self._known.get(path)
            return known is not None and known.stamp == _stamp(path)

        for file in find(self._data_dir, kinds, _FIRST, _LAST, self._left_out, is_known):
            self._known[file.path] = _Known(_stamp(file.path), tuple(row_groups(file)))
        groups = []
        for path, known in list(self._known.items()):
            ours = [group for group in known.groups if group.file.kind.name in kinds]
            if path in present:
                groups += ours
            elif ours:
                del self._known[path]
        return groups


def _collect(
    groups: list[tuple[int, RowGroup]],
    read: Callable[[RowGroup], Iterable[tuple[_Key, StreamId, Message]]],
    first: int,
    limit: int,
) -> tuple[_Found, int | None]:
    """Read row groups, each with its lowest key, until `limit` rows and one more are certain. first: the
    lowest key that is asked for.

    Return what was found, of each key the row with the highest ID, and below which key nothing is missing;
    None: nothing is.
    """
    found: _Found = {}
    began = time.monotonic()
    for lowest, group in sorted(groups, key=lambda pair: pair[0]):
        if len(found) > limit:
            keys = sorted(found)[: limit + 1]
            if keys[-1][0] < lowest:
                return found, lowest
            found = {key: found[key] for key in keys}
        if lowest > first and time.monotonic() - began > _PAGE_SECONDS:
            return found, lowest
        for key, id, message in read(group):
            if key not in found or found[key][0] < id:
                found[key] = id, message
    return found, None


def _row(stream: Stream, key: int, id: StreamId, message: Message) -> Row:
    return Row(key, str(id), json_object(stream, str(id), message, "cursor"))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return stat.st_mtime_ns, stat.st_size
