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
from services.gateway.upstream.proxy import Proxy, open_tunnel
from tickbus.errors import ConfigError
from tickbus.sanitize import redact

_OPEN_SECONDS = 10.0
_MAX_RETRY_AFTER = 3600
_MAX_HEAD_BYTES = _MAX_BODY_BYTES = 64 << 10
"""What is read of the response to the handshake, and of the body of a refusal."""
_SHOWN_BYTES = 1000
MAX_UNSENT_BYTES = 64 << 10
"""What may wait for a server that does not read, plus one request of ours."""
_UNREAD_SECONDS = 20.0
"""A server that has not read what we sent for this long is left."""
_LINGER_SECONDS = 1.0
"""How long a connection that we leave may take to send what is left."""
_PING = 0x89
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

    def __init__(
        self,
        url: str,
        on_messages: Callable[[Sequence[bytes]], None],
        max_bytes: int,
        proxy: Proxy | None = None,
    ) -> None:
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
        self._proxy = proxy
        self._opened: asyncio.Future[None] = loop.create_future()
        self._head: bytes | None = b""
        """The part of the handshake response received so far; None once it is complete."""
        self._loop = loop
        self._failure = ""
        self._writable = asyncio.Event()
        """Clear while the server does not read what we sent."""
        self._writable.set()
        self._unread: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Connect and shake hands. OSError or TimeoutError if nobody answers, HandshakeRefused if refused."""
        context = ssl.create_default_context() if self._uri.secure else None
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._connect(context)
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

    async def _connect(self, context: ssl.SSLContext | None) -> None:
        host, port = self._uri.host, self._uri.port
        if self._proxy is None:
            await self._loop.create_connection(lambda: self, host, port, ssl=context)
            return
        tunnel = await open_tunnel(self._proxy, host, port)
        name = host if context is not None else None
        await self._loop.create_connection(lambda: self, sock=tunnel, ssl=context, server_hostname=name)

    async def send(self, text: str) -> None:
        """Send it, once the server has read most of what was sent before."""
        await self._writable.wait()
        if self._protocol.state is State.OPEN and not self.closed.done():
            self._protocol.send_text(text.encode())
            self._flush()

    def ping(self) -> None:
        if self._protocol.state is State.OPEN and self._writable.is_set():
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
        self._leave()
        self._end("closed by us")

    def abort(self, why: str) -> None:
        self._end(why)
        if hasattr(self, "_transport"):
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not inherit from it
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
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
        if self.splitter.violation:
            self.abort(f"protocol error: {self.splitter.violation}")
        elif controls:
            self._control(controls)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()
        self._unread = self._loop.call_later(
            _UNREAD_SECONDS, self.abort, f"the server read nothing for {_UNREAD_SECONDS:.0f} s"
        )

    def resume_writing(self) -> None:
        self._writable.set()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head and not self._opened.done():
            self._fail_open(_refusal(self._head))
        self._end(self._failure or f"connection lost ({exc or 'closed by the server'})")

    def _shake_hands(self, response: bytes) -> bytes:
        """Return the bytes after the response, which are frames already; nothing while it is incomplete."""
        head, blank, rest = response.partition(b"\r\n\r\n")
        if not blank or _status(head) != 101:
            self._head = response
            too_long = len(head) > _MAX_HEAD_BYTES or len(rest) > _MAX_BODY_BYTES
            if blank and (too_long or _has_whole_body(head, rest)):
                self._fail_open(_refusal(response))
            elif too_long:
                self._fail_open(
                    InvalidHandshake(f"a response to the handshake of more than {_MAX_HEAD_BYTES} bytes")
                )
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
        for frame in self._answerable(frames):
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
            self._leave()
            self._end(self._failure)

    def _answerable(self, frames: list[bytes]) -> list[bytes]:
        """Leave out pings that need no answer: all but the newest (RFC 6455, 5.5.3), and every one while the
        server does not read our answers."""
        answer = self._writable.is_set()
        kept = []
        for frame in reversed(frames):
            if frame[0] == _PING and frame[1] <= CONTROL_BYTES:
                if not answer:
                    continue
                answer = False
            kept.append(frame)
        return kept[::-1]

    def _leave(self) -> None:
        """Close the connection; what the server does not read is not sent."""
        if hasattr(self, "_transport"):
            self._transport.close()
            self._loop.call_later(_LINGER_SECONDS, self._transport.abort)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.write_eof() if self._transport.can_write_eof() else self._transport.close()

    def _end(self, why: str) -> None:
        self.resume_writing()  # nothing waits for a connection that has ended
        if not self.closed.done():
            self.closed.set_result(why)
        if not self._opened.done():
            self._opened.set_exception(ConnectionResetError(why))
            self._opened.exception()  # marked as seen: `open` may have been cancelled


def _refusal(response: bytes) -> HandshakeRefused:
    head, _, body = response.partition(b"\r\n\r\n")
    status = _status(head)
    fields = _fields(head)
    if status == 0:
        body = response
    elif status in (301, 302, 303, 307, 308):
        body = b"moved to " + fields.get(b"location", b"an unnamed address")
    wait = fields.get(b"retry-after", b"")
    text = " ".join(body[:_SHOWN_BYTES].decode(errors="replace").split())
    return HandshakeRefused(status, text, min(int(wait), _MAX_RETRY_AFTER) if wait.isdigit() else 0)


def _status(head: bytes) -> int:
    """Return the status of an HTTP response; 0 if it is not HTTP."""
    words = head[:200].split(None, 2)
    if not words or not words[0].startswith(b"HTTP/"):
        return 0
    return int(words[1]) if len(words) > 1 and words[1].isdigit() and len(words[1]) == 3 else 0


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
