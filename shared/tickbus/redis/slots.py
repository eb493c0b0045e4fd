"""Routing in a Redis Cluster: the slot of a key, the key of a command, the node of a slot. Pure."""

import binascii
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from tickbus.redis.urls import Node

SLOTS = 16_384

_KEYLESS = frozenset({"TIME", "INFO", "PING", "ECHO", "CLUSTER", "CONFIG", "CLIENT", "DBSIZE", "ROLE"})
_SECOND = frozenset({"XINFO", "XGROUP", "MEMORY", "OBJECT"})
"""Their first argument is a subcommand."""
_COUNTED = frozenset({"EVAL", "EVALSHA", "FCALL"})
"""Their arguments are a script, the number of keys, the keys."""


def key_slot(key: bytes | str) -> int:
    """Return the slot of the text between the first `{` and the next `}`, or of the whole key without any."""
    whole = key.encode() if isinstance(key, str) else key
    _, opened, rest = whole.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if opened and closed and tag else whole, 0) % SLOTS


def command_slot(command: "Sequence[bytes | str | int]") -> int:
    """Return the slot of a command's first key.

    Commands without a key all go to one node, that of slot 0: TIME always reads the same clock.
    """
    name = str(command[0]).upper()
    if name in _KEYLESS:
        return 0
    if name in ("XREAD", "XREADGROUP"):
        at = next(at for at, argument in enumerate(command) if str(argument).upper() == "STREAMS") + 1
    elif name in _COUNTED:
        if not int(command[2]):
            return 0
        at = 3
    else:
        at = 2 if name in _SECOND else 1
    key = command[at]
    return key_slot(str(key) if isinstance(key, int) else key)


class SlotMap:
    """The master of each slot, as seen by one node of the cluster."""

    def __init__(self, ranges: "list[tuple[int, int, Node]]") -> None:
        self._ranges = sorted(ranges)
        self._firsts = [first for first, _, _ in self._ranges]
        self.masters = sorted({node for _, _, node in self._ranges})

    def master(self, slot: int) -> Node | None:
        """Return the master of a slot; None if no node has it."""
        at = bisect_right(self._firsts, slot) - 1
        if at < 0 or slot > self._ranges[at][1]:
            return None
        return self._ranges[at][2]


def parse_slots(reply: Any, source: Node) -> tuple[SlotMap, list[Node]]:
    """Parse the reply of `source` to CLUSTER SLOTS into the map and all nodes, masters first.

    A node may not know its own host: then it is the host of `source`.
    """
    ranges, nodes = [], []
    for first, last, *servers in reply:
        found = [Node(_host(server[0], source), int(server[1])) for server in servers]
        ranges.append((int(first), int(last), found[0]))
        nodes += found
    slots = SlotMap(ranges)
    return slots, list(dict.fromkeys([*slots.masters, *nodes]))


def _host(host: bytes | None, source: Node) -> str:
    return source.host if host in (None, b"", b"?") else host.decode()
