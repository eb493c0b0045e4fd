"""What each fault does: to the ticks on their way, to the frames, to the connections."""

import asyncio
import random
import time

from services.simulator.faults import ACTIONS, Fault
from services.simulator.hub import Hub
from services.simulator.tick_faults import TickFaults
from tickbus.units import SECOND

_GARBAGE = (
    b"<html><body>502 Bad Gateway</body></html>",
    b'{"e":"trade","s":',
    b"no json at all",
    b"[1,2",
    b"",
)


def fire(fault: Fault, hub: Hub, tampering: TickFaults, junk: random.Random) -> None:
    """Begin a fault that is due. `junk` is where garbage comes from."""
    amount, action = fault.amount, fault.action
    if ACTIONS[action].of_ticks:
        tampering.add(fault)
    elif action in ("mute", "mute-connection"):
        hub.mute(amount, everybody=action == "mute")
    elif action == "garbage":
        for _ in range(amount):
            hub.send_junk(junk.choice(_GARBAGE))
    elif action == "binary":
        for _ in range(amount):
            hub.send_junk(junk.randbytes(64), binary=True)
    elif action == "huge":
        hub.send_junk(b'{"huge":"' + b"x" * (amount - 11) + b'"}' if amount > 11 else b"x" * amount)
    elif action == "refuse":
        hub.refuse(amount)
    elif action == "max-connections":
        hub.limits.max_connections = amount
    elif action == "symbol-cap":
        hub.limits.symbol_cap = amount
    elif action == "half-open":
        hub.half_open()
    else:
        _part_with_all(fault, hub)


def _part_with_all(fault: Fault, hub: Hub) -> None:
    """The faults that end connections: each client is told, or not, in the vendor's way."""
    for connection in hub.connections:
        dialect = connection.dialect
        assert dialect is not None
        if fault.action == "close":
            connection.close(fault.amount, fault.reason, why="fault")
        elif fault.action == "cut":
            connection.cut("fault")
        elif fault.action == "slow-down":
            connection.obey(dialect.slow_down())
        elif fault.action == "shutdown":
            connection.obey(dialect.shutdown_notice(time.time_ns()))
            if fault.amount:
                asyncio.get_running_loop().call_later(
                    fault.amount / SECOND, connection.close, 1001, "server shutdown", "fault"
                )
        else:
            raise AssertionError(f"no such action: {fault.action}")
