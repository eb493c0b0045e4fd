"""The status of a bus as tables for people and as one object for programs."""

from collections.abc import Sequence

from msgspec.structs import asdict

from services.tools.tables import Table
from tickbus.monitoring.lag import StreamLag
from tickbus.monitoring.relays import RelayClient, RelayReport
from tickbus.monitoring.status import BusStatus, FeedStatus, MemberStatus, ServiceStatus, StreamStatus
from tickbus.units import MILLISECOND, format_time

_MAX_SILENT = 20
_MAX_WORST = 10
_MAX_CLIENTS = 20


def heading(status: BusStatus | None, prefix: str, url: str) -> str:
    if status is None:
        return f"nothing has been written to bus {prefix!r} at {url} yet"
    time = f"{format_time(status.time_ms * MILLISECOND)[:19]}Z"
    return f"bus {prefix!r} at {url}, {time}, {status.shards} shards, {len(status.streams)} streams"


def tables(status: BusStatus | None) -> list[Table]:
    if status is None:
        return []
    worst = [(name, lag) for name, lag in _worst(status) if lag.ticks]
    with_gaps = sorted(
        (stream for stream in status.streams if stream.gaps or stream.repaired),
        key=lambda stream: -sum(stream.gaps.values()),
    )
    shown = [
        Table(
            "Feeds",
            (
                "feed", "state", ">clock", ">streams", ">silent", ">ticks", ">last tick", ">gaps", ">missing",
                ">repaired", "subscriptions", ">epoch", "lease",
            ),
            [_feed_row(feed) for feed in status.feeds],
        ),
        Table(
            "Services",
            (
                "service", ">members", ">shards", ">streams", ">lag", ">oldest unread", ">lost", ">headroom",
                ">epoch",
            ),
            [_service_row(service, status.shards) for service in status.services],
        ),
        Table(
            "Members",
            ("service", "member", "state", ">shards", ">lag"),
            [_member_row(service, member) for service in status.services for member in service.members],
            "no service has a member",
        ),
        Table(
            "Furthest behind",
            ("service", "stream", ">lag", ">oldest unread", ">lost", ">headroom"),
            [_lag_row(service, lag) for service, lag in worst],
            "every service has committed everything",
        ),
        Table(
            "Streams with gaps",
            ("stream", ">gaps", "kinds", ">missing", ">repaired"),
            [_gaps_row(stream) for stream in with_gaps[:_MAX_WORST]],
        ),
    ]  # fmt: skip
    waiting = [
        (stream.name, state.state, _age(status.time_ms / 1000 - state.since / 1000), state.reason)
        for feed in status.feeds
        for stream, state in feed.subscriptions.items()
        if state.state in ("refused", "pending")
    ]
    if waiting:
        more = f" ({len(waiting) - _MAX_WORST:,} more)" if len(waiting) > _MAX_WORST else ""
        columns = ("stream", "state", ">since", "why")
        shown.append(Table(f"Wanted, and not subscribed{more}", columns, waiting[:_MAX_WORST]))
    if status.relays:
        shown += _relay_tables(status.relays)
    shown += [
        Table(f"Standby of {feed.name} differs: {feed.standby.differs}", (), [], feed.standby.holder)
        for feed in status.feeds
        if feed.standby is not None and feed.standby.differs
    ]
    if status.faults:
        rows = [(fault,) for fault in status.faults[:_MAX_WORST]]
        shown.insert(0, Table("Written by some other program", ("what is wrong, and what mends it",), rows))
    if reports := [(one.name, *report) for one in status.services for report in one.reports]:
        shown.insert(
            0, Table("Reported by services", ("service", "member", "what is wrong"), reports[:_MAX_WORST])
        )
    if status.refusals:
        rows = [(line,) for line in status.refusals]
        shown.insert(0, Table("Redis refuses writes", ("why, and what mends it",), rows))
    if forgotten := [stream for stream in status.streams if stream.forgotten]:
        names = ", ".join(f"{one.stream.name} {one.forgotten}" for one in forgotten[:_MAX_SILENT])
        more = f" (and {len(forgotten) - _MAX_SILENT} more)" if len(forgotten) > _MAX_SILENT else ""
        shown.append(
            Table(
                f"Forgotten holes: {names}{more}",
                (),
                [],
                "there were too many; trades that fill them are dropped",
            )
        )
    silent = [stream.name for feed in status.feeds for stream in feed.silent]
    if silent:
        more = f" (and {len(silent) - _MAX_SILENT} more)" if len(silent) > _MAX_SILENT else ""
        names = ", ".join(silent[:_MAX_SILENT]) + more
        shown.append(
            Table(f"Never ticked: {names}", (), [], "subscribed, but the vendor has sent nothing yet")
        )
    return shown


