"""Reading through a relay, with the interface of a `Reader`: polls, positions, cursors.

It speaks `/v1` in MessagePack, so that entries arrive as they stand on the bus. After a lost connection it
subscribes again from what it received, and drops whatever it has already.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tickbus.errors import ConfigError, RelayRefused, RelayUnavailable
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap, GapKind
from tickbus.protocol.names import START, Stream, StreamId
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.reads import FROM_START, NOW, Cursor, Poll, Read
from tickbus.remote.socket import Dialer, check_refusal, decode_answer, encode
from tickbus.units import MILLISECOND

log = logging.getLogger("tickbus.remote")

_MAX_WAIT_SECONDS = 10.0
_CURSORS = 100
"""Cursors in one request: a relay takes 16 KB."""
_Element = tuple[str, str, str, msgspec.Raw]
_decode_data = msgspec.msgpack.Decoder(tuple[int, list[_Element]]).decode


class _Received(Cursor):
    """How far one stream has been received."""

    __slots__ = ("history", "position")

    def __init__(self, stream: Stream, position: StreamId, history: str | None) -> None:
        super().__init__(stream)
        self.position = position
        self.history = history

    @property
    def resume(self) -> str:
        return f"{self.position}@{self.history}" if self.history else str(self.position)


class RemoteReader:
    """One subscription at a relay, over reconnects."""

    def __init__(
        self, dialer: Dialer, kind: str, streams: StreamFilter, begin: str | StreamId,
        positions: Mapping[str, StreamId], want: bool = False,
    ) -> None:  # fmt: skip
        """begin: NOW, FROM_START, `last:N` or the ID of a time; positions: where to continue, by name.

        want: whether the relay is to ask for the symbols too.
        """
        if positions and begin != FROM_START:
            raise ConfigError("start and cursor together: a relay takes one of them; leave start out")
        self._dialer = dialer
        self._want = want
        self._kind = kind
        self._streams = streams
        self._begin = begin
        self._received = {
            name: _Received(Stream.parse(name), position, None) for name, position in positions.items()
        }
        self._was_subscribed = False
        self._in_parts: set[str] = set()
        """Streams that have subscriptions of their own: too many for the cursors of one request."""
        self._unanswered: set[int] = set()
        """Subscriptions whose history is not complete."""
        self._socket: ClientConnection | None = None
        self._closed = False
        self._waiting: list[bytes] = []
        self.live = False
        """Whether all history of before has been received."""
        self.reconnects = 0

    @property
    def positions(self) -> dict[str, StreamId]:
        """Stream name -> ID of the last entry received, or where reading begins."""
        return {name: received.position for name, received in self._received.items()}

    @property
    def cursors(self) -> Sequence[Cursor]:
        return list(self._received.values())

    async def prepare(self) -> None:
        """Connect and subscribe, so that `start="now"` means the moment of this call.

        RelayUnavailable if no relay answers, RelayRefused if it refuses.
        """
        self._socket = await self._open()

    async def polls(self) -> AsyncGenerator[Poll, None]:
        """Yield polls until `close`, over reconnects."""
        attempt = 0
        while True:
            try:
                if self._socket is None:
                    self._socket = await self._open()
                    self.reconnects += 1
                    log.info("the relay is available again")
                attempt = 0
                while True:
                    poll = self._take(
                        self._waiting.pop(0) if self._waiting else await self._socket.recv(False)
                    )
                    if poll is not None:
                        yield poll
            except (ConnectionClosed, RelayUnavailable) as error:
                if self._closed:
                    return
                check_refusal(error)
                if attempt == 0:
                    log.warning("the relay is lost (%s); resuming", error)
            self._socket = None
            attempt += 1
            await asyncio.sleep(min(_MAX_WAIT_SECONDS, 0.25 * 2 ** min(attempt, 6)) * random.uniform(0.1, 1))

    def close(self) -> None:
        """End the polls."""
        self._closed = True
        if self._socket is not None:
            # not awaited: callers are not always in a position to; the relay sees the connection end
            self._socket.transport.abort()

    async def _open(self) -> ClientConnection:
        socket = await self._dialer.open()
        try:
            await self._subscribe(socket)
        except ConnectionClosed as error:
            check_refusal(error)
            raise RelayUnavailable(f"the relay closed the connection: {error}") from None
        if self._closed:
            socket.transport.abort()
        return socket

    async def _subscribe(self, socket: ClientConnection) -> None:
        """Subscribe from where this reader is."""
        self._in_parts, self._unanswered = set(), set()
        self._waiting.clear()
        begin: Any = self._begin
        if len(self._received) > _CURSORS:
            # one subscription for streams that appear, and for those of now as many as their cursors need
            await self._ask(socket, 1, self._streams, NOW)
            names = sorted(self._received)
            self._in_parts.update(names)
            for number, first in enumerate(range(0, len(names), _CURSORS), 2):
                part = [self._received[name] for name in names[first : first + _CURSORS]]
                cursors = {received.stream.name: received.resume for received in part}
                await self._ask(socket, number, _streams_of(received.stream for received in part), cursors)
            return
        if self._received or self._was_subscribed:
            # streams that it does not name have appeared since: they begin with their first entry
            begin = {name: received.resume for name, received in self._received.items()}
        elif isinstance(begin, StreamId):
            begin = begin.ms * MILLISECOND
        await self._ask(socket, 1, self._streams, begin)

    async def _ask(self, socket: ClientConnection, id: int, streams: StreamFilter, begin: Any) -> None:
        """Send one subscription and await the answer."""
        if begin != NOW:
            self._unanswered.add(id)
        request: dict[str, Any] = {
            "op": "subscribe",
            "id": id,
            "kind": self._kind,
            "symbols": sorted(streams.symbols),
            "feeds": sorted(streams.feeds),
            "specs": sorted(streams.specs),
            "from": begin,
        }
        if self._want and id == 1:
            request["want"] = True
        await socket.send(encode(request))
        # a resumed subscription knows its streams; one that appeared since begins with its first entry
        is_resumed = self._was_subscribed or bool(self._received)
        while True:
            message = await socket.recv(False)
            if message[:1] == b"\x92":
                self._waiting.append(message)
                continue
            answer = decode_answer(message)
            if answer["op"] == "error":
                socket.transport.abort()
                if answer.get("retry"):
                    raise RelayUnavailable(f"the relay cannot subscribe now: {answer['reason']}")
                raise RelayRefused(f"the relay refused the subscription: {answer['reason']}")
            if answer["op"] == "subscribed":
                for row in answer["streams"]:
                    unseen = is_resumed and row["stream"] not in self._received
                    self._note(row["stream"], str(START) if unseen else row["cursor"], row["history"])
                self.live = self.live or not self._unanswered
                self._was_subscribed = True
                return

    def _note(self, name: str, cursor: str, history: str | None) -> None:
        received = self._received.get(name)
        if received is None:
            self._received[name] = _Received(Stream.parse(name), StreamId.parse(cursor), history)
        elif received.history != history:
            received.history = history  # the relay reports what was lost with the old one as a reset

    def _take(self, message: bytes) -> Poll | None:
        """Return what a message holds; None if it is not data."""
        if message[:1] != b"\x92":
            answer = decode_answer(message)
            match answer["op"]:
                case "stream":
                    self._note(answer["stream"], answer["cursor"], answer["history"])
                case "replay_completed":
                    self._unanswered.discard(answer["id"])
                    self.live = self.live or not self._unanswered
                    return Poll()
                case _:
                    pass
            return None
        reads: list[Read] = []
        name = ""
        id_of_subscription, elements = _decode_data(message)
        for stream_name, cursor, field, payload in elements:
            if id_of_subscription == 1 and stream_name in self._in_parts:
                continue  # its own subscription brings it, in order with its history
            received = self._received.get(stream_name)
            if received is None:
                received = self._received[stream_name] = _Received(Stream.parse(stream_name), START, None)
            id, raw, field_name = StreamId.parse(cursor), bytes(payload), field.encode()
            if _begins_anew(field_name, raw):
                received.history = None  # to resume with the old one would report all of it again
            elif id <= received.position:
                continue
            received.position = id
            entry = [cursor.encode(), [field_name, raw]]
            if name == stream_name:
                reads[-1].entries.append(entry)
            else:
                name = stream_name
                reads.append(Read(received.stream, [entry], None, received))
        return Poll(reads) if reads else None


def _streams_of(streams: Iterable[Stream]) -> StreamFilter:
    """Return the filter for these streams of one kind; it may match some more."""
    found = list(streams)
    return StreamFilter.of(
        (),
        {stream.feed for stream in found},
        {stream.symbol for stream in found},
        {stream.spec for stream in found if stream.spec},
    )


def _begins_anew(field: bytes, payload: bytes) -> bool:
    """Whether this is the relay's own Gap of another history: what follows may have lower IDs."""
    if field != b"g":
        return False
    gap = decode(field, payload)
    return isinstance(gap, Gap) and gap.source == "relay" and gap.kind is GapKind.RESET
