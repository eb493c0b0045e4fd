"""The client end of a vendor's protocol: a Feed and a Mapper.

The Feed has the address, the subscribe frames, the heartbeat and the limits; the Mapper turns bytes into
messages and is pure. Reconnecting, backoff, liveness, gaps and metrics live once, outside. A new vendor is
one folder here and one line in the registry: docs/adding-a-feed.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from services.vendors.options import NO_OPTIONS, VendorOptions
from services.vendors.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Flag, Quote, Trade
from tickbus.sanitize import redact
from tickbus.units import SECOND, Duration

MappedTick = tuple[Trade | Quote, int]
"""A tick and its vendor id; NO_ID if the vendor has no contiguous ids for this kind."""
NO_ID = -1


@dataclass(frozen=True)
class SubscribeAck:
    """The vendor acknowledged one of the subscribe frames."""

    kind: str | None = None
    """The kind of ticks that the frame was for, if it was for only one."""


@dataclass(frozen=True)
class HeartbeatAck:
    """The vendor acknowledged a heartbeat: the connection is alive, which says nothing about data."""


@dataclass(frozen=True)
class Skipped:
    """A well-formed frame of a type that carries no ticks we use."""


@dataclass(frozen=True)
class Rejected:
    """A frame or tick that cannot be used."""

    reason: str
    """A label: field (of a tick), garbage (not a frame of the protocol), oversize or unknown_symbol."""
    detail: str
    kind: str | None = None
    """Which stream lost a tick, if known: trade or quote."""
    symbol: str | None = None
    vendor_id: int = NO_ID
    lost: bool = True
    """Whether it may have contained ticks of subscribed symbols."""
    ticks_before: int = 0
    """Number of ticks that precede it in its frame."""


@dataclass(frozen=True)
class Refused:
    """The vendor refused: until `wait` has passed, or for good if `fatal` and nothing worked before."""

    text: str
    fatal: bool
    wait: Duration = Duration(0)


@dataclass(frozen=True)
class Closing:
    """The vendor announced that it will close this connection: open another at once, then leave this one."""


Notice = SubscribeAck | HeartbeatAck | Skipped | Rejected | Refused | Closing


class Mapper(ABC):
    """Maps the frames of one connection to ticks. Pure: no clock, no network.

    It remembers the newest quote per symbol. Anything that is not a tick is appended to `notices`, which the
    caller empties.
    """

    def __init__(self, symbols: SymbolMap, tolerance: Duration) -> None:
        self.symbols = symbols.canonical
        self.tolerance = tolerance
        """A ts_event further than this ahead of ts_recv is flagged FUTURE_TIME."""
        self.notices: list[Notice] = []
        self.best_quotes: dict[str, tuple[str | None, str | None]] = {}
        """Newest bid and ask by canonical symbol."""

    @abstractmethod
    def map(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        """Return the ticks of one WebSocket message, received at `recv` (ns), in order.

        They are stamped `recv`, `recv + 1`, ... Never raises for what the vendor sent: that becomes a notice.
        """

    def follow(self, previous: "Mapper") -> None:
        """Continue from the mapper of the previous connection, including its newest quotes."""
        self.best_quotes = {**previous.best_quotes, **self.best_quotes}

    def reject(
        self,
        reason: str,
        detail: object,
        *,
        kind: str | None = None,
        symbol: str | None = None,
        vendor_id: int = NO_ID,
        lost: bool = True,
        ticks_before: int = 0,
    ) -> None:
        """Append a `Rejected` notice; its fields say what each parameter means."""
        self.notices.append(Rejected(reason, str(detail)[:200], kind, symbol, vendor_id, lost, ticks_before))

    def flags(self, ts_event: int, recv: int) -> int:
        """Return the flags of a tick with these times."""
        return Flag.FUTURE_TIME.value if ts_event > recv + self.tolerance else 0


class Topic(NamedTuple):
    """What can be subscribed to: the trades or the quotes of a symbol."""

    kind: str
    symbol: str
    """The canonical symbol."""


class HttpRequest(NamedTuple):
    method: str
    url: str
    headers: Mapping[str, str] = {}
    body: bytes = b""


class HttpResponse(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Fetch(Protocol):
    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Send one request. Raises OSError or TimeoutError if there is no response."""
        ...


@dataclass(frozen=True)
class FeedSetup:
    """The operator's configuration of a feed."""

    symbols: SymbolMap
    kinds: tuple[str, ...]
    url: str | None = None
    token: str | None = None
    options: VendorOptions = NO_OPTIONS
    """The vendor's own options."""


