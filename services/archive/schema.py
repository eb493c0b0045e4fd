"""The columns of the recorded files, and messages to columns and back: one definition per kind. Pure. docs/files.md says the same for readers.

Decimals go from the wire's digits to decimal128(38, 18) without a binary float and without rounding; what does not fit raises
Unrepresentable, and `why_not` says of one message what is wrong with it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tickbus.protocol.messages import Bar, Gap, GapKind, Message, Quote, Side, StreamKind, Trade

DECIMAL = pa.decimal128(38, 18)
TIME = pa.timestamp("ns", "UTC")
NAME = pa.dictionary(pa.int32(), pa.string())
_INT64 = range(-(1 << 63), 1 << 63)
_INT32 = range(-(1 << 31), 1 << 31)


class Unrepresentable(ValueError):
    """A value that its column cannot hold exactly. `reason` is short, for a metric's label: `decimal` or `integer`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    field: str
    """Of the message."""
    take: Callable[[list[Any]], "pa.Array[Any]"]
    """Values of the field -> the column. Raises Unrepresentable, pa.ArrowInvalid or OverflowError if one value does not fit."""
    give: Callable[["pa.Array[Any]"], list[Any]]
    """The column -> values of the field."""


_DIGITS = b"0123456789.-"
_SHORT = 20
"""So many characters of digits, dot and sign fit as soon as Arrow takes them."""
_FITS = r"^-?[0-9]{1,20}(\.[0-9]{1,18})?$"
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)


def decimals(texts: Sequence[str | None]) -> "pa.Array[Any]":
    """Digits -> decimal128(38, 18), exactly; Unrepresentable or pa.ArrowInvalid where that cannot be.

    Arrow's own cast is taken only for text that is known to be safe: from 39 digits on, and for exponents, it silently wraps
    around at 128 bits instead of refusing.
    """
    array = pa.array(texts, pa.string())
    longest = pc.max(pc.binary_length(array)).as_py() or 0
    data = array.buffers()[2]
    strange = data is not None and data.to_pybytes().translate(None, _DIGITS)
    if not strange and longest <= _SHORT:
        return array.cast(DECIMAL)
    if pc.all(pc.match_substring_regex(array, _FITS)).as_py() is not False:
        return array.cast(DECIMAL)
    return pa.array([None if text is None else exact(text) for text in texts], DECIMAL)


def exact(text: str) -> Decimal:
    """Digits -> the Decimal, if decimal128(38, 18) holds it; Unrepresentable otherwise."""
    if not _PLAIN.fullmatch(text):
        raise Unrepresentable("decimal", f"{text[:80]!r} is no plain decimal number")
    whole, _, places = text.lstrip("-").partition(".")
    if len(whole.lstrip("0")) > 20 or len(places.rstrip("0")) > 18:
        raise Unrepresentable(
            "decimal",
            f"{text[:80]} does not fit decimal128(38, 18): at most 20 digits before the point and 18 after it",
        )
    # without the zeros that pass the 18th place: Arrow takes no Decimal with more places than the column, zeros or not
    return Decimal(f"{'-' if text[0] == '-' else ''}{whole.lstrip('0') or '0'}.{places.rstrip('0') or '0'}")


def digits(column: "pa.Array[Any]") -> list[str | None]:
    """A decimal column -> its digits, exact, without the zeros that fill the column's 18 places."""
    texts: list[str | None] = pc.utf8_rtrim(pc.utf8_rtrim(column.cast(pa.string()), "0"), ".").to_pylist()
    # Arrow writes small values and zero with an exponent, which was trimmed too
    return [
        text if text is None or "E" not in text else _small(column[row].as_py())
        for row, text in enumerate(texts)
    ]


def _small(value: Decimal) -> str:
    return format(value, "f").rstrip("0").rstrip(".")


def _values(column: "pa.Array[Any]") -> list[Any]:
    return column.to_pylist()


