"""Frames of the generic feed -> items with raw or text fields, quickly, or from any shape. Pure."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.vendors.frames import ABSENT, decode_fields, decode_items, has_value, raw_text, vendor_error
from services.vendors.json.fields import LISTS, find, find_all, path_of

_MAX_DEPTH = 16
"""How deep lists may be nested in each other."""
_MAX_SEARCHED = 1000
"""Values of a frame that are searched for ticks in places that nobody named."""


class FrameDecoder:
    """Decodes frames to structs with the vendor's field names; unknown fields are skipped.

    Texts are decoded as such, a time as an integer or a text: twice as fast as keeping raw JSON. Any other
    number is kept raw, for its digits: the first time by decoding the frame again, afterwards because the
    decoder has learned it.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._numbers: set[tuple[str, str]] = set()
        """The (list, our name of the field) pairs that arrived as numbers."""
        self._decode_raw = self._build(lambda *_: (msgspec.Raw, ABSENT))
        self._decode_learned = self._build(self._learned_type)

    def decode(self, frame: bytes) -> Any:
        """Return the decoded frame.

        Raises MsgspecError, UnicodeDecodeError or RecursionError if it is not a frame of the protocol.
        """
        try:
            return self._decode_learned(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            outer = self._decode_raw(frame)
        self._learn(outer)
        return outer

    def _learn(self, outer: Any) -> None:
        known = len(self._numbers)
        for kind, fields in LISTS.items():
            for item in filter(None, getattr(outer, kind) or ()):
                for name in fields:
                    raw = bytes(getattr(item, name))
                    if raw[:1] in b"-0123456789" and raw and not (name == "time" and raw.isdigit()):
                        self._numbers.add((kind, name))
        if len(self._numbers) > known:
            self._decode_learned = self._build(self._learned_type)

    def _learned_type(self, kind: str, name: str) -> tuple[Any, Any]:
        if (kind, name) in self._numbers:
            return msgspec.Raw, ABSENT
        return (int | str | None if name == "time" else str | None), None

    def _build(self, type_of: "Callable[[str, str], tuple[Any, Any]]") -> Callable[[bytes], Any]:
        lists = []
        for kind, fields in LISTS.items():
            types = [(name, type_of(kind, name)) for name in fields]
            renamed = [
                (name, of, msgspec.field(name=self._names[name], default=default))
                for name, (of, default) in types
            ]
            item: Any = msgspec.defstruct(f"Json_{kind}", renamed, gc=False)
            items: Any = list[item | None] | None
            lists.append((kind, items, msgspec.field(name=self._names[kind], default=None)))
        frame = msgspec.defstruct(
            "JsonFrame", [*lists, ("error", msgspec.Raw, msgspec.field(default=ABSENT))]
        )
        return msgspec.json.Decoder(frame).decode


_ITEMS: dict[str, Any] = {
    kind: msgspec.defstruct(f"Json_any_{kind}", [(name, msgspec.Raw, ABSENT) for name in fields], gc=False)
    for kind, fields in LISTS.items()
}


@dataclass
class Found:
    """What a frame of any shape contains."""

    items: list[tuple[str, Any]] = field(default_factory=list)
    """(list that it belongs to, item with raw fields or None for a null), in order."""
    error: str | None = None
    """The value of a field `error`."""
    words: str | None = None
    """The vendor's words in an error of any other dress."""
    others: int = 0
    """Objects in a list that are none of these."""
    listed: bool = False
    """Whether there was a list of ticks, were it empty."""
    elsewhere: str = ""
    """Where there are ticks in a place that nobody named."""


class Reader:
    """Finds the ticks in frames of any shape, by the configured names and paths.

    Besides the named lists these are: a tick by itself, a list of ticks or of frames, lists in lists.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._lists = {kind: path_of(names[kind]) for kind in ("quotes", "trades")}
        """Quotes first: the trades of a frame carry the quote of that frame."""
        self._fields = {
            kind: {name: path_of(names[name]) for name in fields} for kind, fields in LISTS.items()
        }
        self._paths = {kind: list(paths.values()) for kind, paths in self._fields.items()}

    def read(self, frame: bytes, symbols: Container[str]) -> Found:
        """Return what is in a frame. Raises nothing; a frame that is not JSON contains nothing.

        symbols: the subscribed ones, in the vendor's spelling.
        """
        found = Found()
        self._read(frame, found, 0)
        if not found.items and not found.listed and found.error is None and found.words is None:
            found.elsewhere = self._search(frame, symbols)
        return found

    def _read(self, raw: bytes | msgspec.Raw, found: Found, depth: int) -> None:
        if depth > _MAX_DEPTH:
            return
        if (fields := decode_fields(raw)) is None:
            for item in decode_items(raw) or ():
                self._read(item, found, depth + 1)
            return
        before = len(found.items)
        listed = False
        for kind, path in self._lists.items():
            for inner in find_all(fields, path) if path else ():
                listed |= self._take(kind, inner, found, depth + 1)
        found.listed |= listed
        if not listed and (own := self._kind(fields)) is not None:
            found.items.append((own, self._item(own, fields)))
        elif (error := fields.get("error")) is not None and has_value(error):
            found.error = found.error or bytes(error).decode(errors="replace")
        elif len(found.items) == before and not listed:
            words = vendor_error(fields)
            found.words = found.words or words
            found.others += words is None and depth > 0

    def _take(self, kind: str, raw: msgspec.Raw, found: Found, depth: int) -> bool:
        """Take the items of a list. Return whether it is one, or an item by itself."""
        if depth > _MAX_DEPTH:
            return True
        if (items := decode_items(raw)) is None:
            fields = decode_fields(raw)
            if fields is None or self._kind(fields) is None:
                return False
            found.items.append((kind, self._item(kind, fields)))
            return True
        for item in items:
            if (fields := decode_fields(item)) is not None:
                found.items.append((kind, self._item(kind, fields)))
            elif decode_items(item) is not None:
                self._take(kind, item, found, depth + 1)
            else:
                found.items.append((kind, None))
        return True

    def _kind(self, fields: Mapping[str, msgspec.Raw]) -> str | None:
        """Return the list that an object would belong to if it is a tick, were its symbol missing."""
        trade, quote = self._fields["trades"], self._fields["quotes"]
        if find(fields, trade["price"]) is not ABSENT and find(fields, trade["volume"]) is not ABSENT:
            return "trades"
        if find(fields, quote["bid"]) is not ABSENT and find(fields, quote["ask"]) is not ABSENT:
            return "quotes"
        return None

    def _item(self, kind: str, fields: Mapping[str, msgspec.Raw]) -> Any:
        return _ITEMS[kind](
            *[
                fields.get(path[0], ABSENT) if len(path) == 1 else find(fields, path)
                for path in self._paths[kind]
            ]
        )

    def _search(self, frame: bytes, symbols: Container[str]) -> str:
        """Return the keys under which there is a tick of a subscribed symbol; '' if there is none."""
        waiting: list[tuple[str, msgspec.Raw]] = [("", msgspec.Raw(frame))]
        for at in range(_MAX_SEARCHED):
            if at >= len(waiting):
                break
            place, raw = waiting[at]
            if (fields := decode_fields(raw)) is not None:
                if self._is_tick_of(fields, symbols):
                    return place
                waiting += [(f"{place}.{name}".lstrip("."), inner) for name, inner in fields.items()]
            elif len(waiting) < _MAX_SEARCHED:
                waiting += [(place, inner) for inner in (decode_items(raw) or ())[:_MAX_SEARCHED]]
        return ""

    def _is_tick_of(self, fields: Mapping[str, msgspec.Raw], symbols: Container[str]) -> bool:
        if (kind := self._kind(fields)) is None:
            return False
        try:
            return raw_text(find(fields, self._fields[kind]["symbol"])) in symbols
        except ValueError:
            return False
