"""Who may do what: a file of hashed tokens, read again when it changes."""

import hashlib
import logging
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from services.relay.selection import Scope, Symbols
from tickbus.errors import ConfigError
from tickbus.protocol.names import KINDS

log = logging.getLogger("tickbus.relay")


class Account(msgspec.Struct, frozen=True):
    """What one token allows."""

    name: str
    scope: Scope = Scope()
    history: bool = True
    """Whether it may read the past, beyond what a client missed that resumes soon."""
    want: bool = False
    """Whether it may have symbols subscribed at the vendor."""
    max_wants: int = 100
    max_connections: int = 100
    max_subscriptions: int = 100
    """Per connection."""
    max_streams: int = 10_000
    """Per subscription."""


ANONYMOUS = Account("anonymous", want=True, max_connections=1 << 30, max_wants=1 << 30)
"""Everybody, on a relay without tokens: it listens on loopback only."""


class _Row(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One [[token]] of the file."""

    name: str
    sha256: str
    kinds: tuple[str, ...] = KINDS
    symbols: list[str] = []
    feeds: list[str] = []
    history: bool = True
    want: bool = False
    max_wants: int = 100
    max_connections: int = 100
    max_subscriptions: int = 100
    max_streams: int = 10_000


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    token: list[_Row]


class Tokens:
    """The accounts by token. `changed` reads the file again."""

    def __init__(self, path: Path | None) -> None:
        """Raise ConfigError if the file cannot be used. None: no tokens, everybody is anonymous."""
        self._path = path
        self._accounts: dict[str, Account] = {} if path is None else _read(path)
        self._stamp = self._look()
        self._refused = ""

    @property
    def required(self) -> bool:
        return self._path is not None

    def find(self, token: str) -> Account | None:
        """Return the account of a token; None if there is none."""
        return self._accounts.get(hash_token(token))

    def is_valid(self, account: Account) -> bool:
        """Whether this account still stands, unchanged."""
        return not self.required or account in self._accounts.values()

    def changed(self) -> bool:
        """Read the file if it changed. Return whether the accounts are other ones now.

        A file that cannot be used leaves the old accounts in force, with one warning.
        """
        if self._path is None or (stamp := self._look()) == self._stamp:
            return False
        self._stamp = stamp
        try:
            accounts = _read(self._path)
        except ConfigError as error:
            if str(error) != self._refused:
                self._refused = str(error)
                log.warning("%s; the tokens of before stay in force", error)
            return False
        self._refused = ""
        before, self._accounts = self._accounts, accounts
        log.info("%s: %d tokens", self._path, len(accounts))
        return before != accounts

    def _look(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return (0, 0, 0)
        return (0, 0, 0) if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def hash_token(token: str) -> str:
    """Return what the file holds of a token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _read(path: Path) -> dict[str, Account]:
    try:
        parsed: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        rows = msgspec.convert(parsed, _File).token
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f'--tokens {path}: {why}; expected [[token]] tables with name = "..." and sha256 = "..."'
        ) from None
    accounts: dict[str, Account] = {}
    for row in rows:
        digest = row.sha256.lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ConfigError(
                f"--tokens {path}: token {row.name!r}: sha256 must be 64 hex digits, "
                "e.g. from printf %s TOKEN | sha256sum"
            )
        if digest in accounts or any(account.name == row.name for account in accounts.values()):
            raise ConfigError(f"--tokens {path}: token {row.name!r} is there twice")
        if not set(row.kinds) <= set(KINDS):
            raise ConfigError(f"--tokens {path}: token {row.name!r}: kinds are {', '.join(KINDS)}")
        try:
            symbols = Symbols.parse(row.symbols)
        except ValueError as error:
            raise ConfigError(f"--tokens {path}: token {row.name!r}: {error}") from None
        scope = Scope(frozenset(row.kinds), symbols, frozenset(row.feeds))
        accounts[digest] = Account(
            row.name, scope, row.history, row.want, row.max_wants, row.max_connections,
            row.max_subscriptions, row.max_streams,
        )  # fmt: skip
    return accounts
