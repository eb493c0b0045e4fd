"""Heads that the recovery of a spill folds from stored entries, against those that the live sender made of them."""

from dataclasses import dataclass, field

import msgspec
from gateway.sequencing.test_sequencer import QUOTES, STEPS, TRADES, Bench, play
from hypothesis import given, settings

from tickbus.protocol.codec import Head, decode, decode_head, encode
from tickbus.writer.entry import Entry
from tickbus.writer.heads import HeadBuilder, stored_event


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
                self.heads[state.name] = decode_head(self.builders[state].pack())
        self._note()
        return restored

    def store(self, most: int = 1 << 30) -> None:
        super().store(most)
        self._note()

    def _note(self) -> None:
        self.points.append(
            Point(
                self.epoch, len(self.stored), dict(self.heads), {entry.stream.name for entry in self.waiting}
            )
        )


def folded(head: Head, entries: list[Entry], epoch: int) -> Head:
    """As the recovery of a spill makes it: from the stored head and the entries behind it."""
    builder = HeadBuilder(head)
    if not head.epochs or head.epochs[-1][0] != epoch:
        builder.ts_event = stored_event(head, entries[0].stream.stream.kind)
    builder.begin(epoch)
    for entry in entries:
        builder.add(entry, decode(entry.field, entry.payload))
    assert encode(builder.build()) == builder.pack()
    # as it comes back from Redis
    return decode_head(builder.pack())


def compare(bench: Witness) -> None:
    """From every head that was ever stored, over what was stored in that life behind it."""
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
                found = folded(base.heads[name], entries, point.epoch)
                assert found.ts_event == head.ts_event or (
                    name in point.waiting and found.ts_event < head.ts_event
                )
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
        if entries := [
            entry for entry, _ in bench.stored[done : point.stored] if entry.stream.stream == TRADES
        ]:
            head = folded(head, entries, point.epoch)
        done = point.stored
        assert head == point.heads[TRADES.name]
