"""Reads recorded files back as messages in the order in which they arrived: for replay and the simulator.

Ticks are ordered by (ts_recv, counter). Bars and Gaps have no ts_recv: they are ordered by the bus time in
their ID, but a Gap always comes right before the tick that follows it in its stream. Decimals have the
recorded value; the vendor's trailing zeros are not preserved (`201.187000` is returned as `201.187`).

The files of one commit contain a piece of each stream, so they are read and sorted together; commits are
merged with a heap. Only commits that overlap in time are in memory at once, about one per shard.
"""

import heapq
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.archive.schema import GAP, KINDS, Kind, conform, dictionary_texts, integer_values, to_messages
from tickbus.protocol.messages import Message
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY, MILLISECOND

RecordedMessage = tuple[Stream, StreamId, Message]

_FILE = re.compile(r"s(\d+)-(\d{8,})\.parquet")
_FOLDER = re.compile(r"date=(\d{4}-\d\d-\d\d)")
_BATCH = 1_024
_EPOCH = date(1970, 1, 1).toordinal()
_DAY_COLUMN = {"trade": "ts_event", "quote": "ts_event", "bar": "start", "gap": "from_ts"}
"""The time whose UTC day names the folder, and by which `start` and `end` select."""
_ORDER = "_order"


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

    Rows have start <= time < end, in ns: ts_event, the start of a bar, the from_ts of a Gap. A Gap's stream
    is the one that contains it. ValueError for an unknown kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}: expected one of {', '.join(KINDS)}")
    selection = Selection(
        kinds, symbols, feeds, -(1 << 63) if start is None else start, (1 << 63) - 1 if end is None else end
    )
    return _merge(_commits(data_dir, selection), selection)


def recorded_feeds(data_dir: Path, kinds: Collection[str] = ("trade", "quote")) -> set[str]:
    """Return the feeds in files of these kinds, by their footers: all, or at least two if there are more."""
    paths = [path for kind in kinds for path in (data_dir / kind).glob("date=*/**/*.parquet")]
    return {name for path in paths for bounds in _bounds(pq.read_metadata(path), "feed") for name in bounds}


@dataclass
class _Commit:
    """The selected files of one commit of one shard."""

    first: int
    """Order time of its first row."""
    files: list[tuple[Kind, Path]]


def _commits(data_dir: Path, selection: Selection) -> list[_Commit]:
    """Return the commits in the order of their first rows. Reads the file footers of the selected days."""
    found: dict[tuple[str, str], _Commit] = {}
    for kind in (KINDS[name] for name in selection.kinds):
        for path in _files(data_dir / kind.name, selection):
            first = _first(pq.read_metadata(path), kind, selection)
            if first is None:
                continue
            match = _FILE.fullmatch(path.name)
            # a file not written by a recorder, or rewritten since, is a commit of its own
            commit = found.setdefault((match[1], match[2]) if match else (str(path), ""), _Commit(first, []))
            commit.first = min(commit.first, first)
            commit.files.append((kind, path))
    return sorted(found.values(), key=lambda commit: commit.first)


def _files(folder: Path, selection: Selection) -> Iterator[Path]:
    for day_folder in sorted(folder.glob("date=*")):
        match = _FOLDER.fullmatch(day_folder.name)
        if (
            match
            and selection.start // DAY
            <= date.fromisoformat(match[1]).toordinal() - _EPOCH
            <= selection.end // DAY
        ):
            yield from sorted(day_folder.rglob("*.parquet"))


def _first(footer: pq.FileMetaData, kind: Kind, selection: Selection) -> int | None:
    """Return the order time of the first row, by the statistics; None if they rule out the symbols."""
    symbols = _bounds(footer, "symbol")
    if (
        selection.symbols is not None
        and symbols
        and not any(low <= symbol <= high for low, high in symbols for symbol in selection.symbols)
    ):
        return None
    if "ts_recv" in kind.schema.names:
        return min((int(low) for low, _ in _bounds(footer, "ts_recv")), default=0)
    return min((int(low) for low, _ in _bounds(footer, "id_ms")), default=0) * MILLISECOND


def _bounds(footer: pq.FileMetaData, column: str) -> list[tuple[Any, Any]]:
    """Return min and max per row group, as stored; empty if the column or its statistics are missing."""
    bounds = []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        statistics = next(
            (
                found.statistics
                for n in range(footer.num_columns)
                if (found := group.column(n)).path_in_schema == column
            ),
            None,
        )
        if statistics is None or not statistics.has_min_max:
            return []
        raw = (statistics.min_raw, statistics.max_raw)
        bounds.append(raw if column not in ("symbol", "feed") else (statistics.min, statistics.max))
    return bounds


def _merge(commits: Sequence[_Commit], selection: Selection) -> Iterator[RecordedMessage]:
    remaining = iter(commits)
    upcoming = next(remaining, None)
    heap: list[tuple[int, int, int, RecordedMessage, Iterator[tuple[int, int, RecordedMessage]]]] = []
    opened = 0
    while heap or upcoming:
        while upcoming and (not heap or upcoming.first <= heap[0][0]):
            rows = _rows(upcoming, selection)
            opened += 1
            if row := next(rows, None):
                heapq.heappush(heap, (row[0], row[1], opened, row[2], rows))
            upcoming = next(remaining, None)
        if heap:
            _, _, number, recorded, rows = heap[0]
            if row := next(rows, None):
                heapq.heapreplace(heap, (row[0], row[1], number, row[2], rows))
            else:
                heapq.heappop(heap)
            yield recorded


def _rows(commit: _Commit, selection: Selection) -> Iterator[tuple[int, int, RecordedMessage]]:
    """Yield order time, counter and row of one commit, in order."""
    tables = [(kind, _table(kind, path, selection)) for kind, path in commit.files]
    if any(kind is GAP and table.num_rows for kind, table in tables):
        ticks = _ticks([(kind, table) for kind, table in tables if kind is not GAP])
        tables = [
            (kind, _ordered_before_ticks(table, ticks) if kind is GAP else table) for kind, table in tables
        ]
    ordered = [(kind, table.sort_by([(_ORDER, "ascending"), ("seq", "ascending")])) for kind, table in tables]
    return heapq.merge(*(_recorded(kind, table) for kind, table in ordered), key=lambda row: row[:2])


def _table(kind: Kind, path: Path, selection: Selection) -> pa.Table:
    """Return the selected rows, with the column by which they are sorted."""
    file = pq.ParquetFile(path)
    table = conform(kind, file.read([name for name in kind.schema.names if name in file.schema_arrow.names]))
    time = pc.field(_DAY_COLUMN[kind.name]).cast(pa.int64())
    selected = (time >= pc.scalar(selection.start)) & (time < pc.scalar(selection.end))
    for name, values in (("symbol", selection.symbols), ("feed", selection.feeds)):
        if values is not None:
            selected = selected & pc.field(name).cast(pa.string()).isin(pa.array(sorted(values), pa.string()))
    table = table.filter(selected)
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


def _recorded(kind: Kind, table: pa.Table) -> Iterator[tuple[int, int, RecordedMessage]]:
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
