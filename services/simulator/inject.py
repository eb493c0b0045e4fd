"""What each fault does: to the ticks in transit, to the frames, to the connections."""

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
    b"BTCUSDT 61837.63 0.02",
    b"[1,2",
    b"{",
)


def inject(fault: Fault, hub: Hub, tick_faults: TickFaults, rng: random.Random) -> None:
    """Start a fault that is due. rng: the source of garbage."""
    amount, action = fault.amount, fault.action
    if ACTIONS[action].affects_ticks:
        tick_faults.add(fault)
    elif action in ("mute", "mute-connection"):
        hub.mute(amount, everybody=action == "mute")
    elif action == "garbage":
        for _ in range(amount):
            hub.send_junk(rng.choice(_GARBAGE))
    elif action == "binary":
        for _ in range(amount):
            hub.send_junk(rng.randbytes(64), binary=True)
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
        _end_connections(fault, hub)


def _end_connections(fault: Fault, hub: Hub) -> None:
    """End all connections, announced in the vendor's way or not at all."""
    for connection in hub.connections:
        dialect = connection.dialect
        assert dialect is not None
        if fault.action == "close":
            connection.close(fault.amount, fault.reason, why="fault")
        elif fault.action == "cut":
            connection.cut("fault")
        elif fault.action == "slow-down":
            connection.apply(dialect.slow_down())
        elif fault.action == "shutdown":
            connection.apply(dialect.shutdown_notice(time.time_ns()))
            if fault.amount:
                asyncio.get_running_loop().call_later(
                    fault.amount / SECOND, connection.close, 1001, "server shutdown", "fault"
                )
        else:
            raise AssertionError(f"unknown action {fault.action}")
