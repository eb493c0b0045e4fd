"""Names on the bus: streams, shards, keys, stream IDs. Pure.

A stream is named `<kind>:<feed>:<symbol>` (`trade:binance:BTC-USDT`, `bar:time:1m:binance:BTC-USDT`). Its
key has the prefix and the shard in front: `tickbus:{07}:trade:binance:BTC-USDT`. The braces are a Redis
Cluster hash tag, so that all keys of a shard live on one node and fit into one transaction.
"""

import re
import zlib
from dataclasses import dataclass
from typing import NamedTuple, Union

from tickbus.errors import ConfigError

DEFAULT_PREFIX = "tickbus"
DEFAULT_SHARDS = 64
FEED_KINDS = ("trade", "quote")
"""Stream kinds that gateways write; services write the others."""
KINDS = (*FEED_KINDS, "bar", "signal")

_SYMBOL = re.compile(r"[A-Z0-9._-]{1,64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_SPEC = re.compile(r"[a-z0-9._-]+(:[a-z0-9._-]+)*")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
"""Without braces: a brace before the hash tag would become the hash tag."""


def check_symbol(symbol: str) -> str:
    """Return the symbol. ConfigError if it is invalid."""
    if not _SYMBOL.fullmatch(symbol):
        raise ConfigError(
            f"invalid symbol {symbol!r}: expected A-Z 0-9 . _ - (at most 64), e.g. BTC-USDT or AAPL.US;"
            " map other spellings with --symbol-map"
        )
    return symbol


def check_name(name: str) -> str:
    """Return the name of a feed or service. ConfigError if it is invalid."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"invalid name {name!r}: expected a-z 0-9 _ - (at most 32), starting with a letter or digit"
        )
    return name


def is_stream(name: str) -> bool:
    """Whether this is the name of a stream. Other names beside them were not written by tickbus."""
    try:
        Stream.parse(name).check()
    except ValueError:
        return False
    return True


class StreamId(NamedTuple):
    """A stream ID: bus time in ms, and the stream's own dense counter. Sorts as in Redis."""

    ms: int
    seq: int

    @classmethod
    def parse(cls, text: str | bytes) -> "StreamId":
        """Parse `1700000000123-42`, the inverse of `str`. ValueError if it is not an ID."""
        ms, _, seq = text.partition(b"-") if isinstance(text, bytes) else text.partition("-")
        return cls(int(ms), int(seq))

    @classmethod
    def read(cls, text: str | bytes) -> "StreamId":
        """Parse an ID that others may have written. ValueError unless Redis would accept it too."""
        match = _ID.fullmatch(text.decode("ascii", "replace") if isinstance(text, bytes) else text)
        if match is None or (id := cls(int(match[1]), int(match[2]))) > _LAST:
            raise ValueError(f"invalid stream ID {text[:64]!r}: expected e.g. 1700000000123-42")
        if id.seq > _LAST.seq:
            raise ValueError(f"invalid stream ID {text[:64]!r}: its counter has more than 64 bits")
        return id

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


_LAST = StreamId((1 << 64) - 1, (1 << 64) - 1)
"""The last ID that Redis can store."""
START = StreamId(0, 0)
"""Before every entry."""


class Stream(NamedTuple):
    """A stream of the bus: the ticks of a symbol from a feed, or what a service says of it.

    kind: `trade`, `quote`, `bar` or `signal`.
    feed: the feed; for bars and signals the service that writes them.
    symbol: canonical, like `BTC-USDT`.

        Stream.parse("trade:binance:BTC-USDT") == Stream("trade", "binance", "BTC-USDT")
    """

    kind: str
    feed: str
    symbol: str
    spec: str = ""
    """The bar's spec, `time:1m`; empty for the other kinds."""

    @property
    def name(self) -> str:
        return (
            f"{self.kind}:{self.spec}:{self.feed}:{self.symbol}"
            if self.spec
            else f"{self.kind}:{self.feed}:{self.symbol}"
        )

    @classmethod
    def parse(cls, name: str) -> "Stream":
        """Parse a stream name, the inverse of `name`. ValueError if it is not one."""
        kind, *middle, feed, symbol = name.split(":")
        if kind not in KINDS or (kind == "bar") != bool(middle):
            raise ValueError(f"invalid stream name {name!r}: expected e.g. trade:binance:BTC-USDT")
        return cls(kind, feed, symbol, ":".join(middle))

    def check(self) -> None:
        """ValueError unless its parts are valid names, and only a bar stream, always, has a spec."""
        parts = (
            (self.feed, _NAME, "feed"),
            (self.symbol, _SYMBOL, "symbol"),
            *([(self.spec, _SPEC, "spec")] if self.kind == "bar" else []),
        )
        for text, allowed, what in parts:
            if not allowed.fullmatch(text):
                raise ValueError(f"invalid stream name {self.name!r}: its {what} is {text!r}")
        if self.kind not in KINDS or (self.kind != "bar" and self.spec):
            raise ValueError(f"invalid stream name {self.name!r}: expected e.g. trade:binance:BTC-USDT")


class StatePart(NamedTuple):
    """A part of a stream's state, stored beside the others: only parts that changed are written."""

    stream: Stream
    part: str
    """Any text without `#`."""

    @property
    def symbol(self) -> str:
        """Of its stream."""
        return self.stream.symbol

    @property
    def name(self) -> str:
        """Name of its field in the service's state."""
        return f"{self.stream.name}#{self.part}"


StateField = Union[Stream, StatePart]


def stream_of_state(name: str) -> Stream:
    """Return the stream of a field of a service's state, whole or part. ValueError if it has none."""
    return Stream.parse(name.partition("#")[0])


@dataclass(frozen=True)
class Keys:
    """All Redis keys of one bus."""

    prefix: str = DEFAULT_PREFIX
    shards: int = DEFAULT_SHARDS

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigError(
                f"invalid prefix {self.prefix!r}: expected letters, digits . _ - : (at most 64),"
                " starting with a letter or digit"
            )

    def shard(self, symbol: str) -> int:
        """Return the shard of all streams of a symbol."""
        return zlib.crc32(symbol.encode()) % self.shards

    def tag(self, shard: int) -> str:
        """Return the hash tag of a shard: two digits, three from 100 on."""
        return f"{shard:02d}"

    def _shard_key(self, shard: int, suffix: str) -> str:
        return f"{self.prefix}:{{{self.tag(shard)}}}:{suffix}"

    def stream(self, stream: Stream) -> str:
        """Key of a stream: its entries."""
        return self._shard_key(self.shard(stream.symbol), stream.name)

    def bell(self, shard: int) -> str:
        """Key of the doorbell stream of a shard."""
        return self._shard_key(shard, "bell")

    def last(self, shard: int) -> str:
        """Key of the heads: a hash by stream name."""
        return self._shard_key(shard, "last")

    def era(self, shard: int) -> str:
        """Key of the shard's history id."""
        return self._shard_key(shard, "era")

    def fence(self, shard: int, owner: str) -> str:
        """`owner`: the name of a feed or service."""
        return self._shard_key(shard, f"fence:{owner}")

    def holder(self, shard: int, owner: str) -> str:
        """Key of the process that raised the fence; its value is empty after a clean exit."""
        return self._shard_key(shard, f"holder:{owner}")

    def position(self, shard: int, service: str) -> str:
        """Key of the committed positions: a hash by stream name."""
        return self._shard_key(shard, f"position:{service}")

    def state(self, shard: int, service: str) -> str:
        """Key of the committed states: a hash by stream name."""
        return self._shard_key(shard, f"state:{service}")

    def dead_letters(self, stream: Stream, service: str) -> str:
        """Key of what a notify service could not deliver of a stream: a stream with the same IDs; expires."""
        return self._shard_key(self.shard(stream.symbol), f"dead:{service}:{stream.name}")

    @property
    def meta(self) -> str:
        return f"{self.prefix}:meta"

    def lease(self, owner: str) -> str:
        """Key of the lease of a feed."""
        return f"{self.prefix}:lease:{owner}"

    def standby(self, feed: str) -> str:
        """Key of what the gateway that stands by for a feed says of itself; expires."""
        return f"{self.prefix}:standby:{feed}"

    def holders(self, feed: str) -> str:
        """Key of the holders of wants, a sorted set: a score rises with each change of its holder's wants."""
        return f"{self.prefix}:{{wants:{feed}}}"

    def wants(self, feed: str, holder: str) -> str:
        """Key of what one holder wants, a hash; expires."""
        return f"{self.holders(feed)}:{holder}"

    def subscriptions(self, shard: int, feed: str) -> str:
        """Key of the states of subscriptions: a hash by topic, `trade BTC-USDT`."""
        return self._shard_key(shard, f"subscriptions:{feed}")

    @property
    def relays(self) -> str:
        """Key of the relays that run: a hash by process."""
        return f"{self.prefix}:relays"

    def relay(self, holder: str) -> str:
        """Key of what the relay of this process (host:pid:token) says of itself and its clients; expires."""
        return f"{self.prefix}:relay:{holder}"

    def report(self, service: str, member: str) -> str:
        """Key of what a replica of a service says of its own state; expires."""
        return f"{self.prefix}:report:{service}:{member}"

    def members(self, service: str) -> str:
        """Key of the heartbeats of the replicas: a hash by process."""
        return f"{self.prefix}:members:{service}"
