"""Messages that do not fit their columns, as JSON lines for people and programs: never rounded or dropped."""

from collections.abc import Iterable
from enum import IntEnum

import msgspec

from services.recorder.parquet_writer import QuarantinedEntry


def lines(entries: Iterable[QuarantinedEntry]) -> bytes:
    """Return one object per entry: stream, id, epoch, reason, the message by field name with its original
    digits (null if it cannot be decoded), its field name on the wire, and its exact bytes in hex.
    """
    return b"".join(msgspec.json.encode(_object(entry)) + b"\n" for entry in entries)


def _object(entry: QuarantinedEntry) -> dict[str, object]:
    names = entry.message.__struct_fields__ if entry.message is not None else ()
    fields = {name.removesuffix("_text"): _readable(getattr(entry.message, name)) for name in names}
    return {
        "stream": entry.stream.name,
        "id": str(entry.id),
        "epoch": entry.epoch,
        "reason": str(entry.error),
        "message": fields or None,
        "field": entry.field.decode(),
        "payload": entry.payload.hex(),
    }


def _readable(value: object) -> object:
    return value.name.lower() if isinstance(value, IntEnum) else value
