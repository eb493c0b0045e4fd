"""What a reader returns: entries as stored in Redis, losses before them, and the bus clocks. Pure."""

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tickbus.errors import ConfigError, WireError
from tickbus.protocol.codec import decode_entry
from tickbus.protocol.messages import Gap, GapKind, Message, StreamKind
from tickbus.protocol.names import Stream, StreamId
from tickbus.units import MILLISECOND, parse_time

log = logging.getLogger("tickbus.reader")

NOW = "now"
FROM_START = "start"
Start = str | int | datetime


@dataclass(frozen=True)
class Lost:
    """What is missing before the entries of a read: they were trimmed, or the stream was rolled back."""

    count: int
    """Entries that were trimmed before they were read; 0 after a `reset`: the number is unknown."""
    after: StreamId
    """The position before the loss."""
    before: StreamId
    """The first entry that still exists."""
    reset: bool = False
    """The stream no longer has the history that was read up to `after`: Redis was flushed, restored from an
    old copy, or lost its newest entries in a failover. What follows is new; whether there was more is
    unknown. `before` may be lower than `after`, if the clocks moved back too."""


class Cursor:
    """How far one stream has been delivered, entry by entry."""

    __slots__ = ("delivered", "stream", "unreadable")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.delivered: bytes | None = None
        """ID of the newest entry delivered; None before the first. Whoever delivers them sets it."""
        self.unreadable = 0
        """How many entries this version could not read."""


class Read(NamedTuple):
    """Consecutive entries of one stream, at least one, as Redis returned them: [ID, [field, payload]]."""

    stream: Stream
    entries: list[Any]
    lost: Lost | None
    cursor: Cursor

    @property
    def last(self) -> StreamId:
        """The position after them."""
        return StreamId.parse(self.entries[-1][0])


@dataclass
class Poll:
    """What a poll of the bus returned: reads in order per stream, and clocks valid once they are applied."""

    reads: list[Read] = field(default_factory=list)
    clocks: dict[tuple[int, str], int] = field(default_factory=dict)
    """(shard, feed) -> bus ms: every older entry of the feed's trade and quote streams has been delivered."""


def trimmed_gap(read: Read, source: str) -> Gap:
    """Return the loss before a read as a Gap of `source`. Its times are bus times, from the IDs around it."""
    lost = read.lost
    assert lost is not None
    stream = StreamKind[read.stream.kind.upper()]
    begin, end = (ms * MILLISECOND for ms in sorted((lost.after.ms, lost.before.ms)))
    kind, count = (GapKind.RESET, None) if lost.reset else (GapKind.TRIMMED, lost.count)
    return Gap(stream, source, kind, begin, end, count=count, symbol=read.stream.symbol)


def rejected(read: Read, entry: Any, source: str) -> Message:
    """Return the message of an entry of the read or, if this version cannot read it, a Gap of `source`.

    Either a newer version wrote it, or some other program. The first of a stream is logged.
    """
    raw, fields = entry
    try:
        return decode_entry(fields)
    except WireError as error:
        if not read.cursor.unreadable:
            log.error(
                "%s %s: skipping this entry: %s; later ones of this stream are only counted",
                read.stream.name, raw.decode(), error,
            )  # fmt: skip
    read.cursor.unreadable += 1
    at = StreamId.parse(raw).ms * MILLISECOND
    kind = StreamKind[read.stream.kind.upper()]
    return Gap(kind, source, GapKind.REJECTED, at, at, count=1, symbol=read.stream.symbol)


def parse_start(start: Start, name: str = "start") -> str | StreamId:
    """Return where a reader begins: NOW, FROM_START, or the ID of a time.

    start: `now`, `start`, or a time: a number since the epoch, a datetime, or text for `units.parse_time`;
        UTC unless it names another offset.
    name: what the user calls this argument.

    Errors: ConfigError if it is none of these.
    """
    if start in (NOW, FROM_START):
        return str(start)
    try:
        if isinstance(start, datetime):
            ns = (
                int(
                    (start if start.tzinfo is not None else start.replace(tzinfo=UTC)).timestamp() * 1_000_000
                )
                * 1000
            )
        elif isinstance(start, int | str) and not isinstance(start, bool):
            ns = parse_time(str(start))
        else:
            raise ValueError(f"invalid time {start!r}")
    except ValueError as error:
        raise ConfigError(f"{name}: {error}; or use now or start") from None
    return StreamId(ns // MILLISECOND, 0)
