"""The URL of one Redis server: validated before anything connects, and turned into what redis-py needs.

URLs with several servers are first split by tickbus.redis.urls.
"""

import errno
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import redis.asyncio as redis_py
from redis.asyncio.connection import RedisSSLContext
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tickbus.errors import ConfigError
from tickbus.sanitize import redact

_CONNECT_SECONDS = 2.0
REPLY_SECONDS = 5.0
"""A server that has not replied for this long counts as unavailable."""


def check_url(url: str) -> redis_py.ConnectionPool:
    """Return a pool for the URL of one server, without connecting. ConfigError if the URL is invalid."""
    try:
        database = urlsplit(url)
        if database.scheme in ("redis", "rediss") and not re.fullmatch(r"/?|/\d+", database.path):
            # redis-py would use database 0 for anything that is not a number
            if "@" in database.path:  # the rest of a password: must not be shown
                raise ConfigError(
                    f"--redis {redact(url)}: percent-encode / ? # @ in user and password as %2F %3F %23 %40"
                )
            raise ConfigError(
                f"--redis {redact(url)}: invalid database {database.path[1:]!r}:"
                " expected a number, e.g. redis://host:port/0"
            )
        return redis_py.ConnectionPool.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=REPLY_SECONDS,
        )
    except ValueError as error:
        raise ConfigError(f"--redis {redact(url)}: {error}") from None


_OPTIONS = frozenset(
    (
        "username",
        "password",
        "db",
        "client_name",
        "socket_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
    )
)
"""Allowed after the `?`, besides redis-py's `ssl_...`. Its other options are fixed here (`protocol`: RESP2 is
parsed) or have no effect on a raw connection."""
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def check_options(url: str) -> None:
    """ConfigError unless the options after the `?` are known, fit the scheme, and name readable files."""
    redacted, tls = redact(url), url.startswith("rediss://")
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name.startswith("ssl_"):
            if not tls:
                raise ConfigError(f"--redis {redacted}: {name} requires TLS; use rediss instead of redis")
        elif name not in _OPTIONS:
            raise ConfigError(
                f"--redis {redacted}: unknown option {name!r}:"
                f" expected one of ssl_..., {', '.join(sorted(_OPTIONS))}"
            )
        if name in _FILES:
            try:
                Path(value).open("rb").close()
            except OSError as error:
                raise ConfigError(
                    f"--redis {redacted}: {name}: cannot read {value}: {error.strerror}"
                ) from None
    try:
        check_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError) as error:  # TypeError: no such ssl_ option
        raise ConfigError(f"--redis {redacted}: {str(error).partition('() ')[2] or error}") from None


_tls_contexts: dict[tuple[object, ...], RedisSSLContext] = {}


def share_tls(connection: redis_py.SSLConnection, url: str) -> None:
    """Share one TLS context among all connections of a URL, until one of its files changes.

    redis-py makes one per connection and reads all the system's CAs each time. That blocks the loop for 20
    to 60 ms, and for 64 shards on a cluster longer than their timeout.
    """
    options = [(name, value) for name, value in parse_qsl(urlsplit(url).query) if name.startswith("ssl_")]
    files = (Path(value) for name, value in options if name in _FILES)
    key = (*options, *(file.stat().st_mtime_ns if file.exists() else 0 for file in files))
    if key not in _tls_contexts:
        _tls_contexts.clear()
        _tls_contexts[key] = connection.ssl_context
    connection.ssl_context = _tls_contexts[key]


def remedy(url: str, error: Exception) -> str:
    """Return what the operator can do about a server that could not be reached."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    # older versions of redis-py say why only in the error that theirs replaced
    text = f"{error} {error.__context__}"
    if "CERTIFICATE_VERIFY" in text:
        return "set the CA file for its certificate: rediss://...?ssl_ca_certs=FILE"
    if "CERTIFICATE_REQUIRED" in text:
        return "it requires a client certificate: rediss://...?ssl_certfile=FILE&ssl_keyfile=FILE"
    # it hung up during the handshake; a race decides which error that is
    hung_up = any(
        sign in text for sign in ("reset by peer", "Connection lost", "closed by server", "Broken pipe")
    )
    if hung_up and not url.startswith("rediss:"):
        return "if it uses TLS, use rediss instead of redis"
    if isinstance(error, TimeoutError) and url.startswith("rediss:"):
        return "if it does not use TLS, use redis instead of rediss"
    return "start one, or set another with --redis"
