"""The client end of a vendor's protocol: a Feed and a Mapper.

The Feed has the address, the subscribe frames, the heartbeat and the limits; the Mapper turns bytes into
messages and is pure. Reconnecting, backoff, liveness, gaps and metrics live once, outside. A new vendor is
one folder here and one line in the registry: docs/adding-a-feed.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from msgspec.structs import replace

from services.vendors.frames import (
    decode_fields,
    decode_items,
    is_keepalive,
    is_words,
    printable,
    shape_of,
    vendor_error,
)
from services.vendors.options import NO_OPTIONS, VendorOptions
from services.vendors.seen_ids import SeenIds
from services.vendors.symbols import SymbolMap
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Flag, Quote, Trade
from tickbus.protocol.wants import Topic as Topic  # part of this module's interface
from tickbus.sanitize import redact
from tickbus.units import DAY, SECOND, Duration

MappedTick = tuple[Trade | Quote, int]
"""A tick and its vendor id; NO_ID if the vendor has no contiguous ids for this kind."""
NO_ID = -1


@dataclass(frozen=True)
class SubscribeAck:
    """The vendor acknowledged a request: `Request`."""

    request: int | None = None
    """The id of that request; None if the answer does not say."""


@dataclass(frozen=True)
class HeartbeatAck:
    """The vendor acknowledged a heartbeat: the connection is alive, which says nothing about data."""


@dataclass(frozen=True)
class Skipped:
    """A frame that the vendor documents, or a keepalive, and that carries no ticks we use."""


@dataclass(frozen=True)
class Unknown:
    """A frame that nobody here understands, and that cannot hold ticks as far as can be seen."""

    head: str
    """Its first bytes, printable."""
    length: int
    shape: str
    """What frames like it have in common, so that the first of each can be logged."""


@dataclass(frozen=True)
class VendorError:
    """The vendor reports an error that does not end the connection."""

    text: str
    """The vendor's words, printable."""


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
    wrong_data: bool = False
    """Whether what the vendor sends is the reason: then an acknowledged subscription proves nothing."""
    request: int | None = None
    """The id of the request that it answers; None if the answer does not say."""
    symbols: bool = False
    """Whether symbols of that request may be the reason: without them it may be accepted."""


@dataclass(frozen=True)
class Closing:
    """The vendor announced that it will close this connection: open another at once, then leave this one."""


Notice = SubscribeAck | HeartbeatAck | Skipped | Unknown | VendorError | Rejected | Refused | Closing

OLDEST = 946_684_800 * SECOND
"""2000-01-01: no feed of today's has ticks from before, unless the operator says so (--oldest)."""
_MAX_AHEAD = 2 * DAY
"""A vendor's time further ahead of ours than this is none. Clocks and time zones differ by less."""
_HEAD_BYTES = 100
_TEXT = 200
"""Longest text of the vendor in a notice."""


