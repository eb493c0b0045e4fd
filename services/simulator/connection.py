"""One client's socket.

The Sans-I/O protocol of the `websockets` library does handshake, control and incoming frames; data frames are
written straight to the transport. It knows no vendor: a `Dialect` decides what to answer. It knows no market
either: the `Host` decides what to send.
"""

import asyncio
import logging
import socket
import struct
import time
from http import HTTPStatus
from typing import Protocol, cast

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from services.vendors.dialect import Answer, Close, Dialect, HttpRefusal, path_without_query

log = logging.getLogger("tickbus.simulator")

_quiet = logging.getLogger("tickbus.simulator.websocket")
_quiet.setLevel(logging.WARNING)

_HIGH_WATER = 1 << 20
"""Bytes pending in the transport from which the client counts as slow."""
_CLOSE_TIMEOUT_SECONDS = 5.0
"""How long a closing connection may stay open."""


class Host(Protocol):
    """What a connection needs from its server."""

    def admit(self, connection: "Connection", target: str) -> Dialect | HttpRefusal | tuple[Dialect, Close]:
        """Return the dialect, an HTTP refusal, or a dialect with the close to send at once."""
        ...

    def joined(self, connection: "Connection") -> None:
        """The handshake is complete."""
        ...

    def changed(self, connection: "Connection") -> None:
        """Its subscriptions have changed, or whether data can be sent to it."""
        ...

    def wake(self) -> None:
        """It accepts data again."""
        ...

    def left(self, connection: "Connection") -> None:
        """It is closed."""
        ...

    def record(self, event: dict[str, object]) -> None:
        """Record an event in the ledger."""
        ...


class Connection(asyncio.Protocol):
    def __init__(self, host: Host, number: int) -> None:
        self.number = number
        self.dialect: Dialect | None = None
        self.path = ""
        self.paused = False
        """The client does not read fast enough: wait."""
        self.half_open = False
        self.muted_until = 0
        """Until then (monotonic, ns) the vendor still answers this client, but sends it no data."""
        self._host = host
        self._websocket = ServerProtocol(logger=_quiet)
        self._fragments: list[bytes] = []
        self._close_cause: str | None = None
        self._ended = False
        """Our side of the TCP connection is closed: nothing may be written any more."""

    @property
    def live(self) -> bool:
        """Whether data may be sent."""
        return not (
            self._ended or self.half_open or self._close_cause is not None
            or self._websocket.state is not State.OPEN
        )  # fmt: skip

    @property
    def pending_bytes(self) -> int:
        """Bytes buffered in this process."""
        return self._transport.get_write_buffer_size()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self.half_open:
            return
        self._websocket.receive_data(data)
        self._handle_events()

    def eof_received(self) -> bool:
        if not self.half_open:
            self._websocket.receive_eof()
            self._handle_events()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.left(self)
        if self.dialect is not None:
            ws = self._websocket
            received = ws.close_rcvd.code if ws.close_rcvd else None
            sent = ws.close_sent.code if ws.close_sent else None
            self._host.record(
                {
                    "event": "close",
                    "connection": self.number,
                    "sent_code": sent,
                    "received_code": received,
                    "why": self._close_cause,
                }
            )

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._host.wake()

    # called by the server

    def write(self, frames: bytes) -> None:
        """Write ready WebSocket frames, unless the connection has ended since they were made."""
        if not self._ended:
            self._transport.write(frames)

    def on_timer(self, now: int) -> None:
        """Send what is due by the clock."""
        if self.dialect is not None and self.live:
            self._apply(self.dialect.on_timer(now))

    def apply(self, answer: Answer) -> None:
        """Send a dialect's answer if the connection is live."""
        if self.live:
            self._apply(answer)

    def close(self, code: int, reason: str, why: str) -> None:
        """Start the closing handshake. why: the cause, for the ledger."""
        if self.live:
            self._close_cause = why
            self._websocket.send_close(code, reason)
            self._send()
            self._abort_later()

    def cut(self, why: str) -> None:
        """Reset the TCP connection: pending data is lost, and no close frame is sent."""
        self._close_cause = why
        if (sock := self._transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        self._host.changed(self)  # the market may advance before the next loop iteration

    def make_half_open(self) -> None:
        """From now on, read nothing, write nothing and close nothing."""
        self.half_open = True
        self._transport.pause_reading()

    # incoming

    def _handle_events(self) -> None:
        now = time.monotonic_ns()
        for event in self._websocket.events_received():
            if isinstance(event, Request):
                self._handshake(event)
            elif isinstance(event, Frame):
                self._handle_frame(event, now)
        self._send()

    def _handshake(self, request: Request) -> None:
        admitted = self._host.admit(self, request.path)
        if isinstance(admitted, HttpRefusal):
            self._websocket.send_response(_http_response(admitted))
            self._host.record(
                {
                    "event": "refuse",
                    "connection": self.number,
                    "path": path_without_query(request.path),
                    "status": admitted.status,
                }
            )
            return
        dialect, close = admitted if isinstance(admitted, tuple) else (admitted, None)
        response = self._websocket.accept(request)
        self._websocket.send_response(response)
        if response.status_code != 101:
            return
        self.dialect, self.path = dialect, path_without_query(request.path)
        self._host.record(
            {
                "event": "connect",
                "connection": self.number,
                "protocol": dialect.vendor,
                "path": self.path,
                "symbols": list(dialect.symbols()),
            }
        )
        self._send()
        if close is not None:
            self.close(*close, why="over the connection cap")
        else:
            self._host.joined(self)

    def _handle_frame(self, frame: Frame, now: int) -> None:
        dialect = self.dialect
        if dialect is None:
            return
        if frame.opcode is Opcode.PING:
            self.apply(dialect.on_ping(now))
        elif frame.opcode is Opcode.PONG:
            self.apply(dialect.on_pong(bytes(frame.data), now))
        elif frame.opcode is Opcode.CLOSE:
            self._host.changed(self)
        else:
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                message, self._fragments = b"".join(self._fragments), []
                self.apply(dialect.receive(message, now))

    def _apply(self, answer: Answer) -> None:
        for reply in answer.replies:
            self._websocket.send_text(reply)
        if answer.ping is not None:
            self._websocket.send_ping(answer.ping)
        self._send()
        if answer.event is not None:
            self._host.record({"event": "", "connection": self.number} | answer.event)
            self._host.changed(self)
        if answer.close is not None:
            self.close(*answer.close, why="the vendor's rules")

    # outgoing

    def _send(self) -> None:
        for data in self._websocket.data_to_send():
            if data != SEND_EOF:
                self._transport.write(data)
            elif self._transport.can_write_eof() and not self._transport.is_closing():
                # half-close, so that incoming data does not turn our last frames into a reset
                self._ended = True
                self._transport.write_eof()
                self._abort_later()

    def _abort_later(self) -> None:
        self._host.changed(self)
        asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT_SECONDS, self._transport.abort)


def _http_response(refusal: HttpRefusal) -> Response:
    content_type = "application/json" if refusal.body.startswith(b"{") else "text/plain; charset=utf-8"
    headers = Headers(
        [("Connection", "close"), ("Content-Length", str(len(refusal.body))), ("Content-Type", content_type)]
    )
    return Response(refusal.status, HTTPStatus(refusal.status).phrase, headers, refusal.body)
