"""The one upstream connection, whichever it currently is.

It is opened, subscribed, kept alive, replaced before the vendor ends it, and reopened when it is lost.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable

from websockets.exceptions import InvalidHandshake

from services.gateway.upstream.backoff import Backoff
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.proxy import Proxy
from services.gateway.upstream.session import Connection, FixedTarget, PreparationRefused, Target
from services.gateway.upstream.verdict import Verdict
from services.gateway.upstream.websocket import HandshakeRefused
from services.trading_hours import TradingHours
from services.vendors.feed import Feed, Refused
from tickbus.clock import BusClock
from tickbus.errors import VendorRefused
from tickbus.protocol.messages import GapKind
from tickbus.sanitize import clean
from tickbus.units import SECOND, Duration, format_duration

log = logging.getLogger("tickbus.gateway")

_PING_SECONDS = 20.0
_SUBSCRIBE_SECONDS = 20.0
_ROTATE_RETRY_SECONDS = 30.0
_CLOSING_RETRY_SECONDS = 2.0
"""The same, for a connection whose end the vendor has announced."""
_STALL_SECONDS = 1.0
"""An event loop that has not turned for this long was stalled.

What it then finds in its socket is old, and says nothing about the time since.
"""
_HELD_SECONDS = 5.0
"""A connection that lasts this long after its subscription is one that holds, in a quiet market too."""
_IDLE = "idle"
_COVERED_SECONDS = 0.05
_OVERLAP_SECONDS = 1.0
"""How long the old and the new connection overlap once the new one is subscribed."""


class Upstream:
    """Keeps one subscribed connection to the vendor."""

    def __init__(
        self, make_feed: Callable[[], Feed], intake: Intake, clock: BusClock, *, tolerance: Duration,
        max_frame: int, silence: Duration, session: TradingHours | None, max_age: Duration | None,
        proxy: Proxy | None = None, target: Target | None = None,
    ) -> None:  # fmt: skip
        """target: what to subscribe to; default: what the feed is configured for."""
        self._make_feed = make_feed
        self._target = FixedTarget(make_feed().topics) if target is None else target
        self._retargeted = asyncio.Event()
        self.idle = False
        """There is nothing to subscribe to, so that there is no connection."""
        self._intake = intake
        self._clock = clock
        self._tolerance = tolerance
        self._max_frame = max_frame
        self._proxy = proxy
        self._silence = silence / SECOND
        self._session = session
        self._max_age = max_age / SECOND if max_age else None
        self._backoff = Backoff(random.random)
        self._verdict = Verdict(time.monotonic)
        self._uncertain_since = 0
        """Receive time since which ticks may be missing: we were stalled, and no fresh tick has arrived yet.

        0: nothing is uncertain.
        """
        self.current: Connection | None = None
        self._successor: Connection | None = None
        """The next one, while both are open."""
        self.reconnects: Counter[str] = Counter()
        self._bytes_before = 0

    @property
    def bytes_received(self) -> int:
        """Over all connections."""
        return self._bytes_before + (self.current.socket.bytes_received if self.current is not None else 0)

    def retarget(self) -> None:
        """The target changed."""
        self._retargeted.set()
        for connection in (self.current, self._successor):
            if connection is not None:
                connection.retarget()

    def forget_quotes(self, symbol: str) -> None:
        """The quotes of a symbol are not subscribed to any more: its trades must not carry the last one."""
        for connection in (self.current, self._successor):
            if connection is not None:
                connection.mapper.best_quotes.pop(symbol, None)

    @property
    def up(self) -> bool:
        """Whether there is a subscribed connection."""
        return self.current is not None and self.current.subscribed.is_set()

    def pause(self) -> None:
        """Stop reading the socket: TCP backpressure then slows the vendor down."""
        if self.current is not None:
            self.current.socket.pause()

    def resume(self) -> None:
        if self.current is not None:
            self.current.socket.resume()

    async def run(self) -> None:
        """Run forever; VendorRefused when the vendor refuses permanently."""
        try:
            await self._run()
        finally:
            self._intake.finish()

    async def _run(self) -> None:
        while True:
            await self._wait_for_target()
            connection = self._connection(buffering=False)
            reason, wait = await self._open(connection)
            if not reason:
                reason, wait = await self._serve(connection)
            if reason != _IDLE:
                self.reconnects[reason] += 1
            delay = self._backoff.next(max(wait, connection.feed.reconnect_interval / SECOND))
            log.debug("upstream: next connection in %.1f s", delay)
            await asyncio.sleep(delay)

    async def _wait_for_target(self) -> None:
        """Wait until there is something to subscribe to."""
        while not self._target.target:
            if not self.idle:
                self.idle = True
                log.info("upstream: idle: nothing to subscribe to; connecting once something is wanted")
            self._retargeted.clear()
            await self._retargeted.wait()
        self.idle = False

    def _connection(self, *, buffering: bool) -> Connection:
        return Connection(
            self._make_feed(), self._intake, self._tolerance, self._max_frame, buffering, self._proxy,
            self._target,
        )  # fmt: skip

    async def _open(self, connection: Connection) -> tuple[str, float]:
        """Return why it failed and the minimum wait in seconds; ("", 0) when it is open."""
        try:
            await connection.open()
        except HandshakeRefused as error:
            refused = connection.feed.refused(error.status, clean(error.body))
            return self._refused(connection, refused, "refused", error.retry_after)
        except PreparationRefused as error:
            return self._refused(connection, error.refused, "refused")
        except (OSError, TimeoutError, InvalidHandshake) as error:
            self._verdict.forget()
            log.warning(
                "upstream: cannot connect to %s: %s",
                connection.feed.address(),
                clean(str(error) or type(error).__name__),
            )
            return "connect", 0.0
        through = f" through proxy {self._proxy}" if self._proxy is not None else ""
        log.info("upstream: connected to %s%s", connection.feed.address(), through)
        return "", 0.0

    def _refused(
        self, connection: Connection, refused: Refused, reason: str, retry_after: int = 0
    ) -> tuple[str, float]:
        """Return the reason and the minimum wait in seconds. VendorRefused if it is for good."""
        text = clean(refused.text, 500)  # what the vendor says is short already, the remedy comes after it
        # what a replacement is told says nothing about the connection that still delivers
        if refused.fatal and not connection.buffering and self._verdict.is_final(refused.wrong_data):
            raise VendorRefused(text)
        if refused.fatal:
            log.warning("upstream: refused: %s; it worked before, so this is retried", text)
        else:
            self._verdict.forget()
            log.warning("upstream: refused: %s", text)
        return reason, max(refused.wait / SECOND, retry_after)

    async def _serve(self, connection: Connection) -> tuple[str, float]:
        """Use a connection, and those that replace it without a hole, until the last one is lost."""
        self.current = connection
        try:
            while True:
                ended, why = await self._watch(self.current)
                if ended == _IDLE:
                    self.current.abandoned = True
                    log.info("upstream: %s", why)
                    return _IDLE, 0.0
                if ended != "rotate":
                    return self._lost(self.current, ended, why)
                successor, wait = await self._replacement(self.current)
                if successor is None:
                    again = _CLOSING_RETRY_SECONDS if self.current.closing else _ROTATE_RETRY_SECONDS
                    self.current.rotate_at = asyncio.get_running_loop().time() + max(again, wait)
                    continue
                self._bytes_before += self.current.socket.bytes_received
                await self.current.close("replaced")
                previous, self.current = self.current.mapper, successor
                successor.take_over(previous)
                self.reconnects["rotate"] += 1
                log.info("upstream: replaced the connection without a hole")
        finally:
            last, self.current, self._successor = self.current, None, None
            self._bytes_before += last.socket.bytes_received
            await last.close("left")

    def _lost(self, connection: Connection, ended: str, why: str) -> tuple[str, float]:
        refused, connection.abandoned = connection.refused, True
        if connection.subscribed.is_set() or connection.valid:  # some send ticks before they acknowledge
            since = self._intake.last_tick if ended == "silence" else self._intake.last_frame
            if self._uncertain_since:
                since, self._uncertain_since = min(since or self._uncertain_since, self._uncertain_since), 0
            self._intake.outage(
                GapKind.STALE if ended == "silence" else GapKind.DISCONNECT, since or self._intake.stamp()
            )
        if refused is not None:
            return self._refused(connection, refused, "slow_down")
        log.warning("upstream: connection ended (%s): %s", ended, clean(why))
        return ended, 0.0

    async def _watch(self, connection: Connection) -> tuple[str, str]:
        """Wait until the connection ends or should. Return (reason as a label, text)."""
        loop = asyncio.get_running_loop()
        socket = connection.socket
        quiet_since = pinged = loop.time()
        last_tick = self._intake.last_tick
        last_turn, last_turn_ns, stalled_at, held = loop.time(), self._clock.now_ns(), 0.0, False
        target = self._target.target
        if connection.rotate_at == 0.0 and (age := self._max_age or (connection.feed.lifetime or 0) / SECOND):
            connection.rotate_at = connection.opened_at + age
        while True:
            done, _ = await asyncio.wait((socket.closed,), timeout=0.2)
            now = loop.time()
            if now - last_turn > _STALL_SECONDS:
                self._uncertain_since, stalled_at = self._uncertain_since or last_turn_ns, now
                quiet_since = now  # the socket has yet to be read
            elif self._intake.last_tick != last_tick and now - stalled_at > _STALL_SECONDS:
                self._uncertain_since = 0
            last_turn, last_turn_ns = now, self._clock.now_ns()
            if not held and connection.held(_HELD_SECONDS):
                held = True
                self._intake.held()
            if connection.subscribed.is_set() and (connection.valid or connection.feed.acks_subscribe):
                self._verdict.worked(delivered=connection.valid)
            if connection.valid:
                self._backoff.reset()
            if done:
                return "refused" if connection.refused else "closed", socket.closed.result()
            if self._intake.last_tick != last_tick or not self._in_session():
                last_tick, quiet_since = self._intake.last_tick, now
            if target is not self._target.target:  # a silence is that of one set of symbols
                target, quiet_since = self._target.target, now
            if not target:
                return _IDLE, "the last subscription ended; disconnecting"
            if (
                self._silence
                and connection.subscribed.is_set()
                and now - quiet_since > self._silence
                and self._expects_ticks()
            ):
                return (
                    "silence",
                    f"connected, but no tick for {format_duration(int(self._silence * SECOND))} (--silence)",
                )
            if connection.unanswered > 3 and connection.feed.acks_heartbeat:
                return "dead", "three heartbeats unanswered"
            if now - max(socket.last_received, connection.opened_at) > 2 * _PING_SECONDS:
                return "dead", f"nothing received for {2 * _PING_SECONDS:.0f} s, not even control frames"
            if now - pinged > _PING_SECONDS:
                pinged = now
                socket.ping()
            timeout = (
                _SUBSCRIBE_SECONDS + connection.feed.request_interval / SECOND * connection.feed.requests
            )
            if not connection.subscribed.is_set() and now - connection.opened_at > timeout:
                return "subscribe", "the subscription was not acknowledged"
            if (
                0.0 < connection.rotate_at < now
                and connection.feed.allows_overlap
                and connection.subscribed.is_set()
            ):
                return "rotate", "replaced before its end"

    def _expects_ticks(self) -> bool:
        """Whether silence means anything: not if all that is subscribed was asked for by somebody and never
        ticked."""
        return bool(self._target.fixed) or any(state.ticked for state in self._intake.sequencer.streams)

    async def _replacement(self, old: Connection) -> tuple[Connection | None, float]:
        """Return a second connection, subscribed and buffering its ticks; or None and the minimum wait (s).

        Whatever the vendor answers: the old connection keeps delivering.
        """
        new = self._connection(buffering=True)
        reason, wait = await self._open(new)
        if reason:
            return None, wait
        self._successor = new
        subscribed = asyncio.create_task(new.subscribed.wait())
        try:
            await asyncio.wait(
                (subscribed, new.socket.closed),
                timeout=_SUBSCRIBE_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if new.subscribed.is_set() and not new.socket.closed.done():
                await asyncio.wait(
                    (old.socket.closed, new.socket.closed),
                    timeout=_OVERLAP_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                await self._until_covered(old, new)
        finally:
            subscribed.cancel()
            self._successor = None
        if new.socket.closed.done() or not new.subscribed.is_set():
            await new.close("not usable")
            return None, new.refused.wait / SECOND if new.refused is not None else 0.0
        return new, 0.0

    async def _until_covered(self, old: Connection, new: Connection) -> None:
        """Wait until the new connection has everything that the old one delivers and that is still wanted:
        subscriptions change while both are open."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SUBSCRIBE_SECONDS
        while loop.time() < deadline and not (old.socket.closed.done() or new.socket.closed.done()):
            wanted = set(self._target.target)
            missing = [
                topic
                for topic in old.requests.acknowledged
                if topic in wanted and topic not in new.requests.acknowledged
            ]
            if not missing:
                return
            await asyncio.sleep(_COVERED_SECONDS)

    def _in_session(self) -> bool:
        return self._session is None or self._session.contains(self._clock.now_ns())
