"""The server end of a vendor's protocol: one client's conversation, without a socket or a clock. Pure.

A Dialect is given what the client sends (`receive`, `on_ping`, `on_pong`) and the passing of time
(`on_timer`), each with the monotonic time in ns, and returns an Answer: what to send back, and what
changed. It knows which ticks the client subscribed to (`wants`), and renders them as the vendor does
(`render`, `pack`). Dialects with the same `style` render a tick to the same bytes, so it is rendered once
for all their clients.

The simulator feeds it from a simulated market; any other source of Trades and Quotes can do the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeVar

from tickbus.protocol.messages import Quote, Trade

Tick = TypeVar("Tick", Trade, Quote)


@dataclass
class VendorLimits:
    """What the vendor allows. The caps can be changed while clients are connected."""

    token: str | None = None
    """The only accepted token, for vendors that require one; None accepts any."""
    symbol_cap: int = 0
    """Symbols (or streams, if the vendor counts those) per connection; 0 means the vendor's own cap."""
    max_connections: int = 0
    """Per path; 0 means no cap."""
    knows: Callable[[str], bool] = lambda symbol: True
    """Whether the market has this symbol, or can open it."""
    refused: frozenset[str] = frozenset()
    """Symbols that this client may not have: a request that names one of them is refused as a whole."""


class Close(NamedTuple):
    """The end of a connection, as the client sees it."""

    code: int
    reason: str


@dataclass
class HttpRefusal:
    """An HTTP response sent instead of the handshake."""

    status: int
    body: bytes


@dataclass
class Answer:
    replies: list[bytes] = field(default_factory=list)
    close: Close | None = None
    """Close the connection after sending the replies."""
    ping: bytes | None = None
    event: dict[str, object] | None = None
    """A change of the client's subscriptions, to be logged."""


class Dialect(ABC):
    """A vendor's side of the conversation with one client."""

    vendor: ClassVar[str]
    style: Hashable

    @abstractmethod
    def receive(self, message: bytes, now: int) -> Answer:
        """Return the answer to a message from the client. Never raises, whatever the client sends."""

    def on_ping(self, now: int) -> Answer:
        """Return the answer to a WebSocket ping from the client; the pong itself is sent automatically."""
        return Answer()

    def on_pong(self, payload: bytes, now: int) -> Answer:
        """Return the answer to a WebSocket pong from the client."""
        return Answer()

    def on_timer(self, now: int) -> Answer:
        """Return what is due by the clock. Called a few times a second."""
        return Answer()

    @abstractmethod
    def symbols(self) -> Sequence[str]:
        """Return the subscribed symbols, as the client spells them."""

    @property
    @abstractmethod
    def subscribed(self) -> bool:
        """Whether the client has any subscription."""

    @abstractmethod
    def wants(self, kind: str, symbol: str) -> bool:
        """Return whether the client is subscribed to the trades or quotes of a symbol.

        symbol: in the vendor's spelling or in that of the bus.
        """

    @abstractmethod
    def render(self, message: Trade | Quote, symbol: str, id: int) -> bytes:
        """Return one tick as an item for `pack`.

        symbol: in the client's spelling. id: the vendor's id of the trade, or the update id of the book.
        """

    def pack(self, items: Sequence[bytes]) -> Sequence[bytes]:
        """Return items as the payloads of WebSocket text messages."""
        return items

    @abstractmethod
    def project(self, message: Tick, id: int) -> Tick:
        """Return the part of a tick that the protocol can carry.

        That is what the vendor's own client maps the rendered tick to, except for its receive times.
        """

    @abstractmethod
    def time_text(self, ts_event: int) -> str:
        """Return a time as it appears in a rendered tick."""

    def wants_recorded(self, channel: str) -> bool:
        """Return whether the client is subscribed to a channel of recorded frames that contain no ticks."""
        return False

    def adapt_recorded(self, frame: bytes) -> bytes | None:
        """Return a recorded frame of the vendor as this client gets it; None if its tick must be rendered."""
        return None

    @abstractmethod
    def slow_down(self) -> Answer:
        """Return the vendor's answer to a client that sends too many requests."""

    def shutdown_notice(self, time_ns: int) -> Answer:
        """Return what the vendor sends before it shuts down; nothing for most vendors."""
        return Answer()

    def over_connection_cap(self) -> HttpRefusal | Close:
        """Return how the vendor rejects a connection over its cap."""
        return HttpRefusal(429, b"too many connections\n")


def path_without_query(target: str) -> str:
    """Return the path of a request target without the query, which can contain a token: safe to log."""
    return target.partition("?")[0] or "/"
