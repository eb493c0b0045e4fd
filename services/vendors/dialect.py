"""A vendor's protocol from the vendor's end: one client's conversation, without a socket or a clock. Pure.

A Dialect is fed what the client sends (`receive`, `ping`, `pong`) and the passing of time (`beat`), each with the monotonic time
in ns, and returns an Answer: what to send back, and what changed. It says which ticks the client subscribed to (`wants`), and
writes them as the vendor does (`render`, `pack`). Dialects of one `style` render a tick to the same bytes, so it is done once
for all their clients.

The simulator feeds it from a simulated market; anything else that has Trades and Quotes can.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeVar

from tickbus.protocol.messages import Quote, Trade

Tick = TypeVar("Tick", Trade, Quote)


@dataclass
class VendorLimits:
    """What the vendor grants. The caps can be changed while clients are connected."""

    token: str | None = None
    """The only token that is accepted, of vendors that want one; None accepts any."""
    symbol_cap: int = 0
    """Symbols (or streams, as the vendor counts) per connection; 0 means the vendor's own cap."""
    max_connections: int = 0
    """Per path; 0 means no cap."""
    knows: Callable[[str], bool] = lambda symbol: True
    """Whether the market has this symbol, or would open it."""


class Close(NamedTuple):
    """The end of a connection, as the client sees it."""

    code: int
    reason: str


@dataclass
class HttpRefusal:
    """An HTTP answer instead of the handshake."""

    status: int
    body: bytes


@dataclass
class Answer:
    replies: list[bytes] = field(default_factory=list)
    close: Close | None = None
    """Close the connection, after the replies."""
    ping: bytes | None = None
    event: dict[str, object] | None = None
    """A change of what the client is subscribed to, for a log."""


class Dialect(ABC):
    """One client's side of a vendor's protocol: what it asks, and what it is told."""

    vendor: ClassVar[str]
    style: Hashable

    @abstractmethod
    def receive(self, message: bytes, now: int) -> Answer: ...

    def ping(self, now: int) -> Answer:
        """The client has sent a WebSocket ping; the pong goes out by itself."""
        return Answer()

    def pong(self, payload: bytes, now: int) -> Answer:
        return Answer()

    def beat(self, now: int) -> Answer:
        """Called a few times a second: what is due by the clock."""
        return Answer()

    @abstractmethod
    def symbols(self) -> Sequence[str]:
        """Return the symbols asked for, as the client spells them."""

    @property
    @abstractmethod
    def subscribed(self) -> bool: ...

    @abstractmethod
    def wants(self, kind: str, symbol: str) -> bool:
        """Return whether the client is subscribed to the trades or quotes of a symbol, in the vendor's or the bus's spelling."""

    @abstractmethod
    def render(self, message: Trade | Quote, symbol: str, id: int) -> bytes:
        """Return one tick as an item for `pack`.

        symbol: in the client's spelling. id: the vendor's number of the trade, or the update of the book.
        """

    def pack(self, items: Sequence[bytes]) -> Sequence[bytes]:
        """Return items as the payloads of WebSocket text messages."""
        return items

    @abstractmethod
    def project(self, message: Tick, id: int) -> Tick:
        """Return what of a tick the protocol can carry: what the vendor's own client makes of the rendered tick, but for its
        times of receipt."""

    @abstractmethod
    def time_text(self, ts_event: int) -> str:
        """Return a time as it stands in a rendered tick."""

    def wants_recorded(self, channel: str) -> bool:
        """Return whether the client is subscribed to a channel of recorded frames that hold no ticks."""
        return False

    def recorded(self, frame: bytes) -> bytes | None:
        """Return a recorded frame of this vendor as this client gets it; None if its tick has to be rendered anew."""
        return None

    @abstractmethod
    def slow_down(self) -> Answer:
        """Return what the vendor says to a client that asks too much."""

    def shutdown_notice(self, time_ns: int) -> Answer:
        """Return what the vendor says before it goes down; nothing for most."""
        return Answer()

    def over_connection_cap(self) -> HttpRefusal | Close:
        """Return how a connection too many is turned away."""
        return HttpRefusal(429, b"too many connections\n")


def bare_path(target: str) -> str:
    """Return the path of a request without the query, which can hold a token: fit to be logged and compared."""
    return target.partition("?")[0] or "/"
