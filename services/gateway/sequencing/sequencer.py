"""Which ticks go onto the bus, in which order, under which IDs, and where the holes are. Pure.

Rules, per stream:

* IDs: ms of the receive time, never decreasing, and a dense counter over ticks and Gaps that continues
  across restarts.
* With contiguous vendor ids (sequenced trades): an id that jumps ahead leaves a Gap for the range, also
  across an outage or a restart; an outage that missed nothing leaves none. An id already seen is a
  duplicate and dropped; a lower one inside a reported hole is a late tick, flagged, and its range is
  reported again as repaired; a large jump back is a reset.
* Without: one Gap per outage for every subscribed stream, count unknown; none before the feed's first tick.
  It ends when the feed ticks again, however many connections that took: docs/decisions/0015-outages.md.
* A tick is never dropped because of its value.

Gap times are event times, as close as can be known: in a sequenced hole the ts_event of its two neighbours,
else the receive time on the vendor's clock (services.gateway.sequencing.latency).
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence

import msgspec

from services.gateway.sequencing.latency import MinLatency
from services.gateway.sequencing.stream_state import REMEMBERED_IDS, StreamState
from services.vendors.feed import NO_ID, MappedTick, Rejected
from tickbus.protocol.codec import Head, Hole, encode
from tickbus.protocol.messages import Flag, Gap, GapKind, Quote, StreamKind, Trade
from tickbus.units import MILLISECOND
from tickbus.writer.entry import Entry
from tickbus.writer.heads import holes_after, newest_tick

_MAX_REPEAT = 64
"""A jump back by at most this is a repeat, whatever its timestamp: vendors resend ticks after a reconnect."""

SOURCE = "gateway"


class Sequencer:
    """Ticks of one feed in, entries for its streams out (through `emit`, in order)."""

    def __init__(
        self, streams: Iterable[StreamState], emit: Callable[[Entry], None], repairable: bool = False
    ) -> None:
        self.streams = list(streams)
        self._trades = {state.symbol: state for state in self.streams if state.kind is StreamKind.TRADE}
        self._quotes = {state.symbol: state for state in self.streams if state.kind is StreamKind.QUOTE}
        self._emit = emit
        self._repairable = repairable
        self.floor_ms = 0
        """No ID is older than this: the newest entry found at startup."""
        self.duplicates = 0
        self.unwanted = 0
        """Ticks of a kind that was not requested: some vendors send both trades and quotes regardless."""
        self.latency = MinLatency()
        """As of the last outage."""
        self._unreadable_since = 0
        self._awaits_tick = False
        """Whether the next tick of the feed ends an outage, or the quiet after one."""
        self._quiet = False
        """Whether the feed has not ticked since an outage was reported, or never."""

    # ticks

    def accept(self, ticks: Sequence[MappedTick]) -> None:
        """Sequence the ticks of one frame, in order. The hot path: nothing here could be elsewhere."""
        if self._awaits_tick:
            self._ticked(ticks[0][0].ts_recv)
        if self._unreadable_since:
            self._report_unreadable(ticks[0][0].ts_recv)
        for tick, vendor_id in ticks:
            try:
                state = (self._trades if type(tick) is Trade else self._quotes)[tick.symbol]
            except KeyError:
                self.unwanted += 1
                continue
            if state.sequenced:
                if vendor_id == state.next_id:
                    state.next_id = vendor_id + 1
                elif not self._out_of_sequence(state, tick, vendor_id):
                    continue
            elif state.outage is not None:  # a tick before the vendor acknowledged the subscription
                self._report_outage(state, tick.ts_recv, tick.ts_recv)
            ts_event, recv = tick.ts_event, tick.ts_recv
            if tick.flags:
                state.ahead = (state.ahead[1], ts_event, state.next_id)
            elif ts_event > state.last_event:
                state.last_event = ts_event
                state.recv_of_last_event = recv
            state.seq = seq = state.seq + 1
            ms = recv // MILLISECOND
            if ms < self.floor_ms:
                ms = self.floor_ms
            self._emit(Entry(state, ms, seq, state.field, encode(tick), state.next_id - 1, recv))

    def _out_of_sequence(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> bool:
        """Handle a vendor id that is not the next one. Return whether to store the tick as usual."""
        last = state.next_id - 1
        if vendor_id < 0:
            return True
        if last < 0:
            state.first_seen = vendor_id
            if state.outage is not None:  # subscribed earlier, and nobody can know what came in between
                self._gap(
                    state,
                    state.outage,
                    self.latency.missing_from(state.outage_since),
                    tick.ts_event,
                    tick.ts_recv,
                )
        elif vendor_id > last:
            kind = (
                state.outage
                if state.outage is not None and state.outage_at == state.next_id
                else GapKind.SEQUENCE
            )
            self._hole(state, last + 1, vendor_id - 1, kind, state.event_before(tick.ts_event), tick)
        elif _is_missing(state.holes, vendor_id):
            self._late(state, tick, vendor_id)
            return False
        elif self._is_early(state, tick, vendor_id):
            state.early.add(vendor_id)
            self._store_late(state, tick)
            return False
        elif self._is_reset(state, tick, vendor_id):
            state.early = set()
            state.first_seen = vendor_id
            self._gap(state, GapKind.RESET, state.event_before(tick.ts_event), tick.ts_event, tick.ts_recv)
        else:
            self.duplicates += 1
            return False
        state.next_id = vendor_id + 1
        state.outage = None
        return True

    def _is_early(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> bool:
        """An unseen tick from just before our first: vendors resend their last ticks after a reconnect."""
        near = state.next_id - 1 - vendor_id <= _MAX_REPEAT and vendor_id < state.first_seen
        return near and tick.ts_event <= state.newest_event and vendor_id not in state.early

    def _is_reset(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> bool:
        jump = state.next_id - 1 - vendor_id
        if jump > REMEMBERED_IDS or (vendor_id < state.first_seen and vendor_id not in state.early):
            return True
        # a repeat has its original timestamp; a sequence that was reset and continues is newer than all
        # before
        return jump > _MAX_REPEAT and tick.ts_event > state.newest_event

    def _late(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> None:
        self._store_late(state, tick)
        self._gap(
            state,
            GapKind.SEQUENCE,
            tick.ts_event,
            tick.ts_event,
            tick.ts_recv,
            vendor_id,
            vendor_id,
            repaired=True,
        )

    def _store_late(self, state: StreamState, tick: Trade | Quote) -> None:
        late = msgspec.structs.replace(tick, flags=tick.flags | Flag.LATE)
        state.seq += 1
        ms = max(tick.ts_recv // MILLISECOND, self.floor_ms)
        self._emit(Entry(state, ms, state.seq, state.field, encode(late), state.next_id - 1, tick.ts_recv))

    # holes

    def outage(self, kind: GapKind, since: int) -> None:
        """The connection ended or went silent: ticks after the receive time `since` may be missing.

        If there are several in a row, the first one counts. A feed that never ticked has no hole.
        """
        self.measure_latency()
        if not any(state.ticked for state in self.streams):
            return
        for state in self.streams:
            state.resumed_at = 0
            if state.outage is None:
                state.outage, state.outage_at, state.outage_since = kind, state.next_id, since

    def resumed(self, recv: int, kind: str | None = None) -> None:
        """Ticks (of one kind) can arrive again. Nothing shows yet that they do."""
        for state in self.streams:
            if kind not in (None, state.stream.kind):
                continue
            if not state.seq and not state.subscribed:  # of a stream with entries nobody knows it any more
                state.subscribed = recv
            if not state.sequenced and state.outage is not None:
                state.resumed_at = recv
                self._awaits_tick = True

    def held(self, recv: int) -> None:
        """The connection that resumed has lasted: report a disconnect, so that nobody waits for a quiet
        market. Once only until the feed ticks; a silence is not over before that."""
        if self._quiet:
            return
        for state in self.streams:
            if state.resumed_at and state.outage is GapKind.DISCONNECT:
                self._report_outage(state, state.resumed_at, recv)
                self._quiet = self._awaits_tick = True

    def finish(self, recv: int) -> None:
        """The gateway stops: report outages that no tick has ended."""
        if not self._quiet:
            for state in self.streams:
                if state.resumed_at:
                    self._report_outage(state, recv, recv)

    def _ticked(self, recv: int) -> None:
        """The feed delivers: outages ended where the vendor acknowledged this connection's subscriptions."""
        self._awaits_tick = self._quiet = False
        for state in self.streams:
            if state.resumed_at:
                self._report_outage(state, state.resumed_at, recv)

    def _report_outage(self, state: StreamState, end: int, recv: int) -> None:
        """Report that ticks may be missing up to the receive time `end`."""
        if state.outage is not None:
            from_ts = max(self.latency.missing_from(state.outage_since), state.reported_to)
            state.reported_to = max(from_ts, self.latency.missing_to(end))
            self._gap(state, state.outage, from_ts, state.reported_to, recv)
        state.outage, state.resumed_at = None, 0

    def rejected(self, notice: Rejected, recv: int) -> None:
        """A tick, or a whole frame, could not be read."""
        if not notice.lost:
            return
        if notice.symbol is None or notice.kind is None:
            if not self._unreadable_since:
                self._unreadable_since = recv
                self.measure_latency()
            return
        state = (self._trades if notice.kind == "trade" else self._quotes).get(notice.symbol)
        if state is None:
            return
        self.measure_latency()
        if not state.sequenced:
            self._gap(
                state,
                GapKind.REJECTED,
                self.latency.missing_from(recv),
                self.latency.missing_to(recv),
                recv,
                count=1,
            )
        elif notice.vendor_id == state.next_id and state.next_id > 0:
            at = self.latency.missing_from(recv)
            self._hole(state, notice.vendor_id, notice.vendor_id, GapKind.REJECTED, at, None, recv)
            state.next_id = notice.vendor_id + 1
        # any other id shows up as a jump at the next tick

    def overflow(self, ticks: Iterable[MappedTick]) -> None:
        """Remember ticks that no buffer has room for, to report them when there is room."""
        for tick, vendor_id in ticks:
            state = (self._trades if type(tick) is Trade else self._quotes).get(tick.symbol)
            if state is None:
                self.unwanted += 1
                continue
            if state.sequenced and vendor_id >= 0 and state.next_id > 0:
                # the ids will identify the hole
                state.outage, state.outage_at = GapKind.OVERFLOW, state.next_id
            else:
                before = state.dropped
                state.dropped = (
                    (before[0] + 1, before[1], tick.ts_event) if before else (1, tick.ts_event, tick.ts_event)
                )

    def report_overflow(self, recv: int) -> None:
        """Report what was dropped: there is room again."""
        for state in self.streams:
            if state.dropped is not None:
                (count, first, last), state.dropped = state.dropped, None
                self._gap(state, GapKind.OVERFLOW, first, last, recv, count=count)

    def _report_unreadable(self, recv: int) -> None:
        """Unreadable frames may have contained ticks of any stream; where there are ids, the ids show it."""
        since, self._unreadable_since = self._unreadable_since, 0
        for state in self.streams:
            if not state.sequenced:
                self._gap(
                    state,
                    GapKind.REJECTED,
                    self.latency.missing_from(since),
                    self.latency.missing_to(recv),
                    recv,
                )

    def _hole(
        self,
        state: StreamState,
        first: int,
        last: int,
        kind: GapKind,
        from_ts: int,
        tick: Trade | Quote | None,
        recv: int = 0,
    ) -> None:
        to_ts = tick.ts_event if tick is not None else from_ts
        self._gap(
            state, kind, from_ts, max(from_ts, to_ts), tick.ts_recv if tick is not None else recv, first, last
        )

    def _gap(
        self, state: StreamState, kind: GapKind, from_ts: int, to_ts: int, recv: int,
        first: int = NO_ID, last: int = NO_ID, *, count: int | None = None, repaired: bool = False,
    ) -> None:  # fmt: skip
        has_ids = first >= 0
        # what was not subscribed to is neither missing nor to be repaired
        wanted = kind is not GapKind.UNSUBSCRIBED
        if has_ids and wanted:
            count = last - first + 1
        gap = Gap(
            state.kind, SOURCE, kind, min(from_ts, to_ts), to_ts,
            str(first) if has_ids else None, str(last) if has_ids else None, count,
            self._repairable and has_ids and wanted, repaired, state.symbol,
        )  # fmt: skip
        state.counts.add(gap)
        state.holes = holes_after(state.holes, gap)
        state.seq += 1
        # the head records which ids were handled, those of this hole included
        vendor_id = max(state.next_id - 1, last)
        self._emit(
            Entry(
                state, max(recv // MILLISECOND, self.floor_ms), state.seq, b"g", encode(gap), vendor_id, recv
            )
        )

    def measure_latency(self) -> None:
        self.latency.measure((state.last_event, state.recv_of_last_event) for state in self.streams)

    def restore(
        self,
        heads: dict[str, Head],
        lane_of: Callable[[int], Hashable] = lambda shard: None,
        delay: int | None = None,
    ) -> int:
        """Continue after a restart. Return the number of streams that have a history.

        `lane_of`: maps a shard to its lane. Within a lane entries are stored in the order in which they
        arrived. `delay`: the minimum that the previous gateway observed, `MinLatency.observed`.
        """
        restored = newest = 0
        ends_in_gap = False
        since: dict[Hashable, int] = {}
        ticks: list[tuple[int, int]] = []
        for state in self.streams:
            head = heads.get(state.name)
            if head is None:
                continue
            restored += 1
            last = state.restore(head)
            self.floor_ms = max(self.floor_ms, last.ms)
            lane = lane_of(state.shard)
            since[lane] = max(since.get(lane, 0), head.ts_recv)
            tick = newest_tick(head, state.stream.kind)
            if tick is not None and not tick.flags:
                ticks.append((tick.ts_event, tick.ts_recv))
            if head.ts_recv >= newest:
                newest, ends_in_gap = head.ts_recv, _is_gap(head, tick)
        self.latency.measure(ticks)
        self.latency.inherit(delay, ends_in_gap=ends_in_gap)
        for state in self.streams:
            # the lane's newest entry: until then the connection delivered to all its streams, and all of it
            # was stored
            state.outage_since = since.get(lane_of(state.shard), 0)
        self._quiet = self._awaits_tick = ends_in_gap or not any(state.ticked for state in self.streams)
        return restored


def _is_gap(head: Head, tick: Trade | Quote | None) -> bool:
    """Whether the newest entry of a stream is a Gap, judging by its head, which holds the newest tick."""
    return head.id != "0-0" and (tick is None or tick.ts_recv != head.ts_recv)


def _is_missing(holes: Sequence[Hole], vendor_id: int) -> bool:
    """Whether an id is in a reported hole. Holes are disjoint and, except across resets, in order."""
    at = bisect_right(holes, vendor_id, key=lambda hole: hole.first)
    return at > 0 and vendor_id <= holes[at - 1].last
