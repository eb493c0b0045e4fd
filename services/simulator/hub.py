"""The trading hub: all connections, and which ticks go to whom. No market in here: ticks come in, frames go out.

Routes (stream -> who gets it) are worked out at a stream's first tick and forgotten whenever anybody's wishes change; so a
tick costs a lookup, one rendering per style, and an append per client.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from services.simulator.connection import Connection
from services.simulator.frames import binary_frame, text_frame, text_frames
from services.simulator.ledger import Ledger
from services.simulator.tick import Tick
from services.simulator.tick_faults import rendered
from services.vendors import open_dialect
from services.vendors.dialect import Close, Dialect, HttpRefusal, VendorLimits, bare_path
from services.vendors.options import VendorOptions
from tickbus.units import SECOND

_MOST_WAITING = 64 << 20
"""Bytes that wait for one client; beyond it the vendor cuts it off."""


@dataclass
class _Route:
    """Who gets the ticks of a key."""

    groups: list[tuple[Dialect, list[Callable[[bytes], None]]]] = field(default_factory=list)
    """Per style: one dialect that renders, and where the clients' boxes take the outcome."""
    receivers: list[int] = field(default_factory=list)
    silence: str | None = None
    """Why nobody gets them though somebody wants them."""


class Hub:
    def __init__(
        self,
        limits: VendorLimits,
        options: Mapping[str, VendorOptions],
        ledger: Ledger | None,
        asked: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        """`options`: of the vendors' servers, by vendor. `asked` is called with each symbol that a client asks for, `wake` when something changed that a market may wait for."""
        self.limits = limits
        self._options = options
        self.wake = wake
        self.settled_since = time.monotonic_ns()
        """When a subscription last changed."""
        self._ledger = ledger
        self._asked = asked
        self._numbers = 0
        self._open: dict[int, Connection] = {}
        self._boxes: dict[int, list[bytes]] = {}
        self._routes: dict[str, _Route] = {}
        self._mute_until = 0
        self._refuse_until = 0

    def accept(self) -> Connection:
        """A connection for a socket that has just come in."""
        self._numbers += 1
        return Connection(self, self._numbers)

    # what connections ask and tell

    def admit(self, connection: Connection, target: str) -> Dialect | HttpRefusal | tuple[Dialect, Close]:
        now = time.monotonic_ns()
        if now < self._refuse_until:
            return HttpRefusal(503, b"try again later\n")
        dialect = open_dialect(target, self.limits, self._options, now)
        if isinstance(dialect, HttpRefusal):
            return dialect
        path = bare_path(target)
        alike = sum(other.path == path and other.live for other in self._open.values())
        if self.limits.max_connections and alike >= self.limits.max_connections:
            refused = dialect.over_connection_cap()
            return refused if isinstance(refused, HttpRefusal) else (dialect, refused)
        return dialect

    def joined(self, connection: Connection) -> None:
        self._open[connection.number] = connection
        self._boxes[connection.number] = []
        self.changed(connection)

    def changed(self, connection: Connection) -> None:
        for symbol in connection.dialect.symbols() if connection.dialect is not None else ():
            self._asked(symbol)
        self.settled_since = time.monotonic_ns()
        self._reroute()

    def left(self, connection: Connection) -> None:
        self._open.pop(connection.number, None)
        self._boxes.pop(connection.number, None)
        self._reroute()

    def tell(self, event: dict[str, object]) -> None:
        if self._ledger is not None:
            self._ledger.event(event, time.time_ns())

    # what the market does

    @property
    def connections(self) -> list[Connection]:
        """Those that can be sent something."""
        return [connection for connection in self._open.values() if connection.live]

    def listening(self) -> list[Connection]:
        """Those that get data: subscribed, and not muted."""
        now = time.monotonic_ns()
        return [
            it
            for it in self.connections
            if it.dialect is not None and it.dialect.subscribed and not self._muted(it, now)
        ]

    def send(self, ticks: Iterable[Tick]) -> None:
        """Each tick to those who want it, in order, and into the ledger."""
        routes, ledger = self._routes, self._ledger
        at = time.time_ns()
        for tick in ticks:
            route = routes.get(tick.key) or self._route(tick)
            if not tick.withheld:
                for dialect, puts in route.groups:
                    if (item := _item(tick, dialect)) is not None:
                        for put in puts:
                            put(item)
            if ledger is not None:
                ledger.tick(tick, () if tick.withheld else route.receivers, tick.fault or route.silence, at)
        self._empty_boxes()

    def send_junk(self, payload: bytes, *, binary: bool = False) -> None:
        """A frame that no vendor would send, to everybody who gets data."""
        frame = binary_frame(payload) if binary else text_frame(payload)
        for connection in self.listening():
            connection.write(frame)

    def mute(self, duration: int, *, everybody: bool) -> None:
        """No data for `duration` ns: for all, also who comes later, or only for those connected now."""
        until = time.monotonic_ns() + duration
        if everybody:
            self._mute_until = max(self._mute_until, until)
        else:
            for connection in self._open.values():
                connection.muted_until = max(connection.muted_until, until)
        self._reroute()
        # a little later than the end, so that the end is seen
        asyncio.get_running_loop().call_later(duration / SECOND + 0.001, self._reroute)

    def refuse(self, duration: int) -> None:
        self._refuse_until = max(self._refuse_until, time.monotonic_ns() + duration)

    def half_open(self) -> None:
        for connection in self.connections:
            connection.stop_everything()
        self._reroute()

    def dismiss(self) -> None:
        """The end of the simulator: everybody gets a close frame."""
        for connection in self.connections:
            connection.close(1001, "the simulator stops", why="stopped")

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def cut_all(self) -> None:
        """Those that have not gone by themselves."""
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
                route.silence = "half-open" if connection.half_open else "mute"
            elif connection.live:
                groups.setdefault(dialect.style, (dialect, []))[1].append(self._boxes[number].append)
                route.receivers.append(number)
        route.groups = list(groups.values())
        if route.receivers:
            route.silence = None
        self._routes[tick.key] = route
        return route

    def _empty_boxes(self) -> None:
        for number, box in self._boxes.items():
            if box:
                connection = self._open[number]
                assert connection.dialect is not None
                connection.write(text_frames(connection.dialect.pack(box)))
                box.clear()
                if connection.unsent > _MOST_WAITING:
                    connection.cut("too slow: 64 MB wait for it")


def _wants(dialect: Dialect, tick: Tick) -> bool:
    if tick.message is not None:
        return dialect.wants(tick.kind, tick.symbol)
    recorded = tick.recorded
    return (
        recorded is not None
        and recorded.vendor == dialect.vendor
        and dialect.wants_recorded(recorded.channel)
    )


def _item(tick: Tick, dialect: Dialect) -> bytes | None:
    """What the clients of a style get of a tick; None for a recorded frame that is no tick and cannot be sent as it stands."""
    if (
        tick.recorded is not None
        and tick.recorded.vendor == dialect.vendor
        and (frame := dialect.recorded(tick.recorded.frame)) is not None
    ):
        return frame
    if tick.message is None:
        return None
    if tick.fault is None:
        return dialect.render(tick.message, tick.symbol, tick.id)
    return rendered(tick, tick.message, dialect)
