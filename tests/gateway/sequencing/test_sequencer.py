"""The sequencer against a model: a random vendor tape, and a gateway that may be killed anywhere."""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.batching import keep_pairs
from services.gateway.delivery.sender import StreamHead, pack_heads
from services.gateway.sequencing.sequencer import HOLD, Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.vendors.feed import NO_ID, MappedTick, Rejected
from tickbus.protocol.codec import NIL, Head, decode, decode_head
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, Quote, Side, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.units import MILLISECOND, SECOND
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import EMPTY_HEAD

KEYS = Keys()
TRADES = Stream("trade", "vendor", "A")
QUOTES = Stream("quote", "vendor", "A")
START = 1_800_000_000 * SECOND


def trade(vendor_id: int, ts_event: int, recv: int, price: str = "1") -> MappedTick:
    return Trade("A", price, "1", Side.BUY, str(vendor_id), ts_event, recv), vendor_id


@dataclass
class Bench:
    """A sequencer whose entries are stored by hand, in order, as the gateway's transactions do it."""

    sequencer: Sequencer = field(init=False)

    stored: list[tuple[Entry, Message]] = field(default_factory=list)
    heads: dict[str, Head] = field(default_factory=dict)
    recv: int = START
    epoch: int = 0
    delay: int = 3 * MILLISECOND
    observed: int | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> int:
        """Start a new process: what was not stored is lost. Return how many streams had a history."""
        if self.epoch and self.sequencer.latency.observed is not None:  # the gateway stores it every second
            self.observed = self.sequencer.latency.observed
        self.waiting: list[Entry] = []
        self.states = [StreamState(KEYS, TRADES, True), StreamState(KEYS, QUOTES, False)]
        self.sequencer = Sequencer(self.states, self.waiting.append)
        restored = self.sequencer.restore(self.heads, delay=self.observed, ends_in_gap=self._ends_in_gap())
        self.epoch += 1
        self.builders: dict[StreamWriter, StreamHead] = {
            state: StreamHead(state, self.heads.get(state.name, EMPTY_HEAD)) for state in self.states
        }
        for builder in self.builders.values():
            builder.begin(self.epoch)
        return restored

    def _ends_in_gap(self) -> bool:
        newest = max((entry.recv for entry, _ in self.stored), default=0)
        last = [message for entry, message in self.stored if entry.recv == newest][-1:]
        return any(isinstance(message, Gap) and not message.repaired for message in last)

    def store(self, limit: int = 1 << 30) -> None:
        limit = keep_pairs(self.waiting, limit)
        batch = self.waiting[:limit]
        del self.waiting[:limit]
        packed = pack_heads(self.builders, batch, [entry.field for entry in batch], spilled=False)
        # as they come back from Redis
        self.heads |= {stream.name: decode_head(head) for stream, head in packed.items()}
        self.stored += [(entry, decode(entry.field, entry.payload)) for entry in batch]

    def now(self) -> int:
        self.recv += 777_777
        return self.recv

    def send(self, vendor_id: int, ts_event: int | None = None, price: str = "1") -> None:
        recv = self.now()
        ts_event = recv - self.delay if ts_event is None else ts_event
        self.sequencer.accept([trade(vendor_id, ts_event, recv, price)])

    def wait(self, time: int = HOLD) -> None:
        """Let time pass: the gateway releases what it has held for too long."""
        self.recv += time
        self.sequencer.measure_rates()
        self.sequencer.release_held(self.recv)

    def quote(self) -> None:
        recv = self.now()
        self.sequencer.accept([(Quote("A", "1", "1", "2", "2", recv - self.delay, recv), NO_ID)])

    def outage(self, kind: GapKind = GapKind.DISCONNECT) -> None:
        self.sequencer.outage(kind, self.recv)

    @property
    def reports_outages(self) -> bool:
        """Whether the feed has ticked since it last reported one: what is missing until then is one hole."""
        return not self.sequencer._quiet and any(state.ticked for state in self.states)

    def resumed(self) -> None:
        """Acknowledge the subscription, on a connection that lasts."""
        recv = self.now()
        self.sequencer.resumed(recv)
        self.sequencer.lasted(recv)

    def messages(self, stream: Stream = TRADES) -> list[Message]:
        """Return all messages of a stream, stored or waiting."""
        entries = [entry for entry, _ in self.stored] + self.waiting
        return [decode(entry.field, entry.payload) for entry in entries if entry.stream.stream == stream]

    def gaps(self, stream: Stream = TRADES) -> list[tuple[str, str | None, str | None, int | None, bool]]:
        return [
            (m.kind.name, m.from_id, m.to_id, m.count, m.repaired)
            for m in self.messages(stream)
            if isinstance(m, Gap)
        ]

    def ids(self) -> list[int]:
        return [int(m.trade_id or 0) for m in self.messages() if isinstance(m, Trade)]


