"""What a vendor's adapter is: a Feed (address, subscribe frames, heartbeat, limits) and a Mapper (bytes -> messages, pure).

Reconnecting, backoff, liveness, gaps, metrics live once, outside. A new vendor is one module here and one line in the registry:
docs/adding-a-feed.md.
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

Mapped = tuple[Trade | Quote, int]
"""A tick and its vendor id; NO_ID where the vendor has no contiguous ids for this kind."""
NO_ID = -1


@dataclass(frozen=True)
class SubscribeAck:
    """The vendor acknowledged one of the subscribe frames."""

    kind: str | None = None
    """The kind of ticks that it was for, where it was for one only."""


@dataclass(frozen=True)
class HeartbeatAck:
    """An answer to a heartbeat: the connection is alive, which says nothing about data."""


@dataclass(frozen=True)
class Skipped:
    """A well-formed frame of a type that carries no ticks for us."""


@dataclass(frozen=True)
class Rejected:
    """A frame or tick that cannot be used."""

    reason: str
    """A label of few values: field (of a tick), garbage (no frame of the protocol), oversize, unknown_symbol."""
    detail: str
    kind: str | None = None
    """Which stream lost a tick, where that is known: trade or quote."""
    symbol: str | None = None
    vendor_id: int = NO_ID
    lost: bool = True
    """Whether ticks of ours may have been in it."""
    after: int = 0
    """How many ticks of its frame come before it."""


@dataclass(frozen=True)
class Refused:
    """The vendor said no. For good, or until `wait` has passed."""

    text: str
    fatal: bool
    wait: Duration = Duration(0)


@dataclass(frozen=True)
class Closing:
    """The vendor announced that it will close this connection: make another one at once, then leave this."""


Notice = SubscribeAck | HeartbeatAck | Skipped | Rejected | Refused | Closing


class Mapper(ABC):
    """Frames of one connection -> ticks. Pure: no clock, no network; what it remembers is the newest quote per symbol.

    What is no tick is appended to `notices`, which the caller empties.
    """

    def __init__(self, symbols: SymbolMap, tolerance: Duration) -> None:
        self.symbols = symbols.canonical
        self.tolerance = tolerance
        """ts_event further than this after ts_recv is flagged FUTURE_TIME."""
        self.notices: list[Notice] = []
        self.best_quotes: dict[str, tuple[str | None, str | None]] = {}
        """Newest bid and ask by canonical symbol."""

    @abstractmethod
    def map(self, frame: bytes, recv: int) -> Sequence[Mapped]:
        """One WebSocket message, received at `recv` (ns) -> its ticks in order, stamped `recv`, `recv + 1`, ...

        Never raises for what the vendor sent: that becomes a notice.
        """

    def follow(self, previous: "Mapper") -> None:
        """Go on where the mapper of the connection before this one ended, its newest quotes included."""
        self.best_quotes = {**previous.best_quotes, **self.best_quotes}

    def reject(
        self, reason: str, detail: object, *, kind: str | None = None, symbol: str | None = None, vendor_id: int = NO_ID, lost: bool = True,
        after: int = 0,
    ) -> None:  # fmt: skip
        self.notices.append(Rejected(reason, str(detail)[:200], kind, symbol, vendor_id, lost, after))

    def flags(self, ts_event: int, recv: int) -> int:
        return Flag.FUTURE_TIME.value if ts_event > recv + self.tolerance else 0


class Topic(NamedTuple):
    """What can be subscribed: the trades or the quotes of a symbol."""

    kind: str
    symbol: str
    """Canonical."""


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
        """Send one request. OSError or TimeoutError if there is no answer."""
        ...


@dataclass(frozen=True)
class FeedSetup:
    """What a feed is told by the operator."""

    symbols: SymbolMap
    kinds: tuple[str, ...]
    url: str | None = None
    token: str | None = None
    options: VendorOptions = NO_OPTIONS
    """The vendor's own."""