class Feed(ABC):
    """One vendor's protocol for one connection. The attributes are its limits; the gateway respects them."""

    default_url: str
    default_path: str = ""
    kinds: tuple[str, ...] = ("trade", "quote")
    sequenced: bool = False
    """Whether trade ids are contiguous per symbol (+1 each), so that gaps and duplicates are detected."""
    repairable: bool = False
    """Whether the vendor has a history of ticks from which a gap could be filled."""
    allows_overlap: bool = False
    """Whether two connections at once are allowed, so that one can be replaced without a gap."""
    lifetime: Duration | None = None
    """How long the vendor keeps a connection; it is replaced before that."""
    request_interval: Duration = Duration(0)
    """Minimum time between two frames that we send."""
    reconnect_interval: Duration = Duration(0)
    """Minimum time between two connections."""
    takeover_delay: Duration = Duration(0)
    """How long the vendor takes to release the connection of a gateway that died."""
    heartbeat_interval: Duration | None = None
    """How often `heartbeat()` is sent; None: never."""
    acks_heartbeat: bool = False
    """Whether the vendor acknowledges heartbeats; three unacknowledged ones mean a dead connection."""
    acks_subscribe: bool = True
    """Whether the vendor acknowledges each subscribe frame."""
    subscribe_replaces: bool = False
    """Whether a subscribe frame replaces the previous subscription, so that each must name the whole set."""

    def __init__(self, setup: FeedSetup) -> None:
        """Raise ConfigError if this vendor cannot do what the operator asks for."""
        self.setup = setup
        self.requests = 0
        for kind in setup.kinds:
            if kind not in self.kinds:
                raise ConfigError(f"invalid --kinds {kind}: this feed has {', '.join(self.kinds)}")

    @property
    def topics(self) -> list[Topic]:
        """Everything that the operator wants to subscribe to."""
        return [Topic(kind, symbol) for symbol in self.setup.symbols.vendor for kind in self.setup.kinds]

    async def prepare(self, fetch: Fetch) -> "Refused | None":
        """Do what is needed before the connection is opened: get a token by REST, a listen key.

        Return a `Refused` if the vendor refuses, else None. OSError and TimeoutError of `fetch` need not be
        caught: the connection is retried later.
        """
        return None

    @staticmethod
    def to_vendor_symbol(symbol: str) -> str:
        """Return a canonical symbol in the vendor's spelling; --symbol-map overrides it."""
        return symbol

    def url(self) -> str:
        """Return the full address: --url or else the vendor's own, with the vendor's path if --url has none.

        Raises ConfigError if --url is invalid.
        """
        url = self.setup.url or self.default_url
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"invalid --url {redact(url)}: {error}") from None
        if parts.scheme not in ("ws", "wss") or not parts.hostname or port == 0:
            raise ConfigError(f"invalid --url {redact(url)}: expected ws://host:port or wss://host")
        if parts.fragment or (parts.username is not None and parts.password is None):
            raise ConfigError(
                f"invalid --url {redact(url)}: expected user:password@ or neither, and no # part"
            )
        path = parts.path if parts.path not in ("", "/") else self.default_path
        return parts._replace(
            path=path, query="&".join(part for part in (parts.query, self.query()) if part)
        ).geturl()

    def query(self) -> str:
        """Return the query to add to the address, tokens included; '' for none."""
        return ""

    def address(self) -> str:
        """Return the URL without its secrets, for logs."""
        return redact(self.url())

    @abstractmethod
    def subscribe(self, topics: Collection[Topic]) -> list[str]:
        """Return the frames that subscribe to these topics, in order, within the vendor's limits.

        With `subscribe_replaces`, the topics become the whole set.
        """

    def unsubscribe(self, topics: Collection[Topic]) -> list[str]:
        """Return the frames that end the subscription to these topics.

        None with `subscribe_replaces`, or if the vendor has no such request.
        """
        return []

    def heartbeat(self) -> str:
        """Return the next heartbeat frame."""
        return ""

    @abstractmethod
    def mapper(self, tolerance: Duration) -> Mapper:
        """Return a fresh mapper for a fresh connection."""

    @staticmethod
    def canonical_vendor_symbol(spelling: str) -> str:
        """Return a spelling from --symbol-map as it appears in the vendor's ticks."""
        return spelling

    def refused(self, status: int, body: str) -> Refused:
        """Return the meaning of an HTTP response other than 101. status: 0 if the response is not HTTP."""
        text = f"HTTP {status} {body}".strip() if status else f"not a WebSocket server: {body!r}"
        if status in (301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 426, 451):
            return Refused(f"the vendor refused the connection: {text}; check --url and --token", fatal=True)
        return Refused(text, fatal=False, wait=Duration(30 * SECOND) if status in (418, 429) else Duration(0))


ABSENT = msgspec.Raw()
"""Default of a raw field: the frame does not have it."""


def has_value(raw: msgspec.Raw) -> bool:
    """Return whether a raw field is present and not null, false, zero or empty.

    Vendors write `"error":null` if there is no error.
    """
    return bool(bytes(raw)) and bool(msgspec.json.decode(raw))


def raw_text(raw: msgspec.Raw) -> str:
    """Return a JSON number or string as the text that the vendor wrote; '' for null and for an absent field.

    Raises ValueError for any other JSON. Numbers keep their digits: a float never touches them.
    """
    if raw is ABSENT:
        return ""
    text = str(raw, "utf-8")  # a Raw is a buffer
    if text[:1] == '"':
        return text[1:-1] if "\\" not in text else str(msgspec.json.decode(text, type=str))
    if text in ("", "null"):
        return ""
    if text[0] not in "-0123456789":
        raise ValueError(f"expected a number or text, got {text[:40]}")
    return text
