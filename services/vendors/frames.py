"""What every vendor's JSON frames have in common: raw values, errors in any dress, keepalives, shapes. Pure.

Every function here takes whatever the network brings and raises nothing but what it says.
"""

import re
from collections.abc import Mapping

import msgspec

from tickbus.sanitize import escape, hide_secrets

_Raw = msgspec.Raw

ABSENT = msgspec.Raw()
"""Default of a raw field: the frame does not have it."""

NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a frame can raise, whatever it contains."""

_MAX_KEYS = 12
"""Keys of an object that its shape names."""
_MAX_WORD = 40
_KIND_KEYS = (
    "type",
    "event",
    "e",
    "t",
    "ev",
    "status",
    "action",
    "op",
    "method",
    "channel",
    "topic",
    "cmd_id",
)
"""Where vendors say of which kind a frame is, in lower case."""

_decode_fields = msgspec.json.Decoder(dict[str, _Raw]).decode
_decode_items = msgspec.json.Decoder(list[_Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_any = msgspec.json.Decoder(_Raw).decode


def decode_fields(frame: bytes | _Raw) -> dict[str, _Raw] | None:
    """Return the raw fields of a JSON object; None for anything else."""
    try:
        return _decode_fields(frame)
    except NOT_DECODED:
        return None


def decode_items(frame: bytes | _Raw) -> list[_Raw] | None:
    """Return the raw items of a JSON list; None for anything else."""
    try:
        return _decode_items(frame)
    except NOT_DECODED:
        return None


_NOTHING = re.compile(
    rb'\s*(?:|null|false|""|\[\s*\]|\{\s*\}|"?-?0(?:\.0+)?(?:[eE][+-]?\d+)?"?)\s*'
).fullmatch


def has_value(raw: bytes | _Raw) -> bool:
    """Return whether a raw field is present and not null, false, zero or empty.

    Vendors write `"error":null`, or `"code":"0"`, if there is no error.
    """
    return not _NOTHING(bytes(raw))


def raw_text(raw: _Raw) -> str:
    """Return a JSON number or string as the text that the vendor wrote; '' for null and for an absent field.

    Raises ValueError for any other JSON. Numbers keep their digits: a float never touches them.
    """
    if raw is ABSENT:
        return ""
    text = str(raw, "utf-8")  # a Raw is a buffer
    if text[:1] == '"':
        return text[1:-1] if "\\" not in text else _decode_text(text)
    if text in ("", "null"):
        return ""
    if text[0] not in "-0123456789":
        raise ValueError(f"expected a number or text, got {text[:40]}")
    return text


def word(raw: _Raw | None) -> str:
    """Return a short JSON text or number in lower case; '' for anything else."""
    if raw is None or len(bytes(raw)) > _MAX_WORD:
        return ""
    try:
        return raw_text(raw).lower()
    except ValueError:
        return ""


def printable(text: str | bytes, limit: int) -> str:
    """Return the beginning of others' text on one line, without control characters and our secrets."""
    # a little more than is shown: a secret that is cut in two would not be recognised
    more = limit + 512
    whole = text[:more] if isinstance(text, str) else text[:more].decode(errors="backslashreplace")
    return escape(hide_secrets(whole))[:limit]


# errors

_ERROR_KINDS = ("type", "status", "event", "action", "t", "e", "ev", "op", "result", "state", "level", "kind")
_MESSAGES = ("msg", "message", "reason", "description", "desc", "detail", "details", "text", "info")
_CODES = ("code", "ret", "ret_code", "retcode", "errno", "status_code")
_SUCCESS_CODES = ("0", "1", "200", "00000", "0000", "1000", "20000")
_is_error_word = re.compile(
    r"(?:.*[^a-z])?err(?:or)?s?(?:[^a-z].*)?|.*(?:error|fail|unauthori[sz]ed|forbidden|denied|refused|reject).*"
).fullmatch
_SAYS_OK = ("", "ok", "okay", "success", "succeeded", "successful", "subscribed")


