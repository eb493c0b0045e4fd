"""Stamps and order of what one read from the socket becomes, on a clock that moves each time it is read."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from vendors.examples import TOLERANCE, feed

from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.upstream.intake import Intake
from services.vendors.feed import Rejected
from tickbus.clock import BusClock
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap, GapKind, Quote, Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.writer.entry import Entry

START = 1_800_000_000_000_000_000


class Clock(BusClock):
    """Advances by the test's steps each time it is read."""

    def __init__(self, steps: list[int]) -> None:
        super().__init__()
        self._steps = steps
        self._now = START
        self._at = 0

    def now_ns(self) -> int:
        self._now += self._steps[self._at % len(self._steps)]
        self._at += 1
        return self._now


@dataclass
class Bench:
    """An intake for the json feed, with all of its output."""

    steps: list[int] = field(default_factory=lambda: [1000])
    max_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        self.feed = feed("json")
        self.mapper = self.feed.mapper(TOLERANCE)
        states = [
            StreamState(Keys(), Stream(kind, "json", symbol), False)
            for symbol in ("AAPL", "MSFT")
            for kind in ("trade", "quote")
        ]
        self.backlog = Backlog(self.max_bytes)
        self.intake = Intake(Clock(self.steps), Sequencer(states, self.backlog.put), self.backlog)
        self.entries: list[Entry] = []

    def take(self, *frames: bytes) -> list[Any]:
        return self.intake.take(self.mapper, frames)

    def stored(self) -> list[Entry]:
        self.entries += self.backlog.take(1 << 30)
        self.backlog.release()
        return self.entries

    def gaps(self) -> list[tuple[str, str, int | None]]:
        found = [decode(entry.field, entry.payload) for entry in self.stored()]
        return [(gap.symbol, gap.kind.name, gap.count) for gap in found if isinstance(gap, Gap)]


TRADE = b'{"trades":[{"symbol":"AAPL","price":1,"volume":2}]}'
TWO = b'{"trades":[{"symbol":"AAPL","price":1,"volume":2},{"symbol":"MSFT","price":1,"volume":2}]}'
QUOTE = b'{"quotes":[{"symbol":"AAPL","bid":1,"ask":2}]}'
BAD = b'{"trades":[{"symbol":"AAPL","price":"x","volume":2}]}'
HALF = b'{"trades":[{"symbol":"AAPL","price":"x","volume":2},{"symbol":"AAPL","price":1,"volume":2}]}'
GARBAGE = b"{garbage"
HELLO = b'{"status":"hello"}'

READS = st.lists(
    st.lists(st.sampled_from([TRADE, TWO, QUOTE, BAD, HALF, GARBAGE, HELLO]), min_size=1, max_size=8),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(READS, st.lists(st.sampled_from([0, 1, 1000, 999_999, 3_000_000]), min_size=1, max_size=5), st.data())
def test_ids_never_decrease_and_receive_times_increase(
    reads: list[list[bytes]], steps: list[int], data: st.DataObject
) -> None:
    bench = Bench(steps)
    for frames in reads:
        match data.draw(st.sampled_from(["", "", "outage", "oversize"])):
            case "outage":
                bench.intake.outage(GapKind.DISCONNECT, bench.intake.last_frame or bench.intake.stamp())
                bench.intake.resumed()
            case "oversize":
                bench.intake.reject(Rejected("oversize", "a frame"))
        bench.take(*frames)
    entries = bench.stored()
    by_stream: dict[str, list[tuple[int, int]]] = {}
    for entry in entries:
        by_stream.setdefault(entry.stream.name, []).append((entry.ms, entry.seq))
    for ids in by_stream.values():
        assert ids == sorted(ids)
        assert [seq for _, seq in ids] == list(range(1, len(ids) + 1))
    ticks = [
        tick for entry in entries if isinstance(tick := decode(entry.field, entry.payload), Trade | Quote)
    ]
    stamps = [tick.ts_recv for tick in ticks]
    assert all(before < after for before, after in pairwise(stamps))
    assert all(entry.ms == entry.recv // 1_000_000 for entry in entries)


def test_take_counts_frames_and_returns_notices() -> None:
    bench = Bench()
    assert bench.take(TRADE, HELLO, GARBAGE) == []
    (refused,) = bench.take(b'{"error":"slow down"}')
    assert "slow down" in refused.text
    intake = bench.intake
    assert (intake.frames, intake.ignored, dict(intake.rejected)) == (4, 1, {"garbage": 1})
    assert intake.last_tick < intake.last_frame


def test_heartbeat_is_not_a_tick() -> None:
    bench = Bench()
    bench.take(TRADE)
    before = bench.intake.last_tick
    bench.take(HELLO)
    assert bench.intake.last_tick == before < bench.intake.last_frame


def test_overflowing_ticks_are_counted_and_reported_once_there_is_room() -> None:
    bench = Bench(max_bytes=3000)
    for _ in range(40):
        bench.take(TWO)
    buffered = len(bench.backlog)
    assert 0 < buffered < 80
    lost = 80 - buffered
    bench.stored()
    bench.take(TWO)
    assert bench.gaps() == [("AAPL", "OVERFLOW", lost // 2), ("MSFT", "OVERFLOW", lost // 2)]
    *_, last, after = bench.stored()
    assert [decode(entry.field, entry.payload).symbol for entry in (last, after)] == ["AAPL", "MSFT"]
    assert bench.backlog.bytes == 0


def test_rejects_are_reported_at_their_place_in_the_frame() -> None:
    bench = Bench()
    ticks = [
        ("AAPL", 1), ("AAPL", "x"), ("MSFT", 1), ("AAPL", 1),
        ("XXXX", 1), ("MSFT", "y"), ("MSFT", 1), ("AAPL", "z"),
    ]  # fmt: skip
    items = [
        f'{{"symbol":"{symbol}","price":"{price}","volume":{size}}}'
        for size, (symbol, price) in enumerate(ticks, 1)
    ]
    bench.take(b'{"trades":[' + ",".join(items).encode() + b"]}")
    messages = [decode(entry.field, entry.payload) for entry in bench.stored()]
    reported = [
        message.kind.name if isinstance(message, Gap) else message.size_text
        for message in messages
        if isinstance(message, Gap | Trade)
    ]
    assert reported == ["1", "REJECTED", "3", "4", "REJECTED", "7", "REJECTED"]
    assert [message.symbol for message in messages if isinstance(message, Gap)] == ["AAPL", "MSFT", "AAPL"]
    assert bench.intake.rejected == {"field": 3, "unknown_symbol": 1}


def test_garbage_leaves_one_gap_per_stream_at_next_tick() -> None:
    bench = Bench()
    bench.take(TRADE, GARBAGE, GARBAGE, TRADE, TRADE)
    assert sorted(bench.gaps()) == [("AAPL", "REJECTED", None)] * 2 + [("MSFT", "REJECTED", None)] * 2
