"""Reads recorded files back as messages in the order in which they arrived: for replay and the simulator.

Ticks are ordered by (ts_recv, counter). Bars, signals and Gaps have no ts_recv: they are ordered by the bus
time in their ID, but a Gap always comes right before the tick that follows it in its stream. Decimals have
the recorded value; the vendor's trailing zeros are not preserved (`201.187000` is returned as `201.187`).

The files of one commit contain a piece of each stream, so they are read and sorted together; commits are
merged with a heap. Only commits that overlap in time are in memory at once, about one per shard. Of other
files (services.archive.files) each row group is read like a commit; a row that stands in several files, with
the same stream and ID, is returned once.
"""

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.archive.files import LeftOut, RecordedFile, Unnamed, find
from services.archive.schema import (
    GAP,
    KINDS,
    Kind,
    check_values,
    conform,
    dictionary_texts,
    integer_values,
    to_messages,
)
from services.archive.waiting_gaps import RecordedMessage, WaitingGaps
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY, MILLISECOND, SECOND

_BATCH = 1_024
_DAY_COLUMN = {
    "trade": "ts_event",
    "quote": "ts_event",
    "bar": "start",
    "signal": "ts_event",
    "gap": "from_ts",
}
"""The time whose UTC day names the folder, and by which `start` and `end` select. Null: that of the ID."""
_ORDER = "_order"
_DOUBLES = SECOND
"""Copies of a row are found if their order times differ by no more: some tools cut nanoseconds off."""
_UNKNOWN = -(1 << 63)
_UNBOUNDED = (-(1 << 63), (1 << 63) - 1)
_UNITS = {"s": SECOND, "ms": MILLISECOND, "us": 1_000, "ns": 1}

_Row = tuple[int, int, RecordedMessage]
"""Order time, counter, and the message."""


@dataclass(frozen=True)
class Selection:
    kinds: Collection[str]
    symbols: Collection[str] | None
    feeds: Collection[str] | None
    start: int
    end: int


