"""Identifies the process that holds a lease or a fence."""

import os
import secrets
import socket


def new_holder() -> str:
    """Return a name for this process that is unique forever: `host:pid:token`."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
