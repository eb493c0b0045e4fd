"""Bytes on the bus <-> messages. Pure. docs/wire-format.md describes the same in prose, with examples in hex.

Stream entries have one field, named after the message type: t Trade, q Quote, g Gap, b Bar, s Signal, d Bell.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from tickbus.errors import WireError
from tickbus.protocol.messages import Bar, Gap, Message, Quote, Signal, Trade
from tickbus.protocol.names import StreamId

encode = msgspec.msgpack.Encoder().encode
"""Return a message as its MessagePack array."""


class Bell(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One ring of a shard's doorbell: streams with news since the writer's last ring, and the bus clock."""

    writer: str
    """Feed or service, `#`, and the epoch under which it writes: `binance#3`."""
    counter: int
    """The writer's count of its rings on this shard, dense: a jump means that a ring was missed."""
    bus_ms: int
    """Bus time: every later entry of this writer has at least this time in its ID."""
    feed_up: bool | None
    """Whether the upstream connection delivers data; None from a writer that is not a gateway."""
    streams: list[str]
    """Names of the streams with news, possibly none."""


MOST = (1 << 63) - 1
"""Largest number in a head; what anybody stored beyond it is no head."""
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]


class Hole(msgspec.Struct, array_like=True, gc=False):
    """A range of vendor ids that was reported missing, inclusive."""

    first: Count
    last: Count


class Head(msgspec.Struct, array_like=True, gc=False):
    """What `last` stores per stream: enough to resume after a restart, and for all to see the newest tick."""

    id: str
    """ID of the newest entry; its counter is the number of entries ever written."""
    vendor_id: Count | None
    """Highest contiguous vendor id seen; None where the vendor has none.

    It stays below the newest hole while a single trade is all that showed that hole.
    """
    ts_recv: int
    tick: msgspec.Raw
    """The newest Trade, Quote, Bar or Signal in the vendor's order, as its array; nil before the first."""
    ts_event: int = 0
    """Newest ts_event of the stream."""
    holes: list[Hole] = []
    """Reported and not yet repaired, the newest 256."""
    gaps: dict[str, Count] = {}
    """Number of Gap messages with repaired = false ever in this stream, by kind."""
    repaired: Count = 0
    """Number of Gap messages with repaired = true."""
    missing: Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)] = 0
    """Ticks that these Gaps report missing, minus the repaired ones."""
    epochs: list[tuple[Count, Count]] = []
    """(epoch, counter of its first entry) of the newest 16 writers, ascending: who wrote which entry."""
    subscribed: Count = 0
    """When the vendor first acknowledged the subscription, ns; 0 if unknown."""
    peak: Count = 0
    """Highest rate of vendor ids per second so far; 0 if unknown, or where the vendor has none."""
    forgotten: Count = 0
    """Holes that are no longer in `holes` because there were too many."""


NIL = msgspec.Raw(b"\xc0")


def pack_head(
    id: str,
    vendor_id: int | None,
    ts_recv: int,
    tick: bytes,
    ts_event: int,
    holes: bytes,
    epochs: bytes,
    origin: bytes,
) -> bytes:
    """Like `encode(Head(...))`, from parts already packed: a gateway makes nearly as many heads as ticks."""
    return b"\x9d%b%b%b%b%b%b%b%b" % (
        encode(id),
        encode(vendor_id),
        encode(ts_recv),
        tick,
        encode(ts_event),
        holes,
        epochs,
        origin,
    )


def pack_holes(holes: Sequence[Hole], gaps: Mapping[str, int], repaired: int, missing: int) -> bytes:
    """Pack these fields of a Head."""
    return encode((holes, gaps, repaired, missing))[1:]


def pack_epochs(epochs: Sequence[tuple[int, int]]) -> bytes:
    """Pack this field of a Head."""
    return encode(epochs)


def pack_origin(subscribed: int, peak: int, forgotten: int) -> bytes:
    """Pack these fields of a Head."""
    return encode((subscribed, peak, forgotten))[1:]


def pack_bell(writer: bytes, counter: int, status: bytes, streams: Sequence[str]) -> bytes:
    """Like `encode(Bell(...))`, from parts already packed: there is one for each shard of a transaction."""
    return b"\x95%b%b%b%b" % (writer, encode(counter), status, encode(streams))


def pack_bell_status(bus_ms: int, feed_up: bool | None) -> bytes:
    """Pack these fields of a Bell."""
    return encode((bus_ms, feed_up))[1:]


_TYPES: dict[bytes, type[Any]] = {b"t": Trade, b"q": Quote, b"g": Gap, b"b": Bar, b"s": Signal}
FIELDS: dict[type[Any], bytes] = {kind: field for field, kind in _TYPES.items()}
"""Message type -> name of its field in a stream entry."""
DECODE = {field: msgspec.msgpack.Decoder(kind).decode for field, kind in _TYPES.items()}
"""Field name -> decoder. For the hot path: it raises msgspec's errors, where `decode` raises WireError."""

MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What a decoder raises for bytes that are not what it decodes: too deeply nested ones included."""

TICK_FIELD = {"trade": b"t", "quote": b"q", "bar": b"b", "signal": b"s"}
"""Stream kind -> field name of its ticks; Gaps are `g` in every stream."""

decode_head = msgspec.msgpack.Decoder(Head).decode
decode_bell = msgspec.msgpack.Decoder(Bell).decode


def read_head(stream: str, value: bytes) -> Head:
    """Decode what `last` stores for a stream. WireError if it is not a head: anybody can write there."""
    try:
        head = decode_head(value)
        if StreamId.read(head.id).seq >= MOST:
            raise ValueError(f"its ID {head.id} is the last but half of all")
    except MALFORMED as error:
        raise WireError(f"invalid head of {stream} in `last`: {error}") from None
    return head


_MAX_BUS_MS = 10**13
"""The time of an ID has 13 digits."""


def read_bell(fields: Sequence[bytes]) -> Bell | None:
    """Decode an entry of a doorbell. None if no writer of tickbus rang: anybody can write there."""
    if len(fields) != 2 or fields[0] != b"d":
        return None
    try:
        bell = decode_bell(fields[1])
    except MALFORMED:
        return None
    return bell if bell.counter >= 0 and 0 <= bell.bus_ms < _MAX_BUS_MS else None


def head_tick(head: Head, kind: str) -> Message | None:
    """Return the newest message of a stream of this kind, never a Gap; None before the first.

    WireError if it cannot be decoded.
    """
    return None if bytes(head.tick) == bytes(NIL) else decode(TICK_FIELD[kind], bytes(head.tick))


def decode(field: bytes, payload: bytes) -> Message:
    """Decode one field of a stream entry. WireError if it is not a message of this version."""
    try:
        message: Message = DECODE[field](payload)
    except KeyError:
        raise WireError(
            f"unknown field {field[:64]!r}: written by a newer version? upgrade this reader"
        ) from None
    except MALFORMED as error:
        raise WireError(f"invalid {_TYPES[field].__name__} in field {field!r}: {error}") from None
    return message


def decode_entry(fields: Sequence[bytes]) -> Message:
    """Decode a stream entry, as Redis returns its fields and values. WireError as for `decode`."""
    if len(fields) != 2:
        raise WireError(f"{len(fields) // 2} fields: an entry of tickbus has one")
    return decode(fields[0], fields[1])
