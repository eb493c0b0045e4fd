"""The two encodings of `/v1`: JSON text, and MessagePack with the bus's own payloads. Pure.

Elements are encoded once per style, whoever gets them; only the head of a frame is a client's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from services.frames import BINARY, TEXT, header
from services.relay.conflation import TRADE_FIELDS, Entry, Interval
from services.relay.requests import Request, RequestId, parse_json, parse_msgpack
from tickbus.errors import WireError
from tickbus.protocol.codec import decode
from tickbus.protocol.codec import encode as encode_message
from tickbus.protocol.json_form import json_object
from tickbus.protocol.names import Stream
from tickbus.reader.reads import Lost, Read, trimmed_gap

_json = msgspec.json.Encoder().encode
_msgpack = msgspec.msgpack.Encoder().encode


class Chunk(NamedTuple):
    """Encoded elements."""

    length: int
    """How many."""
    body: bytes


class Style(ABC):
    """How entries are encoded for a client."""

    @abstractmethod
    def element(self, stream: Stream, entry: Entry) -> bytes:
        """Return one entry."""

    @abstractmethod
    def join(self, elements: Sequence[bytes]) -> Chunk:
        """Return elements as one chunk."""

    @abstractmethod
    def join_chunks(self, chunks: Sequence[Chunk]) -> Chunk: ...

    @abstractmethod
    def data(self, head: bytes, chunk: Chunk) -> bytes:
        """Return a data frame, ready for the socket. head: of its subscription; empty: it has none."""


class NativeStyle(Style):
    """An encoding of `/v1`: it has messages that are not data, and can conflate."""

    subprotocol: str
    parse: Callable[[str | bytes], Request]

    @abstractmethod
    def head(self, id: RequestId) -> bytes:
        """Return what stands before the elements in the data frames of a subscription."""

    @abstractmethod
    def summary(self, stream: Stream, interval: Interval) -> bytes:
        """Return the trades of an interval."""

    @abstractmethod
    def control(self, message: dict[str, Any]) -> bytes:
        """Return any other message as a frame."""

    def interval(self, stream: Stream, interval: Interval) -> Chunk:
        """Return what happened within an interval: Gaps first."""
        elements = [self.element(stream, entry) for entry in (*interval.gaps, *interval.latest.values())]
        if interval.trades is not None:
            elements.append(self.summary(stream, interval))
        return self.join(elements)


class JsonStyle(NativeStyle):
    subprotocol = "tickbus.json"
    parse = staticmethod(parse_json)

    def element(self, stream: Stream, entry: Entry) -> bytes:
        return json_object(stream, entry.cursor, entry.message, "cursor")

    def summary(self, stream: Stream, interval: Interval) -> bytes:
        assert interval.trades is not None
        row: dict[str, object] = {
            "type": "summary",
            "stream": stream.name,
            "feed": stream.feed,
            "cursor": interval.cursor,
            "symbol": stream.symbol,
        }
        row |= dict(zip(TRADE_FIELDS, interval.trades.row(), strict=True))
        row["has_gap"] = bool(interval.gaps)
        return _json(row)

    def join(self, elements: Sequence[bytes]) -> Chunk:
        return Chunk(len(elements), b",".join(elements))

    def join_chunks(self, chunks: Sequence[Chunk]) -> Chunk:
        if len(chunks) == 1:
            return chunks[0]
        return Chunk(
            sum(chunk.length for chunk in chunks), b",".join([chunk.body for chunk in chunks if chunk.length])
        )

    def head(self, id: RequestId) -> bytes:
        return b'{"id":%b,"data":[' % _json(id)

    def data(self, head: bytes, chunk: Chunk) -> bytes:
        return b"%b%b%b]}" % (header(TEXT, len(head) + len(chunk.body) + 2), head, chunk.body)

    def control(self, message: dict[str, Any]) -> bytes:
        payload = _json(message)
        return header(TEXT, len(payload)) + payload


class MsgpackStyle(NativeStyle):
    """`[id, [[stream, cursor, field, payload], ...]]`; a summary has the field `c`."""

    subprotocol = "tickbus.msgpack"
    parse = staticmethod(parse_msgpack)

    def element(self, stream: Stream, entry: Entry) -> bytes:
        # a text of one character: its length, then the character
        return b"\x94%b%b\xa1%b%b" % (
            _msgpack(stream.name),
            _msgpack(entry.cursor),
            entry.field,
            entry.payload,
        )

    def summary(self, stream: Stream, interval: Interval) -> bytes:
        assert interval.trades is not None
        row = [stream.symbol, *interval.trades.row(), bool(interval.gaps)]
        return _msgpack([stream.name, interval.cursor, "c", row])

    def join(self, elements: Sequence[bytes]) -> Chunk:
        return Chunk(len(elements), b"".join(elements))

    def join_chunks(self, chunks: Sequence[Chunk]) -> Chunk:
        if len(chunks) == 1:
            return chunks[0]
        return Chunk(sum(chunk.length for chunk in chunks), b"".join([chunk.body for chunk in chunks]))

    def head(self, id: RequestId) -> bytes:
        return b"\x92" + _msgpack(id)

    def data(self, head: bytes, chunk: Chunk) -> bytes:
        size = _array_header(chunk.length)
        length = len(head) + len(size) + len(chunk.body)
        return b"%b%b%b%b" % (header(BINARY, length), head, size, chunk.body)

    def control(self, message: dict[str, Any]) -> bytes:
        payload = _msgpack(message)
        return header(BINARY, len(payload)) + payload


def _array_header(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


JSON, MSGPACK = JsonStyle(), MsgpackStyle()
STYLES: dict[str, NativeStyle] = {style.subprotocol: style for style in (JSON, MSGPACK)}


class News:
    """Consecutive entries of one stream, decoded once and encoded at most once per style."""

    __slots__ = ("_chunks", "_interval", "entries", "invalid", "stream")

    def __init__(self, stream: Stream, entries: Iterable[Any], lost: Lost | None = None) -> None:
        """entries: as Redis returned them; lost: what is missing before them, delivered as a Gap."""
        self.stream = stream
        self.invalid = 0
        """Entries that are no messages of this version: left out."""
        self.entries: list[Entry] = []
        self._chunks: dict[Style, Chunk] = {}
        self._interval: Interval | None = None
        if lost is not None:
            read = Read(stream, [], lost, None)  # type: ignore[arg-type]  # only the loss is looked at
            before = lost.before._replace(seq=lost.before.seq - 1)
            gap = trimmed_gap(read, "relay")
            self.entries.append(Entry(str(before), gap, b"g", encode_message(gap)))
        for id, fields in entries:
            try:
                field, payload = fields  # of an entry of ours
                self.entries.append(Entry(id.decode(), decode(field, payload), field, payload))
            except (WireError, ValueError):
                self.invalid += 1

    def interval(self) -> Interval:
        """Return them as an interval, made once for all who conflate them: it is not to be changed."""
        if self._interval is None:
            self._interval = Interval()
            for entry in self.entries:
                self._interval.add(entry)
        return self._interval

    def chunk(self, style: Style) -> Chunk:
        """Return them encoded."""
        chunk = self._chunks.get(style)
        if chunk is None:
            element, stream = style.element, self.stream
            chunk = style.join([element(stream, entry) for entry in self.entries])
            self._chunks[style] = chunk
        return chunk
