"""The columns of the recorded files, and messages to columns and back: one definition per kind. Pure.
docs/files.md documents them for readers.

Decimals go from the wire's digits to decimal128(38, 18) without a binary float and without rounding; what
does not fit raises Unrepresentable, and `representation_error` returns the reason for one message.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import IntEnum
from functools import cache
from itertools import accumulate, islice
from operator import attrgetter
from types import NoneType
from typing import Any, get_args

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tickbus.protocol.messages import (
    Bar,
    Gap,
    GapKind,
    Message,
    Quote,
    Side,
    Signal,
    SignalState,
    StreamKind,
    Trade,
)
from tickbus.protocol.names import Stream

DECIMAL = pa.decimal128(38, 18)
TIME = pa.timestamp("ns", "UTC")
NAME = pa.dictionary(pa.int32(), pa.string())
DETAILS = pa.list_(pa.struct([("name", pa.string()), ("value", DECIMAL)]))
_INT64 = range(-(1 << 63), 1 << 63)
_INT32 = range(-(1 << 31), 1 << 31)


class Unrepresentable(ValueError):
    """A value that its column cannot hold exactly, or an entry that is no message of this version.

    `reason`, a metric label: `decimal`, `integer`, `text` or `unreadable`.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    field: str
    """Name in the message."""
    to_arrow: Callable[[list[Any]], "pa.Array[Any]"]
    """Field values to the column. Unrepresentable, pa.ArrowInvalid or OverflowError if one does not fit."""
    from_arrow: Callable[["pa.Array[Any]"], list[Any]]
    """The column to field values."""
    check: Callable[[Any], None] | None = None
    """Unrepresentable if a value does not fit, where the type of the column does not say so."""


_DIGITS = b"0123456789.-"
_ALWAYS_FITS = 20
"""Up to this many characters of digits, dot and sign, what Arrow accepts fits."""
_FITS = r"^-?[0-9]{1,20}(\.[0-9]{1,18})?$"
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)


def decimal_array(texts: Sequence[str | None]) -> "pa.Array[Any]":
    """Return the exact decimal128(38, 18) of each text; Unrepresentable or pa.ArrowInvalid if there is none.

    Arrow's own cast is used only for text known to be safe: from 39 digits on, and for exponents, it silently
    wraps around at 128 bits instead of raising.
    """
    array = pa.array(texts, pa.string())
    longest = pc.max(pc.binary_length(array)).as_py() or 0
    data = array.buffers()[2]
    other_characters = data is not None and data.to_pybytes().translate(None, _DIGITS)
    if not other_characters and longest <= _ALWAYS_FITS:
        return array.cast(DECIMAL)
    if pc.all(pc.match_substring_regex(array, _FITS)).as_py() is not False:
        return array.cast(DECIMAL)
    return pa.array([None if text is None else parse_decimal(text) for text in texts], DECIMAL)


def parse_decimal(text: str) -> Decimal:
    """Return the Decimal of a text of digits. Unrepresentable if decimal128(38, 18) cannot hold it."""
    if not _PLAIN.fullmatch(text):
        raise Unrepresentable("decimal", f"invalid decimal {text[:80]!r}: expected plain digits")
    whole, _, places = text.lstrip("-").partition(".")
    if len(whole.lstrip("0")) > 20 or len(places.rstrip("0")) > 18:
        raise Unrepresentable(
            "decimal",
            f"{text[:80]} does not fit decimal128(38, 18): at most 20 digits before the point, 18 after",
        )
    # without zeros past the 18th place: Arrow rejects any more places than the column has, zeros or not
    return Decimal(f"{'-' if text[0] == '-' else ''}{whole.lstrip('0') or '0'}.{places.rstrip('0') or '0'}")


def decimal_texts(column: "pa.Array[Any]") -> list[str | None]:
    """Return the exact digits of a decimal column, without the zeros that pad its 18 places."""
    texts: list[str | None] = pc.utf8_rtrim(pc.utf8_rtrim(column.cast(pa.string()), "0"), ".").to_pylist()
    # Arrow writes small values and zero with an exponent, which was trimmed as well
    return [
        text if text is None or "E" not in text else _small(column[row].as_py())
        for row, text in enumerate(texts)
    ]


def _small(value: Decimal) -> str:
    return format(value, "f").rstrip("0").rstrip(".")


def _values(column: "pa.Array[Any]") -> list[Any]:
    return column.to_pylist()


def integer_values(column: "pa.Array[Any]") -> list[int]:
    """Return a column of 64-bit integers or times without nulls; times in ns, which datetime lacks."""
    values = column.buffers()[1]
    assert values is not None and not column.null_count
    # straight from memory: ten times as fast as one scalar object per row
    return memoryview(values).cast("b").cast("q")[column.offset : column.offset + len(column)].tolist()


