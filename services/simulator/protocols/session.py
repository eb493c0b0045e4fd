"""What every protocol of the simulator is: one client's conversation, without a socket or a clock. Pure.

A session is fed what the client sends (`receive`, `pong`, `ping`) and the passing of time (`beat`), each with the monotonic
time in ns, and answers with an `Answer`: what to send back, and what changed. It says which ticks the client wants
(`wants`) and dresses them (`render`, `pack`). Sessions of one `style` render a tick to the same bytes, so it is done once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from services.simulator.frames import text_frames
from services.simulator.tick import Tick, is_symbol
from tickbus.units import HOUR, SECOND

TimeUnit = Literal["seconds", "ms", "us", "ns", "iso"]


@dataclass
class VendorLimits:
    """What the vendor grants and how it writes. The caps can be changed while clients are connected."""

    token: str | None = None
    """The only token that alltick takes; None takes any."""
    symbol_cap: int = 0
    """Symbols (binance: streams) per connection; 0 = the vendor's own cap."""
    max_connections: int = 0
    """Per path; 0 = no cap."""
    knows: Callable[[str], bool] = is_symbol
    """Whether the market has this symbol, or would open it."""
    ping_interval: int = 20 * SECOND
    """Of binance; a ping without a pong for three of these ends the connection."""
    lifetime: int = 24 * HOUR
    """Of a binance connection."""
    heartbeat_timeout: int = 30 * SECOND
    """Of alltick."""
    alltick_numbers: bool = False
    """seq and tick_time as JSON numbers, the form documented since June 2026."""
    alltick_join: int = 1
    """Objects per frame, joined by newlines."""
    json_numbers: bool = False
    json_time: TimeUnit = "ms"
    json_quotes: bool = False
    json_batch: int = 1
    """Trades per message."""


@dataclass
class Answer:
    replies: list[bytes] = field(default_factory=list)
    close: tuple[int, str] | None = None
    """Close with this code and reason, after the replies."""
    ping: bytes | None = None
    event: dict[str, object] | None = None
    """A change of what the client wants, for the ledger."""


class Session(ABC):
    """One client's side of a vendor's protocol: what it asks, what it is told. Pure."""

    protocol: ClassVar[str]
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
        """The symbols asked for, as the client spells them: a synthetic market opens them."""

    @property
    @abstractmethod
    def subscribed(self) -> bool: ...

    @abstractmethod
    def wants(self, tick: Tick) -> bool: ...

    @abstractmethod
    def render(self, tick: Tick) -> bytes:
        """One tick -> an item for `pack`."""

    def pack(self, items: Sequence[bytes]) -> bytes:
        """Items -> WebSocket frames in one piece."""
        return text_frames(items)

    @abstractmethod
    def slow_down(self) -> Answer:
        """What the vendor says to a client that asks too much."""

    def shutdown_notice(self, time_ns: int) -> Answer:
        """What the vendor says before it goes down; nothing for most."""
        return Answer()