def entry_ids(stream: list[tuple[Entry, Message]]) -> list[tuple[int, int]]:
    return [(entry.ms, entry.seq) for entry, _ in stream]


# the model


@dataclass
class Vendor:
    """The truth: which ids exist, what was dropped, and when each happened."""

    next_id: int = 10**9
    first: int = 10**9
    times: dict[int, int] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)

    def make(self, ts_event: int) -> int:
        self.times[self.next_id] = ts_event
        self.next_id += 1
        return self.next_id - 1

    def drop(self, count: int, ts_event: int) -> None:
        self.dropped += [self.make(ts_event) for _ in range(count)]

    def reset(self) -> None:
        self.next_id = self.first = self.first - 200_000
        self.times.clear()
        self.dropped.clear()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.integers(1, 5)),
        st.tuples(st.just("quote"), st.just(0)),
        st.tuples(st.just("drop"), st.integers(1, 20)),
        st.tuples(st.just("late"), st.integers(0, 1000)),
        st.tuples(st.just("repeat"), st.integers(0, 1000)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("wait"), st.just(0)),
        st.tuples(st.just("outage"), st.sampled_from([0, 0, 1, 7])),
        st.tuples(st.just("reject"), st.just(0)),
        st.tuples(st.just("garbage"), st.integers(0, 3)),
        st.tuples(st.just("overflow"), st.integers(1, 4)),
        st.tuples(st.just("store"), st.integers(1, 12)),
        st.tuples(st.just("restart"), st.sampled_from([0, 0, 1, 7])),
    ),
    max_size=50,
)


def play(steps: list[tuple[str, int]], bench: Bench | None = None) -> tuple[Bench, set[int]]:
    """Return the bench, with all stored, and the ids that the sequencer was given and no kill lost."""
    bench, vendor = bench or Bench(), Vendor()
    given_ids: set[int] = set()

    def send(vendor_id: int) -> None:
        bench.send(vendor_id, vendor.times[vendor_id])
        given_ids.add(vendor_id)

    for step, number in steps:
        at = bench.recv - bench.delay
        match step:
            case "tick":
                for _ in range(number):
                    send(vendor.make(bench.recv - bench.delay + 1))
            case "quote":
                bench.quote()
            case "drop":
                vendor.drop(number, at)
            case "late" if trades := eras(bench.messages())[-1][0]:
                # nothing is promised about what came before the first tick: that has its own test
                late = [one for one in vendor.dropped if one > int(trades[0].trade_id or 0)]
                if late:
                    vendor.dropped.remove(late[number % len(late)])
                    send(late[number % len(late)])
            case "repeat" if seen := sorted(given_ids & vendor.times.keys()):
                send(seen[number % len(seen)])
            case "reset":
                vendor.reset()
                send(vendor.make(bench.recv - bench.delay + 1))
            case "wait":
                bench.wait()
            case "outage":
                before = len(bench.gaps(QUOTES))
                reported = bench.reports_outages
                bench.outage()
                bench.outage(GapKind.STALE)  # the first call counts
                vendor.drop(number, at)
                bench.resumed()
                assert [gap[0] for gap in bench.gaps(QUOTES)[before:]] == ["DISCONNECT"] * reported
            case "reject":
                vendor_id = vendor.make(at)
                vendor.dropped.append(vendor_id)
                bench.sequencer.rejected(Rejected("field", "x", "trade", "A", vendor_id), bench.now())
            case "garbage":
                vendor.drop(number, at)
                bench.sequencer.rejected(Rejected("garbage", "x"), bench.now())
            case "overflow":
                first = vendor.next_id
                vendor.drop(number, at)
                bench.sequencer.overflow([trade(first + i, at, bench.now()) for i in range(number)])
                bench.sequencer.report_overflow(bench.now())
            case "store":
                bench.store(number)
            case "restart":
                stored = {int(m.trade_id or 0) for _, m in bench.stored if isinstance(m, Trade)}
                lost = given_ids - stored
                given_ids -= lost
                vendor.dropped += [vendor_id for vendor_id in lost if vendor_id in vendor.times]
                history = QUOTES.name in bench.heads
                bench.recv -= 5 * MILLISECOND  # the new clock may be a little behind
                bench.start()
                vendor.drop(number, at)
                history = history and bench.reports_outages
                bench.resumed()
                assert [gap[0] for entry in bench.waiting if (gap := bench_gap(entry))] == [
                    "DISCONNECT"
                ] * history
    bench.wait()
    bench.store()
    return bench, given_ids


