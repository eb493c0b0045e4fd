"""Messages that no row can hold, as JSON lines for people and programs: nothing is rounded, nothing is dropped."""

from collections.abc import Iterable
from enum import IntEnum

import msgspec

from services.recorder.parquet_writer import Row


def lines(rows: Iterable[Row]) -> bytes:
    """One object a row: stream, id, epoch, reason, the message by field name with its digits as they came (null if it cannot be
    read), and its exact bytes in hex under the name of their field on the wire."""
    return b"".join(msgspec.json.encode(_object(row)) + b"\n" for row in rows)


def _object(row: Row) -> dict[str, object]:
    names = row.message.__struct_fields__ if row.message is not None else ()
    fields = {name.removesuffix("_text"): _readable(getattr(row.message, name)) for name in names}
    return {
        "stream": row.stream.name,
        "id": str(row.id),
        "epoch": row.epoch,
        "reason": str(row.unfit),
        "message": fields or None,
        "field": row.field.decode(),
        "payload": row.payload.hex(),
    }


def _readable(value: object) -> object:
    return value.name.lower() if isinstance(value, IntEnum) else value