def as_object(status: BusStatus | None, prefix: str, url: str) -> dict[str, object]:
    """Return what --json prints; `tickbus status --help` documents it."""
    bus: dict[str, object] = {"bus": prefix, "redis": url}
    if status is None:
        return bus | {
            "time": None,
            "shards": None,
            "feeds": [],
            "services": [],
            "lags": [],
            "streams": [],
            "relays": [],
            "faults": [],
            "refusals": [],
        }
    return bus | {
        "time": status.time_ms * MILLISECOND,
        "shards": status.shards,
        "feeds": [_feed_object(feed) for feed in status.feeds],
        "services": [_service_object(service) for service in status.services],
        "lags": [_lag_object(name, lag) for name, lag in _worst(status)],
        "streams": [_stream_object(stream, status.time_ms) for stream in status.streams],
        "relays": [
            asdict(relay) | {"listed": [asdict(one) for one in relay.listed]} for relay in status.relays
        ],
        "faults": status.faults,
        "refusals": status.refusals,
    }


def _worst(status: BusStatus) -> list[tuple[str, StreamLag]]:
    """Return the streams furthest behind over all services, by ticks."""
    lags = [(service.name, lag) for service in status.services for lag in service.lags]
    return sorted(lags, key=lambda pair: (-pair[1].ticks, pair[0], pair[1].stream))[:_MAX_WORST]


def _feed_row(feed: FeedStatus) -> tuple[str, ...]:
    gaps = sum(feed.gaps.values())
    return (
        feed.name, feed.state, _age(feed.clock_age), str(len(feed.streams)), str(len(feed.silent)),
        f"{feed.ticks:,}", _age(feed.last_tick_age), f"{gaps} ({_kinds(feed.gaps)})" if gaps else "0",
        f"{feed.missing:,}", str(feed.repaired), _kinds(feed.subscribed) or "none", str(feed.epoch),
        feed.holder or "none",
    )  # fmt: skip


def _service_row(service: ServiceStatus, shards: int) -> tuple[str, ...]:
    alive = sum(member.alive for member in service.members)
    return (
        service.name, str(alive), f"{shards - service.free} of {shards}", str(len(service.lags)),
        f"{service.ticks:,}", _age(service.seconds), f"{service.lost:,}", _age(service.headroom),
        str(service.epoch),
    )  # fmt: skip


def _member_row(service: ServiceStatus, member: MemberStatus) -> tuple[str, ...]:
    return (
        service.name,
        member.token,
        "alive" if member.alive else "gone",
        str(member.shards),
        f"{member.ticks:,}",
    )


def _relay_tables(relays: Sequence[RelayReport]) -> list[Table]:
    clients = [(relay, client) for relay in relays for client in relay.listed]
    clients.sort(key=lambda pair: (-(pair[1].oldest or 0.0), -pair[1].in_flight))
    more = sum(relay.clients for relay in relays) - len(clients[:_MAX_CLIENTS])
    return [
        Table(
            "Relays",
            ("relay", "address", ">clients", ">streams", "subscriptions", ">in flight"),
            [
                (
                    relay.relay, relay.url, f"{relay.clients:,}", f"{relay.streams:,}",
                    _kinds(relay.subscriptions) or "none", f"{relay.in_flight:,} B",
                )
                for relay in relays
            ],
        ),
        Table(
            "Clients of relays" + (f" (furthest behind; {more:,} more)" if more > 0 else ""),
            (
                "client", "relay", "address", "protocol", "subscriptions", ">wants", ">in flight",
                ">oldest undelivered", ">dropped",
            ),
            [_client_row(relay, client) for relay, client in clients[:_MAX_CLIENTS]],
            "no relay has a client",
        ),
    ]  # fmt: skip