def dictionary_texts(column: "pa.Array[Any]") -> list[str | None]:
    """Return the texts of a dictionary column."""
    texts: list[str | None] = column.dictionary.to_pylist()  # type: ignore[attr-defined]
    rows: list[int | None] = column.indices.to_pylist()  # type: ignore[attr-defined]
    return [None if row is None else texts[row] for row in rows]


def _array_of(type: pa.DataType) -> Callable[[list[Any]], "pa.Array[Any]"]:
    return lambda values: pa.array(values, type)


def _plain(
    name: str, type: pa.DataType, from_arrow: Callable[["pa.Array[Any]"], list[Any]] = _values
) -> Column:
    return Column(name, type, name, _array_of(type), from_arrow)


def _decimal(name: str) -> Column:
    return Column(name, DECIMAL, f"{name}_text", decimal_array, decimal_texts)


def _enum(
    name: str, enum: type[IntEnum], null: IntEnum | None = None, unknown: IntEnum | None = None
) -> Column:
    """As lower-case text. `null`: the member without text. `unknown`: the one for texts of newer versions."""
    texts = {member: None if member is null else member.name.lower() for member in enum}
    members = {text: member for member, text in texts.items()}

    def to_arrow(values: list[Any]) -> "pa.Array[Any]":
        return pa.array([texts[value] for value in values], pa.string())

    return Column(
        name,
        pa.string(),
        name,
        to_arrow,
        lambda column: [
            members[text] if unknown is None else members.get(text, unknown) for text in column.to_pylist()
        ],
    )


def _time(name: str) -> Column:
    return _plain(name, TIME, integer_values)


def _optional_time(name: str) -> Column:
    """0 in the message means unknown: null, not 1970."""

    def to_arrow(values: list[Any]) -> "pa.Array[Any]":
        return pa.array([value or None for value in values], TIME)

    def from_arrow(column: "pa.Array[Any]") -> list[Any]:
        return integer_values(column.cast(pa.int64()).fill_null(0))

    return Column(name, TIME, name, to_arrow, from_arrow)


def _words_of(column: "pa.Array[Any]") -> list[Any]:
    return [tuple(value or ()) for value in column.to_pylist()]


_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
"""A newer version may have more words; what does not look like one comes from elsewhere."""


def _check_words(words: Iterable[str]) -> None:
    for word in words:
        if not _WORD.fullmatch(word):
            raise Unrepresentable(
                "text", f"invalid quality {word[:80]!r}: expected words like has_gap, of a-z 0-9 _"
            )


def _check_direction(value: int) -> None:
    if value not in (-1, 0, 1):
        raise Unrepresentable("integer", f"invalid direction {value}: expected 1, -1 or 0")


def _checked(column: Column, check: Callable[[Any], None]) -> Column:
    """Every different value is checked."""

    def to_arrow(values: list[Any]) -> "pa.Array[Any]":
        for value in set(values):
            check(value)
        return column.to_arrow(values)

    return replace(column, to_arrow=to_arrow, check=check)


def details_array(values: Sequence[Sequence[tuple[str, str]]]) -> "pa.Array[Any]":
    """Return (name, decimal text) pairs as a list of structs. Raises like `decimal_array`."""
    pairs = [pair for each in values for pair in each]
    numbers = pa.StructArray.from_arrays(
        [pa.array([name for name, _ in pairs], pa.string()), decimal_array([text for _, text in pairs])],
        fields=list(DETAILS.value_type),
    )
    ends = accumulate(map(len, values), initial=0)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), numbers, type=DETAILS)


def details_pairs(column: "pa.Array[Any]") -> list[tuple[tuple[str, str], ...]]:
    """Return the pairs of each row; null has none."""
    numbers = column.flatten()  # type: ignore[attr-defined]
    texts: list[Any] = decimal_texts(numbers.field("value"))
    pairs = zip(numbers.field("name").to_pylist(), texts, strict=True)
    return [tuple(islice(pairs, length or 0)) for length in pc.list_value_length(column).to_pylist()]


def _check_details(pairs: Iterable[tuple[str, str]]) -> None:
    for _, text in pairs:
        parse_decimal(text)


COMMON: tuple[tuple[str, pa.DataType], ...] = (
    ("feed", NAME),
    ("symbol", NAME),
    ("id_ms", pa.int64()),
    ("seq", pa.int64()),
    ("epoch", pa.int64()),
    ("flags", pa.int32()),
)
"""Columns of every row, taken from the stream entry, not from the message (flags: from both)."""


