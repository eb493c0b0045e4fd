"""What a reader hands over: the entries of streams as they stand in Redis, what is missing in front of them, the bus clocks. Pure."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tickbus.errors import ConfigError
from tickbus.names import Stream, StreamId
from tickbus.units import MILLISECOND, parse_time

NOW = "now"
FROM_START = "start"
Start = str | int | datetime


@dataclass(frozen=True)
class Lost:
    """What is missing in front of the entries of a read: they were trimmed, or the stream went back."""

    count: int
    """Entries that were trimmed before they were read; 0 after a `reset`: nobody knows."""
    after: StreamId
    """The position before the loss."""
    before: StreamId
    """The first entry that is still there."""
    reset: bool = False
    """The stream has another history than the one that was read up to `after`: Redis was flushed, restored from an old copy, or
    lost its newest entries in a failover. What follows is new; whether there was more, nobody knows. `before` may be lower than
    `after`, if the clocks went back too."""


class Place:
    """Where somebody stands in a stream who gives its entries out one by one."""

    __slots__ = ("given", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.given: bytes | None = None
        """ID of the newest entry of all that were given out whole; None before the first. Whoever gives them out sets it."""


class Read(NamedTuple):
    """Consecutive entries of one stream, at least one, as Redis gave them: [ID, [field, payload]]."""

    stream: Stream
    entries: list[Any]
    lost: Lost | None
    place: Place

    @property
    def last(self) -> StreamId:
        """The position after them."""
        return StreamId.parse(self.entries[-1][0])


@dataclass
class Round:
    """What one round brought: reads in order per stream, and the bus clocks that hold once they are applied."""

    reads: list[Read] = field(default_factory=list)
    clocks: dict[tuple[int, str], int] = field(default_factory=dict)
    """(shard, feed) -> bus ms: every entry of that feed's trade and quote streams with an older ID has been delivered."""


def parse_start(start: Start, name: str = "start") -> str | StreamId:
    """`now`, `start`, or a time (a number since the epoch, datetime, text: units.parse_time; UTC unless it says otherwise) -> where a
    Reader begins. ConfigError if it is none; `name`: what the user calls it."""
    if start in (NOW, FROM_START):
        return str(start)
    try:
        if isinstance(start, datetime):
            ns = int((start if start.tzinfo is not None else start.replace(tzinfo=UTC)).timestamp() * 1_000_000) * 1000
        elif isinstance(start, int | str) and not isinstance(start, bool):
            ns = parse_time(str(start))
        else:
            raise ValueError(f"{start!r} is no time")
    except ValueError as error:
        raise ConfigError(f"{name}: {error}; or use now or start") from None
    return StreamId(ns // MILLISECOND, 0)
