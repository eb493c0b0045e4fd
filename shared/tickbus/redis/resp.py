"""Commands and replies on the wire. Pure."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import hiredis

Command = tuple["bytes | str | int", ...]
pack = cast("Callable[[Command], bytes]", hiredis.pack_command)
"""Return a command as bytes."""


def pack_bulk(*texts: str) -> bytes:
    """Return arguments as they are sent: part of a command."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(packed := text.encode()), packed) for text in texts])


def command_prefix(command: str, count: int) -> bytes:
    """Return the beginning of a command, before its `count` arguments."""
    return b"*%d\r\n" % (count + 1) + pack_bulk(command)


def unpack(packed: bytes) -> Iterator[list[bytes]]:
    """Return packed commands, each with its arguments."""
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    reader.feed(packed)
    while (command := reader.gets()) is not Ellipsis:
        yield command


def pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Return the pairs of a reply that alternates fields and values."""
    return zip(flat[::2], flat[1::2], strict=True)


def milliseconds(time: Sequence[bytes]) -> int:
    """Return the reply to TIME in ms since the epoch."""
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000
