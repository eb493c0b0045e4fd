"""tickbus: exact market-data ticks on Redis Streams. `connect` is where to begin; `messages` is what is read."""

from tickbus.batch import Batch
from tickbus.bus import Bus, Consuming, Reading, connect
from tickbus.errors import ConfigError, Fenced, RedisAway, RedisError, RedisUnfit, TickbusError, VendorRefused, WireError
from tickbus.messages import Bar, Flag, Gap, GapKind, Message, Quote, Side, Signal, StreamKind, Trade, as_json
from tickbus.names import Stream, StreamId
from tickbus.outputs import Output
from tickbus.version import VERSION as __version__

__all__ = [
    "Bar", "Batch", "Bus", "ConfigError", "Consuming", "Fenced", "Flag", "Gap", "GapKind", "Message", "Output", "Quote", "Reading",
    "RedisAway", "RedisError", "RedisUnfit", "Side", "Signal", "Stream", "StreamId", "StreamKind", "TickbusError", "Trade", "VendorRefused", "WireError",
    "__version__", "as_json", "connect",
]  # fmt: skip
