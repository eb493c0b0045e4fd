"""The URLs of a bus with several servers: Redis Sentinel and Redis Cluster. Pure.

    redis+sentinel://[user:password@]host:port,host:port/<master name>[/<database>]
        [?sentinel_password=...&sentinel_username=...]
    redis+cluster://[user:password@]host:port,host:port

`rediss+...` is the same over TLS. User, password and the other options after `?` (`ssl_ca_certs=...`) apply
to all servers; user and password are percent-encoded as in any URL. The default port is 26379 (sentinel) or
6379.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from tickbus.errors import ConfigError
from tickbus.sanitize import redact

SENTINEL_PORT, REDIS_PORT = 26379, 6379


def address_of(url: str) -> str:
    """Return where a bus is, without user, password and options: `127.0.0.1:6379/0`."""
    return redact(url).partition("//")[2].removeprefix("***@")


_SENTINEL_FORM = "redis+sentinel://host:port,host:port/<master name>/<database>"
_CLUSTER_FORM = "redis+cluster://host:port,host:port"
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s\[\]:,]+))(?::(?P<port>\d{1,5}))?")


class Node(NamedTuple):
    """The address of one server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Address:
    """A parsed URL. `nodes` are the sentinels, or some nodes of the cluster."""

    redacted: str
    """The URL without secrets."""
    nodes: tuple[Node, ...]
    tls: bool
    login: str
    """`user:password@` as in the URL; empty for none."""
    options: tuple[tuple[str, str], ...]
    master: str = ""
    """Name of the master that the sentinels monitor; empty for a cluster."""
    database: int = 0
    sentinel_login: str = ""
    """Like `login`, for the sentinels."""

    def server(self, node: Node) -> str:
        """Return the URL of one data server."""
        return self._url(self.login, node, self.database)

    def sentinel(self, node: Node) -> str:
        """Return the URL of one sentinel. Sentinels have their own password, or none."""
        return self._url(self.sentinel_login, node, 0)

    def _url(self, login: str, node: Node, database: int) -> str:
        scheme, options = "rediss" if self.tls else "redis", urlencode(self.options)
        return f"{scheme}://{login}{node}/{database}{'?' if options else ''}{options}"


def parse_address(url: str) -> Address:
    """Parse either form. ConfigError, without the password in it, if `url` is neither."""
    scheme, _, _ = url.partition("://")
    sentinel = scheme.endswith("+sentinel")
    form = _SENTINEL_FORM if sentinel else _CLUSTER_FORM
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:  # its text may show the password
        raise _invalid(url, "malformed URL", form) from None
    login, at, hosts = parts.netloc.rpartition("@")
    if parts.fragment or "@" in parts.path + parts.query:
        raise _invalid(url, "percent-encode / ? # @ in user, password and options as %2F %3F %23 %40", form)
    if {"username", "password"} & options.keys():  # the sentinels would get them too
        raise _invalid(url, "user and password belong before the hosts: user:password@", form)
    user, password = (
        options.pop(name, "") if sentinel else "" for name in ("sentinel_username", "sentinel_password")
    )
    sentinel_login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    nodes = tuple(
        _node(url, host, SENTINEL_PORT if sentinel else REDIS_PORT, form) for host in hosts.split(",")
    )
    address = Address(
        redact(url),
        nodes,
        scheme.startswith("rediss"),
        login + at,
        tuple(options.items()),
        sentinel_login=sentinel_login,
    )
    return _with_master(url, address, parts.path) if sentinel else _without_database(url, address, parts.path)


def _with_master(url: str, address: Address, path: str) -> Address:
    match = re.fullmatch(r"/([^/\s]+)(?:/(\d{0,9}))?", path)
    if match is None:
        raise _invalid(url, "the master name is missing, or the database is not a number", _SENTINEL_FORM)
    return replace(address, master=match[1], database=int(match[2] or 0))


def _without_database(url: str, address: Address, path: str) -> Address:
    if path not in ("", "/", "/0"):
        raise _invalid(url, f"a cluster has no database {path[1:]!r}, only 0", _CLUSTER_FORM)
    return address


def _node(url: str, text: str, port: int, form: str) -> Node:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match["port"] or port) < 65536:
        raise _invalid(url, f"invalid host:port {redact('//' + text)[2:]!r}", form)
    return Node(match["v6"] or match["name"], int(match["port"] or port))


def _invalid(url: str, why: str, form: str) -> ConfigError:
    return ConfigError(f"--redis {redact(url)}: {why}; expected {form}")
