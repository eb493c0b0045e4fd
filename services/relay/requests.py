"""What a client of `/v1` may say, checked. Pure.

A request is a JSON object, or a MessagePack map with the subprotocol `tickbus.msgpack`, with `op` and the
fields of one of the classes below. Unknown fields are an error: a misspelled option must not be ignored.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from services.relay.selection import Symbols
from tickbus.errors import ConfigError
from tickbus.protocol.bar_specs import parse_all
from tickbus.protocol.names import FEED_KINDS, START, Stream, StreamId, check_name, is_stream
from tickbus.protocol.wants import Topic
from tickbus.reader.reads import FROM_START, NOW, parse_start

MAX_LAST = 10_000
"""Largest N of `last:N`."""
DEFAULT_RATE = 4.0
MAX_RATE = 20.0
MIN_RATE = 0.1
RequestId = int | str


class BadRequest(Exception):
    """A request that cannot be carried out. The text is for the client."""


class NotNow(BadRequest):
    """A request that may be accepted later as it is."""


class _Request(msgspec.Struct, tag_field="op", tag=str.lower, forbid_unknown_fields=True, frozen=True):
    """The base of all."""


class Auth(_Request, frozen=True):
    """The token of a client that could not send it with the handshake."""

    token: str


class Subscribe(_Request, frozen=True, rename={"from_": "from"}):
    """Ask for the messages of some streams.

    id: chosen by the client; all answers and data carry it.
    symbols: names or globs; empty: all. feeds, specs: empty: all.
    policy: what happens when the client cannot keep up: see docs/relay.md.
    rate: conflated elements per second and stream.
    from_: `now`, `start`, a time, `last:N`, or a cursor per stream.
    want: whether the symbols are to be subscribed at the vendor, if they are not yet.
    """

    id: RequestId
    kind: Literal["trade", "quote", "bar", "signal"] = "trade"
    symbols: list[str] = []
    feeds: list[str] = []
    specs: list[str] = []
    policy: Literal["lossless", "conflate", "drop"] = "lossless"
    rate: float | None = None
    from_: str | int | dict[str, str] = NOW
    want: bool = False


class Want(_Request, frozen=True):
    """Ask that the vendor is subscribed to symbols, without reading them. `unsubscribe` ends it.

    feeds: the one feed that is to have them; empty: the only one that runs.
    """

    id: RequestId
    symbols: list[str]
    kind: Literal["trade", "quote"] = "trade"
    feeds: list[str] = []


class Unsubscribe(_Request, frozen=True):
    """End a subscription, a want, or a watch."""

    id: RequestId


class Watch(_Request, frozen=True):
    """Be told once a second how the bus is: its feeds, services and relays. `unsubscribe` ends it."""

    id: RequestId


class Ping(_Request, frozen=True):
    """Ask for a `pong`, with the same id."""

    id: RequestId | None = None


Request = Auth | Subscribe | Want | Watch | Unsubscribe | Ping

_decode_json = msgspec.json.Decoder(Request).decode
_decode_msgpack = msgspec.msgpack.Decoder(Request).decode


def parse_json(message: str | bytes) -> Request:
    """Return the request. BadRequest for anything else."""
    return _parse(_decode_json, message)


def parse_msgpack(message: str | bytes) -> Request:
    """Return the request. BadRequest for anything else."""
    return _parse(_decode_msgpack, message.encode() if isinstance(message, str) else message)


def _parse(decode: Callable[[Any], Any], message: str | bytes) -> Request:
    try:
        request: Request = decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BadRequest(f"not a request: {str(error)[:200]}") from None
    id = getattr(request, "id", None)
    if isinstance(id, str) and len(id) > 64:
        raise BadRequest("invalid id: expected a number or at most 64 characters")
    if isinstance(id, int) and not -(1 << 53) < id < 1 << 53:
        raise BadRequest("invalid id: expected a number below 2^53")
    return request


class Last(msgspec.Struct, frozen=True):
    """Begin with the newest ticks of each stream, this many."""

    count: int


class Cursors(msgspec.Struct, frozen=True):
    """Resume after these entries; streams that are not in it begin with their oldest entry."""

    positions: dict[str, StreamId]
    histories: dict[str, str]
    """The history to which a position belongs, for streams of which the client knows it."""


Begin = str | StreamId | Last | Cursors
"""NOW, FROM_START, the ID of a time, the newest ticks, or cursors."""


def parse_begin(text: str | int | dict[str, str], kind: str) -> Begin:
    """Return where a subscription begins. BadRequest if `from` is invalid."""
    if isinstance(text, dict):
        positions, histories = {}, {}
        for name, cursor in text.items():
            id, _, history = cursor.partition("@")
            try:
                if not is_stream(name) or Stream.parse(name).kind != kind:
                    raise ValueError
                positions[name] = StreamId.parse(id)
                if min(positions[name]) < 0 or max(positions[name]) >= 1 << 64:
                    raise ValueError
            except ValueError:
                raise BadRequest(
                    f"invalid cursor {name[:80]!r}: {cursor[:60]!r}: expected a {kind} stream and an ID, "
                    'e.g. {"trade:binance:BTC-USDT":"1700000000123-42"}'
                ) from None
            if history:
                histories[name] = history
        return Cursors(positions, histories)
    if isinstance(text, str) and text.startswith("last:"):
        count = text[5:]
        if not (count.isascii() and count.isdigit() and len(count) <= 9 and 0 < int(count) <= MAX_LAST):
            raise BadRequest(f"invalid from {text[:40]!r}: expected last:1 to last:{MAX_LAST}")
        return Last(int(count))
    try:
        begin = parse_start(text, "from")
        return max(begin, START) if isinstance(begin, StreamId) else begin
    except (ConfigError, ValueError, OverflowError) as error:
        raise BadRequest(f"{str(error)[:200]}, last:N, or a cursor per stream") from None


def parse_rate(request: Subscribe) -> float:
    """Return the rate of a conflated subscription. BadRequest if it is invalid, or set for another policy."""
    if request.rate is None:
        return DEFAULT_RATE
    if request.policy != "conflate":
        raise BadRequest("invalid rate: only the policy conflate has one")
    if not MIN_RATE <= request.rate <= MAX_RATE:
        raise BadRequest(
            f"invalid rate {request.rate:g}: expected {MIN_RATE:g} to {MAX_RATE:g} times a second"
        )
    # few different rates: each has a clock of its own
    return float(math.ceil(request.rate)) if request.rate > 1 else round(request.rate, 1)


def parse_symbols(request: Subscribe | Want) -> Symbols:
    """Return the symbols. BadRequest for invalid ones, and for feeds or specs that are invalid."""
    specs = request.specs if isinstance(request, Subscribe) else []
    try:
        for feed in request.feeds:
            check_name(feed)
        if specs and request.kind != "bar":
            raise ValueError(f"invalid specs: only bars have a spec; leave it out for {request.kind}")
        parse_all(specs)
        return Symbols.parse(request.symbols)
    except (ConfigError, ValueError) as error:
        raise BadRequest(str(error)[:300]) from None


def parse_topics(request: Subscribe | Want) -> list[Topic]:
    """Return what a subscription wants. BadRequest if that cannot be wanted."""
    symbols = parse_symbols(request)
    if symbols.globs or not symbols.names:
        raise BadRequest("want: name each symbol; patterns cannot be wanted")
    if request.kind not in FEED_KINDS:
        raise BadRequest(f"want: services make every {request.kind}; want the trades instead")
    return [Topic(request.kind, symbol) for symbol in dict.fromkeys(request.symbols)]


FROM_NOW, FROM_OLDEST = NOW, FROM_START
