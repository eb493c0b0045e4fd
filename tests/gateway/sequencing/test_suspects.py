"""Ids that fall, jump too far, stand still or repeat: what is stored, what is held, what Gaps say of it."""

import logging
from dataclasses import dataclass, field

import msgspec
import pytest
from gateway.sequencing.test_sequencer import START, TRADES, Bench, eras, span, trade
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.sequencing.sequencer import HOLD
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Flag, Gap, GapKind, Trade
from tickbus.units import DAY, MILLISECOND, SECOND

CORRUPT = (1 << 53) - 1


def stored(bench: Bench) -> list[tuple[int, int]]:
    """Return id and flags of all trades."""
    return [(int(m.trade_id or 0), m.flags) for m in bench.messages() if isinstance(m, Trade)]


def kinds(bench: Bench) -> list[str]:
    """Return the messages in order, as text."""
    return [
        f"{m.kind.name.lower()} {m.from_id}-{m.to_id} {m.count}" if isinstance(m, Gap) else str(m.trade_id)
        for m in bench.messages()
        if isinstance(m, Gap | Trade)
    ]


# an id far ahead


def test_single_id_far_ahead_is_doubtful_and_leaves_no_gap() -> None:
    bench = Bench()
    for vendor_id in (1, 2, 3, CORRUPT, 4, 5):
        bench.send(vendor_id)
    assert stored(bench) == [(1, 0), (2, 0), (3, 0), (CORRUPT, Flag.DOUBTFUL_ID), (4, 0), (5, 0)]
    assert bench.gaps() == []
    assert (bench.sequencer.doubtful, bench.states[0].next_id) == (1, 6)


def test_trades_after_a_wrong_id_may_have_lost_some() -> None:
    bench = Bench()
    for vendor_id in (1, CORRUPT, 4, 5):
        bench.send(vendor_id)
    assert kinds(bench) == ["1", str(CORRUPT), "sequence 2-3 2", "4", "5"]


@pytest.mark.parametrize("second", [10**12 + 1, 10**12 + 5, 10**12 - 1])
def test_second_trade_confirms_the_new_place_at_once(second: int) -> None:
    bench = Bench()
    for vendor_id in (1, 10**12):
        bench.send(vendor_id)
    assert stored(bench) == [(1, 0)]
    bench.send(second)
    assert stored(bench)[1] == (10**12, 0)
    assert bench.gaps()[0] == ("SEQUENCE", "2", str(10**12 - 1), 10**12 - 2, False)
    missing = 10**12 - 2 + max(0, second - 10**12 - 1) - (second < 10**12)
    assert bench.states[0].counts.missing == missing
    bench.send(10**12 + 6)
    assert bench.sequencer.duplicates == bench.sequencer.doubtful == 0


