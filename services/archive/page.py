"""Pages of recorded streams, as they go between the process that reads files and who asks it. No pyarrow.

A message is four bytes of length, then MessagePack.
"""

from typing import NamedTuple


class Request(NamedTuple):
    """Ask for a page of bars or entries of one stream."""

    stream: str
    after: str
    """Bars: the first start in ns. Entries: the ID before the first."""
    before: str
    """Not included, in the same form; empty: no end."""
    limit: int


class Row(NamedTuple):
    """One recorded message."""

    key: int
    """The start of a bar in ns; the ms of the ID of an entry."""
    id: str
    json: bytes
    """As `tickbus tail --json` prints it, with `cursor` instead of `id`."""


class Page(NamedTuple):
    """Rows in order."""

    rows: list[Row]
    next: str | None
    """Where the next page begins: the start of a bar, or the ID after which entries follow. None: nowhere."""


def framed(body: bytes) -> bytes:
    """Return a message."""
    return len(body).to_bytes(4, "big") + body
