"""One connection to the vendor: subscribed, its frames given to the intake, its notices heeded."""

import asyncio
from collections.abc import Sequence

from services.gateway.upstream.http import fetch
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.websocket import WebSocket
from services.vendors.feed import Closing, Feed, HeartbeatAck, Mapper, Notice, Refused, Rejected, SubscribeAck
from tickbus.units import SECOND, Duration

_HOLD_BYTES = 64 << 20


class PreparationRefused(Exception):
    """The vendor said no before the connection was made."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.text)
        self.refused = refused


class Connection:
    """One connection with its own mapper. While `holding`, its frames are kept for later: the one before it still delivers."""

    def __init__(self, feed: Feed, intake: Intake, tolerance: Duration, most: int, holding: bool) -> None:
        self.feed = feed
        self.mapper: Mapper = feed.mapper(tolerance)
        self.holding = holding
        self.subscribed = asyncio.Event()
        self.closing = False
        """The vendor announced the end of this connection."""
        self.refused: Refused | None = None
        self.over = False
        """Given up: what still comes is not taken, and does not end the outage that began with its last tick."""
        self.valid = False
        """A tick has come: the vendor is well."""
        self.unanswered = 0
        self.opened_at = asyncio.get_running_loop().time()
        self.rotate_at = 0.0
        """When it is to be replaced, on the loop's clock; 0 = not decided, or never."""
        self._intake = intake
        self._most = most
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._awaited = 0
        self._talking: asyncio.Task[None] | None = None
        self.socket: WebSocket

    async def open(self) -> None:
        """Connect, and begin to subscribe. HandshakeRefused, OSError or TimeoutError if that is not possible."""
        if (refused := await self.feed.prepare(fetch)) is not None:
            raise PreparationRefused(refused)
        self.socket = WebSocket(self.feed.url(), self._received, self._most)
        await self.socket.open()
        self._talking = asyncio.create_task(self._talk())

    async def close(self, why: str) -> None:
        if self._talking is not None:
            self._talking.cancel()
            await asyncio.gather(self._talking, return_exceptions=True)
            if self.socket.closed.done():
                self.socket.abort(why)
            else:
                self.socket.close()

    async def _talk(self) -> None:
        """Send the subscribe frames and heartbeats, at the vendor's pace, until cancelled."""
        pace = self.feed.request_interval / SECOND
        frames = self.feed.subscribe(self.feed.topics)
        self._awaited = len(frames) if self.feed.acknowledged else 0
        for number, frame in enumerate(frames):
            if number:
                await asyncio.sleep(pace)
            self.socket.send(frame)
        if not self._awaited:
            self._is_subscribed()
        while self.feed.heartbeat_interval:
            await asyncio.sleep(max(pace, self.feed.heartbeat_interval / SECOND))
            self.unanswered += 1
            self.socket.send(self.feed.heartbeat())

    def release(self, previous: Mapper) -> None:
        """Take over from the connection before: deliver what was held, without what that one delivered."""
        self.holding = False
        self.mapper.follow(previous)
        held, self._held = self._held, []
        if held:
            self._deliver(held)

    def _received(self, payloads: Sequence[bytes]) -> None:
        if self.over:
            return
        done = 0
        for before in self.socket.splitter.skipped:
            self._take(payloads[done:before])
            self._intake.reject(
                Rejected("oversize", f"a frame of more than {self._most} bytes (--max-frame)")
            )
            done = before
        self._take(payloads[done:] if done else payloads)

    def _take(self, payloads: Sequence[bytes]) -> None:
        if self.holding:
            self._hold(payloads)
        elif payloads:
            self._deliver(payloads)

    def _hold(self, payloads: Sequence[bytes]) -> None:
        # answers to our requests must be seen now; ticks are mapped again when they are released
        probe_mapper = self.feed.mapper(self.mapper.tolerance)
        for frame in payloads:
            if not probe_mapper.map(frame, 0):
                self._heed(probe_mapper.notices)
            probe_mapper.notices.clear()
        self._held += payloads
        self._held_bytes += sum(map(len, payloads))

    @property
    def held_enough(self) -> bool:
        return self._held_bytes > _HOLD_BYTES

    def _deliver(self, payloads: Sequence[bytes]) -> None:
        before = self._intake.last_tick
        notices = self._intake.take(self.mapper, payloads)
        if not self.valid and self._intake.last_tick != before:
            self.valid = True
        if notices:
            self._heed(notices)

    def _heed(self, notices: list[Notice]) -> None:
        for notice in notices:
            match notice:
                case SubscribeAck(kind):
                    self._awaited -= 1
                    if self._awaited == 0:
                        self._is_subscribed()
                    elif kind is not None and not self.holding:
                        self._intake.resumed(kind)
                case HeartbeatAck():
                    self.unanswered = 0
                case Closing():
                    self.closing, self.rotate_at = True, asyncio.get_running_loop().time()
                case Refused() if self.refused is None:
                    self.refused = notice
                    self.socket.abort(notice.text)
                case _:
                    pass

    def _is_subscribed(self) -> None:
        if not self.subscribed.is_set() and not self.over:
            self.subscribed.set()
            if not self.holding:
                self._intake.resumed()
