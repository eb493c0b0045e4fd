"""The socket's side: stamp, decode, sequence, queue. Nothing here waits."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from services.gateway.delivery.backlog import Backlog, Backlogs
from services.gateway.sequencing.sequencer import HOLD, Sequencer
from services.vendors.feed import (
    Closing,
    HeartbeatAck,
    MappedTick,
    Mapper,
    Notice,
    Refused,
    Rejected,
    Skipped,
    SubscribeAck,
    Topic,
    Unknown,
    VendorError,
    oldest_first,
)
from tickbus.clock import BusClock
from tickbus.protocol.messages import GapKind, Trade
from tickbus.writer.entry import StreamWriter

log = logging.getLogger("tickbus.gateway")

_LOGGED_REJECTS = 5
"""Frames of one kind that are logged in full; the rest are counted."""
_LOGGED_KINDS = 64
"""Kinds that are told apart; the vendor may send any number of them."""


class FirstFew:
    """Says which of the things that happen are to be logged: the first few of each kind, of so many kinds."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def note(self, kind: str) -> str | None:
        """Return what to add to the line about this one; None if it is not to be logged."""
        if kind not in self._seen and len(self._seen) >= _LOGGED_KINDS:
            kind = ""  # all further kinds
        if self._seen[kind] >= _LOGGED_REJECTS:
            return None
        self._seen[kind] += 1
        return "; further ones are only counted" if self._seen[kind] == _LOGGED_REJECTS else ""


