"""What each relay says of itself and its clients, in a key of its own that expires, for `tickbus status`.

A relay writes its report every second or two. Reports are bounded: the clients furthest behind are in it, and
how many there are.
"""

from collections.abc import Sequence

import msgspec

from tickbus.protocol.names import Keys
from tickbus.redis.link import Connection, ReplyError
from tickbus.redis.registry import read_heartbeat
from tickbus.redis.resp import pairs

MAX_LISTED = 100
"""Clients in a report, and relays that are read."""
_MAX_REPORT_BYTES = 256 << 10
_FORGOTTEN_MS = 60_000
"""A relay that has not written for this long is taken out of the list."""


class RelayClient(msgspec.Struct, frozen=True):
    """One client of a relay."""

    name: str
    """Of its token, never the token; `anonymous` on a relay without tokens, empty before it has sent one."""
    address: str
    protocol: str
    """`tickbus.json`, `tickbus.msgpack`, or the vendor whose protocol it speaks."""
    subscriptions: dict[str, int]
    """How many it has, by policy."""
    in_flight: int
    """Bytes on their way to it, and waiting for it; those in the kernel not counted."""
    oldest: float | None = None
    """For how many seconds the oldest of them have waited, at least; None if there are none."""
    dropped: int = 0
    """Elements that its present subscriptions have dropped."""
    wants: int = 0
    """Topics that it asks gateways for."""


class RelayReport(msgspec.Struct, frozen=True):
    """One relay and its clients."""

    relay: str
    """host:pid:token of its process."""
    url: str
    """Where it listens."""
    clients: int
    streams: int
    """That it follows."""
    subscriptions: dict[str, int]
    """By policy."""
    in_flight: int
    """Bytes on their way to all clients."""
    listed: list[RelayClient]
    """The clients furthest behind first, at most `MAX_LISTED`."""


async def write_relay(link: Connection, keys: Keys, report: RelayReport, now_ms: int, ttl_ms: int) -> None:
    """Store a relay's report for `ttl_ms`, and take out of the list what is long gone. now_ms: bus time."""
    relay = report.relay
    _, _, known = await link.ask_all(
        [
            ("SET", keys.relay(relay), msgspec.json.encode(report), "PX", ttl_ms),
            ("HSET", keys.relays, relay, now_ms + ttl_ms),
            ("HGETALL", keys.relays),
        ]
    )
    if gone := [name for name, until in pairs(known) if read_heartbeat(until) < now_ms - _FORGOTTEN_MS]:
        await link.ask("HDEL", keys.relays, *gone)


async def remove_relay(link: Connection, keys: Keys, relay: str) -> None:
    """Forget a relay that ends."""
    await link.ask_all([("HDEL", keys.relays, relay), ("DEL", keys.relay(relay))])


async def read_relays(
    link: Connection, keys: Keys, now_ms: int, faults: list[str] | None = None
) -> list[RelayReport]:
    """Return the reports of the relays that run, by name. faults: collects what is none, a line each."""
    faults = [] if faults is None else faults
    (known,) = await link.ask_each([("HGETALL", keys.relays)])
    if isinstance(known, ReplyError):
        faults.append(
            f"{keys.relays} is no hash: fix: redis-cli RENAME '{keys.relays}' '{keys.relays}:foreign'"
        )
        return []
    alive = sorted(
        name.decode(errors="backslashreplace")
        for name, until in pairs(known)
        if read_heartbeat(until) > now_ms
    )[:MAX_LISTED]
    replies = await link.ask_each([("GET", keys.relay(name)) for name in alive])
    return _decode(alive, replies, keys, faults)


def _decode(
    names: Sequence[str], replies: Sequence[object], keys: Keys, faults: list[str]
) -> list[RelayReport]:
    reports = []
    for name, reply in zip(names, replies, strict=True):
        if reply is None:
            continue  # it has just expired
        try:
            if not isinstance(reply, bytes) or len(reply) > _MAX_REPORT_BYTES:
                raise ValueError
            reports.append(msgspec.json.decode(reply, type=RelayReport))
        except ValueError:  # which msgspec's and Unicode's errors are
            faults.append(
                f"{keys.relay(name)} is no report of a relay: fix: redis-cli DEL '{keys.relay(name)}'"
            )
    return reports