def bench_gap(entry: Entry) -> tuple[str] | None:
    message = decode(entry.field, entry.payload)
    return (message.kind.name,) if isinstance(message, Gap) and message.stream is StreamKind.QUOTE else None


def eras(messages: list[Message]) -> list[tuple[list[Trade], list[Gap]]]:
    """Return trades and Gaps between one reset and the next."""
    found: list[tuple[list[Trade], list[Gap]]] = [([], [])]
    for message in messages:
        if isinstance(message, Gap) and message.kind is GapKind.RESET:
            found.append(([], []))
        elif isinstance(message, Gap):
            found[-1][1].append(message)
        elif isinstance(message, Trade):
            found[-1][0].append(message)
    return found


def span(gap: Gap) -> set[int]:
    assert gap.from_id is not None and gap.to_id is not None
    return set(range(int(gap.from_id), int(gap.to_id) + 1))


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_counters_are_dense_and_ids_never_decrease(steps: list[tuple[str, int]]) -> None:
    bench, _ = play(steps)
    for stream in (TRADES, QUOTES):
        found = entry_ids([pair for pair in bench.stored if pair[0].stream.stream == stream])
        assert [seq for _, seq in found] == list(range(1, len(found) + 1))
        assert found == sorted(found)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_every_id_is_either_stored_once_or_reported_missing(steps: list[tuple[str, int]]) -> None:
    bench, _ = play(steps)
    for trades, gaps in eras(bench.messages()):
        ids = [int(one.trade_id or 0) for one in trades]
        assert len(ids) == len(set(ids)), "a tick stored twice"
        reported: set[int] = set()
        for gap in gaps:
            if gap.from_id is None:  # subscribed before a restart, and no id known
                continue
            assert gap.count == len(span(gap))
            if gap.repaired:
                assert span(gap) <= reported
                reported -= span(gap)
            else:
                assert not span(gap) & reported, "reported twice"
                reported |= span(gap)
        assert not reported & set(ids)
        if ids:
            # ids below the first one are from before the start; but a reset may begin with a hole, behind a
            # trade that is stored as doubtful
            first = min({ids[0]} | reported)
            assert reported | {one for one in ids if one >= first} == set(
                range(first, max(reported | set(ids)) + 1)
            )


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_every_given_tick_is_stored(steps: list[tuple[str, int]]) -> None:
    bench, given_ids = play(steps)
    assert {
        one for trades, _ in eras(bench.messages()) for one in (int(t.trade_id or 0) for t in trades)
    } == given_ids


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_totals_match_gap_messages(steps: list[tuple[str, int]]) -> None:
    bench, _ = play(steps)
    for state, stream in zip(bench.states, (TRADES, QUOTES), strict=True):
        gaps = [message for message in bench.messages(stream) if isinstance(message, Gap)]
        reported: dict[str, int] = {}
        for gap in gaps:
            if not gap.repaired:
                reported[gap.kind.name.lower()] = reported.get(gap.kind.name.lower(), 0) + 1
        missing = sum((gap.count or 0) * (-1 if gap.repaired else 1) for gap in gaps)
        assert (state.counts.by_kind, state.counts.repaired, state.counts.missing) == (
            reported,
            sum(gap.repaired for gap in gaps),
            missing,
        )
        if head := bench.heads.get(stream.name):
            assert (head.gaps, head.repaired, head.missing) == (
                reported,
                sum(gap.repaired for gap in gaps),
                missing,
            )
            assert all(gap.from_ts <= gap.to_ts for gap in gaps)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("tick"), st.integers(1, 3)),
            st.tuples(st.sampled_from(["outage", "quote"]), st.just(0)),
        )
    )
)
def test_outage_without_missing_ids_leaves_no_gap(steps: list[tuple[str, int]]) -> None:
    bench, _ = play([("tick", 1), *steps])
    assert bench.gaps() == []
    assert len(bench.gaps(QUOTES)) <= sum(step == "outage" for step, _ in steps)


