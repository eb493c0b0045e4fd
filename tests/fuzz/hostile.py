"""Hostile bytes, JSON and MessagePack: from scratch by a grammar, and by damage to what is valid. Pure."""

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

import msgpack

_NUMBERS = """
    0 -0 -1 1 1.5 0.1 1e5 1E-400 1e400 1e999 -1e999 1e64 1e-64 1e38
    123456789012345678901.5 0.0000000000000000001
    2147483648 4294967295 9007199254740991 9007199254740993 99999999999 9999999999999 1723210200123
    9223372036854775807 9223372036854775808 18446744073709551615 18446744073709551616 -9223372036854775809
    1_000 0x10 01 +1 1. .5 NaN Infinity -Infinity
"""
NUMBERS = _NUMBERS.split()
TEXTS = [
    "",
    " ",
    "x",
    "NaN",
    "Infinity",
    "-1",
    "0",
    "-0.0",
    "1e30",
    "1e999999",
    "1,5",
    "١",
    "1_000",
    "0" * 70,
    "9" * 70,
    "buy",
    "trade",
    "quote",
    "error",
    "\0",
    "\u202e",
    "\ud800",
    "😀",
    "a" * 5000,
    "\x1b[31m\x1b]0;x\x07",
    "a\nb\r\nc",
    "9999-12-31T23:59:59Z",
    "0001-01-01",
    "2024-13-45",
    "1969-12-31T23:59:59.999999999-23:59",
    "1700000000000-1",
    "9999999999999-1",
    "18446744073709551615-18446744073709551615",
    "-",
    "1-",
    "-1",
    "1-x",
    "trade:binance:BTC-USDT",
    "bar:time:1m:binance:BTC-USDT",
    "trade::",
    "bar::::",
    "{}",
    "[]",
    "null",
]
INTEGERS = [
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 53) - 1,
    1 << 53,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    -(1 << 31),
    -(1 << 63),
    1_700_000_000_000,
    1_700_000_000_000_000_000,
    9_999_999_999_999,
]
_KEYS = """
    e s t p q T m X b B a A u E stream data result id error code msg message reason event type status method
    ret cmd_id seq_id trace seq tick_time price volume volumn trade_direction bids asks trades quotes symbol
    time side bid bid_size ask ask_size action channel arg params args items
"""
KEYS = _KEYS.split()
_TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"true",
    b"1e999",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\x00",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"-",
    b"\xc1",
    b"\xc0",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xff" * 9,
    b"PAR1",
]


