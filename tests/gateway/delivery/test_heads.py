"""Heads that spill recovery folds from stored entries, against those built by the live sender."""

from dataclasses import dataclass, field

import msgspec
from gateway.sequencing.test_sequencer import QUOTES, STEPS, TRADES, Bench, play
from gateway.sequencing.test_suspects import ODD_STEPS, play_odd
from hypothesis import given, settings

from tickbus.protocol.codec import Head, decode, decode_head, encode
from tickbus.writer.entry import Entry
from tickbus.writer.heads import HeadBuilder, stored_event


@dataclass
class Point:
    """What Redis contains after a transaction, or after a start."""

    epoch: int
    stored: int
    heads: dict[str, Head]
    waiting: set[str]
    """Streams with entries still waiting behind it."""


@dataclass
class RecordingBench(Bench):
    points: list[Point] = field(default_factory=list)

    def start(self) -> int:
        restored = super().start()
        for state in self.states:
            if state.name not in self.heads:
                self.heads[state.name] = decode_head(self.builders[state].pack())
        self._note()
        return restored

    def store(self, limit: int = 1 << 30) -> None:
        super().store(limit)
        self._note()

    def _note(self) -> None:
        self.points.append(
            Point(
                self.epoch, len(self.stored), dict(self.heads), {entry.stream.name for entry in self.waiting}
            )
        )


def fold(head: Head, entries: list[Entry], epoch: int) -> Head:
    """Return the head as spill recovery makes it: from the stored head and the entries behind it."""
    builder = HeadBuilder(head)
    if not head.epochs or head.epochs[-1][0] != epoch:
        builder.ts_event = stored_event(head, entries[0].stream.stream.kind)
    builder.begin(epoch)
    for entry in entries:
        builder.add(entry, decode(entry.field, entry.payload))
    assert encode(builder.build()) == builder.pack()
    # as it comes back from Redis
    return decode_head(builder.pack())


def compare(bench: RecordingBench) -> None:
    """Fold from every head ever stored, over the entries stored behind it in the same epoch."""
    for at, base in enumerate(bench.points):
        for point in bench.points[at + 1 :]:
            if point.epoch != base.epoch:
                break
            for name, head in point.heads.items():
                entries = [
                    entry
                    for entry, _ in bench.stored[base.stored : point.stored]
                    if entry.stream.name == name
                ]
                if not entries:
                    continue
                found = fold(base.heads[name], entries, point.epoch)
                assert found.ts_event == head.ts_event or (
                    name in point.waiting and found.ts_event < head.ts_event
                )
                # entries do not say when the vendor acknowledged the subscription
                assert found.subscribed in (head.subscribed, base.heads[name].subscribed)
                assert found.peak <= head.peak
                found = msgspec.structs.replace(found, ts_event=0, subscribed=head.subscribed, peak=0)
                assert found == msgspec.structs.replace(head, ts_event=0, peak=0)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_folded_heads_equal_live_heads(steps: list[tuple[str, int]]) -> None:
    bench = RecordingBench()
    play(steps, bench)
    compare(bench)


def test_folded_heads_equal_live_heads_beyond_remembered_holes_and_epochs() -> None:
    bench = RecordingBench()
    for life in range(20):
        for hole in range(15):
            bench.send(10_000 + life * 200 + hole * 10)
            bench.store()
        bench.start()
    for vendor_id in (13_945, 13_942, 13_944, 13_932):
        bench.send(vendor_id)
        bench.store()
    bench.quote()
    bench.store()
    compare(bench)
    head = bench.heads[TRADES.name]
    assert (len(head.epochs), len(head.holes), head.forgotten) == (16, 256, 46)
    assert len(bench.heads[QUOTES.name].epochs) == 2


def test_folded_heads_equal_live_heads_across_all_restarts() -> None:
    bench = RecordingBench()
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
        if entries := [
            entry for entry, _ in bench.stored[done : point.stored] if entry.stream.stream == TRADES
        ]:
            head = fold(head, entries, point.epoch)
        done = point.stored
        assert head == point.heads[TRADES.name]


@settings(max_examples=200, deadline=None)
@given(ODD_STEPS)
def test_folded_heads_equal_live_heads_when_ids_are_odd(steps: list[tuple[str, int]]) -> None:
    bench = RecordingBench()
    play_odd(steps, bench)
    compare(bench)
