"""The page, as the relay serves it: its files, and what a browser may do with them. Pure.

All of it lies in this package: no build step, nothing from elsewhere. It needs no token: it has nothing of
the bus in it, and asks for what it shows over `/v1` and `/api` like any other client.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "static"
_CLIENT = "tickbus.js"
"""The JavaScript client: a wheel has it among the page's files, a checkout in clients/js."""
_CHECKOUT = Path(__file__).parents[2] / "clients" / "js" / _CLIENT
PREFIX = "/page/"
_VIEW = re.compile(r"/(?:page(?:/(?:market|alerts|health|symbol/[A-Za-z0-9._-]+/[A-Z0-9._-]+)?)?)?")
"""Paths of views, which a browser may open directly: all are the same document, and its router decides."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")


class PageAnswer(NamedTuple):
    status: int
    content_type: str
    headers: Sequence[tuple[str, str]]
    body: bytes


class _File(NamedTuple):
    content_type: str
    etag: str
    body: bytes


class Page:
    """The files, read once."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Raise OSError if they cannot be read."""
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.*"))}
        found.setdefault(_CLIENT, _CHECKOUT)
        self._files = {name: _read(path) for name, path in found.items() if path.suffix in _TYPES}
        self._index = self._files["index.html"]

    def get(self, path: str, host: str, known: str) -> PageAnswer | None:
        """Answer a GET; None if the page has nothing there. host, known: its `Host`, its `If-None-Match`."""
        file = self._index if _VIEW.fullmatch(path) else self._files.get(path.removeprefix(PREFIX))
        if file is None or (file is not self._index and not path.startswith(PREFIX)):
            return None
        headers = [
            ("ETag", file.etag),
            ("Cache-Control", "no-cache"),  # kept, but asked about each time: a new version is seen at once
            ("Content-Security-Policy", content_security_policy(host)),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ]
        if file.etag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return PageAnswer(304, file.content_type, headers, b"")
        return PageAnswer(200, file.content_type, headers, file.body)


def content_security_policy(host: str) -> str:
    """Return what a browser may load and do: what comes from here, and no script that is made from text.

    host: where the page was asked for; not every browser takes `'self'` for its sockets too.
    """
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'{sockets}; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _read(path: Path) -> _File:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:20]
    return _File(_TYPES[path.suffix], f'"{digest}"', body)
