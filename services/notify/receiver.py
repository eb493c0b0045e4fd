"""A receiver, as its file declares it. Pure.

    name = "ops"
    url = "https://example.com/hooks/tickbus"     # or url_file
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # or secret_file; a list while it is being replaced

The URL is a secret like any other: whoever knows it can post there. Neither is ever shown.
"""

import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from services.notify.signing import parse_secret
from tickbus.errors import ConfigError
from tickbus.protocol.messages import Signal, SignalState
from tickbus.protocol.names import Stream, check_name
from tickbus.sanitize import SECRETS
from tickbus.units import MILLISECOND, Duration, parse_duration

WEBHOOK_SCHEMES = ("http", "https")
PREFIX = "notify-"
"""What the name of a receiver's service begins with."""


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    """Where alerts go, which ones, and for how long that is tried."""

    name: str
    url: str
    secrets: tuple[bytes, ...]
    """Keys that sign, all of them: two while one replaces the other. None for a URL of apprise."""
    max_age: Duration
    """Alerts older than this are not sent one by one: one summary takes their place."""
    retry_for: Duration
    """How long an alert is tried before it goes to the dead letters."""
    timeout: Duration
    backoff: Duration
    backoff_max: Duration
    concurrency: int
    """Requests in flight; never more than one for a stream."""
    names: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    feeds: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        return PREFIX + self.name

    @property
    def is_webhook(self) -> bool:
        return urlsplit(self.url).scheme in WEBHOOK_SCHEMES

    @property
    def max_age_ms(self) -> int:
        return self.max_age // MILLISECOND

    def follows(self, stream: Stream) -> bool:
        """Whether alerts of this stream may be for this receiver."""
        return _matches(stream.symbol, self.symbols) and _matches(stream.feed, self.feeds)

    def wants(self, signal: Signal) -> bool:
        """Whether a signal of such a stream is an alert that this receiver is to get."""
        return signal.state is not SignalState.INDICATOR and _matches(signal.name, self.names)


def _matches(text: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(text, glob) for glob in globs)


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str = ""
    url: str = ""
    url_file: str = ""
    secret: str | list[str] = ""
    secret_file: str = ""
    max_age: str = "1h"
    retry_for: str = ""
    timeout: str = "10s"
    backoff: str = "1s"
    backoff_max: str = "1m"
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    names: list[str] = []
    symbols: list[str] = []
    feeds: list[str] = []


def load_receiver(path: Path, name: str = "") -> Receiver:
    """Return the receiver that a TOML file declares, and register its secrets, so that nothing shows them.

    name: overrides the one in the file.

    Errors: ConfigError, without any value that may be secret.
    """
    where = f"--receiver {path}"
    file = _parse(path, where)
    url = _secret_text(where, "url", file.url, file.url_file)
    if not isinstance(url, str) or not url:
        raise ConfigError(f"{where}: url is missing: expected e.g. https://example.com/hooks/tickbus")
    _hide_url(url)
    secret = _secret_text(where, "secret", file.secret, file.secret_file)
    secrets = [secret] if isinstance(secret, str) else secret
    for one in secrets:
        SECRETS.add(one)
    scheme, host = _split(url, where)
    if scheme in WEBHOOK_SCHEMES and not host:
        raise ConfigError(f"{where}: url has no host: expected e.g. https://example.com/hooks/tickbus")
    is_signed = scheme in WEBHOOK_SCHEMES
    if is_signed and not any(secrets):
        raise ConfigError(f"{where}: secret is missing: expected whsec_<base64>; it signs what is sent")
    chosen = name or file.name
    if not chosen:
        raise ConfigError(f'{where}: name is missing: expected e.g. name = "ops"; or give --name')
    check_name(PREFIX + chosen)
    max_age = _duration(where, "max_age", file.max_age)
    return Receiver(
        name=chosen,
        url=url,
        secrets=tuple(parse_secret(one, f"{where}: secret") for one in secrets) if is_signed else (),
        max_age=max_age,
        retry_for=_duration(where, "retry_for", file.retry_for) if file.retry_for else max_age,
        timeout=_duration(where, "timeout", file.timeout),
        backoff=_duration(where, "backoff", file.backoff),
        backoff_max=_duration(where, "backoff_max", file.backoff_max),
        concurrency=file.concurrency,
        names=tuple(file.names),
        symbols=tuple(file.symbols),
        feeds=tuple(file.feeds),
    )


def _parse(path: Path, where: str) -> _File:
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except OSError as error:
        raise ConfigError(f"{where}: cannot read it: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # the parser's own words may quote the line, and the line may be the secret
        raise ConfigError(f"{where}: not valid TOML; are all texts in quotes?") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None


def _secret_text(where: str, key: str, value: "str | list[str]", file: str) -> "str | list[str]":
    if value and file:
        raise ConfigError(f"{where}: give {key} or {key}_file, not both")
    if not file:
        return value
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where}: {key}_file: cannot read {file}: {getattr(error, 'strerror', None) or 'not text'}"
        ) from None
    if not text:
        raise ConfigError(f"{where}: {key}_file: {file} is empty")
    return text


def _split(url: str, where: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError(f"{where}: invalid url: expected e.g. https://example.com/hooks/tickbus") from None
    if not parts.scheme:
        raise ConfigError(f"{where}: url has no scheme: expected https://..., or a URL of apprise")
    return parts.scheme, parts.hostname or ""


def _hide_url(url: str) -> None:
    SECRETS.add_url(url)
    scheme, _, rest = url.partition("://")
    # the host of a webhook may be shown; in URLs of apprise it may be a token
    secret = rest.partition("/")[2] if scheme in WEBHOOK_SCHEMES else rest
    if secret:
        SECRETS.add(secret)


def _duration(where: str, key: str, text: str) -> Duration:
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {key}: {error}") from None
    if value <= 0:
        raise ConfigError(f"{where}: {key}: invalid duration {text!r}: expected more than zero")
    return value
