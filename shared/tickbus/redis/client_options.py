"""The URL of one Redis server: checked before anything is connected, and what redis-py makes of it.

Forms with several servers are taken apart by tickbus.redis.urls first.
"""

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
"""A server that has not answered for this long counts as away."""


def check_url(url: str) -> redis_py.ConnectionPool:
    """ConfigError unless `url` names one server. Nothing is connected."""
    try:
        database = urlsplit(url)
        if database.scheme in ("redis", "rediss") and not re.fullmatch(r"/?|/\d+", database.path):
            # redis-py takes what is no number for database 0
            if "@" in database.path:  # the rest of a password: not to be shown
                raise ConfigError(
                    f"--redis {redact(url)}: write / ? # @ in user and password as %2F %3F %23 %40"
                )
            raise ConfigError(
                f"--redis {redact(url)}: the database {database.path[1:]!r} is no number; write redis://host:port/0"
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
"""What may stand after the `?`, besides redis-py's `ssl_...`. The rest of redis-py's options are settled here (`protocol`: what is parsed
is RESP2) or do nothing on a raw connection."""
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def check_options(url: str) -> None:
    """ConfigError unless what `url` says after its `?` is known, fits its scheme, and names files that can be read."""
    shown, tls = redact(url), url.startswith("rediss://")
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name.startswith("ssl_"):
            if not tls:
                raise ConfigError(f"--redis {shown}: {name} is for TLS; write rediss instead of redis")
        elif name not in _OPTIONS:
            raise ConfigError(
                f"--redis {shown}: unknown option {name!r}; there are ssl_..., {', '.join(sorted(_OPTIONS))}"
            )
        if name in _FILES:
            try:
                Path(value).open("rb").close()
            except OSError as error:
                raise ConfigError(f"--redis {shown}: {name}: cannot read {value}: {error.strerror}") from None
    try:
        check_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError) as error:  # TypeError: it has no such ssl_ option
        raise ConfigError(f"--redis {shown}: {str(error).partition('() ')[2] or error}") from None


_tls_contexts: dict[tuple[object, ...], RedisSSLContext] = {}


def share_tls(connection: redis_py.SSLConnection, url: str) -> None:
    """All connections of one URL use one TLS context, until a file of it changes. redis-py makes one per connection and each time
    reads all the CAs of the system: 20 to 60 ms in which the loop stands still, for 64 shards on a cluster longer than they wait."""
    options = [(name, value) for name, value in parse_qsl(urlsplit(url).query) if name.startswith("ssl_")]
    files = (Path(value) for name, value in options if name in _FILES)
    key = (*options, *(file.stat().st_mtime_ns if file.exists() else 0 for file in files))
    if key not in _tls_contexts:
        _tls_contexts.clear()
        _tls_contexts[key] = connection.ssl_context
    connection.ssl_context = _tls_contexts[key]


def remedy(url: str, error: Exception) -> str:
    """What the operator can do about a server that could not be reached."""
    if "CERTIFICATE_VERIFY" in str(error):
        return "name the file of the CA that signed its certificate: rediss://...?ssl_ca_certs=FILE"
    if "CERTIFICATE_REQUIRED" in str(error):
        return "it wants a certificate of ours: rediss://...?ssl_certfile=FILE&ssl_keyfile=FILE"
    # it hung up on our first words; which error that is depends on who is faster
    hung_up = any(
        sign in str(error) for sign in ("reset by peer", "Connection lost", "closed by server", "Broken pipe")
    )
    if hung_up and not url.startswith("rediss:"):
        return "if it speaks TLS, write rediss instead of redis"
    if isinstance(error, TimeoutError) and url.startswith("rediss:"):
        return "if it speaks no TLS, write redis instead of rediss"
    return "start one, or name another with --redis"
