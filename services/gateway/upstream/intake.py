"""The socket's side: stamp, decode, sequence, queue. Nothing here waits."""

import logging
from collections import Counter
from collections.abc import Sequence

from services.gateway.delivery.backlog import Backlog, Backlogs
from services.gateway.sequencing.sequencer import Sequencer
from services.vendors.feed import (
    Closing,
    HeartbeatAck,
    Mapped,
    Mapper,
    Notice,
    Refused,
    Rejected,
    Skipped,
    SubscribeAck,
)
from tickbus.clock import BusClock
from tickbus.protocol.messages import GapKind

log = logging.getLogger("tickbus.gateway")

_TOLD = 5
"""Rejects of one reason that are logged in full; the rest is counted."""


class Intake:
    """What all connections of a feed share. Totals are plain integers, copied to the metrics at each scrape."""

    def __init__(self, clock: BusClock, sequencer: Sequencer, backlog: Backlog | Backlogs) -> None:
        self._clock = clock
        self.sequencer = sequencer
        self.backlog = backlog
        self.frames = 0
        self.ignored = 0
        self.rejected: Counter[str] = Counter()
        self.last_recv = 0
        """Newest receive time given out: they strictly increase."""
        self.last_frame = 0
        """Receive time of the newest frame."""
        self.last_tick = 0
        """Receive time of the newest tick: what liveness is judged by."""
        self.event_delays: list[int] = []
        """ns from ts_event to ts_recv of one tick per read; the metrics take them."""
        self._overflowing = False

    def stamp(self) -> int:
        recv = self._clock.now_ns()
        return recv if recv > self.last_recv else self.last_recv + 1

    def take(self, mapper: Mapper, payloads: Sequence[bytes]) -> list[Notice]:
        """Frames of one read, in order; -> the notices that concern the connection."""
        recv = self.stamp()
        accept, backlog, notices, map_frame = self.sequencer.accept, self.backlog, mapper.notices, mapper.map
        special = self._overflowing or backlog.full
        concerning: list[Notice] = []
        last_tick = None
        for frame in payloads:
            ticks = map_frame(frame, recv)
            if notices:
                concerning += self._take_both(ticks, notices, recv, special)
                notices.clear()
                recv += 1
            elif ticks and (not special or self._has_room(ticks)):
                accept(ticks)
            if ticks:
                recv += len(ticks)
                last_tick = ticks[-1][0]
        self.frames += len(payloads)
        self.last_frame = self.last_recv = recv
        if last_tick is not None:
            self.last_tick = last_tick.ts_recv
            if not last_tick.flags:
                self.sequencer.latency.note(last_tick.ts_event, last_tick.ts_recv)
            if len(self.event_delays) < 10_000:
                self.event_delays.append(last_tick.ts_recv - last_tick.ts_event)
        backlog.settle()
        return concerning

    def outage(self, kind: GapKind, since: int) -> None:
        self.sequencer.outage(kind, since)

    def resumed(self, kind: str | None = None) -> None:
        """The vendor delivers again: all kinds of ticks, or one."""
        self.last_recv = recv = self.stamp()
        self.sequencer.resumed(recv, kind)
        self.backlog.settle()

    def reject(self, notice: Rejected) -> None:
        """Something that no mapper saw."""
        self.last_recv = recv = self.stamp()
        self._reject(notice, recv)
        self.backlog.settle()

    def _reject(self, notice: Rejected, recv: int) -> None:
        # not stamped here: the clock has moved on, and the frames of the same read that follow would be older than their Gap
        self.rejected[notice.reason] += 1
        if self.rejected[notice.reason] <= _TOLD:
            more = "; further ones are only counted" if self.rejected[notice.reason] == _TOLD else ""
            log.warning(
                "rejected (%s)%s: %s%s",
                notice.reason,
                f" {notice.symbol}" if notice.symbol else "",
                notice.detail,
                more,
            )
        self.sequencer.rejected(notice, recv)

    def _take_both(
        self, ticks: Sequence[Mapped], notices: list[Notice], recv: int, special: bool
    ) -> list[Notice]:
        """A frame with ticks and notices: what was rejected is told before the ticks behind it. -> the notices that concern the connection."""
        concerning: list[Notice] = []
        done = 0
        for notice in notices:
            match notice:
                case Skipped():
                    self.ignored += 1
                case Rejected():
                    self._accept(ticks[done : notice.after], special)
                    done = notice.after
                    self._reject(notice, recv + done)
                case SubscribeAck() | HeartbeatAck() | Refused() | Closing():
                    concerning.append(notice)
        self._accept(ticks[done:], special)
        return concerning

    def _accept(self, ticks: Sequence[Mapped], special: bool) -> None:
        if ticks and (not special or self._has_room(ticks)):
            self.sequencer.accept(ticks)

    def _has_room(self, ticks: Sequence[Mapped]) -> bool:
        """Whether ticks can be held. If not they are counted, and told when there is ample room again."""
        backlog = self.backlog
        backlog.settle()
        if self._overflowing and backlog.bytes < backlog.bound * 3 // 4:
            self._overflowing = False
            self.sequencer.tell_overflow(ticks[0][0].ts_recv)
        elif not self._overflowing and backlog.full:
            self._overflowing = True
            log.error(
                "no room for more ticks until Redis takes some (--backlog-bytes %d): what is dropped is told as a Gap",
                backlog.bound,
            )
        if self._overflowing:
            self.sequencer.overflow(ticks)
        return not self._overflowing
