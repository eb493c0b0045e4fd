"""The HTTP server of every service against clients that do not behave; real sockets."""

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support.waiting import until

from tickbus.service import http_server
from tickbus.service.http_server import MAX_CONNECTIONS, MAX_HEAD_BYTES, HttpServer, Response

BODY = b"m" * 300_000


def respond(path: str) -> Response:
    if path == "/bug":
        raise RuntimeError("a bug")
    return Response(200, BODY) if path == "/metrics" else Response(404, b"not found\n")


@pytest.fixture
def server() -> Iterator[HttpServer]:
    running = HttpServer("127.0.0.1", 0, respond)
    yield running
    running.close()


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 5)


def ask(server: HttpServer, request: bytes) -> bytes:
    """Send a request and return all that comes back until the server ends the connection."""
    with connect(server) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_get_head_and_others(server: HttpServer) -> None:
    head, _, body = ask(server, b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Length: 300000" in head
    assert body == BODY
    assert ask(server, b"HEAD /metrics HTTP/1.1\r\n\r\n") == head + b"\r\n\r\n"
    assert ask(server, b"GET / HTTP/1.0\n\n").startswith(b"HTTP/1.0 404 Not Found\r\n")
    posted = ask(server, b"POST /metrics HTTP/1.1\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000)
    assert posted.startswith(b"HTTP/1.0 405 ")
    assert b"\r\nAllow: GET, HEAD\r\n" in posted


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES, 431),
        (b"GET /bug HTTP/1.1\r\n\r\n", 500),
    ],
    ids=["TLS", "HTTP/0.9", "long head", "bug"],
)
def test_bad_request_is_answered(server: HttpServer, request_: bytes, status: int) -> None:
    assert ask(server, request_).startswith(b"HTTP/1.0 %d " % status)


def test_request_in_pieces_is_answered(server: HttpServer) -> None:
    with connect(server) as client:
        for at in range(len(request := b"HEAD /metrics HTTP/1.1\r\n\r\n")):
            client.sendall(request[at : at + 1])
        assert client.recv(100).startswith(b"HTTP/1.0 200 ")


def test_half_requests_keep_nobody_out(server: HttpServer) -> None:
    threads = threading.active_count()
    with ExitStack() as stack:
        for _ in range(3 * MAX_CONNECTIONS):
            stack.enter_context(connect(server)).sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert ask(server, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(BODY)
        assert server.open_connections <= MAX_CONNECTIONS
        assert threading.active_count() == threads


@pytest.mark.parametrize("request_", [b"GET /metrics HTTP/1.1\r\nX: ", b"GET /metrics HTTP/1.1\r\n\r\n"])
def test_connection_has_one_deadline(
    server: HttpServer, request_: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the request or the reading of the response takes too long."""
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.2)
    with connect(server) as client:
        client.sendall(request_)
        until(lambda: server.open_connections == 1)
        until(lambda: server.open_connections == 0)


def test_running_out_of_descriptors_is_waited_for(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a busy loop: the listener stays readable all the time."""
    attempts = []
    accept = HttpServer._accept

    def counted(self: HttpServer) -> None:
        attempts.append(1)
        accept(self)

    monkeypatch.setattr(HttpServer, "_accept", counted)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack, socket.socket() as client:
        highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        try:
            with suppress(OSError):
                while True:
                    stack.enter_context(Path(os.devnull).open())
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"HEAD /metrics HTTP/1.1\r\n\r\n")
            until(lambda: len(attempts) > 1, what="it tries again")
            stack.close()
            client.settimeout(10)
            assert client.recv(100).startswith(b"HTTP/1.0 200 ")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(attempts) <= 5
