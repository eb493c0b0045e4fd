"""Names on the bus: streams, shards, keys, stream IDs. Pure.

A stream is named `<kind>:<feed>:<symbol>` (`trade:binance:BTC-USDT`, `bar:time:1m:binance:BTC-USDT`). Its key puts the
prefix and its shard in front: `tickbus:{07}:trade:binance:BTC-USDT`. The braces are a Redis Cluster hash tag, so that all
keys of a shard live on one node and one transaction can hold them.
"""

import re
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from tickbus.errors import ConfigError

DEFAULT_PREFIX = "tickbus"
DEFAULT_SHARDS = 64
FEED_KINDS = ("trade", "quote")
"""Kinds of stream that gateways write; the others are services'."""
KINDS = (*FEED_KINDS, "bar", "signal")

_SYMBOL = re.compile(r"[A-Z0-9._-]{1,64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SPEC = re.compile(r"[a-z0-9._-]+(:[a-z0-9._-]+)*")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
"""Without braces: a brace in front of the hash tag would take its place."""


def check_symbol(symbol: str) -> str:
    if not _SYMBOL.fullmatch(symbol):
        raise ConfigError(
            f"symbol {symbol!r}: use A-Z 0-9 . _ - (at most 64); write BTC-USDT or AAPL.US, and --symbol-map for other spellings"
        )
    return symbol


def check_name(name: str) -> str:
    """The name of a feed or service."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: use a-z 0-9 _ - (at most 32), beginning with a letter or digit")
    return name


def is_stream(name: str) -> bool:
    """Whether it is the name of a stream. What stands beside them was written by nobody of ours."""
    try:
        Stream.parse(name)
    except ValueError:
        return False
    return True


class StreamId(NamedTuple):
    """A stream ID: bus time in ms, and the stream's own dense counter. Orders like Redis orders it."""

    ms: int
    seq: int

    @classmethod
    def parse(cls, text: str | bytes) -> "StreamId":
        ms, _, seq = text.partition(b"-") if isinstance(text, bytes) else text.partition("-")
        return cls(int(ms), int(seq))

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


START = StreamId(0, 0)
"""Before every entry."""


class Stream(NamedTuple):
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
        """The opposite of `name`; ValueError if it is none."""
        kind, *middle, feed, symbol = name.split(":")
        if kind not in KINDS or (kind == "bar") != bool(middle):
            raise ValueError(f"{name!r} is no stream name")
        return cls(kind, feed, symbol, ":".join(middle))

    def check(self) -> None:
        """ValueError unless its parts are names of the bus, and it has a spec if it is a bar's and none otherwise."""
        parts = (
            (self.feed, _NAME, "feed"),
            (self.symbol, _SYMBOL, "symbol"),
            *([(self.spec, _SPEC, "spec")] if self.kind == "bar" else []),
        )
        for text, allowed, what in parts:
            if not allowed.fullmatch(text):
                raise ValueError(f"{self.name!r} is no stream name: its {what} is {text!r}")
        if self.kind not in KINDS or (self.kind != "bar" and self.spec):
            raise ValueError(f"{self.name!r} is no stream name")


@dataclass(frozen=True)
class Keys:
    """All keys of one bus."""

    prefix: str = DEFAULT_PREFIX
    shards: int = DEFAULT_SHARDS

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigError(
                f"prefix {self.prefix!r}: use letters, digits . _ - : (at most 64), beginning with a letter or digit"
            )

    def shard(self, symbol: str) -> int:
        return zlib.crc32(symbol.encode()) % self.shards

    def tag(self, shard: int) -> str:
        """Two digits, three from 100 on."""
        return f"{shard:02d}"

    def of_shard(self, shard: int, rest: str) -> str:
        return f"{self.prefix}:{{{self.tag(shard)}}}:{rest}"

    def stream(self, stream: Stream) -> str:
        return self.of_shard(self.shard(stream.symbol), stream.name)

    def bell(self, shard: int) -> str:
        return self.of_shard(shard, "bell")

    def last(self, shard: int) -> str:
        return self.of_shard(shard, "last")

    def era(self, shard: int) -> str:
        return self.of_shard(shard, "era")

    def fence(self, shard: int, owner: str) -> str:
        """`owner`: the name of a feed or service."""
        return self.of_shard(shard, f"fence:{owner}")

    def holder(self, shard: int, owner: str) -> str:
        """The process that raised the fence; empty when it ended cleanly."""
        return self.of_shard(shard, f"holder:{owner}")

    def position(self, shard: int, service: str) -> str:
        return self.of_shard(shard, f"position:{service}")

    def state(self, shard: int, service: str) -> str:
        return self.of_shard(shard, f"state:{service}")

    @property
    def meta(self) -> str:
        return f"{self.prefix}:meta"

    def lease(self, owner: str) -> str:
        return f"{self.prefix}:lease:{owner}"

    def members(self, service: str) -> str:
        return f"{self.prefix}:members:{service}"
