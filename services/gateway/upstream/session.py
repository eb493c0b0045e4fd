"""One connection to the vendor: subscribes, passes frames to the intake, acts on notices."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from services.gateway.upstream.http import fetch
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.proxy import Proxy
from services.gateway.upstream.websocket import WebSocket
from services.vendors.feed import (
    Closing,
    Feed,
    HeartbeatAck,
    Mapper,
    Notice,
    Refused,
    Rejected,
    SubscribeAck,
    Unknown,
)
from tickbus.units import SECOND, Duration

log = logging.getLogger("tickbus.gateway")

_MAX_BUFFERED_BYTES = 64 << 20
_UNKNOWN_FRAMES = 20
"""After this many unknown frames on a connection, and not one tick, something is wrong with the address."""
_UNKNOWN_SECONDS = 10.0
"""The same after this long with fewer."""
_FRAME_BYTES = 64
"""What a kept frame takes besides its payload."""


class PreparationRefused(Exception):
    """The vendor refused before the connection was made."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.text)
        self.refused = refused


class Connection:
    """One connection with its own mapper.

    While `buffering`, its frames are kept for later: the previous connection still delivers.
    """

    def __init__(
        self,
        feed: Feed,
        intake: Intake,
        tolerance: Duration,
        max_frame: int,
        buffering: bool,
        proxy: Proxy | None = None,
    ) -> None:
        self.feed = feed
        self.mapper: Mapper = feed.mapper(tolerance)
        self.buffering = buffering
        self.subscribed = asyncio.Event()
        self.subscribed_at = 0.0
        """When that was, on the loop's clock."""
        self.closing = False
        """The vendor announced the end of this connection."""
        self.refused: Refused | None = None
        self.abandoned = False
        """Frames that still arrive are ignored, and do not end the outage that began with its last tick."""
        self.valid = False
        """A tick has arrived: the vendor is healthy."""
        self.unknown = 0
        """Frames that nobody understands."""
        self.unanswered = 0
        self.opened_at = asyncio.get_running_loop().time()
        self.rotate_at = 0.0
        """When to replace it, on the loop's clock; 0: not decided yet, or never."""
        self._intake = intake
        self._max_frame = max_frame
        self.proxy = proxy
        self._buffered: list[bytes] = []
        self._buffered_bytes = 0
        self._pending_acks = 0
        self._sending: asyncio.Task[None] | None = None
        self._check: asyncio.TimerHandle | None = None
        """When to say that nothing but unknown frames has arrived; None: not yet due, or said."""
        self._said_unknown = False
        self.socket: WebSocket

    async def open(self) -> None:
        """Connect, and begin to subscribe.

        PreparationRefused, HandshakeRefused, OSError or TimeoutError if that is not possible.
        """
        if (refused := await self.feed.prepare(partial(fetch, proxy=self.proxy))) is not None:
            raise PreparationRefused(refused)
        self.socket = WebSocket(self.feed.url(), self._received, self._max_frame, self.proxy)
        await self.socket.open()
        self._sending = asyncio.create_task(self._send_requests())

    async def close(self, why: str) -> None:
        if self._check is not None:
            self._check.cancel()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            if self.socket.closed.done():
                self.socket.abort(why)
            else:
                self.socket.close()

    async def _send_requests(self) -> None:
        """Send the subscribe frames and heartbeats, at the vendor's pace, until cancelled."""
        pace = self.feed.request_interval / SECOND
        frames = self.feed.subscribe(self.feed.topics)
        self._pending_acks = len(frames) if self.feed.acks_subscribe else 0
        for number, frame in enumerate(frames):
            if number:
                await asyncio.sleep(pace)
            await self.socket.send(frame)
        if not self._pending_acks:
            self._mark_subscribed()
        while self.feed.heartbeat_interval:
            await asyncio.sleep(max(pace, self.feed.heartbeat_interval / SECOND))
            self.unanswered += 1
            await self.socket.send(self.feed.heartbeat())

    def take_over(self, previous: Mapper) -> None:
        """Take over from the previous connection: deliver what was buffered, except what it delivered."""
        self.buffering = False
        self.mapper.follow(previous)
        buffered, self._buffered = self._buffered, []
        if buffered:
            self._deliver(buffered)

    def _received(self, payloads: Sequence[bytes]) -> None:
        if self.abandoned:
            return
        done = 0
        for before in self.socket.splitter.skipped:
            self._take(payloads[done:before])
            self._intake.reject(
                Rejected("oversize", f"a frame of more than {self._max_frame} bytes (--max-frame)")
            )
            done = before
        self._take(payloads[done:] if done else payloads)

    def _take(self, payloads: Sequence[bytes]) -> None:
        if self.buffering:
            self._buffer(payloads)
        elif payloads:
            self._deliver(payloads)

    def _buffer(self, payloads: Sequence[bytes]) -> None:
        # responses to our requests must be seen now; ticks are mapped again on takeover
        probe_mapper = self.feed.mapper(self.mapper.tolerance)
        for frame in payloads:
            if not probe_mapper.map(frame, 0):
                self._handle(probe_mapper.notices)
            probe_mapper.notices.clear()
        self._buffered += payloads
        self._buffered_bytes += sum(map(len, payloads)) + _FRAME_BYTES * len(payloads)
        if self._buffered_bytes > _MAX_BUFFERED_BYTES:
            self._buffered = []
            self.socket.abort(f"more than {_MAX_BUFFERED_BYTES} bytes before it could take over")

    def _deliver(self, payloads: Sequence[bytes]) -> None:
        before = self._intake.last_tick
        notices = self._intake.take(self.mapper, payloads)
        if not self.valid and self._intake.last_tick != before:
            self.valid = True
        if notices:
            self._handle(notices)

    def _handle(self, notices: list[Notice]) -> None:
        for notice in notices:
            match notice:
                case SubscribeAck(kind):
                    self._pending_acks -= 1
                    if self._pending_acks == 0:
                        self._mark_subscribed()
                    elif kind is not None and not self.buffering:
                        self._intake.resumed(kind)
                case HeartbeatAck():
                    self.unanswered = 0
                case Unknown() if not self.buffering:
                    self._note_unknown()
                case Closing():
                    self.closing, self.rotate_at = True, asyncio.get_running_loop().time()
                case Refused() if self.refused is None:
                    self.refused = notice
                    self.socket.abort(notice.text)
                case _:
                    pass

    def _note_unknown(self) -> None:
        self.unknown += 1
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(_UNKNOWN_SECONDS, self._say_unknown)
        if self.unknown >= _UNKNOWN_FRAMES:
            self._say_unknown()

    def _say_unknown(self) -> None:
        """Say once that this connection has brought no tick, and frames that nobody understands."""
        if self._said_unknown or self.valid or self.abandoned:
            return
        self._said_unknown = True
        log.warning(
            "upstream: %d unknown frames and not one tick on this connection (the first bytes of some are "
            "logged above): check --feed, --url and the feed's own options",
            self.unknown,
        )

    def held(self, seconds: float) -> bool:
        """Return whether it has been subscribed for this long."""
        return self.subscribed.is_set() and asyncio.get_running_loop().time() - self.subscribed_at > seconds

    def _mark_subscribed(self) -> None:
        if not self.subscribed.is_set() and not self.abandoned:
            self.subscribed.set()
            self.subscribed_at = asyncio.get_running_loop().time()
            if not self.buffering:
                self._intake.resumed()
