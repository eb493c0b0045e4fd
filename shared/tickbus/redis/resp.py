"""Commands and replies as they travel. Pure."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import hiredis

Command = tuple["bytes | str | int", ...]
pack = cast("Callable[[Command], bytes]", hiredis.pack_command)
"""A command -> its bytes."""


def pack_bulk(*texts: str) -> bytes:
    """Part of a command as it is sent."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(packed := text.encode()), packed) for text in texts])


def command_prefix(command: str, count: int) -> bytes:
    """The beginning of a command, up to its `count` arguments."""
    return b"*%d\r\n" % (count + 1) + pack_bulk(command)


def pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Return the pairs of a reply that lists fields and values in turn."""
    return zip(flat[::2], flat[1::2], strict=True)


def milliseconds(time: Sequence[bytes]) -> int:
    """Return the reply to TIME in ms since the epoch."""
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000