def integers(column: "pa.Array[Any]") -> list[int]:
    """A column of 64-bit integers or times without nulls; times as ns, for Python's datetime has none."""
    values = column.buffers()[1]
    assert values is not None and not column.null_count
    # straight from memory: ten times as fast as by one scalar object a row
    return memoryview(values).cast("b").cast("q")[column.offset : column.offset + len(column)].tolist()


def names(column: "pa.Array[Any]") -> list[str | None]:
    """A dictionary column -> its texts."""
    texts: list[str | None] = column.dictionary.to_pylist()  # type: ignore[attr-defined]
    rows: list[int | None] = column.indices.to_pylist()  # type: ignore[attr-defined]
    return [None if row is None else texts[row] for row in rows]


def _taking(type: pa.DataType) -> Callable[[list[Any]], "pa.Array[Any]"]:
    return lambda values: pa.array(values, type)


def _plain(name: str, type: pa.DataType, give: Callable[["pa.Array[Any]"], list[Any]] = _values) -> Column:
    return Column(name, type, name, _taking(type), give)


def _decimal(name: str) -> Column:
    return Column(name, DECIMAL, f"{name}_text", decimals, digits)


def _enum(
    name: str, enum: type[IntEnum], null: IntEnum | None = None, newer: IntEnum | None = None
) -> Column:
    """As text in lower case. null: the member that has no text. newer: what a text that a newer version wrote is read as."""
    texts = {member: None if member is null else member.name.lower() for member in enum}
    members = {text: member for member, text in texts.items()}

    def take(values: list[Any]) -> "pa.Array[Any]":
        return pa.array([texts[value] for value in values], pa.string())

    return Column(
        name,
        pa.string(),
        name,
        take,
        lambda column: [
            members[text] if newer is None else members.get(text, newer) for text in column.to_pylist()
        ],
    )


def _time(name: str) -> Column:
    return _plain(name, TIME, integers)


COMMON: tuple[tuple[str, pa.DataType], ...] = (
    ("feed", NAME),
    ("symbol", NAME),
    ("id_ms", pa.int64()),
    ("seq", pa.int64()),
    ("epoch", pa.int64()),
    ("flags", pa.int32()),
)
"""What every row has; it comes from the stream entry, not from the message (flags: from both)."""


@dataclass(frozen=True)
class Kind:
    name: str
    message: type[Any]
    columns: tuple[Column, ...]
    spec: bool
    """Whether there is a column `spec`: the bar's, or that of the bar stream in which a Gap stands (else null)."""
    day_of: Callable[[Any], int]
    """The time, in ns, whose UTC day is the folder."""

    @property
    def schema(self) -> pa.Schema:
        spec = [("spec", NAME)] if self.spec else []
        return pa.schema([*COMMON, *spec, *((column.name, column.type) for column in self.columns)])


TRADE = Kind(
    "trade",
    Trade,
    (
        *map(_decimal, ("price", "size", "bid", "ask")),
        _enum("side", Side, null=Side.UNKNOWN, newer=Side.UNKNOWN),
        _plain("trade_id", pa.string()),
        _time("ts_event"),
        _time("ts_recv"),
    ),
    spec=False,
    day_of=attrgetter("ts_event"),
)
QUOTE = Kind(
    "quote",
    Quote,
    (*map(_decimal, ("bid", "bid_size", "ask", "ask_size")), _time("ts_event"), _time("ts_recv")),
    spec=False,
    day_of=attrgetter("ts_event"),
)
BAR = Kind(
    "bar",
    Bar,
    (
        _time("start"),
        _time("end"),
        *map(_decimal, ("open", "high", "low", "close", "volume", "value", "vwap")),
        _plain("trades", pa.int64()),
        *map(_decimal, ("buy_volume", "sell_volume")),
        _plain("revision", pa.int32()),
        _plain(
            "quality",
            pa.list_(pa.string()),
            lambda column: [tuple(value or ()) for value in column.to_pylist()],
        ),
    ),
    spec=True,
    day_of=attrgetter("start"),
)
GAP = Kind(
    "gap",
    Gap,
    (
        _enum("stream", StreamKind),
        _plain("source", pa.string()),
        _enum("kind", GapKind, newer=GapKind.UNKNOWN),
        _time("from_ts"),
        _time("to_ts"),
        _plain("from_id", pa.string()),
        _plain("to_id", pa.string()),
        _plain("count", pa.int64()),
        _plain("repairable", pa.bool_()),
        _plain("repaired", pa.bool_()),
    ),
    spec=True,
    day_of=attrgetter("from_ts"),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in (TRADE, QUOTE, BAR, GAP)}