def test_trade_far_ahead_is_believed_after_a_second_and_confirmed_later() -> None:
    bench = Bench()
    for vendor_id in (1, 10**12):
        bench.send(vendor_id)
    bench.wait(HOLD - SECOND // 2)
    assert stored(bench) == [(1, 0)]
    bench.wait(SECOND // 2)
    assert kinds(bench) == ["1", f"sequence 2-{10**12 - 1} {10**12 - 2}", str(10**12)]
    bench.send(10**12 + 1)
    assert kinds(bench)[3:] == [str(10**12 + 1)]
    assert bench.states[0].next_id == 10**12 + 2


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("next_id", "rest"), [(4, []), (6, ["sequence 4-5 2"])])
def test_false_hole_is_withdrawn_when_ids_go_on_at_the_old_place(
    restart: bool, next_id: int, rest: list[str]
) -> None:
    bench = Bench()
    for vendor_id in (1, 3, CORRUPT):
        bench.send(vendor_id)
    bench.wait()
    assert bench.states[0].counts.missing == 1 + CORRUPT - 4
    if restart:
        bench.store()
        assert bench.heads[TRADES.name].vendor_id == 3, "nothing has confirmed the new place yet"
        bench.start()
    bench.send(next_id)
    rest = [gap.replace("sequence", "disconnect") if restart else gap for gap in rest]
    assert kinds(bench) == [
        "1", "sequence 2-2 1", "3", f"sequence 4-{CORRUPT - 1} {CORRUPT - 4}", str(CORRUPT),
        f"void 4-{CORRUPT - 1} {CORRUPT - 4}", *rest, str(next_id),
    ]  # fmt: skip
    assert bench.states[0].counts.missing == 1 + len(rest) * 2
    assert bench.states[0].counts.reported == bench.states[0].counts.missing
    bench.send(2, START)
    assert bench.states[0].counts.missing == len(rest) * 2
    bench.store()
    head = bench.heads[TRADES.name]
    assert (head.missing, [(hole.first, hole.last) for hole in head.holes]) == (
        (2, [(4, 5)]) if rest else (0, [])
    )


@pytest.mark.parametrize("confirmed", [False, True])
def test_kill_between_the_gap_and_the_trade_far_ahead(confirmed: bool) -> None:
    bench = Bench()
    for vendor_id in (1, 10**12):
        bench.send(vendor_id)
    bench.wait()
    bench.store(2)
    bench.start()
    bench.send(10**12 + 1 if confirmed else 2)
    ahead = 10**12
    assert kinds(bench)[2:] == (
        [f"disconnect {ahead}-{ahead} 1", str(ahead + 1)]
        if confirmed
        else [f"void 2-{ahead - 1} {ahead - 2}", "2"]
    )


def test_symbol_that_was_away_for_a_day_is_not_delayed() -> None:
    bench = Bench()
    bench.send(1)
    bench.store()
    bench.recv += DAY
    bench.start()
    bench.send(5_000_000)
    assert kinds(bench) == ["1", "disconnect 2-4999999 4999998", "5000000"]


def test_limit_grows_with_the_peak_rate() -> None:
    bench = Bench()
    bench.send(1)
    bench.wait()
    for vendor_id in range(2, 1602):  # 1,286 a second
        bench.send(vendor_id)
    bench.sequencer.measure_rates()
    bench.store()
    assert 600 < bench.heads[TRADES.name].peak < 1300
    bench.start()
    bench.send(400_000)
    assert stored(bench)[-1] == (400_000, 0), "more than a young stream's 100,000"


def test_rate_leaves_out_what_was_read_late_and_what_is_missing() -> None:
    bench = Bench()
    bench.send(1)
    bench.wait()
    bench.sequencer.measure_rates()
    behind = bench.recv
    for vendor_id in range(2, 1602):  # made over 160 s, read within two: the gateway had stalled
        bench.send(vendor_id, behind + vendor_id * 100 * MILLISECOND)
    bench.send(50_000, behind + 161 * SECOND)
    bench.sequencer.measure_rates()
    assert bench.states[0].peak == 9


def test_held_trade_counts_towards_the_backlog() -> None:
    bench = Bench()
    held: list[int] = []
    bench.sequencer._reserve = held.append
    for vendor_id in (1, CORRUPT, 2, CORRUPT - 5):
        bench.send(vendor_id)
    assert held[0] > 0
    assert held == [held[0], -held[0], held[0]]
    bench.wait()
    assert sum(held) == 0


def test_ids_of_held_trades_are_not_older_than_the_bus_clock() -> None:
    bench = Bench()
    for vendor_id in (1, CORRUPT):
        bench.send(vendor_id)
    bench.wait(2 * SECOND)
    released = bench.recv
    bench.send(2)
    assert all(entry.ms >= released // MILLISECOND for entry in bench.waiting[1:])


def test_ids_that_are_all_wrong_are_all_stored() -> None:
    bench = Bench()
    wrong = [10**13, 5 * 10**14, 7 * 10**15, 6 * 10**15]
    for vendor_id in (1, *wrong, 2, 3):
        bench.send(vendor_id)
    assert bench.ids() == [1, *wrong, 2, 3]
    assert bench.gaps() == []


def test_id_far_ahead_that_stands_still_is_told_once() -> None:
    bench = Bench()
    bench.send(1)
    for _ in range(5):
        bench.send(CORRUPT)
        bench.wait()
    bench.send(2)
    assert bench.ids() == [1, *[CORRUPT] * 5, 2]
    assert [gap[0] for gap in bench.gaps()] == ["SEQUENCE", "VOID"]
    assert bench.states[0].counts.missing == 0


def test_rejected_trade_at_the_old_place_decides_too() -> None:
    from services.vendors.feed import Rejected

    bench = Bench()
    for vendor_id in (1, CORRUPT):
        bench.send(vendor_id)
    bench.sequencer.rejected(Rejected("field", "x", "trade", "A", 2), bench.now())
    bench.send(3)
    assert kinds(bench) == ["1", str(CORRUPT), "rejected 2-2 1", "3"]


# ids that begin again


def test_young_ids_begin_again_below_snapshot_size() -> None:
    bench = Bench()
    for vendor_id in range(1, 51):
        bench.send(vendor_id)
    bench.outage()
    for vendor_id in range(1, 54):
        bench.send(vendor_id, price="9")
    assert bench.ids() == [*range(1, 51), *range(1, 54)]
    assert bench.gaps() == [("RESET", None, None, None, False)]
    assert (bench.sequencer.duplicates, bench.sequencer.doubtful) == (0, 0)


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_reset_needs_two_trades(waiting: bool, restart: bool) -> None:
    bench = Bench()
    for vendor_id in range(1, 51):
        bench.send(vendor_id)
    if restart:
        bench.store()
        bench.start()
    bench.send(7)
    if waiting:
        bench.wait()
    bench.send(9)
    bench.send(10)
    first = ["7", "reset None-None None"] if waiting else ["reset None-None None", "7"]
    assert kinds(bench)[50:] == [*first, "sequence 8-8 1", "9", "10"]
    assert stored(bench)[50] == (7, Flag.DOUBTFUL_ID if waiting else 0)
    bench.store()
    assert (bench.heads[TRADES.name].vendor_id, bench.states[0].counts.missing) == (10, 1)


def test_kill_right_behind_the_reset_reports_what_was_lost() -> None:
    bench = Bench()
    for vendor_id in (*range(1, 51), 7, 8):
        bench.send(vendor_id)
    bench.store(51)
    bench.start()
    bench.send(9)
    assert kinds(bench)[50:] == ["reset None-None None", "disconnect 7-8 2", "9"]


def test_trade_of_a_known_id_with_other_values_is_stored_once_as_doubtful() -> None:
    bench = Bench()
    for vendor_id in range(1, 51):
        bench.send(vendor_id)
    newer = bench.recv
    for _ in range(3):
        bench.send(20, newer, price="9")
    bench.send(30, START, price="9")  # too old to begin a new sequence: not even held
    bench.send(51)
    assert stored(bench)[50:] == [(20, Flag.DOUBTFUL_ID), (30, Flag.DOUBTFUL_ID), (51, 0)]
    assert (bench.gaps(), bench.sequencer.duplicates, bench.sequencer.doubtful) == ([], 2, 2)


def test_id_that_stands_still_is_stored_each_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    with caplog.at_level(logging.WARNING):
        for price in range(500):
            bench.send(77, price=str(price))
        bench.wait()
    assert stored(bench) == [(77, 0), *[(77, int(Flag.DOUBTFUL_ID))] * 499]
    assert bench.gaps() == []
    assert [record.getMessage() for record in caplog.records] == [
        "trade:vendor:A: trade id 77 is doubtful, 78 is the next one: it is stored with the flag doubtful_id"
    ]
    assert bench.heads == {}
    bench.store()
    assert decode(b"t", bytes(bench.heads[TRADES.name].tick)) == bench.messages()[0], (
        "`last` has the sure one"
    )


def test_repeat_agrees_by_numbers_and_by_the_coarser_time() -> None:
    bench = Bench()
    at = START + 123_456_789
    for vendor_id in range(1, 6):
        bench.sequencer.accept([trade(vendor_id, at + vendor_id * MILLISECOND, bench.now(), "100.50")])
    for price, event in (
        ("100.5", at + 3 * MILLISECOND),
        ("100.50", (at + 3 * MILLISECOND) // MILLISECOND * MILLISECOND),
        ("100.500", START),
    ):
        bench.sequencer.accept([trade(3, event, bench.now(), price)])
    assert (bench.sequencer.duplicates, bench.ids()) == (3, [1, 2, 3, 4, 5])
    bench.sequencer.accept([trade(3, at + 3 * MILLISECOND + 1, bench.now(), "100.50")])
    assert bench.ids() == [1, 2, 3, 4, 5, 3]


def test_repeat_without_a_time_is_recognized_by_its_values() -> None:
    bench = Bench()
    for vendor_id in (1, 2, 3, 2, 3):
        recv = bench.now()
        bench.sequencer.accept([trade(vendor_id, recv, recv, str(vendor_id))])
    assert (bench.ids(), bench.sequencer.duplicates) == ([1, 2, 3], 2)
    bench.store()
    bench.start()
    for vendor_id in (1, 2, 3):  # of these only the newest is known: as near as a snapshot goes back
        recv = bench.now()
        bench.sequencer.accept([trade(vendor_id, recv, recv, str(vendor_id))])
    assert (bench.ids(), bench.sequencer.duplicates) == ([1, 2, 3], 3)


def test_snapshot_from_far_below_the_first_trade_is_no_reset() -> None:
    bench = Bench()
    times = {}
    for vendor_id in range(1000, 1010):
        bench.send(vendor_id)
        times[vendor_id] = bench.recv - bench.delay
    for _ in range(2):
        bench.outage()
        for vendor_id in range(910, 1010):
            bench.send(vendor_id, times.get(vendor_id, START - SECOND + vendor_id))
    bench.send(1010)
    assert bench.ids() == [*range(1000, 1010), *range(910, 1000), 1010]
    assert bench.gaps() == []
    assert {flags for vendor_id, flags in stored(bench) if vendor_id < 1000} == {Flag.LATE}


def test_repeats_of_the_ids_before_a_reset_are_dropped() -> None:
    bench = Bench()
    times = {}
    for vendor_id in (500, 501, 502, 1, 2, 3):
        bench.send(vendor_id)
        times[vendor_id] = bench.recv - bench.delay
    for vendor_id in (500, 501, 502, 1, 2, 3):
        bench.send(vendor_id, times[vendor_id])
    bench.send(4)
    assert bench.ids() == [500, 501, 502, 1, 2, 3, 4]
    assert bench.gaps() == [("RESET", None, None, None, False)]


# forgotten holes


@pytest.mark.parametrize("restart", [False, True])
def test_late_tick_of_a_forgotten_hole_is_stored_and_told(restart: bool) -> None:
    bench = Bench()
    for vendor_id in range(1, 601, 2):
        bench.send(vendor_id)
    bench.store()
    assert bench.heads[TRADES.name].forgotten == 299 - 256
    if restart:
        bench.start()
    before = bench.states[0].counts.missing
    bench.send(4, START)
    assert stored(bench)[-1] == (4, Flag.LATE)
    assert bench.gaps()[-1] == ("SEQUENCE", "4", "4", 1, True)
    assert bench.states[0].counts.missing == before - 1
    bench.send(4, START)
    assert bench.ids().count(4) == 1


def test_holes_narrow_by_ranges() -> None:
    from tickbus.protocol.codec import Hole
    from tickbus.writer.heads import holes_after

    bench = Bench()
    for vendor_id in (1, 11, 21, 31):
        bench.send(vendor_id)
    gap = next(message for message in bench.messages() if isinstance(message, Gap))
    for first, last, left in (
        (5, 7, [(2, 4), (8, 10), (12, 20), (22, 30)]),
        (2, 10, [(12, 20), (22, 30)]),
        (8, 25, [(2, 7), (26, 30)]),
        (40, 50, [(2, 10), (12, 20), (22, 30)]),
        (1, 99, []),
    ):
        for kind in (GapKind.SEQUENCE, GapKind.VOID):
            repaired = msgspec.structs.replace(
                gap, kind=kind, from_id=str(first), to_id=str(last), repaired=True
            )
            assert holes_after(bench.states[0].holes, repaired) == [Hole(*pair) for pair in left]


# the newest tick


def test_head_shows_the_newest_tick_in_the_vendors_order() -> None:
    bench = Bench()
    for vendor_id in (1, 5):
        bench.send(vendor_id, price=str(vendor_id))
    bench.send(3, START, price="3")
    bench.send(CORRUPT, price="7")
    bench.wait(0)
    bench.store()
    tick = decode(b"t", bytes(bench.heads[TRADES.name].tick))
    assert isinstance(tick, Trade) and tick.trade_id == "5"
    assert bench.heads[TRADES.name].vendor_id == 5


# any sequence


@dataclass
class Vendor:
    """A vendor's trades, and which of them were not delivered."""

    bench: Bench
    next_id: int = 10**6
    first: int = 10**6
    """Where the ids of this era begin."""
    number: int = 0
    sent: list[tuple[int, str, int]] = field(default_factory=list)
    """id, price and time of each trade delivered, in this era."""
    made: set[int] = field(default_factory=set)
    """ids of this era."""

    def deliver(self, vendor_id: int, price: str, ts_event: int) -> None:
        self.bench.send(vendor_id, ts_event, price)
        self.sent.append((vendor_id, price, ts_event))

    def fresh(self, vendor_id: int) -> None:
        self.number += 1
        self.deliver(vendor_id, str(self.number), self.bench.recv - self.bench.delay + 1)

    def wrong(self, number: int) -> int:
        """Return an id far from all others: of two that are close the second would confirm the first."""
        return 2**52 + number + (self.number * 2**33 if number % 2 else -self.number * 2**33)

    def make(self) -> int:
        self.made.add(self.next_id)
        self.next_id += 1
        return self.next_id - 1


ODD_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.integers(1, 5)),
        st.tuples(st.just("drop"), st.integers(1, 20)),
        st.tuples(st.just("repeat"), st.integers(1, 60)),
        st.tuples(st.sampled_from(["ahead", "garbled"]), st.integers(-(2**31), 2**31)),
        st.tuples(st.just("below"), st.integers(0, 200)),
        st.tuples(st.just("still"), st.integers(1, 4)),
        st.tuples(st.just("reset"), st.integers(0, 300)),
        st.tuples(st.sampled_from(["outage", "wait", "quote"]), st.just(0)),
        st.tuples(st.just("store"), st.integers(1, 12)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=40,
)


def play_odd(steps: list[tuple[str, int]], bench: Bench) -> tuple[Vendor, set[tuple[int, str, int]]]:
    """Return the vendor, and the trades that the sequencer was given and no kill lost. All are stored."""
    vendor = Vendor(bench)
    given_trades: set[tuple[int, str, int]] = set()
    for step, number in [*steps, ("tick", 3), ("wait", 0)]:
        before = len(vendor.sent)
        match step:
            case "tick":
                for _ in range(number):
                    vendor.fresh(vendor.make())
            case "drop":
                for _ in range(number):
                    vendor.make()
            case "repeat":
                for one in vendor.sent[-number:]:
                    bench.send(one[0], one[2], one[1])
            case "ahead":
                vendor.fresh(vendor.wrong(number))
            case "garbled":
                vendor.make()
                vendor.fresh(vendor.wrong(number))
            case "below" if vendor.sent:
                wrong = vendor.next_id - 1 - number
                if wrong in {one[0] for one in vendor.sent}:  # else it fills a hole that it was not in
                    vendor.fresh(wrong)
                    vendor.fresh(vendor.make())
            case "still":
                vendor_id = vendor.make()
                for _ in range(number):
                    vendor.fresh(vendor_id)
                vendor.fresh(vendor.make())
            case "reset":
                vendor.first -= number
                vendor.next_id, vendor.sent, vendor.made, before = vendor.first, [], set(), 0
                for _ in range(2):
                    vendor.fresh(vendor.make())
            case "outage":
                bench.outage()
                bench.resumed()
            case "wait":
                bench.wait()
            case "quote":
                bench.quote()
            case "store":
                bench.store(number)
            case "restart":
                kept = {values(m): m.flags for _, m in bench.stored if isinstance(m, Trade)}
                given_trades &= kept.keys()
                # a new process remembers neither doubtful trades nor those before a reset
                sure = {one for one, flags in kept.items() if not flags & Flag.DOUBTFUL_ID}
                vendor.sent = [one for one in vendor.sent if one in sure and one[0] in vendor.made]
                before = len(vendor.sent)
                bench.start()
                bench.resumed()
        given_trades |= set(vendor.sent[before:])
    bench.store()
    return vendor, given_trades


def values(message: Trade) -> tuple[int, str, int]:
    return int(message.trade_id or 0), message.price_text, message.ts_event


@settings(max_examples=250, deadline=None)
@given(ODD_STEPS)
def test_every_trade_is_stored_once_and_counters_are_dense(steps: list[tuple[str, int]]) -> None:
    bench = Bench()
    _, given_trades = play_odd(steps, bench)
    entries = [entry for entry, _ in bench.stored if entry.stream.stream == TRADES]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.ms for entry in entries] == sorted(entry.ms for entry in entries)
    found = [message for message in bench.messages() if isinstance(message, Trade)]
    assert sorted(map(values, found)) == sorted(given_trades)
    received = [message.ts_recv for message in found]
    assert received == sorted(received)


@settings(max_examples=250, deadline=None)
@given(ODD_STEPS)
def test_missing_is_the_truth_once_the_ids_go_on(steps: list[tuple[str, int]]) -> None:
    bench = Bench()
    vendor, _ = play_odd(steps, bench)
    trades, gaps = eras(bench.messages())[-1]
    there = {int(t.trade_id or 0) for t in trades if not t.flags & Flag.DOUBTFUL_ID}
    reported: set[int] = set()
    for gap in gaps:
        if gap.from_id is not None and gap.kind is not GapKind.VOID and int(gap.to_id or 0) < 2**39:
            reported = reported - span(gap) if gap.repaired else reported | span(gap)
    first = min(there & vendor.made)
    assert reported <= vendor.made - there, "no id is reported that is there, or was never made"
    assert {one for one in vendor.made if one > first} <= reported | there
    whole = [gap for _, gaps in eras(bench.messages()) for gap in gaps]
    missing = sum((gap.count or 0) * (-1 if gap.repaired else 1) for gap in whole)
    state, head = bench.states[0], bench.heads[TRADES.name]
    assert head.missing == state.counts.missing == missing < 2**39
    assert sum(hole.last - hole.first + 1 for hole in head.holes) == len(reported)
    assert head.vendor_id == vendor.next_id - 1
