"""One connection to the vendor: subscribes, passes frames to the intake, acts on notices."""

import asyncio
import logging
import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from services.gateway.upstream.http import fetch
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.proxy import Proxy
from services.gateway.upstream.reconciler import Reconciler
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
    Topic,
    Unknown,
)
from tickbus.sanitize import clean
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


class Target(Protocol):
    """What the feed is to be subscribed to, and who is told what became of it."""

    @property
    def fixed(self) -> Collection[Topic]:
        """Topics whose refusal by the vendor ends the connection."""
        ...

    @property
    def target(self) -> Sequence[Topic]:
        """All topics, the most important first."""
        ...

    def acknowledge(self, topics: Sequence[Topic]) -> None:
        """These are subscribed to, on the connection that delivers."""

    def refuse(self, topics: Sequence[Topic], reason: str) -> None:
        """The vendor refused these, in its words."""


class FixedTarget:
    """A target that never changes."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        self.fixed = self.target = topics

    def acknowledge(self, topics: Sequence[Topic]) -> None: ...

    def refuse(self, topics: Sequence[Topic], reason: str) -> None: ...


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
        target: Target | None = None,
    ) -> None:
        """target: default: what the feed is configured for."""
        self.feed = feed
        self._target = FixedTarget(feed.topics) if target is None else target
        self.requests = Reconciler(feed, self._target.fixed)
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
        self._news = asyncio.Event()
        """The target changed, or the vendor answered."""
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
        """Send heartbeats, and requests that bring the subscription to its target, until cancelled.

        At the vendor's pace.
        """
        loop, pace = asyncio.get_running_loop(), self.feed.request_interval / SECOND
        interval = (self.feed.heartbeat_interval or 0) / SECOND
        heartbeat_at = loop.time() + interval if interval else math.inf
        while True:
            self._news.clear()
            now = loop.time()
            if now >= heartbeat_at:
                heartbeat_at = now + max(pace, interval)
                self.unanswered += 1
                await self.socket.send(self.feed.heartbeat())
            elif (request := self.requests.next(self._target.target, now)) is not None:
                await self.socket.send(request.frame)
                self._acknowledged(self.requests.sent(request, now))
            else:
                self._check_subscribed()
                until = min(
                    heartbeat_at, self.requests.wait_until if self.requests.wait_until > now else math.inf
                )
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(until if until < math.inf else None):
                        await self._news.wait()
                continue
            await asyncio.sleep(pace)

    def retarget(self) -> None:
        """The target changed."""
        self._news.set()

    def _acknowledged(self, topics: Sequence[Topic]) -> None:
        if topics and not self.abandoned and not self.buffering:
            self._intake.resumed(topics)
            self._target.acknowledge(topics)

    def _check_subscribed(self) -> None:
        if self.requests.established:
            self._mark_subscribed()

    def take_over(self, previous: Mapper) -> None:
        """Take over from the previous connection: deliver what was buffered, except what it delivered."""
        self.buffering = False
        self._acknowledged(tuple(self.requests.acknowledged))
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
                case SubscribeAck(request):
                    self._acknowledged(self.requests.acknowledge(request))
                    self._check_subscribed()
                    self._news.set()
                case HeartbeatAck():
                    self.unanswered = 0
                case Unknown() if not self.buffering:
                    self._note_unknown()
                case Closing():
                    self.closing, self.rotate_at = True, asyncio.get_running_loop().time()
                case Refused() if self.refused is None:
                    self._refused(notice)
                case _:
                    pass

    def _refused(self, notice: Refused) -> None:
        now = asyncio.get_running_loop().time()
        if (at_fault := self.requests.refuse(notice, now)) is None:
            self.refused = notice
            self.socket.abort(notice.text)
            return
        log.warning(
            "upstream: a change of the subscription was refused: %s; %s",
            clean(notice.text),
            f"{', '.join(f'{topic.kind} {topic.symbol}' for topic in at_fault)} stays out"
            if at_fault
            else "what was subscribed stays so, the rest is tried in parts",
        )
        self._target.refuse(at_fault, notice.text)
        self._news.set()

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