def read_recorded(
    data_dir: Path,
    kinds: Collection[str] = ("trade", "quote"),
    symbols: Collection[str] | None = None,
    feeds: Collection[str] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Iterator[RecordedMessage]:
    """Return stream, ID and message of all recorded rows of these kinds, symbols and feeds (None: all).

    Rows have start <= time < end, in ns: ts_event, the start of a bar, the from_ts of a Gap; of a signal
    without a ts_event the time of its ID. A Gap's stream is the one that contains it. Every Parquet file
    below the folder is read whose columns fit; any other is named in a warning. No row comes twice, unless it
    has no ID. ValueError for an unknown kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}: expected one of {', '.join(KINDS)}")
    selection = Selection(
        kinds, symbols, feeds, -(1 << 63) if start is None else start, (1 << 63) - 1 if end is None else end
    )
    return _read(data_dir, selection)


def recorded_feeds(data_dir: Path, kinds: Collection[str] = ("trade", "quote")) -> set[str]:
    """Return the feeds in files of these kinds, by their footers: all, or at least two if there are more."""
    feeds: set[str] = set()
    for file in find(data_dir, kinds, -(1 << 63), 1 << 63, Unnamed(data_dir)):
        bounds = _bounds(file.footer, "feed")
        if bounds:
            feeds.update(name for low_and_high in bounds for name in low_and_high)
        elif "feed" in file.schema.names:
            column = pq.read_table(file.path, columns=["feed"])["feed"].cast(pa.string())
            feeds.update(str(feed) for feed in pc.unique(column).to_pylist())
    return feeds


@dataclass(frozen=True)
class RowGroup:
    """Rows of one file that are read at once, and what its footer says of them."""

    file: RecordedFile
    number: int
    days: tuple[int, int]
    """First and last time in ns by which rows are selected: the start of a bar; else ts_event or from_ts."""
    ids: tuple[int, int]
    """First and last ms of the IDs."""

    def rows(self, selection: Selection, left_out: LeftOut) -> Iterator[RecordedMessage]:
        """Yield the selected rows. What cannot be read is left out, and named there."""
        for _, _, recorded in _rows(_Unit(_UNKNOWN, [self.file], self.number), selection, left_out):
            yield recorded


def row_groups(file: RecordedFile) -> Iterator[RowGroup]:
    """Yield the row groups of a file. Where the footer does not tell their times, these have no bounds."""
    for number in range(file.footer.num_row_groups):
        days = _time_bounds(file, _DAY_COLUMN[file.kind.name], number)
        ids = _bounds(file.footer, "id_ms", number)
        yield RowGroup(
            file,
            number,
            days[0] if days else _UNBOUNDED,
            (ids[0][0], ids[0][1]) if ids else _UNBOUNDED,
        )


@dataclass
class _Unit:
    """Rows that are read and sorted together: the selected files of one commit, or a row group of another."""

    first: int
    """Order time of its first row, or earlier."""
    files: list[RecordedFile]
    row_group: int | None = None


def _read(data_dir: Path, selection: Selection) -> Iterator[RecordedMessage]:
    left_out = LeftOut(data_dir)
    units, gap_files, has_copies = _plan(data_dir, selection, left_out)
    waiting: list[tuple[int, RecordedMessage]] = []
    placed: list[_Row] = []
    for file in gap_files:
        for order, seq, recorded in _rows(_Unit(_UNKNOWN, [file]), selection, left_out):
            if recorded[0].kind in selection.kinds:
                waiting.append((order, recorded))
            else:
                placed.append((order, seq, recorded))
    rows = _ordered(units, selection, left_out)
    if placed:
        rows = heapq.merge(rows, sorted(placed, key=lambda row: row[:2]), key=lambda row: row[:2])
    if has_copies:
        rows = _without_doubles(rows)
    if waiting:
        yield from _with_gaps(rows, WaitingGaps(waiting))
    else:
        for _, _, recorded in rows:
            yield recorded


def _plan(
    data_dir: Path, selection: Selection, left_out: LeftOut
) -> tuple[list[_Unit], list[RecordedFile], bool]:
    """Return what is read in the order of first rows, the files of Gaps that are apart from their ticks, and
    whether a row may stand in several files. Reads the file footers of the selected days.
    """
    commits: dict[tuple[str, str], _Unit] = {}
    units: list[_Unit] = []
    gap_files: list[RecordedFile] = []
    for file in find(data_dir, selection.kinds, selection.start // DAY, selection.end // DAY, left_out):
        if file.commit is not None:
            first = _first(file, selection)
            if first is not None:
                commit = commits.setdefault(file.commit, _Unit(first, []))
                commit.first = min(commit.first, first)
                commit.files.append(file)
        elif file.kind is GAP:
            gap_files.append(file)
        else:
            for group in range(file.footer.num_row_groups):
                first = _first(file, selection, group)
                if first is not None:
                    units.append(_Unit(first, [file], group))
    has_copies = bool(units or gap_files)
    for commit in commits.values():
        if has_copies and all(file.kind is GAP for file in commit.files):
            gap_files += commit.files
        else:
            units.append(commit)
    return sorted(units, key=lambda unit: unit.first), gap_files, has_copies


def _first(file: RecordedFile, selection: Selection, row_group: int | None = None) -> int | None:
    """Return the order time of the first row, by the statistics; None if they rule out the selection."""
    symbols = _bounds(file.footer, "symbol", row_group)
    if (
        selection.symbols is not None
        and symbols
        and not any(low <= symbol <= high for low, high in symbols for symbol in selection.symbols)
    ):
        return None
    if file.commit is None:
        days = _time_bounds(file, _DAY_COLUMN[file.kind.name], row_group)
        if days and not any(low < selection.end and high >= selection.start for low, high in days):
            return None
    if "ts_recv" in file.kind.schema.names:
        return min((low for low, _ in _time_bounds(file, "ts_recv", row_group)), default=_UNKNOWN)
    return min((low * MILLISECOND for low, _ in _bounds(file.footer, "id_ms", row_group)), default=_UNKNOWN)


def _time_bounds(file: RecordedFile, column: str, row_group: int | None) -> list[tuple[int, int]]:
    """Return `_bounds` in ns."""
    bounds = _bounds(file.footer, column, row_group)
    unit = _unit_of(file.schema.field(column).type) if bounds else 1
    return [(low * unit, high * unit) for low, high in bounds]


def _unit_of(type: pa.DataType) -> int:
    """Return the ns of a time column's unit."""
    return _UNITS[type.unit] if pa.types.is_timestamp(type) else 1


def _bounds(footer: pq.FileMetaData, column: str, row_group: int | None = None) -> list[tuple[Any, Any]]:
    """Return min and max per row group, as stored; empty if the column or its statistics are missing or
    unreadable: whoever then reads the rows says what is wrong with the file.
    """
    try:
        paths = [footer.schema.column(number).path for number in range(footer.num_columns)]
        at = paths.index(column)
        groups = range(footer.num_row_groups) if row_group is None else (row_group,)
        # no other column is asked for: `find` has tried only those whose bounds are
        return [_group_bounds(footer.row_group(number).column(at), column) for number in groups]
    except (LookupError, ValueError):  # also for names in a damaged footer that are no text
        return []


def _group_bounds(chunk: pq.ColumnChunkMetaData, column: str) -> tuple[Any, Any]:
    """Return min and max. LookupError if they are unknown."""
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max or statistics.null_count:
        raise LookupError(column)  # of a null they say nothing: it may stand for any time
    if column in ("symbol", "feed"):
        return statistics.min, statistics.max
    if isinstance(statistics.min_raw, int) and isinstance(statistics.max_raw, int):
        return statistics.min_raw, statistics.max_raw
    raise LookupError(column)  # times of 96 bits


def _ordered(units: Sequence[_Unit], selection: Selection, left_out: LeftOut) -> Iterator[_Row]:
    remaining = iter(units)
    upcoming = next(remaining, None)
    heap: list[tuple[int, int, int, _Row, Iterator[_Row]]] = []
    opened = 0
    while heap or upcoming:
        while upcoming and (not heap or upcoming.first <= heap[0][0]):
            rows = _rows(upcoming, selection, left_out)
            opened += 1
            if row := next(rows, None):
                heapq.heappush(heap, (row[0], row[1], opened, row, rows))
            upcoming = next(remaining, None)
        if heap:
            _, _, number, first, rows = heap[0]
            if row := next(rows, None):
                heapq.heapreplace(heap, (row[0], row[1], number, row, rows))
            else:
                heapq.heappop(heap)
            yield first


def _without_doubles(rows: Iterator[_Row]) -> Iterator[_Row]:
    """Yield each stream and ID once: copies lie close together in this order."""
    seen: set[tuple[Stream, StreamId]] = set()
    recent: deque[tuple[int, tuple[Stream, StreamId]]] = deque()
    for row in rows:
        key = row[2][:2]
        if key in seen:
            continue
        if key[1].seq:  # else the file has no IDs
            seen.add(key)
            recent.append((row[0], key))
        while recent and recent[0][0] + _DOUBLES < row[0]:
            seen.remove(recent.popleft()[1])
        yield row


def _with_gaps(rows: Iterator[_Row], waiting: WaitingGaps) -> Iterator[RecordedMessage]:
    for order, _, recorded in rows:
        if isinstance(recorded[2], Gap) and recorded[:2] in waiting:
            continue
        yield from waiting.before(order, recorded[0], recorded[1])
        yield recorded
    yield from waiting.rest()


def _rows(unit: _Unit, selection: Selection, left_out: LeftOut) -> Iterator[_Row]:
    """Yield order time, counter and row of one unit, in order."""
    tables: list[tuple[Kind, pa.Table]] = []
    for file in unit.files:
        try:
            tables.append((file.kind, _table(file, unit.row_group, selection)))
        except (OSError, pa.ArrowException, ValueError) as error:
            left_out.add(file.path, error)
    if any(kind is GAP and table.num_rows for kind, table in tables):
        ticks = _ticks([(kind, table) for kind, table in tables if kind is not GAP])
        tables = [
            (kind, _ordered_before_ticks(table, ticks) if kind is GAP else table) for kind, table in tables
        ]
    ordered = [(kind, table.sort_by([(_ORDER, "ascending"), ("seq", "ascending")])) for kind, table in tables]
    return heapq.merge(*(_recorded(kind, table) for kind, table in ordered), key=lambda row: row[:2])


def _table(file: RecordedFile, row_group: int | None, selection: Selection) -> pa.Table:
    """Return the selected rows, with the column by which they are sorted. ArrowException or ValueError if a
    value does not fit its column.
    """
    kind, parquet = file.kind, pq.ParquetFile(file.path)
    names = [name for name in kind.schema.names if name in parquet.schema_arrow.names]
    table = conform(
        kind, parquet.read(names) if row_group is None else parquet.read_row_group(row_group, names)
    )
    time = pc.field(_DAY_COLUMN[kind.name]).cast(pa.int64())
    if kind.may_lack_time:
        stored = pc.multiply(pc.field("id_ms"), pa.scalar(MILLISECOND, pa.int64()))
        time = pc.coalesce(time, stored)  # type: ignore[type-var]  # the stubs know no expressions here
    selected = (time >= pc.scalar(selection.start)) & (time < pc.scalar(selection.end))
    for name, values in (("symbol", selection.symbols), ("feed", selection.feeds)):
        if values is not None:
            selected = selected & pc.field(name).cast(pa.string()).isin(pa.array(sorted(values), pa.string()))
    table = table.filter(selected)
    check_values(kind, table)
    order = (
        table["ts_recv"].cast(pa.int64())
        if "ts_recv" in table.column_names
        else pc.multiply(table["id_ms"], pa.scalar(MILLISECOND, pa.int64()))
    )
    return table.append_column(_ORDER, order)


_Key = tuple[str, str, str, str | None]
"""Kind, feed, symbol and spec of a stream."""


def _ticks(tables: list[tuple[Kind, pa.Table]]) -> dict[_Key, list[tuple[int, int, int]]]:
    """Return the ticks of each stream in its order: ID (as two numbers) and order time."""
    ticks: dict[_Key, list[tuple[int, int, int]]] = {}
    for kind, table in tables:
        specs = table["spec"].to_pylist() if kind.spec else [None] * table.num_rows
        feeds, symbols, *rest = (
            table[name].to_pylist() for name in ("feed", "symbol", "id_ms", "seq", _ORDER)
        )
        for feed, symbol, spec, *tick in zip(feeds, symbols, specs, *rest, strict=True):
            ticks.setdefault((kind.name, feed, symbol, spec), []).append((tick[0], tick[1], tick[2]))
    for stream_ticks in ticks.values():
        stream_ticks.sort()
    return ticks


def _ordered_before_ticks(gaps: pa.Table, ticks: dict[_Key, list[tuple[int, int, int]]]) -> pa.Table:
    """Return the Gaps with the order time of the next tick of their stream; their counter puts them first."""
    columns = [
        gaps[name].to_pylist() for name in ("stream", "feed", "symbol", "spec", "id_ms", "seq", _ORDER)
    ]
    orders = []
    for *key, ms, seq, order in zip(*columns, strict=True):
        stream_ticks = ticks.get((key[0], key[1], key[2], key[3]), [])
        index = bisect_right(stream_ticks, (ms, seq, 0))
        orders.append(stream_ticks[index][2] if index < len(stream_ticks) else order)
    return gaps.set_column(gaps.column_names.index(_ORDER), _ORDER, pa.array(orders, pa.int64()))


def _recorded(kind: Kind, table: pa.Table) -> Iterator[_Row]:
    for batch in table.to_batches(max_chunksize=_BATCH):
        kinds = batch.column("stream").to_pylist() if kind is GAP else [kind.name] * batch.num_rows
        specs = (
            [spec or "" for spec in dictionary_texts(batch.column("spec"))]
            if kind.spec
            else [""] * batch.num_rows
        )
        keys = zip(
            kinds,
            dictionary_texts(batch.column("feed")),
            dictionary_texts(batch.column("symbol")),
            specs,
            strict=True,
        )
        streams = (Stream(str(name), str(feed), str(symbol), spec) for name, feed, symbol, spec in keys)
        ms, seqs, orders = (integer_values(batch.column(name)) for name in ("id_ms", "seq", _ORDER))
        yield from zip(
            orders,
            seqs,
            zip(streams, map(StreamId, ms, seqs), to_messages(kind, batch), strict=True),
            strict=True,
        )
