"""A fast client WebSocket connection: asyncio.Protocol, the `websockets` Sans-I/O core, and a frame splitter.

The library does the handshake and everything about control frames; whole data frames, which are all but a
few, are split from the TCP stream directly: a third of the time of the library's own reader per frame.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidURI
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from services.gateway.upstream.frames import CONTROL_BYTES, FrameSplitter
from tickbus.errors import ConfigError
from tickbus.sanitize import redact

_OPEN_SECONDS = 10.0
_MAX_RETRY_AFTER = 3600
# below INFO it logs the request, including the token
logging.getLogger("websockets.client").setLevel(logging.INFO)


class HandshakeRefused(Exception):
    """The server answered the handshake with a status other than 101."""

    def __init__(self, status: int, body: str, retry_after: int = 0) -> None:
        super().__init__(f"HTTP {status} {body}")
        self.status = status
        """0: the response is not HTTP."""
        self.body = body
        """Its beginning, on one line; for a redirect, the target."""
        self.retry_after = retry_after
        """Seconds that the server asks for."""


class WebSocket(asyncio.Protocol):
    """A connection, once `open` has returned.

    `on_messages(payloads)` is called with the messages of each read from the socket, in order. The first
    ones may come before `open` returns: some servers send at once. During the call, `splitter.skipped` says
    which messages were too long.
    """

    def __init__(self, url: str, on_messages: Callable[[Sequence[bytes]], None], max_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.splitter = FrameSplitter(max_bytes)
        self.bytes_received = 0
        self.last_received = loop.time()
        self.closed: asyncio.Future[str] = loop.create_future()
        """Done when the connection has ended, with the reason."""
        try:
            self._uri = parse_uri(url)
        except (InvalidURI, ValueError) as error:
            raise ConfigError(f"--url {redact(url)}: {getattr(error, 'msg', error)}") from None
        self._protocol = ClientProtocol(self._uri, max_size=CONTROL_BYTES)  # it sees control frames only
        self._on_messages = on_messages
        self._opened: asyncio.Future[None] = loop.create_future()
        self._head: bytes | None = b""
        """The part of the handshake response received so far; None once it is complete."""
        self._loop = loop
        self._failure = ""

    async def open(self) -> None:
        """Connect and shake hands. OSError or TimeoutError if nobody answers, HandshakeRefused if refused."""
        context = ssl.create_default_context() if self._uri.secure else None
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._loop.create_connection(lambda: self, self._uri.host, self._uri.port, ssl=context)
                await self._opened
        except TimeoutError:
            self.abort("no response to the handshake")
            if self._head:  # a refusal whose end did not arrive
                raise _refusal(self._head) from None
            raise
        except asyncio.CancelledError:
            self.abort("given up")
            raise
        except UnicodeError as error:
            raise ConfigError(f"--url: invalid host name {self._uri.host!r}: {error}") from None

    def send(self, text: str) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text.encode())
            self._flush()

    def ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"tickbus")
            self._flush()

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Send a close frame and leave at once: whatever the server still sends is ignored."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._flush()
        if hasattr(self, "_transport"):
            self._transport.close()
        self._end("closed by us")

    def abort(self, why: str) -> None:
        self._end(why)
        if hasattr(self, "_transport"):
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not inherit from it
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self.last_received = self._loop.time()
        if self._head is not None:
            data = self._shake_hands(self._head + data)
            if not data:
                return
        if self.closed.done():
            return
        messages, controls = self.splitter.feed(data)
        if messages or self.splitter.skipped:
            self._on_messages(messages)
        if controls:
            self._control(controls)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head and not self._opened.done():
            self._fail_open(_refusal(self._head))
        self._end(self._failure or f"connection lost ({exc or 'closed by the server'})")

    def _shake_hands(self, response: bytes) -> bytes:
        """Return the bytes after the response, which are frames already; nothing while it is incomplete."""
        head, blank, rest = response.partition(b"\r\n\r\n")
        if not blank:
            self._head = response
            return b""
        if b" 101 " not in head.partition(b"\r\n")[0]:
            self._head = response
            if _has_whole_body(head, rest):
                self._fail_open(_refusal(response))
            return b""
        self._head = None
        # only the response itself: frames that came with it are for the splitter
        self._protocol.receive_data(head + blank)
        list(self._protocol.events_received())
        if self._protocol.handshake_exc is not None:
            self._fail_open(InvalidHandshake(str(self._protocol.handshake_exc)))
            return b""
        if not self._opened.done():
            self._opened.set_result(None)
        return rest

    def _fail_open(self, error: Exception) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)
        self.abort(str(error))

    def _control(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._protocol.receive_data(frame)
        for event in self._protocol.events_received():
            if getattr(event, "opcode", None) is Opcode.CLOSE:
                # not close_code, which is None until the TCP connection has ended too
                close = self._protocol.close_rcvd
                self._failure = (
                    f"closed by the server: {close.code} {close.reason}".strip()
                    if close is not None
                    else "closed by the server"
                )
        if self._protocol.parser_exc is not None:
            self._failure = f"protocol error: {self._protocol.parser_exc}"
        self._flush()
        if self._failure:
            self._transport.close()
            self._end(self._failure)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.write_eof() if self._transport.can_write_eof() else self._transport.close()

    def _end(self, why: str) -> None:
        if not self.closed.done():
            self.closed.set_result(why)
        if not self._opened.done():
            self._opened.set_exception(ConnectionResetError(why))
            self._opened.exception()  # marked as seen: `open` may have been cancelled


def _refusal(response: bytes) -> HandshakeRefused:
    head, _, body = response.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() and len(words[1]) == 3 else 0
    fields = _fields(head)
    if status == 0:
        body = response
    elif status in (301, 302, 303, 307, 308):
        body = b"moved to " + fields.get(b"location", b"an unnamed address")
    wait = fields.get(b"retry-after", b"")
    text = " ".join(body[:200].decode(errors="replace").split())
    return HandshakeRefused(status, text, min(int(wait), _MAX_RETRY_AFTER) if wait.isdigit() else 0)


def _fields(head: bytes) -> dict[bytes, bytes]:
    """Return the header fields of an HTTP response, names in lower case."""
    pairs = (line.split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _has_whole_body(head: bytes, body: bytes) -> bool:
    """Whether an HTTP response is complete. Without a stated length, it ends with the connection."""
    fields = _fields(head)
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        return body.endswith(b"0\r\n\r\n")
    length = fields.get(b"content-length", b"").strip()
    return length.isdigit() and len(length) < 10 and len(body) >= int(length)
