"""What vendors' frames have in common: total, whatever the network brings."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors.frames import (
    decode_fields,
    decode_items,
    has_value,
    is_keepalive,
    is_words,
    printable,
    raw_text,
    shape_of,
    vendor_error,
)

HOSTILE = [
    b"1e999", b"-1e999", b"1" * 5000, b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b"NaN", b"Infinity", b"-",
    b"[" * 5000, b"{" * 5000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b'{"a":1,"a":2}', b"\x00",
    b"\xef\xbb\xbf{}", b'"', b"{", b"[", b"[1,", b'{"a"', b"1 2", b"'x'", b"\xff\xfe{\x00}\x00",
]  # fmt: skip
"""Bytes and JSON values that decoders choke on in different places."""

VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["error", "ping", "trade", "failed", "ok", "0", "", "pong"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "event", "error", "code", "msg", "data", "success", "status", "T", "e"])
            | st.text(max_size=6),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
JSON_BYTES = VALUES.map(lambda value: json.dumps(value).encode())


def judge(frame: bytes) -> None:
    """Call everything that judges a frame."""
    is_keepalive(frame)
    is_words(frame)
    shape = shape_of(frame)
    assert shape is None or (shape.isprintable() and len(shape) < 700)
    assert isinstance(has_value(frame), bool)
    fields, items = decode_fields(frame), decode_items(frame)
    assert fields is None or items is None
    for raw in [*(fields or {}).values(), *(items or ())]:
        assert isinstance(has_value(raw), bool)
        with suppress(ValueError):
            raw_text(raw)
    if fields is not None:
        words = vendor_error(fields)
        assert words is None or (words and words.isprintable() and len(words) <= 200)


@given(st.binary(max_size=300) | JSON_BYTES | st.sampled_from(HOSTILE))
def test_any_frame_is_judged(frame: bytes) -> None:
    judge(frame)
    judge(b'{"error":' + frame + b"}")
    judge(b'{"type":' + frame + b',"msg":' + frame + b"}")


@pytest.mark.parametrize(
    "value", ["null", "false", '""', "0", "-0.0", "0e5", '"0"', "{}", "[ ]", "{ }", "0.00"]
)
def test_values_that_say_nothing(value: str) -> None:
    assert not has_value(value.encode())


@pytest.mark.parametrize("value", ["1", "true", '"no"', "[0]", '{"a":null}', "1e999", '"00x"', "0.001"])
def test_values_that_say_something(value: str) -> None:
    assert has_value(value.encode())


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ('{"error":"bad token"}', "error: bad token"),
        ('{"Error":{"code":5}}', 'Error: {"code":5}'),
        ('{"type":"error","msg":"no such symbol"}', "type: error, msg: no such symbol"),
        ('{"TYPE":"ERROR","message":"x"}', "TYPE: ERROR, message: x"),
        (
            '{"event":"error","code":60012,"msg":"Invalid request"}',
            "event: error, code: 60012, msg: Invalid request",
        ),
        (
            '{"status":"error","errorMessage":"Event(s) not found"}',
            "status: error, errorMessage: Event(s) not found",
        ),
        ('{"T":"error","code":402,"msg":"auth failed"}', "T: error, code: 402, msg: auth failed"),
        ('{"action":"subscribe_error","reason":"cap"}', "action: subscribe_error, reason: cap"),
        (
            '{"ev":"status","status":"auth_failed","message":"x"}',
            "ev: status, status: auth_failed, message: x",
        ),
        ('{"success":false,"ret_msg":"x","op":"subscribe"}', "op: subscribe"),
        ('{"code":401,"msg":"unauthorized"}', "code: 401, msg: unauthorized"),
        ('{"ret_code":10001,"reason":"params"}', "ret_code: 10001, reason: params"),
        ('{"type":"error","msg":"a\\nb\\u001b[2J"}', "type: error, msg: a\\nb\\x1b[2J"),
    ],
)
def test_error_in_any_dress_is_recognised_with_the_vendors_words(frame: str, words: str) -> None:
    fields = decode_fields(frame.encode())
    assert fields is not None
    assert vendor_error(fields) == words


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"welcome"}', '{"status":"subscribed","error":null}', '{"error":0,"errors":[]}',
        '{"code":0,"msg":"ok"}', '{"code":200,"message":"success"}', '{"code":"0","msg":""}',
        '{"code":17}', '{"success":true}', '{"type":"mirror"}',
    ],
)  # fmt: skip
def test_what_is_no_error(frame: str) -> None:
    fields = decode_fields(frame.encode())
    assert fields is not None
    assert vendor_error(fields) is None


@pytest.mark.parametrize(
    "frame",
    ["AAPL 187.3 100", '{"trades":[', "[1,2", "<html>502</html>", "a,1", "AAPL|x", "x" * 300, "\x1b[2J"],
)
def test_text_that_may_hold_ticks_is_no_keepalive_and_no_words(frame: str) -> None:
    assert not is_keepalive(frame.encode()) and not is_words(frame.encode())


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        ('{"type":"info","a":1}', "{type=info,a}"),
        ('{"a":{"type":"x"}}', "{a}"),
        ('[{"T":"Success","msg":"connected"},{"x":1}]', "[{T=success,msg}]"),
        ("[1]", "list"),
        ('"x"', "text"),
        ("17", "value"),
        ("x", None),
    ],
)
def test_shape_is_what_frames_of_a_kind_have_in_common(frame: str, shape: str | None) -> None:
    assert shape_of(frame.encode()) == shape


@given(st.text() | st.binary(), st.integers(1, 300))
def test_printable_text_is_one_line_of_bounded_length(text: str | bytes, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    if isinstance(text, str) and text.isprintable():
        assert shown == text[:limit]
