"""Which ticks go onto the bus, in which order, under which IDs, and where the holes are. Pure.

Rules, per stream:

* IDs: ms of the receive time, never decreasing, and a dense counter over ticks and Gaps that continues
  across restarts.
* With contiguous vendor ids (sequenced trades): an id that jumps ahead leaves a Gap for the range, also
  across an outage or a restart; an outage that missed nothing leaves none. A trade that is stored already is
  a duplicate and dropped; one inside a reported hole is late, flagged, and its range is reported again as
  repaired.
* An id that falls, or jumps further than the stream can have moved, is a suspect, and held for a second at
  most: the next trades of the stream show whether the ids go on there (a reset, or a hole), or where they
  were. Then it is stored as doubtful, without effect on the sequence, and a hole that was reported before it
  is withdrawn (services.gateway.sequencing.verdicts).
* Without: one Gap per outage for every subscribed stream, count unknown; none before the feed's first tick.
  It ends when the feed ticks again, however many connections that took: docs/decisions/0015-outages.md.
* A tick is never dropped because of its value.

Gap times are event times, as close as can be known: in a sequenced hole the ts_event of its two neighbours,
else the receive time on the vendor's clock (services.gateway.sequencing.latency).
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence

import msgspec

from services.gateway.sequencing.latency import MinLatency
from services.gateway.sequencing.stream_state import StreamState, Suspect
from services.gateway.sequencing.verdicts import Decision, Verdict, decide, judge
from services.vendors.feed import NO_ID, MappedTick, Rejected, Topic
from tickbus.protocol.codec import Head, encode
from tickbus.protocol.messages import Flag, Gap, GapKind, Quote, StreamKind, Trade
from tickbus.units import MILLISECOND, MINUTE, SECOND
from tickbus.writer.entry import Entry
from tickbus.writer.heads import REORDER_WINDOW, holes_after, newest_tick

log = logging.getLogger("tickbus.gateway")

HOLD = SECOND
"""How long a suspect is held at most, until another trade of its stream decides."""
_HELD_BYTES = 600
"""What a held trade takes, for the bounds of the backlog."""
_MAX_HOLES = 4096
"""How many open holes of a stream are known by their ids. Its head has fewer: they are needed again only
after a restart."""
_EARLY_IDS = 10_000
"""How many ids from before the first one of a stream are known to be stored."""
_EPISODE = MINUTE
"""An event of a stream that follows another of its kind within this time is not logged."""

SOURCE = "gateway"


class Sequencer:
    """Ticks of one feed in, entries for its streams out (through `emit`, in order)."""

    def __init__(
        self,
        streams: Iterable[StreamState],
        emit: Callable[[Entry], None],
        repairable: bool = False,
        reserve: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`reserve`: called with the bytes that are held from now on, or, negative, no longer are."""
        self.streams = list(streams)
        self._trades = {state.symbol: state for state in self.streams if state.kind is StreamKind.TRADE}
        self._quotes = {state.symbol: state for state in self.streams if state.kind is StreamKind.QUOTE}
        self._sequenced = [state for state in self.streams if state.sequenced]
        self._ended_quotes: set[str] = set()
        """Symbols whose quotes were dropped: the vendor may still send some."""
        self.forget_quotes: Callable[[str], None] = lambda symbol: None
        """Called with a symbol whose trades must not carry the last quote any more."""
        self._emit = emit
        self._repairable = repairable
        self._reserve = reserve
        self._held: dict[StreamState, Suspect] = {}
        """Suspects that are not stored yet."""
        self.floor_ms = 0
        """No ID is older than this: the newest entry found at startup, or the time when a held trade was
        stored."""
        self.duplicates = 0
        self.doubtful = 0
        """Trades stored as doubtful."""
        self.held = 0
        """Trades that were held."""
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
                if tick.symbol in self._ended_quotes and type(tick) is Quote:
                    self.forget_quotes(tick.symbol)
                continue
            ts_event, recv, payload = tick.ts_event, tick.ts_recv, encode(tick)
            if state.sequenced:
                if vendor_id != state.expected and not self._out_of_sequence(state, tick, vendor_id):
                    continue
                state.expected = vendor_id + 1
                state.recent.append(payload)
            else:
                vendor_id = NO_ID
                if state.outage is not None:  # a tick before the vendor acknowledged the subscription
                    self._report_outage(state, recv, recv)
            if tick.flags:
                state.ahead = (state.ahead[1], ts_event, vendor_id + 1)
            elif ts_event > state.last_event:
                state.last_event = ts_event
                state.recv_of_last_event = recv
            elif (
                ts_event < state.last_event
                and not state.sequenced
                and recv - (state.recv_of_last_event or state.restored_recv) <= REORDER_WINDOW
            ):
                self._store(state, tick)
                continue
            state.seq = seq = state.seq + 1
            ms = recv // MILLISECOND
            if ms < self.floor_ms:
                ms = self.floor_ms
            self._emit(Entry(state, ms, seq, state.field, payload, vendor_id, recv))

    def _out_of_sequence(self, state: StreamState, tick: Trade | Quote, vendor_id: int) -> bool:
        """Handle a tick that does not simply go on, or that follows a suspect.

        Return whether it is in order now: then its id is the one before the next.
        """
        assert isinstance(tick, Trade)
        state.measure()
        if vendor_id < 0:
            self._release(state, tick.ts_recv)
            self._note_time(state, tick)
            self._store(state, tick, newest=True)
            return False
        if state.suspect is not None and not self._settle(state, state.suspect, tick, vendor_id):
            return False
        match judge(state, tick, vendor_id):
            case Verdict.NEXT:
                return True
            case Verdict.FIRST:
                self._begin(state, tick, vendor_id)
                return True
            case Verdict.AHEAD:
                self._skip_to(state, tick, vendor_id)
                return True
            case Verdict.FAR_AHEAD:
                self._hold(state, tick, vendor_id, fell=False)
            case Verdict.FELL:
                self._hold(state, tick, vendor_id, fell=True)
            case Verdict.FELL_AGAIN:
                self._store_doubtful(state, tick, vendor_id)
                state.suspect = Suspect(tick, vendor_id, True, state.event_before(tick.ts_event), stored=True)
            case Verdict.LATE | Verdict.FORGOTTEN:
                self._late(state, tick, vendor_id)
            case Verdict.EARLY:
                if vendor_id < state.first_seen and len(state.early) < _EARLY_IDS:
                    state.early.add(vendor_id)
                self._store(state, tick, Flag.LATE)
            case Verdict.DUPLICATE:
                self.duplicates += 1
            case Verdict.DOUBTFUL:
                self._store_doubtful(state, tick, vendor_id)
        return False

    def _begin(self, state: StreamState, tick: Trade, vendor_id: int) -> None:
        """The first id of a stream."""
        state.first_seen = vendor_id
        if state.outage is not None:  # subscribed earlier, and nobody can know what came in between
            since = self.latency.missing_from(state.outage_since)
            self._gap(state, state.outage, since, tick.ts_event, tick.ts_recv)
            state.outage = None

    def _skip_to(self, state: StreamState, tick: Trade, vendor_id: int) -> None:
        """Report the ids before this one as missing."""
        self._hole_before(state, tick, vendor_id)
        state.leave_out(vendor_id - state.next_id)
        state.outage = None

    def _hole_before(self, state: StreamState, tick: Trade, vendor_id: int, *, believed: bool = True) -> None:
        across_outage = state.outage is not None and state.outage_at == state.next_id
        kind = state.outage if state.outage is not None and across_outage else GapKind.SEQUENCE
        before = state.event_before(tick.ts_event)
        self._hole(state, state.next_id, vendor_id - 1, kind, before, tick, believed=believed)

    def _late(self, state: StreamState, tick: Trade, vendor_id: int) -> None:
        self._store(state, tick, Flag.LATE)
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

    def _store(self, state: StreamState, tick: Trade | Quote, flag: int = 0, *, newest: bool = False) -> None:
        """Store a tick without effect on the sequence of ids."""
        if flag:
            tick = msgspec.structs.replace(tick, flags=tick.flags | flag)
        state.seq += 1
        payload = encode(tick)
        if state.sequenced:
            state.recent.append(payload)
        ms = max(tick.ts_recv // MILLISECOND, self.floor_ms)
        vendor_id = state.next_id - 1
        self._emit(Entry(state, ms, state.seq, state.field, payload, vendor_id, tick.ts_recv, newest))

    def _store_doubtful(self, state: StreamState, tick: Trade, vendor_id: int) -> None:
        self.doubtful += 1
        self._store(state, tick, Flag.DOUBTFUL_ID)
        self._warn(
            state,
            "doubtful",
            tick.ts_recv,
            "trade id %d is doubtful, %d is the next one: it is stored with the flag doubtful_id",
            vendor_id,
            state.next_id,
        )

    @property
    def has_ids(self) -> bool:
        """Whether the ids of some stream are contiguous."""
        return bool(self._sequenced)

    # suspects

    def _hold(self, state: StreamState, tick: Trade, vendor_id: int, *, fell: bool) -> None:
        from_ts = state.event_before(tick.ts_event)
        state.suspect = self._held[state] = Suspect(tick, vendor_id, fell, from_ts, stored=False)
        self.held += 1
        self._reserve(_HELD_BYTES)

    @property
    def holds(self) -> bool:
        """Whether it holds any trade."""
        return bool(self._held)

    def measure_rates(self) -> None:
        """Update the peak rates of ids, and forget old trades; to be called about once a second."""
        for state in self._sequenced:
            state.measure()
            state.memory.trim()

    def release_held(self, recv: int, held_for: int = HOLD) -> None:
        """Store what was received `held_for` ns or longer before `recv`: no other trade decided on it."""
        for state, suspect in list(self._held.items()):
            if suspect.tick is not None and recv - suspect.tick.ts_recv >= held_for:
                self._release(state, recv)

    def _release(self, state: StreamState, recv: int) -> None:
        """Store a suspect that is held, if there is one. Later trades still decide on it."""
        suspect = state.suspect
        if suspect is None or suspect.stored or suspect.tick is None:
            return
        self._drop_held(state, recv)
        suspect.stored = True
        tick, vendor_id = suspect.tick, suspect.vendor_id
        if suspect.fell:
            self._store_doubtful(state, tick, vendor_id)
            return
        # `next_id` stays: so the head, too, shows that nothing has confirmed the new place yet
        self._hole_before(state, tick, vendor_id, believed=False)
        self._note_time(state, tick)
        self._store(state, tick, newest=True)
        self._warn(
            state, "jump", recv,
            "trade ids jumped from %d to %d and no other trade came since: believed until one does",
            state.next_id - 1, vendor_id,
        )  # fmt: skip

    def _drop_held(self, state: StreamState, recv: int) -> None:
        """A suspect is no longer held. What is stored of its stream from now on is not older than `recv`."""
        if self._held.pop(state, None) is not None:
            self._reserve(-_HELD_BYTES)
            self.floor_ms = max(self.floor_ms, recv // MILLISECOND)

    def _settle(self, state: StreamState, suspect: Suspect, tick: Trade, vendor_id: int) -> bool:
        """Let a trade decide on the suspect before it. Return whether it is still to be handled itself."""
        decision = decide(state, suspect, tick, vendor_id)
        if decision is Decision.NOTHING:
            self.duplicates += 1
            return False
        if decision is Decision.NEW_PLACE:
            self._confirm(state, suspect, tick.ts_recv)
            return True
        if decision is Decision.OLD_PLACE:
            self._dismiss(state, suspect, tick.ts_recv)
            return True
        if suspect.fell or not suspect.stored:  # else the hole before it stays until the ids go on
            self._dismiss(state, suspect, tick.ts_recv)
        self._store_doubtful(state, tick, vendor_id)
        if suspect.fell:
            state.suspect = Suspect(tick, vendor_id, True, suspect.from_ts, stored=True)
        return False

    def _confirm(self, state: StreamState, suspect: Suspect, recv: int) -> None:
        """The ids go on at the suspect."""
        self._drop_held(state, recv)
        state.suspect = None
        tick, vendor_id = suspect.tick, suspect.vendor_id
        if suspect.fell:
            assert tick is not None
            self._reset(state, suspect, tick, recv)
        elif not suspect.stored:
            assert tick is not None
            self._skip_to(state, tick, vendor_id)
        else:
            state.leave_out(vendor_id - state.next_id)
            place = vendor_id + (tick is not None)
            if state.outage_at == state.next_id:
                state.outage_at = place
            state.next_id = place
            return
        if not suspect.stored and tick is not None:
            state.next_id = vendor_id + 1
            self._note_time(state, tick)
            self._store(state, tick, newest=True)

    def _reset(self, state: StreamState, suspect: Suspect, tick: Trade, recv: int) -> None:
        last, at = state.next_id - 1, suspect.vendor_id
        state.begin_again(at)
        if suspect.stored:
            state.next_id = at + 1
        self._gap(state, GapKind.RESET, suspect.from_ts, tick.ts_event, recv)
        state.outage = None
        self._warn(state, "reset", recv, "trade ids begin again: they fell from %d to %d", last, at)

    def _dismiss(self, state: StreamState, suspect: Suspect, recv: int) -> None:
        """The ids do not go on at the suspect: it is doubtful, and there is no hole before it."""
        self._drop_held(state, recv)
        state.suspect = None
        if not suspect.stored:
            assert suspect.tick is not None
            self._store_doubtful(state, suspect.tick, suspect.vendor_id)
        elif not suspect.fell:
            self._withdraw(state, suspect, recv)

    def _withdraw(self, state: StreamState, suspect: Suspect, recv: int) -> None:
        """Report that the hole before a suspect does not exist."""
        tick = suspect.tick
        holes = [hole for hole in state.holes if state.next_id <= hole.first < suspect.vendor_id]
        if not holes:
            return
        to_ts = suspect.from_ts if tick is None else tick.ts_event
        count = sum(hole.last - hole.first + 1 for hole in holes)
        self._gap(
            state, GapKind.VOID, suspect.from_ts, to_ts, recv, holes[0].first, holes[-1].last,
            count=count, repaired=True, believed=False,
        )  # fmt: skip
        self._warn(
            state, "void", recv,
            "trade ids go on at %d, not at %d: the %d ids reported missing in between never existed",
            state.next_id, suspect.vendor_id, count,
        )  # fmt: skip

    def _note_time(self, state: StreamState, tick: Trade) -> None:
        """Note the time of a tick in order, as `accept` does."""
        if tick.flags:
            state.ahead = (state.ahead[1], tick.ts_event, state.next_id)
        elif tick.ts_event > state.last_event:
            state.last_event, state.recv_of_last_event = tick.ts_event, tick.ts_recv

    def _warn(self, state: StreamState, event: str, recv: int, text: str, *args: object) -> None:
        """Log an event of a stream, once per episode."""
        before, state.warned[event] = state.warned.get(event), recv
        if before is None or recv - before > _EPISODE:
            log.warning(f"%s: {text}", state.name, *args)

    # streams that come and go

    def add(self, state: StreamState) -> None:
        """Take ticks of one more stream from now on, restored from its head if it has one."""
        self.streams.append(state)
        (self._trades if state.kind is StreamKind.TRADE else self._quotes)[state.symbol] = state
        if state.sequenced:
            self._sequenced.append(state)
        if state.kind is StreamKind.QUOTE:
            self._ended_quotes.discard(state.symbol)

    def drop(self, topic: Topic, recv: int) -> StreamState | None:
        """Take no more ticks of a stream: it ends with a Gap of kind `unsubscribed`, unless it never had an
        entry. Its state can be added again. None if it is not there."""
        state = self._state(topic)
        if state is None:
            return None
        self._release(state, recv)
        if state.dropped is not None:
            self._report_dropped(state, recv)
        if state.seq != state.ended_at:
            if state.outage is not None and (not state.sequenced or state.outage_at == state.next_id):
                # where it ended nobody will know: the ids that it missed are not told from those of the pause
                self._report_outage(state, recv, recv)
            at = max(self.latency.missing_to(recv), state.reported_to)
            self._gap(state, GapKind.UNSUBSCRIBED, at, at, recv)
            state.end(recv)
        state.resumed_at = 0
        self.streams.remove(state)
        del (self._trades if state.kind is StreamKind.TRADE else self._quotes)[state.symbol]
        if state.sequenced:
            self._sequenced.remove(state)
        if state.kind is StreamKind.QUOTE:
            self._ended_quotes.add(state.symbol)
            self.forget_quotes(state.symbol)
        return state

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

    def resumed(self, recv: int, topics: Iterable[Topic] | None = None) -> None:
        """Ticks (of these topics; None: of all) can arrive again. Nothing shows yet that they do."""
        for state in self.streams if topics is None else filter(None, map(self._state, topics)):
            if state.outage is GapKind.UNSUBSCRIBED and not state.sequenced:  # it ends here, come what may
                self._report_outage(state, recv, recv)
            if not state.seq and not state.subscribed:  # of a stream with entries nobody knows it any more
                state.subscribed = recv
            if not state.sequenced and state.outage is not None:
                state.resumed_at = recv
                self._awaits_tick = True

    def lasted(self, recv: int) -> None:
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
                # nobody waits for the end of a silence; what a lost connection missed the next start reports
                if state.resumed_at or (state.outage is GapKind.STALE and not state.sequenced):
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
            if state.suspect is not None:  # the ids go on here
                self._dismiss(state, state.suspect, recv)
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
                self._report_dropped(state, recv)

    def _report_dropped(self, state: StreamState, recv: int) -> None:
        assert state.dropped is not None
        (count, first, last), state.dropped = state.dropped, None
        self._gap(state, GapKind.OVERFLOW, first, last, recv, count=count)

    def _state(self, topic: Topic) -> StreamState | None:
        return (self._trades if topic.kind == "trade" else self._quotes).get(topic.symbol)

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
        *,
        believed: bool = True,
    ) -> None:
        to_ts = max(from_ts, tick.ts_event if tick is not None else from_ts)
        recv = tick.ts_recv if tick is not None else recv
        self._gap(state, kind, from_ts, to_ts, recv, first, last, believed=believed)

    def _gap(
        self, state: StreamState, kind: GapKind, from_ts: int, to_ts: int, recv: int,
        first: int = NO_ID, last: int = NO_ID, *, count: int | None = None, repaired: bool = False,
        believed: bool = True,
    ) -> None:  # fmt: skip
        """`believed`: whether the ids go on behind its range; if not, `next_id` is before it."""
        has_ids = first >= 0
        # what was not subscribed to is neither missing nor to be repaired
        wanted = kind is not GapKind.UNSUBSCRIBED
        if has_ids and wanted and count is None:
            count = last - first + 1
        gap = Gap(
            state.kind, SOURCE, kind, min(from_ts, to_ts), to_ts,
            str(first) if has_ids else None, str(last) if has_ids else None, count,
            self._repairable and has_ids and wanted, repaired, state.symbol,
        )  # fmt: skip
        state.counts.add(gap)
        holes = holes_after(state.holes, gap)
        state.unknown_holes += max(0, len(holes) - _MAX_HOLES)
        state.holes = holes[-_MAX_HOLES:]
        state.seq += 1
        # the head records which ids were handled, those of this hole included
        vendor_id = max(state.next_id - 1, last if believed else NO_ID)
        self._emit(
            Entry(
                state, max(recv // MILLISECOND, self.floor_ms), state.seq, b"g", encode(gap), vendor_id, recv
            )
        )

    def measure_latency(self) -> None:
        self.latency.measure((state.last_event, state.recv_of_last_event) for state in self.streams)

    def restore_stream(self, state: StreamState, head: Head) -> None:
        """Continue one stream from its head."""
        last = state.restore(head)
        self.floor_ms = max(self.floor_ms, last.ms)

    def restore(
        self,
        heads: dict[str, Head],
        lane_of: Callable[[int], Hashable] = lambda shard: None,
        delay: int | None = None,
        ends_in_gap: bool = False,
    ) -> int:
        """Continue after a restart. Return the number of streams that have a history.

        `lane_of`: maps a shard to its lane. Within a lane entries are stored in the order in which they
        arrived. `delay`: the minimum that the previous gateway observed, `MinLatency.observed`.
        `ends_in_gap`: whether the newest entry of all streams is a Gap that reports a hole.
        """
        restored = 0
        since: dict[Hashable, int] = {}
        ticks: list[tuple[int, int]] = []
        for state in self.streams:
            head = heads.get(state.name)
            if head is None:
                continue
            restored += 1
            self.restore_stream(state, head)
            lane = lane_of(state.shard)
            since[lane] = max(since.get(lane, 0), head.ts_recv)
            tick = newest_tick(head, state.stream.kind)
            if tick is not None and not tick.flags:
                ticks.append((tick.ts_event, tick.ts_recv))
        self.latency.measure(ticks)
        self.latency.inherit(delay, ends_in_gap=ends_in_gap)
        for state in self.streams:
            # the lane's newest entry: until then the connection delivered to all its streams, and all of it
            # was stored
            state.outage_since = since.get(lane_of(state.shard), 0)
        self._quiet = self._awaits_tick = ends_in_gap or not any(state.ticked for state in self.streams)
        return restored
