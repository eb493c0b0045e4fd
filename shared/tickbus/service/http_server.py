"""A small HTTP server in a thread of its own, for metrics and health: bounded in everything a client decides.

It answers while the event loop is stalled, which is what /healthz is for. Each connection carries one
request: its head has a maximum size, and from the first byte to the last it has one deadline. When too many
are open, the oldest is closed for the newest: clients that open connections and send nothing keep nobody out.
"""

import errno
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

log = logging.getLogger("tickbus.http")

MAX_CONNECTIONS = 32
MAX_HEAD_BYTES = 8 << 10
REQUEST_SECONDS = 5.0
"""From accepting a connection to the end of its response."""
_MAX_DISCARDED = 64 << 10
"""What a client may send after its request before it is cut off."""
_BACKLOG = 128
_PAUSE_SECONDS = 0.5
"""How long nothing is accepted after the process ran out of descriptors."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class Response(NamedTuple):
    """What is answered to one request."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class HttpServer:
    """Serves GET and HEAD from when it is created until `close`."""

    def __init__(self, host: str, port: int, respond: Callable[[str], Response]) -> None:
        """OSError if nothing can listen there. `respond` gets the path, and runs in the server's thread."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._respond = respond
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._connections: dict[int, _Connection] = {}
        """By descriptor, oldest first."""
        self._accepts_again_at = 0.0
        """When to listen again after the process ran out of descriptors; 0: it listens."""
        self._failed = False
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """Close every connection and end the thread."""
        self._wake.send(b"x")
        self._thread.join()
        for connection in list(self._connections.values()):
            self._drop(connection)
        for opened in (self._selector, self._listener, self._wake, self._woken):
            opened.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select(self._timeout()):
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif (connection := self._connections.get(key.fd)) is not None:
                    self._continue(connection)
            now = time.monotonic()
            for connection in [one for one in self._connections.values() if one.deadline <= now]:
                self._drop(connection)
            if self._accepts_again_at and self._accepts_again_at <= now:
                self._accepts_again_at = 0.0
                self._selector.register(self._listener, selectors.EVENT_READ)

    def _timeout(self) -> float | None:
        """Return the seconds until something is due."""
        oldest = next(iter(self._connections.values()), None)
        due = [oldest.deadline] if oldest is not None else []
        if self._accepts_again_at:
            due.append(self._accepts_again_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                # the listener stays readable: without a pause this would take a whole core
                self._selector.unregister(self._listener)
                self._accepts_again_at = time.monotonic() + _PAUSE_SECONDS
                self._drop_oldest()
            return
        client.setblocking(False)
        while len(self._connections) >= MAX_CONNECTIONS:
            self._drop_oldest()
        self._connections[client.fileno()] = _Connection(client, time.monotonic() + REQUEST_SECONDS)
        self._selector.register(client, selectors.EVENT_READ)

    def _continue(self, connection: "_Connection") -> None:
        try:
            if connection.answered:
                self._flush(connection)
            elif connection.read():
                connection.answer(self._answer(connection.head))
                self._flush(connection)
        except BlockingIOError:
            pass
        except OSError:  # the client has left
            self._drop(connection)

    def _flush(self, connection: "_Connection") -> None:
        if connection.flush():
            self._drop(connection)
        else:
            self._selector.modify(
                connection.client,
                selectors.EVENT_WRITE if connection.unsent else selectors.EVENT_READ,
            )

    def _answer(self, head: bytes) -> bytes:
        line = head.partition(b"\n")[0].rstrip(b"\r").split(b" ")
        if len(head) > MAX_HEAD_BYTES:
            return _encode(Response(431, b"the head of the request is too long\n"))
        if len(line) != 3 or not line[2].startswith(b"HTTP/1."):
            return _encode(Response(400, b"not a request of HTTP/1\n"))
        if line[0] not in (b"GET", b"HEAD"):
            return _encode(Response(405, b"expected GET or HEAD\n"))
        path = line[1].partition(b"?")[0].decode("latin-1")
        try:
            response = self._respond(path)
        except Exception:  # a bug in what is shown of the process must not end the only thread that shows it
            if not self._failed:
                log.exception("cannot answer %r; further failures are not logged", path)
            self._failed = True
            response = Response(500, b"internal error; see the log\n")
        return _encode(response, with_body=line[0] == b"GET")

    def _drop_oldest(self) -> None:
        if (oldest := next(iter(self._connections.values()), None)) is not None:
            self._drop(oldest)

    def _drop(self, connection: "_Connection") -> None:
        del self._connections[connection.client.fileno()]
        self._selector.unregister(connection.client)
        connection.client.close()


class _Connection:
    """One request: its head is read, its response written, then what the client still sends is discarded."""

    def __init__(self, client: socket.socket, deadline: float) -> None:
        self.client = client
        self.deadline = deadline
        self.head = b""
        self.unsent: memoryview = memoryview(b"")
        self.answered = False
        self._discarded = 0

    def read(self) -> bool:
        """Read more. Return whether the head is complete, or too long. OSError if the client left."""
        data = self.client.recv(MAX_HEAD_BYTES)
        if not data:
            raise ConnectionResetError
        self.head += data
        return b"\r\n\r\n" in self.head or b"\n\n" in self.head or len(self.head) > MAX_HEAD_BYTES

    def answer(self, response: bytes) -> None:
        self.unsent, self.answered, self.head = memoryview(response), True, b""

    def flush(self) -> bool:
        """Write what can be written. Return whether the connection is over."""
        if not self.unsent:  # a client whose data is not read sees a reset, maybe before the response
            data = self.client.recv(MAX_HEAD_BYTES)
            self._discarded += len(data)
            return not data or self._discarded > _MAX_DISCARDED
        self.unsent = self.unsent[self.client.send(self.unsent) :]
        if not self.unsent:
            with suppress(OSError):
                self.client.shutdown(socket.SHUT_WR)
        return False


def _encode(response: Response, with_body: bool = True) -> bytes:
    lines = [
        f"HTTP/1.0 {response.status} {_REASONS[response.status]}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Connection: close",
        *(["Allow: GET, HEAD"] if response.status == 405 else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (response.body if with_body else b"")
