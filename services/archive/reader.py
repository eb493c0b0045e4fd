"""Our recorded files, back as messages in the order in which they came: for replay and the simulator.

Ticks are ordered by (ts_recv, counter). Bars and Gaps have no ts_recv: they come at the bus time in their ID, but a Gap always
right before the tick that follows it in its stream. Decimals have the recorded value; zeros that the vendor wrote behind the
last digit are not kept (`201.187000` comes back as `201.187`).

The files of one commit hold a piece of each stream, so they are read and put in order together; commits are merged by a heap.
In memory at once are only commits that overlap in time, about one per shard.
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

from services.archive.schema import GAP, KINDS, Kind, complete, integers, messages, names
from tickbus.protocol.messages import Message
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import DAY, MILLISECOND

Recorded = tuple[Stream, StreamId, Message]

_FILE = re.compile(r"s(\d+)-(\d{8,})\.parquet")
_FOLDER = re.compile(r"date=(\d{4}-\d\d-\d\d)")
_BATCH = 1_024
_EPOCH = date(1970, 1, 1).toordinal()
_DAY_COLUMN = {"trade": "ts_event", "quote": "ts_event", "bar": "start", "gap": "from_ts"}
"""The time whose UTC day is the folder, and by which a reader chooses."""
_ORDER = "_order"


@dataclass(frozen=True)
class Choice:
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
) -> Iterator[Recorded]:
    """-> stream, ID and message of every recorded row of these kinds, symbols and feeds (None: all) with start <= time < end.

    The time is ts_event, of a bar its start, of a Gap its from_ts, in ns. A Gap's stream is that in which it stands. ValueError
    for an unknown kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    choice = Choice(
        kinds, symbols, feeds, -(1 << 63) if start is None else start, (1 << 63) - 1 if end is None else end
    )
    return _merge(_commits(data_dir, choice), choice)


def recorded_feeds(data_dir: Path, kinds: Collection[str] = ("trade", "quote")) -> set[str]:
    """Names of feeds in the files of these kinds, by their footers: all if there are at most two, else two of them at least."""
    paths = [path for kind in kinds for path in (data_dir / kind).glob("date=*/**/*.parquet")]
    return {name for path in paths for bounds in _bounds(pq.read_metadata(path), "feed") for name in bounds}


@dataclass
class _Commit:
    """The chosen files of one commit of one shard."""

    first: int
    """Order time of its first row."""
    files: list[tuple[Kind, Path]]


def _commits(data_dir: Path, choice: Choice) -> list[_Commit]:
    """In the order of their first rows. Looks at the footer of each file of the days that are asked for."""
    found: dict[tuple[str, str], _Commit] = {}
    for kind in (KINDS[name] for name in choice.kinds):
        for path in _files(data_dir / kind.name, choice):
            first = _first(pq.read_metadata(path), kind, choice)
            if first is None:
                continue
            match = _FILE.fullmatch(path.name)
            # a file that was not written by a recorder, or was rewritten since, stands for itself
            commit = found.setdefault((match[1], match[2]) if match else (str(path), ""), _Commit(first, []))
            commit.first = min(commit.first, first)
            commit.files.append((kind, path))
    return sorted(found.values(), key=lambda commit: commit.first)


def _files(folder: Path, choice: Choice) -> Iterator[Path]:
    for of_day in sorted(folder.glob("date=*")):
        match = _FOLDER.fullmatch(of_day.name)
        if (
            match
            and choice.start // DAY <= date.fromisoformat(match[1]).toordinal() - _EPOCH <= choice.end // DAY
        ):
            yield from sorted(of_day.rglob("*.parquet"))


def _first(footer: pq.FileMetaData, kind: Kind, choice: Choice) -> int | None:
    """Order time of the first row, by the statistics; None where no row can be of a symbol that is asked for."""
    symbols = _bounds(footer, "symbol")
    if (
        choice.symbols is not None
        and symbols
        and not any(low <= symbol <= high for low, high in symbols for symbol in choice.symbols)
    ):
        return None
    if "ts_recv" in kind.schema.names:
        return min((int(low) for low, _ in _bounds(footer, "ts_recv")), default=0)
    return min((int(low) for low, _ in _bounds(footer, "id_ms")), default=0) * MILLISECOND


def _bounds(footer: pq.FileMetaData, column: str) -> list[tuple[Any, Any]]:
    """Least and greatest value per row group, as the file stores it; none where the file lacks the column or its statistics."""
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


