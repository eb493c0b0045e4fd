"""Connections through an HTTP proxy: which one, and the CONNECT request that makes it a tunnel."""

import asyncio
import base64
import os
import socket
import urllib.request
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from tickbus.errors import ConfigError
from tickbus.sanitize import SECRETS, clean, redact

_MAX_HEAD_BYTES = 64 << 10
_VARIABLES = {"wss": ("https", "all"), "ws": ("http", "all")}
DIRECT = "none"
"""The value of --proxy for no proxy at all."""


class ProxyError(ConnectionError):
    """The proxy does not answer, or refuses."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    login: str = ""
    """`user:password`; empty for none."""

    def __str__(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address, with the login."""
        user, _, password = self.login.partition(":")
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if self.login else ""
        return str(self).replace("://", f"://{login}", 1)


@dataclass(frozen=True)
class Route:
    """How the vendor is reached: through a proxy, or directly."""

    proxy: Proxy | None = None
    ignored: str = ""
    """A proxy of the environment that cannot be used, without secrets."""


def route(url: str, option: str | None) -> Route:
    """Return the route to a ws:// or wss:// URL: that of --proxy, else of HTTPS_PROXY (HTTP_PROXY for ws://),
    ALL_PROXY and NO_PROXY. ConfigError if --proxy is invalid."""
    if option is not None:
        return Route(None if option == DIRECT else parse_proxy(option))
    parts = urlsplit(url)
    found = urllib.request.getproxies()
    chosen = next((found[name] for name in _VARIABLES.get(parts.scheme, ()) if found.get(name)), None)
    if chosen is None or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return Route()
    try:
        return Route(parse_proxy(chosen if "://" in chosen else f"http://{chosen}"))
    except ConfigError:
        return Route(ignored=redact(chosen))


def parse_proxy(url: str) -> Proxy:
    """Return the proxy at `url`. ConfigError if it is not http://[user:password@]host[:port]."""
    SECRETS.add_url(url)
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise ConfigError(f"--proxy {redact(url)}: {error}") from None
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ConfigError(
            f"--proxy {redact(url)}: expected http://host:port, with user:password@ before the host if it "
            f"requires a login, or {DIRECT}"
        )
    login = unquote(parts.netloc.rpartition("@")[0])
    return Proxy(parts.hostname, port, login)


async def open_tunnel(proxy: Proxy, host: str, port: int) -> socket.socket:
    """Return a socket that the proxy has connected to the host. OSError if it cannot, or does not answer."""
    loop = asyncio.get_running_loop()
    connection = await _connect(proxy)
    try:
        await loop.sock_sendall(connection, _request(proxy, host, port))
        head = b""
        while b"\r\n\r\n" not in head:
            data = await loop.sock_recv(connection, 4096)
            if not data:
                raise ProxyError(f"proxy {proxy} closed the connection before it answered")
            head += data
            if len(head) > _MAX_HEAD_BYTES:
                raise ProxyError(f"proxy {proxy} answered more than {_MAX_HEAD_BYTES} bytes")
        line, _, _ = head.partition(b"\r\n")
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].startswith(b"2"):
            advice = "; give its user and password: http://user:password@host:port" if b" 407" in line else ""
            raise ProxyError(
                f"proxy {proxy} refused to connect to {host}:{port}: {clean(line.decode('latin-1'))}{advice}"
            )
        if not head.endswith(b"\r\n\r\n"):  # the vendor speaks after us
            raise ProxyError(f"proxy {proxy} sent data before the vendor could")
    except BaseException:  # a deadline cancels this: the socket belongs to nobody else yet
        connection.close()
        raise
    return connection


async def _connect(proxy: Proxy) -> socket.socket:
    loop = asyncio.get_running_loop()
    why: OSError | None = None
    try:
        found = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ProxyError(f"cannot reach proxy {proxy}: {error.strerror or error}") from None
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, address)
        except OSError as error:
            connection.close()
            why = error
        except BaseException:  # a deadline cancels this: the socket belongs to nobody else yet
            connection.close()
            raise
        else:
            return connection
    reason = "it has no address" if why is None else os.strerror(why.errno) if why.errno else why
    raise ProxyError(f"cannot reach proxy {proxy}: {reason}")


def _request(proxy: Proxy, host: str, port: int) -> bytes:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.login:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.login.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()
