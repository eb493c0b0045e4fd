"""Builds a Parquet file from the rows of one kind and UTC day in memory: the disk sees only finished files.

Rows are added stream by stream, each in its order, streams sorted by symbol: so a row group covers few
symbols in its statistics, equal values are adjacent for compression, and stream order is file order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import compress, groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.archive.schema import Kind, Unrepresentable, representation_error, to_arrays
from services.recorder.row_ids import RowIds
from tickbus.protocol.codec import FIELDS, encode
from tickbus.protocol.messages import Message
from tickbus.protocol.names import Stream, StreamId

BATCH = 8_192
"""Rows converted to columns at once: their messages are still in the processor's cache."""
ROW_GROUP = 131_072
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).date()
_MISFITS = (Unrepresentable, pa.ArrowException, OverflowError, ValueError, TypeError)
"""What a conversion raises for a value that has no place in its column."""
_NO_DICTIONARY = ("id_ms", "seq", "ts_event", "ts_recv", "trade_id", "cause")
_DELTA = ("id_ms", "seq", "ts_event", "ts_recv")


def day_name(day: int) -> str:
    """Return the date of a day since the epoch, like `2024-08-09`."""
    return (_EPOCH + timedelta(days=day)).isoformat()


@dataclass(frozen=True)
class QuarantinedEntry:
    """An entry that does not fit its columns, with everything needed to store it elsewhere."""

    stream: Stream
    id: StreamId
    epoch: int
    field: bytes
    payload: bytes
    message: Message | None
    """None: the payload cannot be decoded."""
    error: Unrepresentable


def _misfit(kind: Kind, message: Message) -> Unrepresentable | None:
    """Return why this message has no row: a rule that we know, or whatever the conversion says."""
    if (error := representation_error(kind, message)) is not None:
        return error
    try:
        to_arrays(kind, [message])
    except _MISFITS as error:
        return error if isinstance(error, Unrepresentable) else Unrepresentable("unreadable", str(error))
    return None


class ParquetBuilder:
    def __init__(self, kind: Kind, about: dict[str, str]) -> None:
        """`about`: key-value metadata of the file."""
        self.kind = kind
        self.rows = 0
        self.quarantined: list[QuarantinedEntry] = []
        self.streams: dict[str, tuple[StreamId, StreamId]] = {}
        """Name of each stream -> its first and last ID in the file."""
        self._about = about
        self._schema = kind.schema
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None
        self._batches: list[pa.RecordBatch] = []
        self._batched_rows = 0
        self._runs: list[tuple[Stream, int]] = []
        """Streams of the pending rows: (stream, number of consecutive rows)."""
        self._ids = RowIds()
        self._messages: list[Any] = []

    def add(self, stream: Stream, ids: RowIds, messages: Sequence[Any]) -> None:
        """Add rows of one stream, in its order; of this kind and day."""
        self._runs.append((stream, len(ids)))
        self._ids.extend(ids)
        self._messages += messages
        if len(self._messages) >= BATCH:
            self._convert()

    def finish(self) -> memoryview:
        """Return the file; empty if no row fits: then there is no file to write."""
        self._convert()
        self._write_row_group()
        if self._writer is None:
            return memoryview(b"")
        self._writer.add_key_value_metadata(self._about)
        self._writer.close()
        return memoryview(self._sink.getvalue())

    def _convert(self) -> None:
        """Convert the pending messages to columns."""
        if not self._messages:
            return
        try:
            columns = to_arrays(self.kind, self._messages)
        except _MISFITS:
            # rare, so it may be slow: convert each message alone and remove those that do not fit
            self._remove_unrepresentable()
            columns = to_arrays(self.kind, self._messages)
        if self._messages:
            batch = pa.RecordBatch.from_arrays(
                [*self._entry_columns(columns[0]), *columns[1:]], schema=self._schema
            )
            self._record_streams()
            self._batches.append(batch)
            self._batched_rows += batch.num_rows
            self.rows += batch.num_rows
        self._runs, self._ids, self._messages = [], RowIds(), []
        if self._batched_rows >= ROW_GROUP:
            self._write_row_group()

    def _remove_unrepresentable(self) -> None:
        streams = [stream for stream, rows in self._runs for _ in range(rows)]
        fits = []
        for number, (stream, message) in enumerate(zip(streams, self._messages, strict=True)):
            error = _misfit(self.kind, message)
            fits.append(error is None)
            if error is not None:
                id, epoch = self._ids.id(number), self._ids.epoch[number]
                self.quarantined.append(
                    QuarantinedEntry(
                        stream, id, epoch, FIELDS[type(message)], encode(message), message, error
                    )
                )
        self._runs = [(stream, len(list(rows))) for stream, rows in groupby(compress(streams, fits))]
        self._ids = self._ids.where(fits)
        self._messages = list(compress(self._messages, fits))

    def _entry_columns(self, flags: "pa.Array[Any]") -> list["pa.Array[Any]"]:
        columns = [
            self._text_column([stream.feed for stream, _ in self._runs]),
            self._text_column([stream.symbol for stream, _ in self._runs]),
            *self._ids.columns(),
            flags,
        ]
        return (
            [*columns, self._text_column([stream.spec or None for stream, _ in self._runs])]
            if self.kind.spec
            else columns
        )

    def _text_column(self, texts: Sequence[str | None]) -> "pa.Array[Any]":
        """Return the column from one text per run."""
        values = sorted({text for text in texts if text is not None})
        index = {text: number for number, text in enumerate(values)}
        indices: list[int | None] = []
        for text, (_, rows) in zip(texts, self._runs, strict=True):
            indices += [None if text is None else index[text]] * rows
        return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(values, pa.string()))

    def _record_streams(self) -> None:
        row = 0
        for stream, rows in self._runs:
            first, _ = self.streams.get(stream.name, (self._ids.id(row), None))
            row += rows
            self.streams[stream.name] = (first, self._ids.id(row - 1))

    def _write_row_group(self) -> None:
        if not self._batches:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._sink,
                self._schema,
                compression="zstd",
                version="2.6",
                # the stubs allow only a bool
                use_dictionary=[  # type: ignore[arg-type]
                    field.name for field in self._schema if field.name not in _NO_DICTIONARY
                ],
                column_encoding={
                    name: "DELTA_BINARY_PACKED" for name in _DELTA if name in self._schema.names
                },
                write_page_index=True,
            )
        # one dictionary for all batches: otherwise the Parquet writer falls back to plain text
        table = pa.Table.from_batches(self._batches, self._schema).unify_dictionaries()
        self._writer.write_table(table, row_group_size=ROW_GROUP + BATCH)
        self._batches, self._batched_rows = [], 0
