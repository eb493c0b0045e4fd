"""Bytes on the bus <-> messages. Pure. docs/wire-format.md is the same in prose, with examples in hex.

Stream entries carry one field, whose name says the type: t Trade, q Quote, g Gap, b Bar, s Signal, d Bell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tickbus.errors import WireError
from tickbus.protocol.messages import Bar, Gap, Message, Quote, Signal, Trade

encode = msgspec.msgpack.Encoder().encode
"""A message -> its MessagePack array."""


class Bell(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One ring of a shard's doorbell: what has news since the writer's ring before, and the bus clock."""

    writer: str
    """Feed or service, `#`, and the epoch under which it writes: `binance#3`."""
    counter: int
    """The writer's own count of its rings on this shard, dense: a jump means that a ring was missed."""
    bus_ms: int
    """Bus time: every entry that this writer will add later has at least this time in its ID."""
    feed_up: bool | None
    """Whether the upstream connection delivers; None from a writer that is no gateway."""
    streams: list[str]
    """Names of the streams with news, possibly none."""


class Hole(msgspec.Struct, array_like=True, gc=False):
    """A range of vendor ids that was told as missing, inclusive."""

    first: int
    last: int


class Head(msgspec.Struct, array_like=True, gc=False):
    """What `last` holds for a stream: enough to go on after a restart, and for anybody to see the newest value."""

    id: str
    """ID of the newest entry; its counter is the number of entries ever written."""
    vendor_id: int | None
    """Highest contiguous vendor id seen; None where the vendor has none."""
    ts_recv: int
    tick: msgspec.Raw
    """The newest Trade, Quote, Bar or Signal as its array; nil before the first."""
    ts_event: int = 0
    """Newest ts_event of the stream."""
    holes: list[Hole] = []
    """Told and not yet repaired, the newest 64."""
    gaps: dict[str, int] = {}
    """Gap messages with repaired = false in this stream ever, by kind."""
    repaired: int = 0
    """Gap messages with repaired = true."""
    missing: int = 0
    """Ticks that these Gaps count as missing, less the repaired ones."""
    epochs: list[tuple[int, int]] = []
    """(epoch, counter of its first entry) of the newest 16 writers of the stream, ascending: who wrote which entry."""


NIL = msgspec.Raw(b"\xc0")


def pack_head(
    id: str, vendor_id: int | None, ts_recv: int, tick: bytes, ts_event: int, holes: bytes, epochs: bytes
) -> bytes:
    """As `encode(Head(...))`, of parts that are packed already: a gateway makes nearly as many heads as ticks."""
    return b"\x9a%b%b%b%b%b%b%b" % (
        encode(id),
        encode(vendor_id),
        encode(ts_recv),
        tick,
        encode(ts_event),
        holes,
        epochs,
    )


def pack_holes(holes: Sequence[Hole], gaps: Mapping[str, int], repaired: int, missing: int) -> bytes:
    """These fields of a Head."""
    return encode((holes, gaps, repaired, missing))[1:]


def pack_epochs(epochs: Sequence[tuple[int, int]]) -> bytes:
    """This field of a Head."""
    return encode(epochs)


def pack_bell(writer: bytes, counter: int, said: bytes, streams: Sequence[str]) -> bytes:
    """As `encode(Bell(...))`, of parts that are packed already: there is one for each shard of a transaction."""
    return b"\x95%b%b%b%b" % (writer, encode(counter), said, encode(streams))


def pack_said(bus_ms: int, feed_up: bool | None) -> bytes:
    """These fields of a Bell."""
    return encode((bus_ms, feed_up))[1:]


_TYPES: dict[bytes, type[Any]] = {b"t": Trade, b"q": Quote, b"g": Gap, b"b": Bar, b"s": Signal}
FIELDS: dict[type[Any], bytes] = {kind: field for field, kind in _TYPES.items()}
"""Message type -> the name of its field in a stream entry."""
DECODE = {field: msgspec.msgpack.Decoder(kind).decode for field, kind in _TYPES.items()}
"""Name of the field -> decoder. On the hot path; it raises msgspec's errors. `decode` is the polite way."""

TICK_FIELD = {"trade": b"t", "quote": b"q", "bar": b"b", "signal": b"s"}
"""Kind of stream -> the field of its ticks; Gaps are `g` in each."""

decode_head = msgspec.msgpack.Decoder(Head).decode
decode_bell = msgspec.msgpack.Decoder(Bell).decode


def read_head(stream: str, value: bytes) -> Head:
    """What `last` holds for a stream. WireError if it is no head."""
    try:
        return decode_head(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"what `last` holds of {stream} is no head of this version: {error}") from None


def head_tick(head: Head, kind: str) -> Message | None:
    """The newest Trade, Quote, Bar or Signal of a stream of this kind; None before the first. WireError if it is none."""
    return None if bytes(head.tick) == bytes(NIL) else decode(TICK_FIELD[kind], bytes(head.tick))


def decode(field: bytes, payload: bytes) -> Message:
    """One field of a stream entry -> its message. WireError if it is none."""
    try:
        message: Message = DECODE[field](payload)
    except KeyError:
        raise WireError(f"unknown field {field!r}: written by a newer version? upgrade this reader") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"field {field!r} is no {_TYPES[field].__name__}: {error}") from None
    return message
