"""The relay's metrics."""

from collections import Counter
from collections.abc import Callable

from services.relay.census import MIXED, Census
from services.relay.hub import Hub
from services.relay.server import RelayServer
from services.vendors import VENDORS
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters
from tickbus.protocol.wants import STATES
from tickbus.units import MILLISECOND, SECOND

_REFUSALS = (
    "address", "bus", "handshake", "header", "host", "method", "origin", "path", "token", "total",
    "unauthorized", "vendor",
)  # fmt: skip
_CLOSES = (
    "1000", "1001", "1002", "1005", "1006", "1007", "1008", "1009", "1011", "1012",
    "4401", "4403", "4408", "4413", "4420", "4429",
)  # fmt: skip
_STATUSES = ("200", "204", "400", "401", "403", "404", "503")
_OTHER = "other"
_POLICIES = ("lossless", "conflate", "drop")
_DELIVERIES = ("lossless", "conflate")


def expose(meters: Meters, hub: Hub, server: RelayServer, census: Callable[[], Census]) -> None:
    """census: returns the newest."""
    follow, follow_each = meters.follow, meters.follow_each
    follow(m.RELAY_CLIENTS, lambda: server.clients)
    follow(m.RELAY_STREAMS, lambda: len(hub.followed))
    follow(m.RELAY_ENTRIES, lambda: hub.entries)
    follow(m.RELAY_INVALID, lambda: hub.invalid)
    follow(m.RELAY_RING, lambda: hub.ring_bytes)
    follow(m.RELAY_HISTORY, lambda: hub.counts.history_entries)
    follow(m.RELAY_HISTORY_PAGES, lambda: hub.counts.history_pages)
    follow(m.RELAY_REQUEST_ERRORS, lambda: hub.counts.request_errors)
    follow_each(m.RELAY_DIALECT_CLIENTS, lambda: census().protocols, VENDORS)
    follow_each(m.RELAY_UNSAID, lambda: server.dialects.unsaid, ("gap", "late"))
    follow_each(m.RELAY_REFUSED, lambda: server.counts.refused + server.gate.refused, _REFUSALS)
    follow_each(m.RELAY_CLOSED, lambda: _named(server.counts.closed, _CLOSES), (*_CLOSES, _OTHER))
    follow_each(m.RELAY_HTTP, lambda: _named(server.counts.answered, _STATUSES), (*_STATUSES, _OTHER))
    follow_each(m.RELAY_SUBSCRIPTIONS, lambda: census().subscriptions, _POLICIES)
    follow_each(m.RELAY_IN_FLIGHT, lambda: census().in_flight, (*_POLICIES, MIXED))
    follow_each(m.RELAY_ELEMENTS, lambda: census().totals.sent, _POLICIES)
    follow_each(m.RELAY_DROPPED, lambda: census().totals.dropped, ("drop",))
    follow_each(m.RELAY_CONFLATED, lambda: census().totals.conflated, ("conflate",))
    follow_each(m.RELAY_WANTS, server.dialects.wants.counts, (*STATES, "unknown"))
    _time_deliveries(meters, hub)


def _time_deliveries(meters: Meters, hub: Hub) -> None:
    histogram, clock = meters.histogram(m.RELAY_DELIVERY), hub.clock
    observe = {policy: histogram.labels(policy).observe for policy in _DELIVERIES}

    def delivered(policy: str, id_ms: int) -> None:
        observe[policy](max(0, clock.now_ns() - id_ms * MILLISECOND) / SECOND)

    hub.on_delivered = delivered


def _named(counts: Counter[str], names: tuple[str, ...]) -> dict[str, int]:
    """Return the counts of these names, and of all others together."""
    counts = Counter(counts)
    named = {name: counts.pop(name, 0) for name in names}
    return named | {_OTHER: counts.total()}
