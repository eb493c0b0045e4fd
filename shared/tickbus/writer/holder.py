"""Identifies the process that holds a lease or a fence."""

import os
import re
import secrets
import socket

_HOLDER = re.compile(r"[^:\s]+:[0-9]+:[0-9a-z]+")


def new_holder() -> str:
    """Return a name for this process that is unique forever: `host:pid:token`."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def is_holder(text: str) -> bool:
    """Whether this may be the name of a process; if not, some other program wrote it."""
    return _HOLDER.fullmatch(text) is not None
