"""The way through an HTTP proxy: which one is chosen, and the tunnel, with real servers."""

import asyncio
import base64
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway.upstream.servers import accepted, raw, text
from support.redis_server import require_program
from support.waiting import until_async
from websockets.asyncio.server import ServerConnection, serve

from services.gateway.upstream.proxy import Proxy, ProxyError, Route, parse_proxy, route
from services.gateway.upstream.websocket import WebSocket
from tickbus.errors import ConfigError
from tickbus.sanitize import hide_secrets

VENDOR = "wss://stream.vendor.example:9443/ws"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        (VENDOR, {}, Route()),
        (VENDOR, {"HTTPS_PROXY": "http://p:3128"}, Route(Proxy("p", 3128))),
        (VENDOR, {"https_proxy": "p:3128"}, Route(Proxy("p", 3128))),
        (VENDOR, {"HTTP_PROXY": "http://p:3128"}, Route()),
        (VENDOR, {"ALL_PROXY": "http://p"}, Route(Proxy("p", 80))),
        (VENDOR, {"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://q:2"}, Route(Proxy("p", 1))),
        (VENDOR, {"HTTPS_PROXY": "http://u:p%40ss@p:1"}, Route(Proxy("p", 1, "u:p@ss"))),
        (VENDOR, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a,vendor.example"}, Route()),
        (VENDOR, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.example"}, Route(Proxy("p", 1))),
        (VENDOR, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, Route()),
        (VENDOR, {"ALL_PROXY": "socks5://u:secret@p:1"}, Route(ignored="socks5://***@p:1")),
        ("ws://127.0.0.1:80", {"HTTP_PROXY": "http://[::1]:1"}, Route(Proxy("::1", 1))),
        ("ws://127.0.0.1:80", {"HTTPS_PROXY": "http://p:1"}, Route()),
        ("ws://127.0.0.1:80", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "127.0.0.1"}, Route()),
    ],
)
def test_proxy_of_the_environment(
    url: str, environ: dict[str, str], expected: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert route(url, None) == expected


def test_option_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", "*")
    assert route(VENDOR, "none") == Route()
    assert route(VENDOR, "http://q:2") == Route(Proxy("q", 2))


@pytest.mark.parametrize(
    "url", ["socks5://p:1", "https://p:1", "p:3128", "http://", "http://p:x", "http://p:1/path", "nonsense"]
)
def test_invalid_option_is_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="--proxy"):
        route(VENDOR, url)


def test_login_is_never_shown() -> None:
    proxy = parse_proxy("http://user:pr0xypassw0rd@p:3128")
    assert str(proxy) == "http://p:3128"
    assert proxy.url == "http://user:pr0xypassw0rd@p:3128"
    login = base64.b64encode(b"user:pr0xypassw0rd").decode()
    assert hide_secrets(f"Basic {login} pr0xypassw0rd") == "Basic *** ***"


@asynccontextmanager
async def connect_proxy() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that knows only CONNECT. Yields its port and the requests."""
    requests: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        requests.append(request)
        host, port = request.split()[1].decode().rsplit(":", 1)
        upstream, server = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.wait(
            [asyncio.create_task(pump(reader, server)), asyncio.create_task(pump(upstream, writer))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        server.close()

    async with raw(talk) as port:
        yield port, requests


async def vendor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(accepted(request) + text(b"tick"))
    await reader.read()


async def test_messages_come_through_the_tunnel() -> None:
    received: list[bytes] = []
    async with raw(vendor) as port, connect_proxy() as (proxy_port, requests):
        socket = WebSocket(
            f"ws://127.0.0.1:{port}/ws", received.extend, 1000, Proxy("127.0.0.1", proxy_port, "u:p")
        )
        await socket.open()
        await until_async(lambda: received == [b"tick"])
        socket.close()
    login = base64.b64encode(b"u:p").decode()
    assert requests == [
        f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Proxy-Authorization: Basic {login}\r\n\r\n".encode()
    ]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "closed the connection before it answered"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 .*user:password@"),
        (b"HTTP/1.1 502 Bad\x1b[2J Gateway\r\n\r\n", r"refused to connect to .*502 Bad\\x1b"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "refused to connect"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "sent data before"),
    ],
    ids=["closed", "login", "bad gateway", "not HTTP", "endless", "talkative"],
)
async def test_error_of_the_proxy_is_clear(answer: bytes, error: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(answer)
        await writer.drain()

    async with raw(talk) as port:
        with pytest.raises(ProxyError, match=error):
            await WebSocket(VENDOR, lambda _: None, 1000, Proxy("127.0.0.1", port)).open()


async def test_proxy_without_listener_is_named() -> None:
    async with raw(vendor) as port:
        pass
    with pytest.raises(ProxyError, match=f"cannot reach proxy http://127.0.0.1:{port}: Connection refused"):
        await WebSocket(VENDOR, lambda _: None, 1000, Proxy("127.0.0.1", port)).open()


async def test_tls_goes_through_the_tunnel_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    await asyncio.to_thread(
        subprocess.run,
        [require_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key),
         "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)
    received: list[bytes] = []

    async def talk(connection: ServerConnection) -> None:
        await connection.send("tick")
        await connection.wait_closed()

    async with serve(talk, "localhost", 0, ssl=served) as server, connect_proxy() as (proxy_port, requests):
        port = next(iter(server.sockets)).getsockname()[1]
        socket = WebSocket(
            f"wss://localhost:{port}/ws", received.extend, 1000, Proxy("127.0.0.1", proxy_port)
        )
        await socket.open()
        await until_async(lambda: received == [b"tick"])
        socket.close()
    assert requests[0].startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
