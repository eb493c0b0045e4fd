"""The trading hub: all connections, and which ticks go to whom.

No market in here: ticks come in, frames go out. Routes (stream -> receivers) are computed at a stream's first
tick and dropped whenever any subscription changes; so a tick costs a lookup, one rendering per style, and an
append per client.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from services.frames import binary_frame, text_frame, text_frames
from services.simulator.connection import Connection
from services.simulator.ledger import Ledger
from services.simulator.tick import Tick
from services.simulator.tick_faults import render_with_fault
from services.vendors import open_dialect
from services.vendors.dialect import Close, Dialect, HttpRefusal, VendorLimits, path_without_query
from services.vendors.options import VendorOptions
from tickbus.units import SECOND

_MAX_PENDING_BYTES = 64 << 20
"""Bytes pending for one client; beyond this the vendor cuts it off."""


@dataclass
class _Route:
    """Who gets the ticks of a key."""

    groups: list[tuple[Dialect, list[Callable[[bytes], None]]]] = field(default_factory=list)
    """Per style: one dialect that renders, and the `append` of each client's outbox."""
    receivers: list[int] = field(default_factory=list)
    """The numbers of the connections."""
    suppressed_by: str | None = None
    """The fault because of which none of the subscribers gets them."""


class Hub:
    def __init__(
        self,
        limits: VendorLimits,
        options: Mapping[str, VendorOptions],
        ledger: Ledger | None,
        on_symbol: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        """options: the server options by vendor.

        on_symbol: called with each symbol that a client requests.
        wake: called when something changed that the market may be waiting for.
        """
        self.limits = limits
        self._options = options
        self.wake = wake
        self.settled_since = time.monotonic_ns()
        """When a subscription last changed."""
        self._ledger = ledger
        self._on_symbol = on_symbol
        self._last_number = 0
        self._open: dict[int, Connection] = {}
        self._outboxes: dict[int, list[bytes]] = {}
        self._routes: dict[str, _Route] = {}
        self._mute_until = 0
        self._refuse_until = 0

    def accept(self) -> Connection:
        """Return a connection for a new socket."""
        self._last_number += 1
        return Connection(self, self._last_number)

    # called by connections: the Host

    def admit(self, connection: Connection, target: str) -> Dialect | HttpRefusal | tuple[Dialect, Close]:
        now = time.monotonic_ns()
        if now < self._refuse_until:
            return HttpRefusal(503, b"try again later\n")
        dialect = open_dialect(target, self.limits, self._options, now)
        if isinstance(dialect, HttpRefusal):
            return dialect
        path = path_without_query(target)
        on_path = sum(other.path == path and other.live for other in self._open.values())
        if self.limits.max_connections and on_path >= self.limits.max_connections:
            rejection = dialect.over_connection_cap()
            return rejection if isinstance(rejection, HttpRefusal) else (dialect, rejection)
        return dialect

    def joined(self, connection: Connection) -> None:
        self._open[connection.number] = connection
        self._outboxes[connection.number] = []
        self.changed(connection)

    def changed(self, connection: Connection) -> None:
        for symbol in connection.dialect.symbols() if connection.dialect is not None else ():
            self._on_symbol(symbol)
        self.settled_since = time.monotonic_ns()
        self._reroute()

    def left(self, connection: Connection) -> None:
        self._open.pop(connection.number, None)
        self._outboxes.pop(connection.number, None)
        self._reroute()

    def record(self, event: dict[str, object]) -> None:
        if self._ledger is not None:
            self._ledger.event(event, time.time_ns())

    # called by the simulator

    @property
    def connections(self) -> list[Connection]:
        """The connections that data can be sent to."""
        return [connection for connection in self._open.values() if connection.live]

    def receiving(self) -> list[Connection]:
        """Return the connections that get data: subscribed, and not muted."""
        now = time.monotonic_ns()
        return [
            connection
            for connection in self.connections
            if connection.dialect is not None
            and connection.dialect.subscribed
            and not self._muted(connection, now)
        ]

    def send(self, ticks: Iterable[Tick]) -> None:
        """Send each tick to its subscribers, in order, and record it in the ledger."""
        routes, ledger = self._routes, self._ledger
        at = time.time_ns()
        for tick in ticks:
            route = routes.get(tick.key) or self._route(tick)
            if not tick.dropped:
                for dialect, appends in route.groups:
                    if (item := _item(tick, dialect)) is not None:
                        for append in appends:
                            append(item)
            if ledger is not None:
                receivers = () if tick.dropped else route.receivers
                ledger.tick(tick, receivers, tick.fault or route.suppressed_by, at)
        self._flush_outboxes()

    def send_junk(self, payload: bytes, *, binary: bool = False) -> None:
        """Send a frame that no vendor would send to everybody who gets data."""
        frame = binary_frame(payload) if binary else text_frame(payload)
        for connection in self.receiving():
            connection.write(frame)

    def mute(self, duration: int, *, everybody: bool) -> None:
        """Mute everybody, new connections included, or only the current connections, for `duration` ns."""
        until = time.monotonic_ns() + duration
        if everybody:
            self._mute_until = max(self._mute_until, until)
        else:
            for connection in self._open.values():
                connection.muted_until = max(connection.muted_until, until)
        self._reroute()
        # slightly after the end, so that the mute is over by then
        asyncio.get_running_loop().call_later(duration / SECOND + 0.001, self._reroute)

    def refuse(self, duration: int) -> None:
        """Answer new connections with HTTP 503 for `duration` ns."""
        self._refuse_until = max(self._refuse_until, time.monotonic_ns() + duration)

    def half_open(self) -> None:
        """Make every connection half-open."""
        for connection in self.connections:
            connection.make_half_open()
        self._reroute()

    def close_all(self) -> None:
        """Send everybody a close frame, because the simulator stops."""
        for connection in self.connections:
            connection.close(1001, "the simulator is shutting down", why="stopped")

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def cut_all(self) -> None:
        """Reset the connections that did not close by themselves, because the simulator stops."""
        for connection in list(self._open.values()):
            connection.cut("stopped")

    def _muted(self, connection: Connection, now: int) -> bool:
        return now < self._mute_until or now < connection.muted_until

    def _reroute(self) -> None:
        self._routes.clear()
        self.wake()

    def _route(self, tick: Tick) -> _Route:
        route = _Route()
        groups: dict[Hashable, tuple[Dialect, list[Callable[[bytes], None]]]] = {}
        now = time.monotonic_ns()
        for number, connection in self._open.items():
            dialect = connection.dialect
            if dialect is None or not _wants(dialect, tick):
                continue
            if connection.half_open or self._muted(connection, now):
                route.suppressed_by = "half-open" if connection.half_open else "mute"
            elif connection.live:
                groups.setdefault(dialect.style, (dialect, []))[1].append(self._outboxes[number].append)
                route.receivers.append(number)
        route.groups = list(groups.values())
        if route.receivers:
            route.suppressed_by = None
        self._routes[tick.key] = route
        return route

    def _flush_outboxes(self) -> None:
        for number, outbox in self._outboxes.items():
            if outbox:
                connection = self._open[number]
                assert connection.dialect is not None
                connection.write(text_frames(connection.dialect.pack(outbox)))
                outbox.clear()
                if connection.pending_bytes > _MAX_PENDING_BYTES:
                    connection.cut("too slow: 64 MB pending")


def _wants(dialect: Dialect, tick: Tick) -> bool:
    if tick.message is not None:
        return dialect.wants(tick.kind, tick.symbol)
    recorded = tick.recorded_frame
    return (
        recorded is not None
        and recorded.vendor == dialect.vendor
        and dialect.wants_recorded(recorded.channel)
    )


def _item(tick: Tick, dialect: Dialect) -> bytes | None:
    """Return what the clients of a style get of a tick.

    None for a recorded frame that is not a tick and cannot be sent to them unchanged.
    """
    if (
        tick.recorded_frame is not None
        and tick.recorded_frame.vendor == dialect.vendor
        and (frame := dialect.adapt_recorded(tick.recorded_frame.frame)) is not None
    ):
        return frame
    if tick.message is None:
        return None
    if tick.fault is None:
        return dialect.render(tick.message, tick.symbol, tick.id)
    return render_with_fault(tick, tick.message, dialect)