class Intake:
    """What all connections of a feed share. Totals are plain integers, copied to the metrics on scrape."""

    def __init__(self, clock: BusClock, sequencer: Sequencer, backlog: Backlog | Backlogs) -> None:
        self._clock = clock
        self.sequencer = sequencer
        self.backlog = backlog
        self.frames = 0
        self.ignored = 0
        self.unknown = 0
        """Frames that nobody understands."""
        self.vendor_errors = 0
        self.bad_times = 0
        """Ticks whose time was absent or implausible."""
        self.duplicates = 0
        """Ticks that a mapper dropped because they had been delivered before."""
        self.rejected: Counter[str] = Counter()
        self.last_recv = 0
        """Newest receive time assigned: they strictly increase."""
        self.last_frame = 0
        """Receive time of the newest frame."""
        self.last_tick = 0
        """Receive time of the newest tick: the basis of liveness."""
        self.event_delays: list[int] = []
        """ns from ts_event to ts_recv of one tick per read; drained by the metrics."""
        self._overflowing = False
        self._first_few = FirstFew()
        self._said_bad_time = False
        self.held_back: frozenset[tuple[str, str]] = frozenset()
        """(kind, symbol) of streams that Redis does not take, and for which no more is held."""

    def hold_back(self, streams: Iterable[StreamWriter]) -> None:
        """Drop what arrives for these streams, and only these, as an overflow."""
        held_back = frozenset((writer.stream.kind, writer.stream.symbol) for writer in streams)
        if held_back - self.held_back:
            log.error(
                "no more room for %s, which Redis does not take (see above): dropping its ticks,"
                " reported as a Gap once it does",
                ", ".join(sorted(":".join(stream) for stream in held_back - self.held_back)[:5]),
            )
        elif self.held_back and not held_back and not self._overflowing:
            self.sequencer.report_overflow(self.stamp())
        self.held_back = held_back

    def stamp(self) -> int:
        recv = self._clock.now_ns()
        return recv if recv > self.last_recv else self.last_recv + 1

    def take(self, mapper: Mapper, payloads: Sequence[bytes]) -> list[Notice]:
        """Take the frames of one read, in order. Return the notices that concern the connection."""
        recv = self.stamp()
        accept, backlog, notices, map_frame = self.sequencer.accept, self.backlog, mapper.notices, mapper.map
        check_room = self._overflowing or backlog.full or bool(self.held_back)
        for_connection: list[Notice] = []
        last_tick = None
        for frame in payloads:
            ticks = map_frame(frame, recv)
            if (count := len(ticks)) > 1 and self.sequencer.has_ids:
                ticks = oldest_first(ticks)
            if notices:
                for_connection += self._take_with_notices(ticks, notices, recv, check_room)
                notices.clear()
                recv += 1
            elif ticks:
                if not check_room:
                    accept(ticks)
                elif fitting := self._fitting(ticks):
                    accept(fitting)
            if count:
                recv += count
                last_tick = ticks[-1][0]
        self.frames += len(payloads)
        self.last_frame = self.last_recv = recv
        if last_tick is not None:
            self.last_tick = last_tick.ts_recv
            if not last_tick.flags:
                self.sequencer.latency.note(last_tick.ts_event, last_tick.ts_recv)
            if len(self.event_delays) < 10_000:
                self.event_delays.append(last_tick.ts_recv - last_tick.ts_event)
        if mapper.bad_times or mapper.duplicates:
            self._count(mapper)
        backlog.settle()
        return for_connection

    def _count(self, mapper: Mapper) -> None:
        """Add what a mapper has counted."""
        self.duplicates += mapper.duplicates
        self.bad_times += mapper.bad_times
        if mapper.bad_times and not self._said_bad_time:
            self._said_bad_time = True
            log.warning(
                "ticks without a plausible time: ts_event is ts_recv, flagged bad_time (the vendor gave %s); "
                "further ones are only counted",
                f"{mapper.bad_time} ns; see --oldest" if mapper.bad_time else "none",
            )
        mapper.duplicates = mapper.bad_times = 0

    def release_held(self, held_for: int = HOLD) -> None:
        """Store the trades that were held for `held_for` ns, in case their id was wrong."""
        self.last_recv = recv = self.stamp()
        self.sequencer.release_held(recv, held_for)
        self.backlog.settle()

    def outage(self, kind: GapKind, since: int) -> None:
        self.sequencer.outage(kind, since)

    def resumed(self, topics: Sequence[Topic] | None = None) -> None:
        """The vendor acknowledged the subscription: to these topics, or to all."""
        self.last_recv = recv = self.stamp()
        self.sequencer.resumed(recv, topics)
        self.backlog.settle()

    def held(self) -> None:
        """The connection has lasted since then, whether ticks came or not."""
        self.last_recv = recv = self.stamp()
        self.sequencer.lasted(recv)
        self.backlog.settle()

    def finish(self) -> None:
        """No more ticks come."""
        self.last_recv = recv = self.stamp()
        self.sequencer.finish(recv)
        self.backlog.settle()

    def reject(self, notice: Rejected) -> None:
        """Reject something that no mapper saw."""
        self.last_recv = recv = self.stamp()
        self._reject(notice, recv)
        self.backlog.settle()

    def _reject(self, notice: Rejected, recv: int) -> None:
        # not stamped here: the clock has moved on; later frames of this read would be older than their Gap
        self.rejected[notice.reason] += 1
        if (more := self._first_few.note(f"rejected {notice.reason}")) is not None:
            log.warning(
                "rejected (%s)%s: %s%s",
                notice.reason,
                f" {notice.symbol}" if notice.symbol else "",
                notice.detail,
                more,
            )
        self.sequencer.rejected(notice, recv)

    def _take_with_notices(
        self, ticks: Sequence[MappedTick], notices: list[Notice], recv: int, check_room: bool
    ) -> list[Notice]:
        """Take a frame with ticks and notices: a reject is reported before the ticks behind it.

        Return the notices that concern the connection.
        """
        for_connection: list[Notice] = []
        done = 0
        for notice in notices:
            match notice:
                case Skipped():
                    self.ignored += 1
                case Unknown():
                    self._note_unknown(notice)
                    for_connection.append(notice)
                case VendorError(text):
                    self.vendor_errors += 1
                    if (more := self._first_few.note(f"error {text}")) is not None:
                        log.warning("the vendor reports an error: %s%s", text, more)
                case Rejected():
                    self._accept(ticks[done : notice.ticks_before], check_room)
                    done = notice.ticks_before
                    self._reject(notice, recv + done)
                case SubscribeAck() | HeartbeatAck() | Refused() | Closing():
                    for_connection.append(notice)
        self._accept(ticks[done:], check_room)
        return for_connection

    def _note_unknown(self, notice: Unknown) -> None:
        self.unknown += 1
        if (more := self._first_few.note(f"unknown {notice.shape}")) is not None:
            log.warning(
                "unknown frame, %d bytes, like %s: %s%s", notice.length, notice.shape, notice.head, more
            )

    def _accept(self, ticks: Sequence[MappedTick], check_room: bool) -> None:
        fitting = self._fitting(ticks) if check_room and ticks else ticks
        if fitting:
            self.sequencer.accept(fitting)

    def _fitting(self, ticks: Sequence[MappedTick]) -> Sequence[MappedTick]:
        """Return those that can be buffered. Others are counted, and reported once there is ample room."""
        if self.held_back:
            held = [mapped for mapped in ticks if self._is_held_back(mapped)]
            self.sequencer.overflow(held)
            ticks = [mapped for mapped in ticks if not self._is_held_back(mapped)]
        return ticks if ticks and self._has_room(ticks) else ()

    def _is_held_back(self, mapped: MappedTick) -> bool:
        tick, _ = mapped
        return ("trade" if type(tick) is Trade else "quote", tick.symbol) in self.held_back

    def _has_room(self, ticks: Sequence[MappedTick]) -> bool:
        """Whether ticks can be buffered. If not, count them, and report them once there is ample room."""
        backlog = self.backlog
        backlog.settle()
        if self._overflowing and backlog.bytes < backlog.max_bytes * 3 // 4:
            self._overflowing = False
            self.sequencer.report_overflow(ticks[0][0].ts_recv)
        elif not self._overflowing and backlog.full:
            self._overflowing = True
            log.error(
                "backlog is full (--backlog-bytes %d): dropping ticks, reported as a Gap when there is room",
                backlog.max_bytes,
            )
        if self._overflowing:
            self.sequencer.overflow(ticks)
        return not self._overflowing
