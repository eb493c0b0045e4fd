"""The relay's metrics."""

from services.relay.hub import Hub
from services.relay.server import RelayServer
from services.vendors import VENDORS
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters

_REFUSALS = (
    "address", "bus", "handshake", "host", "method", "origin", "path", "token", "total", "unauthorized",
    "vendor",
)  # fmt: skip
_CLOSES = ("1002", "1007", "1008", "1009", "1012", "4401", "4403", "4408", "4413", "4420", "4429")
_POLICIES = ("lossless", "conflate", "drop")


def expose(meters: Meters, hub: Hub, server: RelayServer) -> None:
    follow = meters.follow
    follow(m.RELAY_CLIENTS, lambda: server.clients)
    follow(m.RELAY_STREAMS, lambda: len(hub.followed))
    follow(m.RELAY_ENTRIES, lambda: hub.entries)
    follow(m.RELAY_INVALID, lambda: hub.invalid)
    follow(m.RELAY_IN_FLIGHT, lambda: hub.in_flight)
    follow(m.RELAY_RING, lambda: hub.ring_bytes)
    follow(m.RELAY_HISTORY, lambda: server.counts.history)
    meters.follow_each(m.RELAY_DIALECT_CLIENTS, server.dialects.by_vendor, VENDORS)
    meters.follow_each(m.RELAY_UNSAID, lambda: server.dialects.unsaid, ("gap", "late"))
    meters.follow_each(m.RELAY_REFUSED, lambda: dict(server.counts.refused), _REFUSALS)
    meters.follow_each(m.RELAY_CLOSED, lambda: dict(server.counts.closed), _CLOSES)
    meters.follow_each(m.RELAY_SUBSCRIPTIONS, lambda: _by_policy(server), _POLICIES)


def _by_policy(server: RelayServer) -> dict[str, float]:
    counts: dict[str, float] = {}
    for session in server.sessions():
        for subscription in list(session.client.subscriptions.values()):
            counts[subscription.policy] = counts.get(subscription.policy, 0) + 1
    return counts
