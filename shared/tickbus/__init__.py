"""tickbus: exact market-data ticks on Redis Streams.

Start with `connect`. The public interface is these names, `tickbus.protocol` (messages, names and encoding)
and `tickbus.service` (options and a runner for services); everything else is internal.
"""

from tickbus.bus import Bus, connect
from tickbus.consumer.batch import Batch
from tickbus.consumer.outputs import Output
from tickbus.errors import (
    ConfigError,
    Fenced,
    RedisError,
    RedisMisconfigured,
    RedisUnavailable,
    RelayError,
    RelayRefused,
    RelayUnavailable,
    TickbusError,
    VendorRefused,
    WireError,
)  # fmt: skip
from tickbus.protocol.messages import (
    Bar,
    Flag,
    Gap,
    GapKind,
    Message,
    Quote,
    Side,
    Signal,
    SignalState,
    StreamKind,
    Trade,
    as_json,
)
from tickbus.protocol.names import Stream, StreamId
from tickbus.protocol.wants import SubscriptionState
from tickbus.subscription import Consumer, Subscription
from tickbus.version import VERSION as __version__
from tickbus.wants import Want

__all__ = [
    "Bar", "Batch", "Bus", "ConfigError", "Consumer", "Fenced", "Flag", "Gap", "GapKind", "Message", "Output",
    "Quote", "RedisError", "RedisMisconfigured", "RedisUnavailable", "RelayError", "RelayRefused",
    "RelayUnavailable", "Side", "Signal", "SignalState", "Stream", "StreamId", "StreamKind", "Subscription",
    "SubscriptionState", "TickbusError", "Trade", "VendorRefused", "Want", "WireError", "__version__",
    "as_json", "connect",
]  # fmt: skip


def __dir__() -> list[str]:
    """Return only the public names: importing them makes every internal module an attribute too."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