# one rule each


def test_jump_is_reported_before_the_tick_after_it() -> None:
    bench = Bench()
    bench.send(5)
    before = bench.recv
    bench.send(9)
    first, gap, second = bench.messages()
    assert isinstance(first, Trade) and isinstance(second, Trade)
    assert gap == Gap(
        StreamKind.TRADE,
        "gateway",
        GapKind.SEQUENCE,
        before - bench.delay,
        bench.recv - bench.delay,
        "6",
        "8",
        3,
        repairable=False,
        repaired=False,
        symbol="A",
    )
    assert [entry.vendor_id for entry in bench.waiting] == [5, 8, 9]


def test_late_tick_is_flagged_and_reported_as_repaired() -> None:
    bench = Bench()
    for vendor_id in (5, 9):
        bench.send(vendor_id)
    for vendor_id in (7, 7, 6, 8):
        bench.send(vendor_id, START + vendor_id)
    bench.send(10)
    assert bench.ids() == [5, 9, 7, 6, 8, 10]
    assert [one.flags for one in bench.messages() if isinstance(one, Trade)] == [
        0,
        0,
        Flag.LATE,
        Flag.LATE,
        Flag.LATE,
        0,
    ]
    assert bench.gaps() == [
        ("SEQUENCE", "6", "8", 3, False),
        ("SEQUENCE", "7", "7", 1, True),
        ("SEQUENCE", "6", "6", 1, True),
        ("SEQUENCE", "8", "8", 1, True),
    ]
    assert bench.states[0].counts.missing == 0
    assert bench.sequencer.duplicates == 1


@pytest.mark.parametrize(("kind", "name"), [(GapKind.DISCONNECT, "DISCONNECT"), (GapKind.STALE, "STALE")])
def test_outage_kind_applies_to_first_hole_only(kind: GapKind, name: str) -> None:
    bench = Bench()
    bench.send(1)
    bench.outage(kind)
    bench.resumed()
    bench.send(3)
    bench.send(5)
    assert bench.gaps() == [(name, "2", "2", 1, False), ("SEQUENCE", "4", "4", 1, False)]
    assert bench.gaps(QUOTES) == [(name, None, None, None, False)]


def test_large_jump_back_is_reset_and_sequence_continues() -> None:
    bench = Bench()
    for vendor_id in (500_000, 500_001, 3, 4, 6, 5):
        bench.send(vendor_id)
    assert bench.ids() == [500_000, 500_001, 3, 4, 6, 5]
    assert bench.gaps() == [
        ("RESET", None, None, None, False),
        ("SEQUENCE", "5", "5", 1, False),
        ("SEQUENCE", "5", "5", 1, True),
    ]


def test_smaller_jump_back_is_reset_if_times_continue() -> None:
    bench = Bench()
    for vendor_id in range(1000, 1200):
        bench.send(vendor_id)
    bench.send(1100)
    bench.send(1101)
    assert bench.ids()[-3:] == [1199, 1100, 1101]
    assert [gap[0] for gap in bench.gaps()] == ["RESET"]