_MESSAGE_COLUMNS = {
    kind.name: tuple((column, attrgetter(column.field)) for column in kind.columns) for kind in KINDS.values()
}
_HAS_FLAGS = (TRADE, QUOTE)


def arrays(kind: Kind, messages: list[Any]) -> list["pa.Array[Any]"]:
    """Messages of one kind -> `flags`, then the kind's own columns. Raises as Column.take does."""
    flags = [message.flags for message in messages] if kind in _HAS_FLAGS else [0] * len(messages)
    return [
        pa.array(flags, pa.int32()),
        *(column.take(list(map(field, messages))) for column, field in _MESSAGE_COLUMNS[kind.name]),
    ]


def why_not(kind: Kind, message: Message) -> Unrepresentable | None:
    """What keeps this message out of its row; None if nothing does."""
    try:
        for column in kind.columns:
            _check(column, getattr(message, column.field))
        _check_integer("flags", getattr(message, "flags", 0), _INT32)
    except Unrepresentable as unfit:
        return unfit
    return None


def _check(column: Column, value: Any) -> None:
    if value is None:
        return
    if column.type == DECIMAL:
        exact(value)
    elif column.type == TIME or column.type == pa.int64():
        _check_integer(column.name, value, _INT64)
    elif column.type == pa.int32():
        _check_integer(column.name, value, _INT32)


def _check_integer(name: str, value: int, bounds: Iterable[int]) -> None:
    if value not in bounds:
        raise Unrepresentable(
            "integer", f"{name} {value} does not fit its column of {'64' if bounds is _INT64 else '32'} bits"
        )


def complete(kind: Kind, table: pa.Table) -> pa.Table:
    """Return the columns of this version, in its order: one that the file lacks, because an older version wrote it, has the default of
    its field; one that only a newer version knows is left out. ValueError for a column that has no default."""
    columns: list[pa.Array[Any] | pa.ChunkedArray[Any]] = []
    for field in kind.schema:
        if field.name in table.column_names:
            columns.append(_cast(table[field.name], field.type))
        else:
            columns.append(pa.array([_default(kind, field.name)] * table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=kind.schema)


def _cast(column: "pa.ChunkedArray[Any]", type: pa.DataType) -> "pa.ChunkedArray[Any]":
    if column.type == type:
        return column
    return column.cast(pa.string()).dictionary_encode() if type == NAME else column.cast(type)


_ENTRY_DEFAULTS: dict[str, object] = {"feed": "", "id_ms": 0, "seq": 0, "epoch": 0, "flags": 0, "spec": None}


def _default(kind: Kind, name: str) -> object:
    if name in _ENTRY_DEFAULTS:
        return _ENTRY_DEFAULTS[name]
    fields = {field.name: field for field in msgspec.structs.fields(kind.message)}
    for column in kind.columns:
        if column.name == name and (default := fields[column.field].default) is not msgspec.NODEFAULT:
            return column.take([default])[0].as_py()
    raise ValueError(f"no column {name}")


def messages(kind: Kind, batch: pa.RecordBatch) -> list[Message]:
    """Rows -> their messages. Decimals come back with the same value, but without trailing zeros."""
    fields: dict[str, list[Any]] = {
        column.field: column.give(batch.column(column.name)) for column in kind.columns
    }
    fields |= {name: names(batch.column(name)) for name in ("symbol", "spec") if name in batch.schema.names}
    fields["flags"] = batch.column("flags").to_pylist()
    return list(map(kind.message, *(fields[name] for name in kind.message.__struct_fields__)))
