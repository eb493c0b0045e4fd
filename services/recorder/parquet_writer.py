"""Rows of one kind and UTC day on their way into one Parquet file, built in memory: the disk sees only finished files.

Rows come stream by stream, each in its order, streams sorted by symbol: so a row group holds few symbols in its first columns'
statistics, equal values lie together for the compression, and order within a stream is the order in the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import compress, groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.archive.schema import Kind, Unrepresentable, arrays, why_not
from services.recorder.row_ids import Entries
from tickbus.protocol.codec import FIELDS, encode
from tickbus.protocol.messages import Message
from tickbus.protocol.names import Stream, StreamId

BATCH = 8_192
"""Rows that become columns at once: their messages still lie in the processor's cache."""
ROW_GROUP = 131_072
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).date()
_NO_DICTIONARY = ("id_ms", "seq", "ts_event", "ts_recv", "trade_id")
_DELTA = ("id_ms", "seq", "ts_event", "ts_recv")


def day_name(day: int) -> str:
    """Days since the epoch -> `2024-08-09`."""
    return (_EPOCH + timedelta(days=day)).isoformat()


@dataclass(frozen=True)
class Row:
    """An entry that no row can hold, with what is needed to keep it elsewhere."""

    stream: Stream
    id: StreamId
    epoch: int
    field: bytes
    payload: bytes
    message: Message | None
    """None: the payload cannot be read."""
    unfit: Unrepresentable


class ParquetBuilder:
    def __init__(self, kind: Kind, about: dict[str, str]) -> None:
        """`about`: key-value metadata of the file."""
        self.kind = kind
        self.rows = 0
        self.unfit: list[Row] = []
        self.streams: dict[str, tuple[StreamId, StreamId]] = {}
        """Name of each stream -> its first and last ID in the file."""
        self._about = about
        self._schema = kind.schema
        self._sink = pa.BufferOutputStream()
        self._writer: pq.ParquetWriter | None = None
        self._batches: list[pa.RecordBatch] = []
        self._batched = 0
        self._runs: list[tuple[Stream, int]] = []
        """Whose the waiting rows are: so many of this stream, then so many of that."""
        self._entries = Entries()
        self._messages: list[Any] = []

    def add(self, stream: Stream, entries: Entries, messages: Sequence[Any]) -> None:
        """Rows of one stream, in its order; of this kind and day."""
        self._runs.append((stream, len(entries)))
        self._entries.extend(entries)
        self._messages += messages
        if len(self._messages) >= BATCH:
            self._batch()

    def finish(self) -> memoryview:
        """-> the file. Empty where no row fitted: then there is none to write."""
        self._batch()
        self._row_group()
        if self._writer is None:
            return memoryview(b"")
        self._writer.add_key_value_metadata(self._about)
        self._writer.close()
        return memoryview(self._sink.getvalue())

    def _batch(self) -> None:
        """Turn the waiting messages into columns."""
        if not self._messages:
            return
        try:
            columns = arrays(self.kind, self._messages)
        except (Unrepresentable, pa.ArrowInvalid, OverflowError):
            # rare, so it may cost: look at each message, leave out those that do not fit, and the rest must
            self._leave_out_unfit()
            columns = arrays(self.kind, self._messages)
        if self._messages:
            batch = pa.RecordBatch.from_arrays(
                [*self._entry_columns(columns[0]), *columns[1:]], schema=self._schema
            )
            self._note_streams()
            self._batches.append(batch)
            self._batched += batch.num_rows
            self.rows += batch.num_rows
        self._runs, self._entries, self._messages = [], Entries(), []
        if self._batched >= ROW_GROUP:
            self._row_group()

    def _leave_out_unfit(self) -> None:
        streams = [stream for stream, rows in self._runs for _ in range(rows)]
        fits = []
        for number, (stream, message) in enumerate(zip(streams, self._messages, strict=True)):
            unfit = why_not(self.kind, message)
            fits.append(unfit is None)
            if unfit is not None:
                id, epoch = self._entries.id(number), self._entries.epoch[number]
                self.unfit.append(
                    Row(stream, id, epoch, FIELDS[type(message)], encode(message), message, unfit)
                )
        self._runs = [(stream, len(list(rows))) for stream, rows in groupby(compress(streams, fits))]
        self._entries = self._entries.where(fits)
        self._messages = list(compress(self._messages, fits))

    def _entry_columns(self, flags: "pa.Array[Any]") -> list["pa.Array[Any]"]:
        columns = [
            self._names([stream.feed for stream, _ in self._runs]),
            self._names([stream.symbol for stream, _ in self._runs]),
            *self._entries.columns(),
            flags,
        ]
        return (
            [*columns, self._names([stream.spec or None for stream, _ in self._runs])]
            if self.kind.spec
            else columns
        )

    def _names(self, texts: Sequence[str | None]) -> "pa.Array[Any]":
        """One text per run -> the column."""
        values = sorted({text for text in texts if text is not None})
        index = {text: number for number, text in enumerate(values)}
        indices: list[int | None] = []
        for text, (_, rows) in zip(texts, self._runs, strict=True):
            indices += [None if text is None else index[text]] * rows
        return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(values, pa.string()))

    def _note_streams(self) -> None:
        row = 0
        for stream, rows in self._runs:
            first, _ = self.streams.get(stream.name, (self._entries.id(row), None))
            row += rows
            self.streams[stream.name] = (first, self._entries.id(row - 1))

    def _row_group(self) -> None:
        if not self._batches:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._sink,
                self._schema,
                compression="zstd",
                version="2.6",
                # the stubs know only yes and no
                use_dictionary=[  # type: ignore[arg-type]
                    field.name for field in self._schema if field.name not in _NO_DICTIONARY
                ],
                column_encoding={
                    name: "DELTA_BINARY_PACKED" for name in _DELTA if name in self._schema.names
                },
                write_page_index=True,
            )
        # one dictionary for all batches, or the Parquet writer falls back to plain text
        table = pa.Table.from_batches(self._batches, self._schema).unify_dictionaries()
        self._writer.write_table(table, row_group_size=ROW_GROUP + BATCH)
        self._batches, self._batched = [], 0