def test_ticks_from_just_before_the_start_are_stored_once_without_reset() -> None:
    """A vendor resends its last ticks after a reconnect, including those from before our first."""
    bench = Bench()
    times = {}
    for vendor_id in (1000, 1001, 1002):
        bench.send(vendor_id)
        times[vendor_id] = bench.recv - bench.delay
    bench.outage()
    bench.resumed()
    for vendor_id in (998, 999, 1000, 1001, 1002, 999):
        bench.send(vendor_id, times.get(vendor_id, START - SECOND))
    bench.send(1003)
    assert bench.ids() == [1000, 1001, 1002, 998, 999, 1003]
    assert bench.gaps() == []
    assert bench.sequencer.duplicates == 4


def test_repeat_of_thousands_across_restart_is_dropped() -> None:
    bench = Bench()
    times = {}
    for vendor_id in range(1, 3000):
        bench.send(vendor_id)
        times[vendor_id] = bench.recv - bench.delay
    bench.store()
    bench.start()
    bench.resumed()
    for vendor_id in range(1, 3000):
        bench.send(vendor_id, times[vendor_id])
    bench.send(3000)
    assert bench.ids() == list(range(1, 3001))
    assert bench.gaps() == []


def test_hole_after_kill_begins_where_storing_ended() -> None:
    bench = Bench()
    bench.send(1)
    at = bench.recv - bench.delay
    bench.store()
    for vendor_id in (2, 3, 6):
        bench.send(vendor_id)
    bench.store(1)  # 2 and no more: 3, the Gap and 6 die with the process
    two = bench.recv - 2 * 777_777 - bench.delay
    bench.start()
    bench.resumed()
    bench.send(7)
    assert bench.ids() == [1, 2, 7]
    assert bench.gaps() == [("DISCONNECT", "3", "6", 4, False)]
    (gap,) = (message for message in bench.messages() if isinstance(message, Gap))
    assert at < gap.from_ts == two  # not where the lost ticks ended
    assert (bench.states[0].counts.by_kind, bench.states[0].counts.missing) == ({"disconnect": 1}, 4)


def test_symbol_added_at_restart_has_no_gap() -> None:
    bench = Bench()
    bench.send(1)
    bench.store()
    # a gateway without this stream: one with it would have stored its first head
    assert QUOTES.name not in bench.heads
    bench.start()
    bench.resumed()
    assert bench.gaps(QUOTES) == []


def test_very_first_start_leaves_no_gap() -> None:
    bench = Bench()
    bench.resumed()
    bench.send(1)
    bench.quote()
    assert bench.gaps() == bench.gaps(QUOTES) == []


def test_subscribed_stream_without_ticks_has_gap_at_restart() -> None:
    bench = Bench()
    bench.heads = {
        name: msgspec.structs.replace(EMPTY_HEAD, ts_recv=START) for name in (TRADES.name, QUOTES.name)
    }
    assert bench.start() == 2
    bench.resumed()
    bench.send(77)
    assert bench.gaps() == bench.gaps(QUOTES) == [("DISCONNECT", None, None, None, False)]
    assert [entry.seq for entry in bench.waiting if entry.stream.stream == TRADES] == [1, 2]


def test_rejected_ticks_become_gaps() -> None:
    bench = Bench()
    bench.send(1)
    bench.quote()
    for notice in (
        Rejected("field", "x", "trade", "A", 2),
        Rejected("field", "x", "quote", "A"),
        Rejected("unknown_symbol", "B", lost=False),
        Rejected("field", "x", "trade", "nobody", 3),
        Rejected("field", "x", "trade", "A"),  # without its id: the next tick shows it
        Rejected("garbage", "x"),
    ):
        bench.sequencer.rejected(notice, bench.now())
    bench.send(4)
    bench.quote()
    assert bench.gaps() == [("REJECTED", "2", "2", 1, False), ("SEQUENCE", "3", "3", 1, False)]
    assert bench.gaps(QUOTES) == [("REJECTED", None, None, 1, False), ("REJECTED", None, None, None, False)]