@dataclass(frozen=True)
class Kind:
    name: str
    message: type[Any]
    columns: tuple[Column, ...]
    spec: bool
    """Whether there is a column `spec`: the bar's, or that of the bar stream of a Gap (otherwise null)."""
    day_of: Callable[[Any], int]
    """The time, in ns, whose UTC day names the folder."""
    may_lack_time: bool = False
    """Whether that may be 0, for unknown: then the time of the stream ID stands in for it."""

    @property
    def schema(self) -> pa.Schema:
        spec = [("spec", NAME)] if self.spec else []
        return pa.schema([*COMMON, *spec, *((column.name, column.type) for column in self.columns)])


TRADE = Kind(
    "trade",
    Trade,
    (
        *map(_decimal, ("price", "size", "bid", "ask")),
        _enum("side", Side, null=Side.UNKNOWN, unknown=Side.UNKNOWN),
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
        _plain("quality", pa.list_(pa.string()), _words_of),
    ),
    spec=True,
    day_of=attrgetter("start"),
)
SIGNAL = Kind(
    "signal",
    Signal,
    (
        _plain("name", pa.string()),
        *map(_decimal, ("value", "threshold")),
        _plain("window", pa.string()),
        _plain("message", pa.string()),
        _optional_time("ts_event"),
        _enum("state", SignalState, unknown=SignalState.INDICATOR),
        _checked(_plain("direction", pa.int32()), _check_direction),
        _plain("unit", pa.string()),
        _checked(_plain("quality", pa.list_(pa.string()), _words_of), _check_words),
        _optional_time("episode"),
        _plain("cause", pa.string()),
        _plain("params", pa.int64()),
        Column("details", DETAILS, "details", details_array, details_pairs, _check_details),
    ),
    spec=False,
    day_of=attrgetter("ts_event"),
    may_lack_time=True,
)
GAP = Kind(
    "gap",
    Gap,
    (
        _enum("stream", StreamKind),
        _plain("source", pa.string()),
        _enum("kind", GapKind, unknown=GapKind.UNKNOWN),
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
KINDS: dict[str, Kind] = {kind.name: kind for kind in (TRADE, QUOTE, BAR, SIGNAL, GAP)}

_MESSAGE_COLUMNS = {
    kind.name: tuple((column, attrgetter(column.field)) for column in kind.columns) for kind in KINDS.values()
}
_HAS_FLAGS = (TRADE, QUOTE)


def to_arrays(kind: Kind, messages: list[Any]) -> list["pa.Array[Any]"]:
    """Return the columns of messages of one kind: `flags`, then its own. Raises like Column.to_arrow."""
    flags = [message.flags for message in messages] if kind in _HAS_FLAGS else [0] * len(messages)
    return [
        pa.array(flags, pa.int32()),
        *(column.to_arrow(list(map(field, messages))) for column, field in _MESSAGE_COLUMNS[kind.name]),
    ]


def representation_error(kind: Kind, message: Message) -> Unrepresentable | None:
    """Return why this message does not fit its columns; None if it fits."""
    try:
        for column in kind.columns:
            _check(column, getattr(message, column.field))
        _check_integer("flags", getattr(message, "flags", 0), _INT32)
    except Unrepresentable as error:
        return error
    return None


def _check(column: Column, value: Any) -> None:
    if value is None:
        return
    if column.check is not None:
        column.check(value)
    elif column.type == DECIMAL:
        parse_decimal(value)
    elif column.type == TIME or column.type == pa.int64():
        _check_integer(column.name, value, _INT64)
    elif column.type == pa.int32():
        _check_integer(column.name, value, _INT32)


def _check_integer(name: str, value: int, bounds: Iterable[int]) -> None:
    if value not in bounds:
        raise Unrepresentable(
            "integer", f"{name} {value} does not fit its {'64' if bounds is _INT64 else '32'}-bit column"
        )


def conform(kind: Kind, table: pa.Table) -> pa.Table:
    """Return the columns of this version, in its order. A column missing in an older file gets the default of
    its field; one that only a newer version knows is dropped. ValueError if there is no default.
    """
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


def misfit(kind: Kind, schema: pa.Schema) -> str:
    """Return why a file with these columns cannot be read as this kind; empty if it can."""
    for field in kind.schema:
        if field.name not in schema.names:
            try:
                _default(kind, field.name)
            except ValueError as error:
                return str(error)
        elif schema.names.count(field.name) > 1:
            return f"two columns {field.name}"
        elif not _can_cast(found := schema.field(field.name).type, field.type):
            return f"column {field.name} is {found}, expected {field.type}"
    return ""


def _can_cast(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether `_cast` keeps every value, or raises: a binary float, or text as a number, would be neither."""
    types = pa.types
    if found == wanted or types.is_null(found):
        return True
    if types.is_dictionary(found):
        found = found.value_type
    if wanted == DECIMAL:
        return types.is_decimal(found) or types.is_integer(found)
    if wanted == TIME:
        return types.is_timestamp(found) or types.is_int64(found)
    if types.is_integer(wanted):
        return types.is_integer(found)
    if wanted in (NAME, pa.string()):
        return types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
    if types.is_list(wanted):
        return (types.is_list(found) or types.is_large_list(found)) and _can_cast(
            found.value_type, wanted.value_type
        )
    if types.is_struct(wanted):
        return types.is_struct(found) and (
            [field.name for field in found] == [field.name for field in wanted]
            and all(map(_can_cast, (field.type for field in found), (field.type for field in wanted)))
        )
    return False


def check_values(kind: Kind, table: pa.Table) -> None:
    """ValueError unless these rows can become messages: no nulls where there is always a value, and only
    names that may stand on a bus. Files that somebody else wrote may have others.
    """
    for name in _never_null(kind):
        if table[name].null_count:
            raise ValueError(f"column {name} has {table[name].null_count} nulls")
    for name in (column.name for column in kind.columns if pa.types.is_list(column.type)):
        if nulls := sum(_nulls_within(lists) for lists in table[name].chunks):
            raise ValueError(f"column {name} has {nulls} nulls within its lists")
    specs = _texts(table["spec"]) if kind is BAR else {""}
    stream = "bar" if kind is BAR else "trade"
    for spec in specs:
        Stream(stream, "x", "X", spec).check()
    any_spec = next(iter(specs), "time:1s")
    for feed in _texts(table["feed"]):
        Stream(stream, feed or "x", "X", any_spec).check()  # empty: the file has no such column
    for symbol in _texts(table["symbol"]):
        Stream(stream, "x", symbol, any_spec).check()
    if kind is GAP:
        for text in pc.unique(table["stream"]).to_pylist():
            if str(text).upper() not in StreamKind.__members__:
                raise ValueError(f"column stream has {text!r}")


def _nulls_within(lists: "pa.Array[Any]") -> int:
    values: pa.Array[Any] = lists.flatten()  # type: ignore[attr-defined]
    fields: list[pa.Array[Any]] = values.flatten() if pa.types.is_struct(values.type) else []  # type: ignore[attr-defined]
    return sum(array.null_count for array in (fields or [values]))


def _texts(column: "pa.ChunkedArray[Any]") -> set[str]:
    """Return the texts of a dictionary column."""
    return {str(text) for chunk in column.chunks for text in chunk.dictionary.to_pylist()}  # type: ignore[attr-defined]


_NULLABLE = {"trade": ("side",), "bar": ("quality",), "signal": ("ts_event", "episode", "quality", "details")}
"""Columns in which null stands for a value of the field."""


@cache
def _never_null(kind: Kind) -> tuple[str, ...]:
    fields = {field.name: field for field in msgspec.structs.fields(kind.message)}
    columns = [
        column.name
        for column in kind.columns
        if column.name not in _NULLABLE.get(kind.name, ()) and not _is_optional(fields[column.field].type)
    ]
    return (*(name for name, _ in COMMON), *(["spec"] if kind is BAR else []), *columns)


def _is_optional(type: Any) -> bool:
    return NoneType in get_args(type)


_ENTRY_DEFAULTS: dict[str, object] = {"feed": "", "id_ms": 0, "seq": 0, "epoch": 0, "flags": 0, "spec": None}


def _default(kind: Kind, name: str) -> object:
    if name in _ENTRY_DEFAULTS:
        return _ENTRY_DEFAULTS[name]
    fields = {field.name: field for field in msgspec.structs.fields(kind.message)}
    for column in kind.columns:
        if column.name == name and (default := fields[column.field].default) is not msgspec.NODEFAULT:
            return column.to_arrow([default])[0].as_py()
    raise ValueError(f"missing column {name}")


def to_messages(kind: Kind, batch: pa.RecordBatch) -> list[Message]:
    """Return the messages of the rows. Decimals have the same value, but no trailing zeros."""
    fields: dict[str, list[Any]] = {
        column.field: column.from_arrow(batch.column(column.name)) for column in kind.columns
    }
    fields |= {
        name: dictionary_texts(batch.column(name))
        for name in ("symbol", "spec")
        if name in batch.schema.names
    }
    fields["flags"] = batch.column("flags").to_pylist()
    return list(map(kind.message, *(fields[name] for name in kind.message.__struct_fields__)))
