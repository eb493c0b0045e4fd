"""Commands as Redis takes them. Pure."""

from collections.abc import Callable
from typing import cast

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
