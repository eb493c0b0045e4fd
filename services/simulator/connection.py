"""One client's socket: the `websockets` library's Sans-I/O protocol for handshake, control and incoming frames; data frames
are written straight to the transport.

It knows no vendor: a `Dialect` says what to answer. It knows no market either: the `Host` tells it what to send.
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

from services.vendors.dialect import Answer, Close, Dialect, HttpRefusal, bare_path

log = logging.getLogger("tickbus.simulator")

_quiet = logging.getLogger("tickbus.simulator.websocket")
_quiet.setLevel(logging.WARNING)

_HIGH_WATER = 1 << 20
"""Bytes that may wait in the transport before the client counts as slow."""
_PARTING_SECONDS = 5.0
"""How long a closed connection may take to go."""


class Host(Protocol):
    """What a connection needs of its server."""

    def admit(self, connection: "Connection", target: str) -> Dialect | HttpRefusal | tuple[Dialect, Close]:
        """The dialect, an HTTP refusal, or a dialect that is closed at once."""
        ...

    def joined(self, connection: "Connection") -> None:
        """The handshake is done."""
        ...

    def changed(self, connection: "Connection") -> None:
        """What it wants, or whether it can be sent anything, is another now."""
        ...

    def wake(self) -> None:
        """It takes data again."""
        ...

    def left(self, connection: "Connection") -> None: ...

    def tell(self, event: dict[str, object]) -> None:
        """An event for the ledger."""
        ...


class Connection(asyncio.Protocol):
    def __init__(self, host: Host, number: int) -> None:
        self.number = number
        self.dialect: Dialect | None = None
        self.path = ""
        self.paused = False
        """The client does not take what was written: wait."""
        self.half_open = False
        self.muted_until = 0
        """Until then (monotonic, ns) the vendor still answers here, but sends no data."""
        self._host = host
        self._websocket = ServerProtocol(logger=_quiet)
        self._partial: list[bytes] = []
        self._closed: str | None = None

    @property
    def live(self) -> bool:
        """Whether data may be sent."""
        return self._websocket.state is State.OPEN and not self.half_open and self._closed is None

    @property
    def unsent(self) -> int:
        """Bytes that wait in this process."""
        return self._transport.get_write_buffer_size()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self.half_open:
            return
        self._websocket.receive_data(data)
        self._events()

    def eof_received(self) -> bool:
        if not self.half_open:
            self._websocket.receive_eof()
            self._events()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.left(self)
        if self.dialect is not None:
            ws = self._websocket
            received = ws.close_rcvd.code if ws.close_rcvd else None
            sent = ws.close_sent.code if ws.close_sent else None
            self._host.tell(
                {
                    "event": "close",
                    "connection": self.number,
                    "sent_code": sent,
                    "received_code": received,
                    "why": self._closed,
                }
            )

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._host.wake()

    # what the server does with it

    def write(self, frames: bytes) -> None:
        """Ready WebSocket frames, only while `live`."""
        self._transport.write(frames)

    def beat(self, now: int) -> None:
        if self.dialect is not None and self.live:
            self._obey(self.dialect.beat(now))

    def obey(self, answer: Answer) -> None:
        """Send what a dialect has to say, where the client can still hear it."""
        if self.live:
            self._obey(answer)

    def close(self, code: int, reason: str, why: str) -> None:
        if self.live:
            self._closed = why
            self._websocket.send_close(code, reason)
            self._send()
            self._part()

    def cut(self, why: str) -> None:
        """A TCP reset: what waits to be sent is lost, and no close frame is."""
        self._closed = why
        if (sock := self._transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        self._host.changed(self)  # the market may go on before the loop turns

    def stop_everything(self) -> None:
        """Half-open from now on: nothing is read, nothing is written, nothing is closed."""
        self.half_open = True
        self._transport.pause_reading()

    # incoming

    def _events(self) -> None:
        now = time.monotonic_ns()
        for event in self._websocket.events_received():
            if isinstance(event, Request):
                self._handshake(event)
            elif isinstance(event, Frame):
                self._frame(event, now)
        self._send()

    def _handshake(self, request: Request) -> None:
        admitted = self._host.admit(self, request.path)
        if isinstance(admitted, HttpRefusal):
            self._websocket.send_response(_http(admitted))
            self._host.tell(
                {
                    "event": "refuse",
                    "connection": self.number,
                    "path": bare_path(request.path),
                    "status": admitted.status,
                }
            )
            return
        dialect, at_once = admitted if isinstance(admitted, tuple) else (admitted, None)
        response = self._websocket.accept(request)
        self._websocket.send_response(response)
        if response.status_code != 101:
            return
        self.dialect, self.path = dialect, bare_path(request.path)
        self._host.tell(
            {
                "event": "connect",
                "connection": self.number,
                "protocol": dialect.vendor,
                "path": self.path,
                "symbols": list(dialect.symbols()),
            }
        )
        self._send()
        if at_once is not None:
            self.close(*at_once, why="over the connection cap")
        else:
            self._host.joined(self)

    def _frame(self, frame: Frame, now: int) -> None:
        dialect = self.dialect
        if dialect is None:
            return
        if frame.opcode is Opcode.PING:
            self.obey(dialect.ping(now))
        elif frame.opcode is Opcode.PONG:
            self.obey(dialect.pong(bytes(frame.data), now))
        elif frame.opcode is Opcode.CLOSE:
            self._host.changed(self)
        else:
            self._partial.append(bytes(frame.data))
            if frame.fin:
                message, self._partial = b"".join(self._partial), []
                self.obey(dialect.receive(message, now))

    def _obey(self, answer: Answer) -> None:
        for reply in answer.replies:
            self._websocket.send_text(reply)
        if answer.ping is not None:
            self._websocket.send_ping(answer.ping)
        self._send()
        if answer.event is not None:
            self._host.tell({"event": "", "connection": self.number} | answer.event)
            self._host.changed(self)
        if answer.close is not None:
            self.close(*answer.close, why="the vendor's rules")

    # outgoing

    def _send(self) -> None:
        for data in self._websocket.data_to_send():
            if data != SEND_EOF:
                self._transport.write(data)
            elif self._transport.can_write_eof() and not self._transport.is_closing():
                # half-close, so that what is on its way in does not turn our last frames into a reset
                self._transport.write_eof()
                self._part()

    def _part(self) -> None:
        self._host.changed(self)
        asyncio.get_running_loop().call_later(_PARTING_SECONDS, self._transport.abort)


def _http(refusal: HttpRefusal) -> Response:
    kind = "application/json" if refusal.body.startswith(b"{") else "text/plain; charset=utf-8"
    headers = Headers(
        [("Connection", "close"), ("Content-Length", str(len(refusal.body))), ("Content-Type", kind)]
    )
    return Response(refusal.status, HTTPStatus(refusal.status).phrase, headers, refusal.body)