class Mapper(ABC):
    """Maps the frames of one connection to ticks. Pure: no clock, no network.

    It remembers the newest quote per symbol. Anything that is not a tick is appended to `notices`, which the
    caller empties; what happened to ticks without a notice is counted, and the caller resets the counts.
    """

    def __init__(self, setup: "FeedSetup", tolerance: Duration) -> None:
        self.symbols = setup.symbols.canonical
        self.oldest = max(1, setup.oldest)
        """A time from here to `recv` is taken as it is: hot paths compare, `event_time` decides the rest."""
        self._oldest = setup.oldest
        self.tolerance = tolerance
        """A ts_event further than this ahead of ts_recv is flagged FUTURE_TIME."""
        self.notices: list[Notice] = []
        self.best_quotes: dict[str, tuple[str | None, str | None]] = {}
        """Newest bid and ask by canonical symbol."""
        self.bad_times = 0
        """Ticks whose time was absent or implausible, since the caller looked last."""
        self.bad_time = 0
        """The newest such time, ns; 0: absent."""
        self.duplicates = 0
        """Ticks dropped because this feed delivered them before, since the caller looked last."""
        self.ticks_before = 0
        """How many ticks of the frame precede the part of it that is being mapped."""
        self._ahead = max(_MAX_AHEAD, tolerance)

    @abstractmethod
    def map(self, frame: bytes, recv: int) -> Sequence[MappedTick]:
        """Return the ticks of one WebSocket message, received at `recv` (ns), in order.

        They are stamped `recv`, `recv + 1`, ... Never raises for what the vendor sent: that becomes a notice.
        """

    def follow(self, previous: "Mapper") -> None:
        """Continue from the mapper of the previous connection, including its newest quotes."""
        self.best_quotes = {**previous.best_quotes, **self.best_quotes}

    def event_time(self, time: int, recv: int) -> tuple[int, int]:
        """Return ts_event and the flags of a tick that has this time by the vendor (ns; 0: none).

        An absent or implausible time is `recv`, flagged BAD_TIME: no tick is dropped for its time.
        """
        if time and self._oldest <= time <= recv + self._ahead:
            return time, Flag.FUTURE_TIME.value if time > recv + self.tolerance else 0
        self.bad_times += 1
        self.bad_time = time
        return recv, Flag.BAD_TIME.value

    def reject(
        self,
        reason: str,
        detail: object,
        *,
        kind: str | None = None,
        symbol: str | None = None,
        vendor_id: int = NO_ID,
        lost: bool = True,
        ticks_before: int | None = None,
    ) -> None:
        """Append a `Rejected` notice; its fields say what each parameter means."""
        before = self.ticks_before if ticks_before is None else ticks_before
        text = printable(str(detail), _TEXT)
        self.notices.append(Rejected(reason, text, kind, symbol, vendor_id, lost, before))

    def undecodable(self, frame: bytes, error: object) -> None:
        """Report a frame that is not of the protocol's encoding.

        A keepalive (`pong`, an empty frame) and plain words cannot hold ticks, anything else may.
        """
        if is_keepalive(frame):
            self.notices.append(Skipped())
        elif is_words(frame):
            self.unknown(frame)
        else:
            self.reject("garbage", error)

    def unused(self, frame: bytes, *, documented: bool = False) -> None:
        """Report a frame in which this mapper has found no ticks: an error of the vendor's, or another.

        documented: the vendor documents frames of this kind, and they have no ticks for us.
        """
        if (words := self.error_in(frame)) is not None:
            self.notices.append(VendorError(words))
        elif documented or is_keepalive(frame):
            self.notices.append(Skipped())
        elif (shape := shape_of(frame)) is None:
            self.undecodable(frame, "not JSON")
        elif shape == "text" and not is_words(frame.strip()[1:-1]):
            self.reject("garbage", "a JSON text that may hold ticks")
        else:
            self.unknown(frame)

    def merge_unused(self, since: int) -> None:
        """Keep one notice of each kind about parts of a list that are of no use, from notice `since` on."""
        kept: list[Notice] = []
        for notice in self.notices[since:]:
            unused = isinstance(notice, Skipped | Unknown)
            if not unused or not any(type(other) is type(notice) for other in kept):
                kept.append(notice)
        self.notices[since:] = kept

    @staticmethod
    def error_in(frame: bytes) -> str | None:
        """Return the vendor's words if a frame, or one of the objects in a list, is an error; else None."""
        if (fields := decode_fields(frame)) is not None:
            return vendor_error(fields)
        for item in decode_items(frame) or ():
            if (fields := decode_fields(item)) is not None and (words := vendor_error(fields)) is not None:
                return words
        return None

    def unknown(self, frame: bytes) -> None:
        """Report a frame, or a part of one, that nobody here understands."""
        shape = shape_of(frame) or "text"
        self.notices.append(Unknown(printable(frame[:_HEAD_BYTES], 2 * _TEXT), len(frame), shape))


def oldest_first(ticks: Sequence[MappedTick]) -> Sequence[MappedTick]:
    """Return the ticks of a frame in the vendor's order, also if it lists the newest first.

    That is the case for a symbol whose ids fall while its times do not rise: its ticks are turned round, in
    their places and with the receive times of these. All others stay where they are.
    """
    places: dict[str, list[int]] = {}
    for at, (tick, vendor_id) in enumerate(ticks):
        if vendor_id >= 0:
            places.setdefault(tick.symbol, []).append(at)
    ordered = list(ticks)
    for ats in places.values():
        listed = [ticks[at] for at in ats]
        if listed[0][1] > listed[-1][1] and all(_falls(*pair) for pair in pairwise(listed)):
            for at, (tick, vendor_id) in zip(ats, reversed(listed), strict=True):
                ordered[at] = _received_at(tick, ticks[at][0].ts_recv), vendor_id
    return ordered


def _falls(earlier: MappedTick, later: MappedTick) -> bool:
    timed = not (earlier[0].flags | later[0].flags) & Flag.BAD_TIME
    return later[1] <= earlier[1] and not (timed and later[0].ts_event > earlier[0].ts_event)


