"""Commands as Redis takes them. Pure."""

from collections.abc import Callable
from typing import cast

import hiredis

Command = tuple["bytes | str | int", ...]
pack = cast("Callable[[Command], bytes]", hiredis.pack_command)
"""A command -> its bytes."""