def _client_row(relay: RelayReport, client: RelayClient) -> tuple[str, ...]:
    return (
        client.name or "(no token yet)", relay.relay, client.address, client.protocol,
        _kinds(client.subscriptions) or "none", str(client.wants), f"{client.in_flight:,} B",
        _age(client.oldest),
        f"{client.dropped:,}",
    )  # fmt: skip


def _lag_row(service: str, lag: StreamLag) -> tuple[str, ...]:
    return (
        service, lag.stream.name, f"{lag.ticks:,}", _age(lag.seconds), f"{lag.lost:,}", _age(lag.headroom),
    )  # fmt: skip


def _gaps_row(stream: StreamStatus) -> tuple[str, ...]:
    gaps = str(sum(stream.gaps.values()))
    return stream.stream.name, gaps, _kinds(stream.gaps), f"{stream.missing:,}", str(stream.repaired)


def _kinds(gaps: dict[str, int]) -> str:
    return ", ".join(f"{kind} {number}" for kind, number in sorted(gaps.items()))


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _feed_object(feed: FeedStatus) -> dict[str, object]:
    silent = [stream.name for stream in feed.silent]
    return {
        "name": feed.name, "state": feed.state, "clock_age_seconds": feed.clock_age, "holder": feed.holder,
        "epoch": feed.epoch, "streams": len(feed.streams), "ticks": feed.ticks,
        "last_tick_age_seconds": feed.last_tick_age, "gaps": feed.gaps, "repaired": feed.repaired,
        "missing": feed.missing, "silent": len(silent), "silent_streams": silent[:_MAX_SILENT],
        "standby": None if feed.standby is None else asdict(feed.standby),
        "subscriptions": feed.subscribed,
        "refused": [
            {"stream": stream.name, "since": state.since * MILLISECOND, "reason": state.reason}
            for stream, state in feed.subscriptions.items()
            if state.state == "refused"
        ][:_MAX_SILENT],
    }  # fmt: skip


def _service_object(service: ServiceStatus) -> dict[str, object]:
    return {
        "name": service.name, "epoch": service.epoch, "streams": len(service.lags),
        "lag_ticks": service.ticks, "lag_seconds": service.seconds, "lost_ticks": service.lost,
        "headroom_seconds": service.headroom, "free_shards": service.free,
        "members": [_member_object(member) for member in service.members],
        "reports": [{"member": member, "text": text} for member, text in service.reports],
    }  # fmt: skip


def _member_object(member: MemberStatus) -> dict[str, object]:
    return {
        "member": member.token, "alive": member.alive, "shards": member.shards, "lag_ticks": member.ticks,
    }  # fmt: skip


def _lag_object(service: str, lag: StreamLag) -> dict[str, object]:
    return {
        "service": service, "stream": lag.stream.name, "ticks": lag.ticks, "seconds": lag.seconds,
        "lost": lag.lost, "headroom_seconds": lag.headroom,
    }  # fmt: skip


def _stream_object(stream: StreamStatus, now_ms: int) -> dict[str, object]:
    age = None if stream.last_tick is None else max(0, now_ms - stream.last_tick // MILLISECOND) / 1000
    return {
        "stream": stream.stream.name, "id": str(stream.id), "ticks": stream.ticks,
        "last_tick_age_seconds": age, "gaps": stream.gaps, "repaired": stream.repaired,
        "missing": stream.missing, "forgotten_holes": stream.forgotten,
    }  # fmt: skip
