"""The relay's clients at this moment: for its metrics, `/api/status` and `tickbus status`.

It is taken once a second, beside the delivery, and read as often as somebody asks.
"""

import asyncio
import heapq
import time
from collections import Counter
from dataclasses import dataclass, field

from services.relay.delivery import Client
from services.relay.hub import Counts, Hub
from services.relay.server import RelayServer
from tickbus.monitoring.relays import MAX_LISTED, RelayClient

_PASS_SECONDS = 0.002
"""Counting yields this often."""
_MAX_NAME = 64
MIXED = "mixed"
"""Instead of a policy: a client with several, or without a subscription."""


@dataclass(frozen=True)
class Census:
    clients: int = 0
    protocols: Counter[str] = field(default_factory=Counter)
    """Clients by protocol: `tickbus.json`, `tickbus.msgpack`, or a vendor."""
    subscriptions: Counter[str] = field(default_factory=Counter)
    """By policy."""
    in_flight: Counter[str] = field(default_factory=Counter)
    """Bytes, by the policy of their clients' subscriptions, or `MIXED`."""
    totals: Counts = field(default_factory=Counts)
    """Elements sent, dropped and conflated, also to subscriptions that have ended."""
    listed: list[RelayClient] = field(default_factory=list)
    """The clients furthest behind first."""


async def take_census(hub: Hub, server: RelayServer) -> Census:
    """Count all clients; a long count yields to the delivery."""
    ended = hub.counts
    totals = Counts(Counter(ended.sent), Counter(ended.dropped), Counter(ended.conflated))
    protocols: Counter[str] = Counter()
    subscriptions: Counter[str] = Counter()
    in_flight: Counter[str] = Counter()
    listed: list[tuple[float, int, int, RelayClient]] = []
    began = time.monotonic()
    for number, (session, address, protocol) in enumerate(server.connections()):
        client = session.client
        policies: Counter[str] = Counter()
        for subscription in client.subscriptions.values():
            policies[subscription.policy] += 1
            totals.add(subscription)
        described = _describe(client, address, protocol, policies, session.wanted)
        protocols[protocol] += 1
        subscriptions.update(policies)
        in_flight[next(iter(policies)) if len(policies) == 1 else MIXED] += described.in_flight
        # the number decides between equals: clients have no order
        row = described.oldest or 0.0, described.in_flight, number, described
        if len(listed) < MAX_LISTED:
            heapq.heappush(listed, row)
        else:
            heapq.heappushpop(listed, row)
        if time.monotonic() - began > _PASS_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()
    listed.sort(reverse=True)
    return Census(
        sum(protocols.values()), protocols, subscriptions, in_flight, totals, [row[-1] for row in listed]
    )


def _describe(client: Client, address: str, protocol: str, policies: Counter[str], wants: int) -> RelayClient:
    now = time.monotonic()
    since = client.oldest(now)
    waiting = sum(subscription.waiting for subscription in client.subscriptions.values())
    return RelayClient(
        name=client.name[:_MAX_NAME],
        address=address,
        protocol=protocol,
        subscriptions=dict(policies),
        in_flight=client.sink.buffered + waiting,
        oldest=None if since is None else round(now - since, 1),
        dropped=sum(subscription.dropped for subscription in client.subscriptions.values()),
        wants=wants,
    )
