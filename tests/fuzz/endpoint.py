"""What anybody may send to /metrics, /healthz and /readyz: damaged and half requests to a real service."""

import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from support.processes import Process

from fuzz.engine import Pieces, Run, Target
from fuzz.hostile import damaged_bytes, some_of

SERVICE = """
from tickbus.service import runner
from tickbus.service.options import ServiceOptions

async def main(service):
    service.ready = True
    await service.stopping.wait()

raise SystemExit(runner.run(main, ServiceOptions(), "example"))
"""
_SECONDS = 10.0
_READ_SECONDS = 0.05
"""How long the answer to one request is awaited: a half request has none."""
_METHODS = (b"GET", b"HEAD", b"POST", b"OPTIONS", b"get", b"G\xff", b"", b"GET" * 3000, b"PRI")
_PATHS = (
    b"/metrics",
    b"/healthz",
    b"/readyz",
    b"/",
    b"*",
    b"//metrics",
    b"/metrics?x=\xff",
    b"/../metrics",
    b"http://x/metrics",
    b"/%6detrics",
    b"/metrics#",
    b"/" + b"a" * 9000,
    b"/\x1b[31m",
    b"x",
)
_VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.1.1",
    b"HTTP/99999999999",
    b"HTTP/x",
    b"",
    b"HTTP/1.\xb2",
)
_HEADERS = (
    b"Host: x",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: x",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Connection: keep-alive",
    b"Connection: close",
    b"Upgrade: websocket",
    b" folded",
    b"X",
    b": x",
    b"X: " + b"y" * 70_000,
    b"X:\x00\x01",
    b"Accept: \xff",
    b"Accept-Encoding: gzip",
    b"Range: bytes=0-",
)


class Example(Process):
    command = (sys.executable, "-c", SERVICE)


def make_requests(chance: Random) -> Pieces:
    return [_request(chance) for _ in range(chance.randint(1, 3))]


def _request(chance: Random) -> bytes:
    first = b" ".join((chance.choice(_METHODS), chance.choice(_PATHS), chance.choice(_VERSIONS)))
    if chance.random() < 0.3:
        first = b"GET /metrics HTTP/1.1"
    lines = [first, *some_of(chance, _HEADERS, 5)]
    if chance.random() < 0.03:
        lines += [b"X%d: y" % number for number in range(300)]
    request = b"\r\n".join(lines) + chance.choice((b"\r\n\r\n", b"\r\n\r\n", b"\r\n\r\nhello", b"", b"\n\n"))
    return damaged_bytes(chance, request, 2) if chance.random() < 0.4 else request


@contextmanager
def open_service(folder: Path) -> Iterator[Run]:
    service = Example(folder / "service.log", "example")
    try:
        service.wait_ready()
        yield _Endpoint(service).send
    finally:
        service.close()


class _Endpoint:
    def __init__(self, service: Process) -> None:
        self._service = service
        self._port = service.metrics_port
        self._read = len(service.output)
        """Characters of the log that were looked at."""

    def send(self, requests: Pieces) -> None:
        """Whatever is sent is answered by HTTP or not at all; then a well-formed request is answered."""
        for request in requests:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), _SECONDS) as client:
                client.sendall(request)
                client.settimeout(_READ_SECONDS)
                answer = client.recv(65_536)
                assert not answer or answer.startswith(b"HTTP/1.") or not _has_version(request), (
                    f"not HTTP: {answer[:100]!r}"
                )
        assert self._service.process.poll() is None, "the service has ended"
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/healthz", timeout=_SECONDS) as answer:
            assert answer.read() == b"alive\n", "after it /healthz does not say alive"
        printed = self._service.output[self._read :]
        self._read += len(printed)
        assert "Traceback" not in printed, f"the service logs a traceback: {printed[:2000]}"


def _has_version(request: bytes) -> bool:
    """Whether its first line names HTTP/1.x; older requests may be answered without a status line."""
    return re.match(rb"[A-Z]+ \S+ HTTP/1\.[01]\r\n", request) is not None


TARGETS = [Target("endpoint", make_requests, open_service, short=60)]