def test_overflow_is_reported_by_ids_or_else_by_count() -> None:
    bench = Bench()
    bench.send(1)
    quotes = [(Quote("A", "1", "1", "2", "2", bench.recv + i, bench.recv + i), NO_ID) for i in range(3)]
    bench.sequencer.overflow([trade(2, bench.recv, bench.recv), *quotes])
    bench.sequencer.report_overflow(bench.now())
    bench.send(3)
    assert bench.gaps() == [("OVERFLOW", "2", "2", 1, False)]
    assert bench.gaps(QUOTES) == [("OVERFLOW", None, None, 3, False)]
    (gap,) = (message for message in bench.messages(QUOTES) if isinstance(message, Gap))
    assert (gap.from_ts, gap.to_ts) == (quotes[0][0].ts_event, quotes[2][0].ts_event)


def test_equal_ticks_without_ids_are_all_stored() -> None:
    bench = Bench()
    for _ in range(26):
        bench.sequencer.accept([(Quote("A", "1", "1", "2", "2", START, START), NO_ID)])
    assert len(bench.messages(QUOTES)) == 26


def test_time_ahead_of_clock_is_not_newest_event() -> None:
    bench = Bench()
    bench.send(1)
    newest = bench.states[0].last_event
    bench.sequencer.accept(
        [(Trade("A", "1", "1", Side.BUY, "2", START * 2, bench.now(), flags=Flag.FUTURE_TIME), 2)]
    )
    assert bench.states[0].last_event == newest


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("ahead", [0, 10 * SECOND])
def test_permanently_fast_vendor_clock_keeps_repeats_and_gap_times(ahead: int, restart: bool) -> None:
    """Every tick is flagged, none moves `last_event`: still, repeats are dropped, and Gaps have its times."""
    bench, flags = Bench(), Flag.FUTURE_TIME if ahead else 0
    sent: dict[int, int] = {}

    def send(vendor_id: int) -> None:
        recv = bench.now()
        sent.setdefault(vendor_id, recv + ahead - bench.delay)
        bench.sequencer.accept(
            [(Trade("A", "1", "1", Side.BUY, str(vendor_id), sent[vendor_id], recv, flags=flags), vendor_id)]
        )

    for vendor_id in (*range(1001, 1201), 1204):
        send(vendor_id)
    bench.store()
    if restart:
        bench.start()
    else:
        bench.outage()
    bench.resumed()
    for vendor_id in (*range(1104, 1201), 1204, 1205):  # the vendor begins with its last ticks, 100 ids back
        send(vendor_id)
    bench.store()
    trades = [
        message
        for entry, message in bench.stored
        if entry.stream.stream == TRADES and isinstance(message, Trade)
    ]
    assert [trade.trade_id for trade in trades] == [str(id) for id in (*range(1001, 1201), 1204, 1205)]
    (gap,) = (
        message
        for entry, message in bench.stored
        if entry.stream.stream == TRADES and isinstance(message, Gap)
    )
    assert (gap.kind, gap.from_id, gap.to_id, gap.from_ts, gap.to_ts) == (
        GapKind.SEQUENCE,
        "1201",
        "1203",
        sent[1200],
        sent[1204],
    )


def test_single_time_far_ahead_does_not_hide_reset() -> None:
    bench = Bench()
    for vendor_id in range(1001, 1101):
        bench.send(vendor_id)
    bench.sequencer.accept(
        [(Trade("A", "1", "1", Side.BUY, "1101", START * 2, bench.now(), flags=Flag.FUTURE_TIME), 1101)]
    )
    bench.send(1010)
    bench.send(1011)
    assert bench.gaps() == [("RESET", None, None, None, False)]
    assert [message.trade_id for message in bench.messages(TRADES) if isinstance(message, Trade)][-2:] == [
        "1010",
        "1011",
    ]