def text_of_json(chance: Random, depth: int = 3) -> str:
    """Return a JSON value, or something close to one."""
    kind = chance.randrange(12)
    if kind < 3 or (depth <= 0 and kind > 8):
        return chance.choice(NUMBERS)
    if kind < 6:
        return _quoted(chance, chance.choice(TEXTS))
    if kind < 8:
        return chance.choice(("null", "true", "false", "nul", "undefined", "", '"', "'x'"))
    if kind == 8:
        deep = chance.choice((20, 400, 3000))
        return chance.choice(("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "[" * deep))
    if kind < 10:
        return "[" + ",".join(text_of_json(chance, depth - 1) for _ in range(chance.randrange(4))) + "]"
    fields = (
        f"{_quoted(chance, chance.choice(KEYS))}:{text_of_json(chance, depth - 1)}"
        for _ in range(chance.randrange(5))
    )
    return "{" + ",".join(fields) + chance.choice(("}", "}", "}", "}", ",}", "", "}}"))


def _quoted(chance: Random, text: str) -> str:
    return json.dumps(text, ensure_ascii=chance.random() < 0.5)


def to_bytes(text: str) -> bytes:
    """Encode text that may have lone surrogates, which become bytes that are no UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def damaged_json(chance: Random, value: Any) -> bytes:
    """Return a valid frame with some of its values replaced, removed, wrapped, doubled or renamed."""
    holder = [copy.deepcopy(value)]
    replaced: dict[str, str] = {}
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(holder))
        where, key = chance.choice(places)
        how = chance.randrange(7)
        if how < 3:
            mark = f"\0{len(replaced)}"
            replaced[json.dumps(mark)] = text_of_json(chance, 2)
            where[key] = mark
        elif how == 3 and where is not holder:
            del where[key]
        elif how == 4:
            where[key] = chance.choice(
                ([where[key]], [where[key]] * 2, {"data": where[key]}, [[], where[key]])
            )
        elif how == 5 and isinstance(where, dict):
            where[chance.choice(KEYS)] = where.pop(key)
        else:
            where[key] = str(where[key]) if not isinstance(where[key], str) else chance.choice(TEXTS)
    text = json.dumps(holder[0], ensure_ascii=False)
    for mark, hostile in replaced.items():
        text = text.replace(mark, hostile)
    return to_bytes(text)


def _places(value: Any) -> Any:
    """Yield (container, key) of everything in a value of lists and dicts."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def damaged_bytes(chance: Random, data: bytes, times: int = 4) -> bytes:
    """Return the bytes with a few of them changed, left out, doubled or put in."""
    found = bytearray(data)
    for _ in range(chance.randint(1, times)):
        at = chance.randrange(len(found) + 1)
        how = chance.randrange(8)
        if how == 0:
            del found[at:]
        elif how == 1:
            del found[at : at + chance.choice((1, 1, 2, 4, 8, 50))]
        elif how == 2:
            found[at:at] = found[at : at + chance.randint(1, 40)]
        elif how == 3:
            found[at:at] = chance.choice(_TOKENS)
        elif how == 4:
            found[at : at + 8] = bytes(min(8, len(found) - at))
        elif how == 5:
            found[at:at] = chance.randbytes(chance.randint(1, 8))
        elif at < len(found):
            found[at] = chance.randrange(256) if how == 6 else found[at] ^ (1 << chance.randrange(8))
    return bytes(found)


def value_of_msgpack(chance: Random, depth: int = 2) -> Any:
    """Return a hostile value that MessagePack can carry."""
    kind = chance.randrange(9)
    if kind < 3:
        return chance.choice(INTEGERS)
    if kind < 5:
        return chance.choice(TEXTS)
    if kind == 5:
        return chance.choice((None, True, False, 0.5, float("nan"), float("inf"), -0.0, 1e300))
    if kind == 6:
        return chance.choice((b"", b"\xff", b"\x00" * 9, to_bytes(chance.choice(TEXTS))))
    if kind == 7 or depth <= 0:
        return chance.choice((msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 5), [], {}))
    items = [value_of_msgpack(chance, depth - 1) for _ in range(chance.randrange(4))]
    return items if chance.random() < 0.6 else {str(number): item for number, item in enumerate(items)}


def pack(value: Any) -> bytes:
    """Pack, with lone surrogates as bytes that are no UTF-8."""
    return bytes(msgpack.packb(value, unicode_errors="surrogatepass") or b"")


def damaged_msgpack(chance: Random, packed: bytes) -> bytes:
    """Return a valid value with some of its parts replaced, left out, added or cast; sometimes bad bytes."""
    if chance.random() < 0.25:
        return damaged_bytes(chance, packed)
    try:
        holder = [msgpack.unpackb(packed, strict_map_key=False)]
    except ValueError:  # damaged before
        return damaged_bytes(chance, packed)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        where, key = chance.choice(list(_places(holder)))
        how = chance.randrange(6)
        if how < 3:
            where[key] = value_of_msgpack(chance)
        elif how == 3 and where is not holder:
            del where[key]
        elif how == 4 and isinstance(where, list) and where is not holder:
            where.insert(key, value_of_msgpack(chance))
        elif isinstance(where[key], str):
            where[key] = where[key].encode("utf-8", "surrogatepass")
        else:
            where[key] = chance.choice((str(where[key]), [where[key]]))
    return pack(holder[0])


def some_of(chance: Random, items: Sequence[Any], most: int) -> list[Any]:
    return [chance.choice(items) for _ in range(chance.randint(1, most))]