def vendor_error(fields: Mapping[str, _Raw]) -> str | None:
    """Return the vendor's words, printable, if this object reports an error in whatever dress; else None.

    An error is a field `error` (`err`, `errors`, `errorMessage`, ...) with a value; `error` or `failed` as
    the type, status, event or action; `success` or `ok` that is false; a code other than success, with a
    message.
    """
    by_name = {name.lower(): raw for name, raw in fields.items()}
    if not _is_error(by_name):
        return None
    told = [
        f"{name}: {_shown(raw)}"
        for name, raw in fields.items()
        if name.lower() in (*_ERROR_KINDS, *_MESSAGES, *_CODES) or name.lower().startswith("err")
    ]
    return printable(", ".join(told or [f"{name}: {_shown(raw)}" for name, raw in fields.items()]), 200)


def _is_error(fields: Mapping[str, _Raw]) -> bool:
    if any(name.startswith("err") and has_value(raw) for name, raw in fields.items()):
        return True
    if any(_is_error_word(word(fields.get(name))) for name in _ERROR_KINDS if name in fields):
        return True
    if any(bytes(fields[name]).strip() == b"false" for name in ("success", "ok") if name in fields):
        return True
    failed = any(
        has_value(fields[name]) and word(fields[name]) not in _SUCCESS_CODES
        for name in _CODES
        if name in fields
    )
    return failed and any(
        word(fields[name]) not in _SAYS_OK or len(bytes(fields[name])) > _MAX_WORD
        for name in _MESSAGES
        if name in fields
    )


def _shown(raw: _Raw) -> str:
    try:
        return raw_text(raw)[:200]
    except ValueError:
        return printable(bytes(raw), 200)


# keepalives, words, shapes

_KEEPALIVE = r"ping|pong|heartbeat|heart-beat|heart_beat|hb|beat|keepalive|keep-alive|keep_alive|alive"
_is_beat = re.compile(
    # `primus::ping::1723210200123`, `PONG 17`, `~h~12`; SockJS: o, h; engine.io: 2, 3
    rf"(?:[a-z]+::)?(?:{_KEEPALIVE})[\s:=_-]*\d{{0,20}}|~h~\d{{1,20}}|[oh23]|",
    re.ASCII,
).fullmatch
_is_beat_name = re.compile(_KEEPALIVE).fullmatch
_are_words = re.compile(r"""[^\W\d_][^\d{}\[\]"<>|=\t]*""").fullmatch
_MAX_WORDS = 200


def is_keepalive(frame: bytes) -> bool:
    """Return whether a frame only says that the connection lives: empty, `pong`, `{"ping":17}`, ..."""
    if len(frame) > _MAX_WORDS:
        return False
    text = frame.strip()
    if text in (b"", b"{}", b"[]"):
        return True
    if text[:1] == b"{":
        fields = decode_fields(text)
        return fields is not None and _is_beat_object(fields)
    return bool(_is_beat(text.strip(b'"').decode(errors="replace").lower()))


def _is_beat_object(fields: Mapping[str, _Raw]) -> bool:
    if any(bytes(raw)[:1] in (b"{", b"[") and has_value(raw) for raw in fields.values()):
        return False
    return any(
        _is_beat_name(name.lower()) or (name.lower() in _KIND_KEYS and _is_beat_name(word(raw)))
        for name, raw in fields.items()
    )


def is_words(frame: bytes) -> bool:
    """Return whether a frame that is not JSON is a short text in words: without a digit there is no tick."""
    if len(frame) > _MAX_WORDS:
        return False
    try:
        text = frame.strip().decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() and bool(_are_words(text))


def shape_of(frame: bytes) -> str | None:
    """Return what JSON frames of this kind have in common: their keys, and what they say of their kind.

    None if it is not JSON.
    """
    try:
        raw = _decode_any(frame)
    except NOT_DECODED:
        return None
    first = bytes(raw).strip()[:1]
    if first == b"{":
        return _shape_of_fields(decode_fields(raw) or {})
    if first == b"[":
        items = decode_items(raw) or []
        inner = decode_fields(items[0]) if items else None
        return f"[{_shape_of_fields(inner)}]" if inner else "list"
    return "text" if first == b'"' else "value"


def _shape_of_fields(fields: Mapping[str, _Raw]) -> str:
    names = list(fields)[:_MAX_KEYS]
    told = [
        f"{name}={said}" if name.lower() in _KIND_KEYS and (said := word(fields[name])) else name
        for name in names
    ]
    return (
        "{"
        + ",".join(printable(text, _MAX_WORD) for text in told)
        + ("}" if len(fields) <= _MAX_KEYS else ",...}")
    )