def _merge(commits: Sequence[_Commit], choice: Choice) -> Iterator[Recorded]:
    waiting = iter(commits)
    coming = next(waiting, None)
    heap: list[tuple[int, int, int, Recorded, Iterator[tuple[int, int, Recorded]]]] = []
    opened = 0
    while heap or coming:
        while coming and (not heap or coming.first <= heap[0][0]):
            rows = _rows(coming, choice)
            opened += 1
            if row := next(rows, None):
                heapq.heappush(heap, (row[0], row[1], opened, row[2], rows))
            coming = next(waiting, None)
        if heap:
            _, _, number, recorded, rows = heap[0]
            if row := next(rows, None):
                heapq.heapreplace(heap, (row[0], row[1], number, row[2], rows))
            else:
                heapq.heappop(heap)
            yield recorded


def _rows(commit: _Commit, choice: Choice) -> Iterator[tuple[int, int, Recorded]]:
    """Order time, counter and row of one commit, in order."""
    tables = [(kind, _table(kind, path, choice)) for kind, path in commit.files]
    if any(kind is GAP and table.num_rows for kind, table in tables):
        ticks = _ticks([(kind, table) for kind, table in tables if kind is not GAP])
        tables = [(kind, _before_ticks(table, ticks) if kind is GAP else table) for kind, table in tables]
    ordered = [(kind, table.sort_by([(_ORDER, "ascending"), ("seq", "ascending")])) for kind, table in tables]
    return heapq.merge(*(_recorded(kind, table) for kind, table in ordered), key=lambda row: row[:2])


def _table(kind: Kind, path: Path, choice: Choice) -> pa.Table:
    """The chosen rows, with the column by which they are put in order."""
    file = pq.ParquetFile(path)
    table = complete(kind, file.read([name for name in kind.schema.names if name in file.schema_arrow.names]))
    time = pc.field(_DAY_COLUMN[kind.name]).cast(pa.int64())
    wanted = (time >= pc.scalar(choice.start)) & (time < pc.scalar(choice.end))
    for name, values in (("symbol", choice.symbols), ("feed", choice.feeds)):
        if values is not None:
            wanted = wanted & pc.field(name).cast(pa.string()).isin(pa.array(sorted(values), pa.string()))
    table = table.filter(wanted)
    order = (
        table["ts_recv"].cast(pa.int64())
        if "ts_recv" in table.column_names
        else pc.multiply(table["id_ms"], pa.scalar(MILLISECOND, pa.int64()))
    )
    return table.append_column(_ORDER, order)


_Key = tuple[str, str, str, str | None]
"""Kind, feed, symbol and spec of a stream."""


def _ticks(tables: list[tuple[Kind, pa.Table]]) -> dict[_Key, list[tuple[int, int, int]]]:
    """Of each stream, in its order: ID (two halves) and order time of its ticks."""
    ticks: dict[_Key, list[tuple[int, int, int]]] = {}
    for kind, table in tables:
        specs = table["spec"].to_pylist() if kind.spec else [None] * table.num_rows
        feeds, symbols, *rest = (
            table[name].to_pylist() for name in ("feed", "symbol", "id_ms", "seq", _ORDER)
        )
        for feed, symbol, spec, *tick in zip(feeds, symbols, specs, *rest, strict=True):
            ticks.setdefault((kind.name, feed, symbol, spec), []).append((tick[0], tick[1], tick[2]))
    for of_stream in ticks.values():
        of_stream.sort()
    return ticks


def _before_ticks(gaps: pa.Table, ticks: dict[_Key, list[tuple[int, int, int]]]) -> pa.Table:
    """Gaps get the order time of the tick that follows in their stream; their smaller counter then puts them before it."""
    columns = [
        gaps[name].to_pylist() for name in ("stream", "feed", "symbol", "spec", "id_ms", "seq", _ORDER)
    ]
    orders = []
    for *key, ms, seq, order in zip(*columns, strict=True):
        of_stream = ticks.get((key[0], key[1], key[2], key[3]), [])
        place = bisect_right(of_stream, (ms, seq, 0))
        orders.append(of_stream[place][2] if place < len(of_stream) else order)
    return gaps.set_column(gaps.column_names.index(_ORDER), _ORDER, pa.array(orders, pa.int64()))


def _recorded(kind: Kind, table: pa.Table) -> Iterator[tuple[int, int, Recorded]]:
    for batch in table.to_batches(max_chunksize=_BATCH):
        kinds = batch.column("stream").to_pylist() if kind is GAP else [kind.name] * batch.num_rows
        specs = [spec or "" for spec in names(batch.column("spec"))] if kind.spec else [""] * batch.num_rows
        keys = zip(kinds, names(batch.column("feed")), names(batch.column("symbol")), specs, strict=True)
        streams = (Stream(str(name), str(feed), str(symbol), spec) for name, feed, symbol, spec in keys)
        ms, seqs, orders = (integers(batch.column(name)) for name in ("id_ms", "seq", _ORDER))
        yield from zip(
            orders,
            seqs,
            zip(streams, map(StreamId, ms, seqs), messages(kind, batch), strict=True),
            strict=True,
        )