class Feed(ABC):
    """One vendor's protocol for one connection. The attributes are the vendor's limits; the gateway keeps to them."""

    default_url: str
    default_path: str = ""
    kinds: tuple[str, ...] = ("trade", "quote")
    sequenced: bool = False
    """Whether trade ids are contiguous per symbol (+1 each), so that holes and repeats are seen."""
    repairable: bool = False
    """Whether the vendor has a history of ticks from which a hole could be filled."""
    overlaps: bool = False
    """Whether two connections at once are allowed, so that one can be replaced without a hole."""
    lifetime: Duration | None = None
    """How long the vendor keeps a connection; it is replaced before."""
    request_interval: Duration = Duration(0)
    """Least time between two frames that we send."""
    reconnect_interval: Duration = Duration(0)
    """Least time between two connections."""
    takeover_delay: Duration = Duration(0)
    """How long the vendor takes to let go of the connection of a gateway that died."""
    heartbeat_interval: Duration | None = None
    heartbeat_answers: bool = False
    """Whether the vendor answers heartbeats; three unanswered ones mean a dead connection."""
    acknowledged: bool = True
    """Whether the vendor acknowledges each subscribe frame."""
    replaces: bool = False
    """Whether a subscribe frame replaces what was subscribed before, so that each names the whole set."""

    def __init__(self, setup: FeedSetup) -> None:
        """ConfigError if this vendor cannot do what the operator asks for."""
        self.setup = setup
        self.requests = 0
        for kind in setup.kinds:
            if kind not in self.kinds:
                raise ConfigError(f"--kinds {kind}: this feed has {', '.join(self.kinds)}")

    @property
    def topics(self) -> list[Topic]:
        """All that the operator wants."""
        return [Topic(kind, symbol) for symbol in self.setup.symbols.vendor for kind in self.setup.kinds]

    async def prepare(self, fetch: Fetch) -> "Refused | None":
        """What has to be done before the connection is made: a token by REST, a listen key. Return a refusal if it is refused.

        OSError and TimeoutError of `fetch` need not be caught: the connection is tried again later.
        """
        return None

    @staticmethod
    def to_vendor_symbol(symbol: str) -> str:
        """A canonical symbol in the vendor's spelling, unless --symbol-map says otherwise."""
        return symbol

    def url(self) -> str:
        """The whole address: the vendor's own unless --url names another; the vendor's path where that has none."""
        url = self.setup.url or self.default_url
        try:
            given = urlsplit(url)
            port = given.port
        except ValueError as error:
            raise ConfigError(f"--url {redact(url)}: {error}") from None
        if given.scheme not in ("ws", "wss") or not given.hostname or port == 0:
            raise ConfigError(f"--url {redact(url)}: write it as ws://host:port or wss://host")
        if given.fragment or (given.username is not None and given.password is None):
            raise ConfigError(
                f"--url {redact(url)}: write user and password as user:password@ or neither, and no # part"
            )
        path = given.path if given.path not in ("", "/") else self.default_path
        return given._replace(
            path=path, query="&".join(part for part in (given.query, self.query()) if part)
        ).geturl()

    def query(self) -> str:
        return ""

    def address(self) -> str:
        """The URL without its secrets, for logs."""
        return redact(self.url())

    @abstractmethod
    def subscribe(self, topics: Collection[Topic]) -> list[str]:
        """Return the frames that subscribe these, in order, within the vendor's limits. Where `replaces`, they become the whole set."""

    def unsubscribe(self, topics: Collection[Topic]) -> list[str]:
        """Return the frames that end the subscription to these; none where `replaces`, or where the vendor has no such request."""
        return []

    def heartbeat(self) -> str:
        return ""

    @abstractmethod
    def mapper(self, tolerance: Duration) -> Mapper:
        """A fresh mapper for a fresh connection."""

    @staticmethod
    def canonical_vendor_symbol(spelling: str) -> str:
        """A spelling of --symbol-map as it stands in the vendor's ticks."""
        return spelling

    def refused(self, status: int, body: str) -> Refused:
        """What an HTTP answer other than 101 means; status 0: the answer is no HTTP."""
        text = f"HTTP {status} {body}".strip() if status else f"no answer of a WebSocket server: {body!r}"
        if status in (301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 426, 451):
            return Refused(
                f"the vendor refuses the connection for good: {text}; check --url and --token", fatal=True
            )
        return Refused(text, fatal=False, wait=Duration(30 * SECOND) if status in (418, 429) else Duration(0))


ABSENT = msgspec.Raw()
"""Default of a raw field: the frame does not have it."""


def says_something(raw: msgspec.Raw) -> bool:
    """Whether a raw field is there and is not null, false, zero or empty: vendors write `"error":null` where there is none."""
    return bool(bytes(raw)) and bool(msgspec.json.decode(raw))


def raw_text(raw: msgspec.Raw) -> str:
    """A JSON number or string, as the text that the vendor wrote; '' for null and for what was absent. ValueError for other JSON.

    Numbers are taken as they stand: a float never touches them.
    """
    if raw is ABSENT:
        return ""
    text = str(raw, "utf-8")  # a Raw is a buffer
    if text[:1] == '"':
        return text[1:-1] if "\\" not in text else str(msgspec.json.decode(text, type=str))
    if text in ("", "null"):
        return ""
    if text[0] not in "-0123456789":
        raise ValueError(f"{text[:40]} is neither number nor text")
    return text
