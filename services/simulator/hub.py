"""The trading hub: all connections, and which ticks go to whom. No market in here: ticks come in, frames go out.

Routes (stream -> who gets it) are worked out at a stream's first tick and forgotten whenever anybody's wishes change; so a
tick costs a lookup, one rendering per style, and an append per client.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from services.simulator.connection import Connection
from services.simulator.frames import binary_frame, text_frame
from services.simulator.ledger import Ledger
from services.simulator.protocols.registry import Refusal, bare_path, open_session, over_the_cap
from services.simulator.protocols.session import Session, VendorLimits
from services.simulator.tick import Tick
from services.simulator.tick_faults import corrupted
from tickbus.units import SECOND

_MOST_WAITING = 64 << 20
"""Bytes that wait for one client; beyond it the vendor cuts it off."""


@dataclass
class _Route:
    """Who gets the ticks of a stream."""

    groups: list[tuple[Callable[[Tick], bytes], list[Callable[[bytes], None]]]] = field(default_factory=list)
    """Per style: how to render, and where the clients' boxes take the outcome."""
    receivers: list[int] = field(default_factory=list)
    silence: str | None = None
    """Why nobody gets them though somebody wants them."""


class Hub:
    def __init__(self, terms: VendorLimits, ledger: Ledger | None, asked: Callable[[str], None], wake: Callable[[], None]) -> None:
        """`asked` is called with each symbol that a client asks for, `wake` when something changed that a market may wait for."""
        self.terms = terms
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

    def admit(self, connection: Connection, target: str) -> Session | Refusal | tuple[Session, tuple[int, str]]:
        now = time.monotonic_ns()
        if now < self._refuse_until:
            return Refusal(503, b"try again later\n")
        session = open_session(target, self.terms, now)
        if isinstance(session, Refusal):
            return session
        path = bare_path(target)
        alike = sum(other.path == path and other.live for other in self._open.values())
        if self.terms.max_connections and alike >= self.terms.max_connections:
            refused = over_the_cap(session)
            return refused if isinstance(refused, Refusal) else (session, refused)
        return session

    def joined(self, connection: Connection) -> None:
        self._open[connection.number] = connection
        self._boxes[connection.number] = []
        self.changed(connection)

    def changed(self, connection: Connection) -> None:
        for symbol in connection.session.symbols() if connection.session is not None else ():
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
        return [it for it in self.connections if it.session is not None and it.session.subscribed and not self._muted(it, now)]

    def send(self, ticks: Iterable[Tick]) -> None:
        """Each tick to those who want it, in order, and into the ledger."""
        routes, ledger = self._routes, self._ledger
        at = time.time_ns()
        for tick in ticks:
            route = routes.get(tick.stream) or self._route(tick)
            if not tick.withheld:
                shown = tick if tick.fault != "corrupt" else corrupted(tick)
                for render, puts in route.groups:
                    item = render(shown)
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
        groups: dict[Hashable, tuple[Callable[[Tick], bytes], list[Callable[[bytes], None]]]] = {}
        now = time.monotonic_ns()
        for number, connection in self._open.items():
            session = connection.session
            if session is None or not session.wants(tick):
                continue
            if connection.half_open or self._muted(connection, now):
                route.silence = "half-open" if connection.half_open else "mute"
            elif connection.live:
                groups.setdefault(session.style, (session.render, []))[1].append(self._boxes[number].append)
                route.receivers.append(number)
        route.groups = list(groups.values())
        if route.receivers:
            route.silence = None
        self._routes[tick.stream] = route
        return route

    def _empty_boxes(self) -> None:
        for number, box in self._boxes.items():
            if box:
                connection = self._open[number]
                assert connection.session is not None
                connection.write(connection.session.pack(box))
                box.clear()
                if connection.unsent > _MOST_WAITING:
                    connection.cut("too slow: 64 MB wait for it")
