"""A receiver of webhooks on a real socket: records each request, and answers as the test says."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = int | tuple[int, dict[str, str]]
"""Status, and headers."""


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    """By their names in lower case."""
    raw: bytes
    at: float
    """When it came, by the monotonic clock."""

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.raw)
        return body

    @property
    def key(self) -> str:
        return self.headers["webhook-id"]


class Webhook:
    """`answer`: called with each request, in a thread of its own; it may block."""

    def __init__(self, answer: Callable[[Request], Answer] = lambda _: 204, port: int = 0) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        """All that came, in order."""
        self.accepted: list[Request] = []
        """Those that were answered with 2xx, in the order of their answers."""
        self.port = port
        self.connections: set[socket.socket] = set()
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        hook, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                hook.connections.add(self.connection)
                raw = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.path, headers, raw, time.monotonic())
                with lock:
                    hook.requests.append(request)
                answer = hook.answer(request)
                status, more = (answer, {}) if isinstance(answer, int) else answer
                with lock:
                    if 200 <= status < 300:
                        hook.accepted.append(request)
                try:
                    self.send_response(status)
                    for name, value in {"content-length": "0", **more}.items():
                        self.send_header(name, value)
                    self.end_headers()
                except OSError:  # it did not wait for the answer
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/secret-path-0123456789"

    def stop(self) -> None:
        """End it, and its connections."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()
        self._thread.join(10)