def _received_at(tick: Trade | Quote, recv: int) -> Trade | Quote:
    event = recv if tick.flags & Flag.BAD_TIME else tick.ts_event
    return replace(tick, ts_recv=recv, ts_event=event)


class Request(NamedTuple):
    """A frame that changes what a connection is subscribed to."""

    frame: str
    adds: tuple[Topic, ...] = ()
    drops: tuple[Topic, ...] = ()
    id: int | None = None
    """With which the vendor answers it; None if its requests have none."""


class Cap(NamedTuple):
    """How much the vendor lets a connection subscribe to."""

    most: int
    what: str
    """What is counted: `symbols` (of each kind by itself) or `streams` (all kinds together)."""


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
    oldest: int = OLDEST
    """A time of the vendor's before this (ns) is implausible."""
    seen_ids: SeenIds = field(default_factory=SeenIds, compare=False)
    """The trades that this feed delivered, over all its connections, if the vendor's ids are unique."""
    fixed: tuple[str, ...] = field(init=False)
    """The symbols that are always subscribed to. `symbols` has these at first; others may be added."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", tuple(self.symbols.vendor))


class Feed(ABC):
    """One vendor's protocol for one connection. The attributes are its limits; the gateway respects them."""

    default_url: str
    default_path: str = ""
    kinds: tuple[str, ...] = ("trade", "quote")
    sequenced: bool = False
    """Whether trade ids are contiguous per symbol (+1 each), so that gaps and duplicates are detected."""
    snapshot_size: int = 64
    """How many of a symbol's last trades the vendor sends again at most, after a subscription.

    With `sequenced`: an id that is at most this much below the newest is a repeat.
    """
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
    """Whether a subscribe frame replaces the previous subscription, so that each must name the whole set.

    After a refusal it is not known what is subscribed: the set that was acknowledged is sent again.
    """
    cap: Cap | None = None
    """None: none is known."""

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
        return [Topic(kind, symbol) for symbol in self.setup.fixed for kind in self.setup.kinds]

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

    @staticmethod
    def from_vendor_symbol(spelling: str) -> str:
        """Return the canonical symbol of a vendor's spelling, as far as the text tells it."""
        return spelling

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
        if why := self.unsuitable(parts):
            raise ConfigError(f"invalid --url {redact(url)}: {why}")
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

    def unsuitable(self, parts: SplitResult) -> str:
        """Return why an address of the vendor's has not what this feed reads, and which has; '' if it may."""
        return ""

    def query(self) -> str:
        """Return the query to add to the address, tokens included; '' for none."""
        return ""

    def address(self) -> str:
        """Return the URL without its secrets, for logs."""
        return redact(self.url())

    def __init_subclass__(cls) -> None:
        if cls.subscribe is Feed.subscribe and cls.change is Feed.change:
            raise TypeError(f"{cls.__name__} must define subscribe, or change")

    def subscribe(self, topics: Collection[Topic]) -> list[str]:
        """Return the frames that subscribe to these topics, in order, within the vendor's limits.

        With `subscribe_replaces`, the topics become the whole set. A vendor whose frames are best made from
        what is subscribed already defines `change` instead.
        """
        return [request.frame for request in self.change(topics, ())]

    def unsubscribe(self, topics: Collection[Topic]) -> list[str]:
        """Return the frames that end the subscription to these topics; none if the vendor has no such
        request."""
        return []

    def change(self, target: Collection[Topic], acknowledged: Collection[Topic]) -> list[Request]:
        """Return the fewest requests, within the vendor's limits, that make a subscription to `acknowledged`
        one to `target`. None if the vendor need not be told, or cannot be.

        The order of `target` is that of importance: a vendor that silently ignores what is over its cap
        ignores the last ones.
        """
        before, after = set(acknowledged), set(target)
        adds = tuple(topic for topic in target if topic not in before)
        drops = tuple(topic for topic in acknowledged if topic not in after)
        first = self.requests
        frames = self.unsubscribe(drops) if drops and not (self.subscribe_replaces and target) else []
        listed = target if self.subscribe_replaces else adds
        if listed and (adds or (drops and self.subscribe_replaces)):
            frames += self.subscribe(listed)
        numbered = self.requests - first == len(frames)
        requests = [
            Request(frame, id=first + 1 + at if numbered else None) for at, frame in enumerate(frames)
        ]
        # which frame is for which topics only the vendor's own code knows: the last one counts
        return [*requests[:-1], *(request._replace(adds=adds, drops=drops) for request in requests[-1:])]

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
