"""docs/wire-format.md describes what the code does: tables, values, examples."""

import re
import zlib
from enum import IntEnum, IntFlag
from types import NoneType
from typing import Any, get_args, get_type_hints

import msgpack
import msgspec
import pytest
from wire import page

from tickbus.protocol import codec as wire
from tickbus.protocol import messages
from tickbus.protocol.names import KINDS, Keys, Stream
from tickbus.redis.registry import SCHEMA

ARRAYS = {
    "Trade": messages.Trade, "Quote": messages.Quote, "Gap": messages.Gap, "Bar": messages.Bar,
    "Signal": messages.Signal, "Bell": wire.Bell, "Head": wire.Head,
}  # fmt: skip
ENUMS: dict[str, type[IntEnum] | type[IntFlag]] = {
    "Side": messages.Side,
    "StreamKind": messages.StreamKind,
    "SignalState": messages.SignalState,
    "GapKind": messages.GapKind,
    "Flag": messages.Flag,
}

titles = pytest.mark.parametrize("title", ARRAYS)


def packed_as(hint: Any) -> str:
    """Return the page's word for a Python type."""
    if getattr(hint, "__origin__", None) in (list, tuple):
        return "array"
    if getattr(hint, "__origin__", None) is dict:
        return "map"
    return {str: "text", int: "int", bool: "bool", msgspec.Raw: "array"}.get(hint) or (
        "int" if issubclass(hint, IntEnum) else "?"
    )


@titles
def test_table_matches_the_struct(title: str) -> None:
    struct = ARRAYS[title]
    hints = get_type_hints(struct)
    rows = page.table(title)
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    assert [row[1] for row in rows] == [name.removesuffix("_text") for name in struct.__struct_fields__]
    for (_, name, kind, unit, nil, *_), field in zip(rows, struct.__struct_fields__, strict=True):
        hint = hints[field]
        may_be_nil = NoneType in get_args(hint) or hint is msgspec.Raw
        inner = (
            next((part for part in get_args(hint) if part is not NoneType), hint)
            if NoneType in get_args(hint)
            else hint
        )
        assert (name, kind, nil) == (name, packed_as(inner), "yes" if may_be_nil else "no")
        if isinstance(inner, type) and issubclass(inner, IntEnum):
            assert unit == inner.__name__
        if name.startswith("ts_") or name.endswith("_ts"):
            assert unit == "ns"


@titles
def test_examples_are_encoded_by_the_code_and_decoded_by_an_independent_library(title: str) -> None:
    found = page.examples(title)
    assert found
    for field, data, array in found:
        assert msgpack.unpackb(data) == array
        decoded = msgspec.msgpack.decode(data, type=ARRAYS[title])
        assert wire.encode(decoded) == data
        if field in "tqgbs":
            assert type(wire.decode(field.encode(), data)) is ARRAYS[title]
            assert wire.FIELDS[ARRAYS[title]] == field.encode()


@titles
def test_fields_of_a_newer_version_are_ignored(title: str) -> None:
    for _, data, array in page.examples(title):
        longer = msgpack.packb([*array, "new", 7])
        assert isinstance(longer, bytes)
        assert wire.encode(msgspec.msgpack.decode(longer, type=ARRAYS[title])) == data


@pytest.mark.parametrize("title", ENUMS)
def test_values_of_enums_and_flags(title: str) -> None:
    enum = ENUMS[title]
    written = [member for member in enum if member is not messages.GapKind.UNKNOWN]
    assert [(int(row[0]), row[1]) for row in page.table(title)] == [
        (member.value, (member.name or "").lower()) for member in written
    ]


def test_keys_and_shards_match_the_page() -> None:
    keys = {row[0] for row in page.table("Keys") if len(row) == 3 and row[0].startswith("tickbus")}
    ours = Keys()
    signals = Stream("signal", "watch", "BTC-USDT")
    dead_letters = ours.dead_letters(signals, "<service>").replace(signals.name, "<stream name>")
    of_code = [
        ours.meta, ours.lease("<owner>"), ours.standby("<feed>"), ours.members("<service>"),
        ours.relays, ours.relay("<relay>"),
        ours.report("<service>", "<member>"),
        ours.bell(7), ours.last(7), ours.era(7),
        ours.fence(7, "<owner>"), ours.holder(7, "<owner>"), ours.position(7, "<service>"),
        ours.state(7, "<service>"), ours.holders("<feed>"), ours.wants("<feed>", "<holder>"),
        ours.subscriptions(7, "<feed>"), dead_letters,
    ]  # fmt: skip
    specs = {"bar": "<spec>:"}
    streams = {f"tickbus:{{NN}}:{kind}:{specs.get(kind, '')}<feed>:<symbol>" for kind in KINDS}
    assert keys == {re.sub(r"\{[0-9]+\}", "{NN}", key) for key in of_code} | streams
    rows = page.section("Keys").split("| symbol |")[1].splitlines()[2:]
    for symbol, crc, of_64, of_128 in (
        [cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows if row
    ):
        assert crc == f"{zlib.crc32(symbol.encode()):08x}"
        assert [keys.tag(keys.shard(symbol)) for keys in (Keys(shards=64), Keys(shards=128))] == [
            of_64,
            of_128,
        ]


def test_schema_number_is_on_the_page() -> None:
    assert f"Schema `{SCHEMA}`." in page.PAGE