def test_head_remembers_newest_epochs() -> None:
    bench = Bench()
    for _ in range(20):
        bench.send(bench.states[0].next_id or 1)
        bench.store()
        bench.start()
        bench.resumed()
    bench.send(bench.states[0].next_id)
    bench.store()
    assert bench.heads[TRADES.name].epochs == [(epoch, epoch) for epoch in range(6, 22)]


def test_unrequested_kind_is_counted_and_skipped() -> None:
    entries: list[Entry] = []
    sequencer = Sequencer([StreamState(KEYS, QUOTES, False)], entries.append)
    quote = Quote("A", "1", "1", "2", "2", START, START)
    sequencer.accept([trade(1, START, START), (quote, NO_ID)])
    sequencer.overflow([trade(2, START, START)])
    sequencer.report_overflow(START)
    assert [decode(entry.field, entry.payload) for entry in entries] == [quote]
    assert sequencer.unwanted == 2


def test_outage_begins_per_lane() -> None:
    """On a cluster, a shard may have been blocked for long when the gateway died."""
    streams = [Stream("quote", "vendor", symbol) for symbol in ("A", "B")]
    heads = {
        stream.name: Head("1-1", None, START + at * SECOND, NIL, epochs=[(1, 1)])
        for at, stream in enumerate(streams)
    }
    for lane_of, since in ((lambda shard: None, [1, 1]), (lambda shard: shard, [0, 1])):
        entries: list[Entry] = []
        sequencer = Sequencer([StreamState(KEYS, stream, False) for stream in streams], entries.append)
        sequencer.restore(heads, lane_of)
        sequencer.resumed(START + 10 * SECOND)
        sequencer.accept([(Quote("A", "1", "1", "2", "1", START, START + 11 * SECOND), NO_ID)])
        gaps = [decode(entry.field, entry.payload) for entry in entries]
        assert [(gap.from_ts - START) // SECOND for gap in gaps if isinstance(gap, Gap)] == since


@pytest.mark.parametrize("reported", [True, False])
def test_gap_times_when_stalled_gateway_ended_before_a_fresh_tick(reported: bool) -> None:
    """It read 29 s old ticks from its socket, reported the hole behind them, or not even that, and ended.

    The next hole begins where that Gap ends, or else the ticks; it ends when the next ticks are made.
    """
    bench, stall = Bench(), 29 * SECOND

    def quote(event: int, recv: int) -> None:
        bench.sequencer.accept([(Quote("A", "1", "1", "2", "1", event, recv), NO_ID)])

    quote(START, START + bench.delay)
    bench.sequencer.latency.note(START, START + bench.delay)  # the intake does
    quote(START + SECOND, START + stall)
    if reported:
        bench.sequencer.outage(GapKind.DISCONNECT, START + stall)
        bench.sequencer.resumed(START + stall + SECOND)
        bench.sequencer.lasted(START + stall + SECOND)
    bench.store()
    bench.start()
    bench.sequencer.resumed(START + stall + 4 * SECOND)
    quote(START + stall + 4 * SECOND, START + stall + 4 * SECOND + bench.delay)
    bench.store()
    gaps = [
        (message.from_ts - START, message.to_ts - START)
        for _, message in bench.stored
        if isinstance(message, Gap)
    ]
    first, last = stall + SECOND - bench.delay, stall + 4 * SECOND - bench.delay
    assert gaps == ([(SECOND, first), (first, last)] if reported else [(SECOND, last)])


def test_slower_vendor_latency_counts_from_second_restart() -> None:
    """A latency is inherited once: a gateway hands on what it saw itself and its predecessor's last ticks."""
    bench = Bench()
    for delay in (5, 900 * SECOND, 900 * SECOND):
        at = bench.recv = bench.recv + 3600 * SECOND
        bench.sequencer.accept([(Quote("A", "1", "1", "2", "1", at - delay, at), NO_ID)])
        bench.sequencer.latency.note(at - delay, at)
        bench.store()
        bench.start()
    assert bench.observed == 900 * SECOND
    assert bench.sequencer.latency.missing_to(bench.recv) == bench.recv - 900 * SECOND
