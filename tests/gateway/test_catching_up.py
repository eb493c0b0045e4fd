"""Heads that are folded from entries, against the heads that the live sequencer gives for the same entries."""

from dataclasses import dataclass, field

import msgspec
import pytest
from gateway.test_sequencer import QUOTES, STEPS, TRADES, Bench, play
from hypothesis import given, settings
from msgspec.structs import replace

from services.gateway.catching_up import advance
from tickbus.errors import WireError
from tickbus.messages import Gap, Trade
from tickbus.streams import Entry
from tickbus.wire import Head, Hole, decode_head, encode


@dataclass
class Point:
    """What Redis holds after a transaction, or after a start."""

    epoch: int
    stored: int
    heads: dict[str, Head]
    waiting: set[str]
    """Streams of which entries are held behind it."""


@dataclass
class Witness(Bench):
    points: list[Point] = field(default_factory=list)

    def start(self) -> int:
        restored = super().start()
        for state in self.states:
            if state.name not in self.heads:
                self.heads[state.name] = decode_head(state.first_head(self.recv))
        self._note()
        return restored

    def store(self, most: int = 1 << 30) -> None:
        super().store(most)
        self._note()

    def _note(self) -> None:
        self.points.append(Point(self.epoch, len(self.stored), dict(self.heads), {entry.stream.name for entry in self.waiting}))


def folded(head: Head, entries: list[Entry], epoch: int) -> Head:
    at_once = advance(head, entries, epoch)
    for entry in entries:
        head = advance(head, (entry,), epoch)
    assert encode(head) == encode(at_once)
    # as it comes back from Redis
    return decode_head(encode(head))


def compare(bench: Witness) -> None:
    """From every head that was ever stored, over what was stored in that life behind it."""
    for at, base in enumerate(bench.points):
        for point in bench.points[at + 1 :]:
            if point.epoch != base.epoch:
                break
            for name, head in point.heads.items():
                entries = [entry for entry, _ in bench.stored[base.stored : point.stored] if entry.stream.name == name]
                if not entries:
                    continue
                found = folded(base.heads[name], entries, point.epoch)
                assert found.ts_event == head.ts_event or (name in point.waiting and found.ts_event < head.ts_event)
                assert msgspec.structs.replace(found, ts_event=0) == msgspec.structs.replace(head, ts_event=0)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_fold_is_what_the_live_gateway_writes(steps: list[tuple[str, int]]) -> None:
    bench = Witness()
    play(steps, bench)
    compare(bench)


def test_more_holes_and_more_lives_than_a_head_remembers() -> None:
    bench = Witness()
    for life in range(20):
        for hole in range(5):
            bench.send(10_000 + life * 100 + hole * 10)
            bench.store()
        bench.start()
    for vendor_id in (11_945, 11_942, 11_944, 11_932):
        bench.send(vendor_id)
        bench.store()
    bench.quote()
    bench.store()
    compare(bench)
    head = bench.heads[TRADES.name]
    assert (len(head.epochs), len(head.holes)) == (16, 66)
    assert len(bench.heads[QUOTES.name].epochs) == 2


def test_heads_from_the_very_first_to_the_last_over_all_lives() -> None:
    bench = Witness()
    for _ in range(3):
        for vendor_id in (5, 9, 7, 12):
            bench.send(vendor_id + 100 * bench.epoch)
            bench.quote()
        bench.outage()
        bench.resumed()
        bench.store()
        bench.start()
    head = bench.points[0].heads[TRADES.name]
    done = 0
    for point in bench.points[1:]:
        if entries := [entry for entry, _ in bench.stored[done : point.stored] if entry.stream.stream == TRADES]:
            head = folded(head, entries, point.epoch)
        done = point.stored
        assert head == point.heads[TRADES.name]


@pytest.mark.parametrize("trade_id", ["7", "x7", None])
def test_a_late_tick_without_a_number_narrows_its_hole_at_the_gap(trade_id: str | None) -> None:
    bench = Witness()
    for vendor_id in (5, 9, 7):
        bench.send(vendor_id)
    (*first, late, repair) = bench.waiting
    tick = msgspec.msgpack.decode(late.payload, type=Trade)
    late = replace(late, payload=encode(replace(tick, trade_id=trade_id)))
    assert msgspec.msgpack.decode(repair.payload, type=Gap).repaired
    head = folded(bench.points[0].heads[TRADES.name], [*first, late], 1)
    assert head.holes == ([Hole(6, 6), Hole(8, 8)] if trade_id == "7" else [Hole(6, 8)])
    assert folded(head, [repair], 1).holes == [Hole(6, 6), Hole(8, 8)]


def test_a_payload_that_is_no_message() -> None:
    bench = Witness()
    bench.send(5)
    entry = bench.waiting[0]
    with pytest.raises(WireError):
        advance(bench.points[0].heads[TRADES.name], (replace(entry, payload=b"\x93"),), 1)
