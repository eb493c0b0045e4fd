"""Stamps and order of what one read from the socket becomes, on a clock that moves each time it is read."""

import logging
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vendors.examples import KEEPALIVES, TOLERANCE, feed

from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.upstream.intake import Intake
from services.vendors.feed import Rejected, Unknown, oldest_first
from services.vendors.json.options import Ids, JsonOptions
from tickbus.clock import BusClock
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Flag, Gap, GapKind, Quote, Trade
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
    ids: Ids = "none"

    def __post_init__(self) -> None:
        self.feed = feed("json", options=JsonOptions(json_ids=self.ids))
        self.mapper = self.feed.mapper(TOLERANCE)
        states = [
            StreamState(Keys(), Stream(kind, "json", symbol), self.feed.sequenced and kind == "trade")
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

    def messages(self) -> list[Any]:
        return [decode(entry.field, entry.payload) for entry in self.stored()]

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


# frames without ticks


@pytest.mark.parametrize("frame", KEEPALIVES)
def test_keepalive_is_no_hole(frame: str) -> None:
    bench = Bench()
    assert bench.take(TRADE, frame.encode(), frame.encode(), TRADE) == []
    assert bench.gaps() == []
    assert (bench.intake.ignored, bench.intake.unknown, bench.intake.rejected) == (2, 0, {})


def test_unknown_frames_are_counted_and_the_first_of_each_shape_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    notices = bench.take(*[b'{"market":"half a day","n":%d}' % n for n in range(9)], b"[1,2]", TRADE)
    assert [type(notice) for notice in notices] == [Unknown] * 10
    assert (bench.intake.unknown, bench.intake.ignored, bench.gaps()) == (10, 0, [])
    lines = [line for line in caplog.messages if line.startswith("unknown")]
    assert lines[0] == 'unknown frame, 29 bytes, like {market,n}: {"market":"half a day","n":0}'
    assert lines[4].endswith('"n":4}; further ones are only counted')
    assert lines[5:] == ["unknown frame, 5 bytes, like list: [1,2]"]


def test_unknown_frame_is_logged_in_part_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    Bench().take(b'{"a":"\x1b[2J\n' + b"x" * 5000 + b'"}')
    Bench().take(b'{"a\\u001b[2J":"' + b"x" * 5000 + b'"}')
    rejected, unknown = (record.getMessage() for record in caplog.records)
    assert rejected.startswith("rejected (garbage)") and rejected.isprintable()
    assert unknown.startswith("unknown frame, 5017 bytes, like {a\\x1b[2J}: ")
    assert unknown.isprintable() and len(unknown) < 200


def test_number_of_logged_lines_is_bounded_whatever_comes(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.take(
        *[b'{"k%d":1}' % n for n in range(500)], *[b'{"type":"error","msg":"%d"}' % n for n in range(500)]
    )
    assert bench.intake.unknown == bench.intake.vendor_errors == 500
    assert len(caplog.records) <= 64 + 2 * 5


def test_error_of_the_vendor_is_a_warning_with_its_words(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    assert (
        bench.take(TRADE, b'{"type":"error","message":"unknown symbol\\u001b[1m XX","code":17}', TRADE) == []
    )
    (record,) = (record for record in caplog.records if "bad_time" not in record.getMessage())
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "the vendor reports an error: type: error, message: unknown symbol\\x1b[1m XX, code: 17"
    )
    assert (bench.intake.vendor_errors, bench.intake.ignored, bench.gaps()) == (1, 0, [])


# times, ids, order


def test_bad_times_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.take(TRADE, TWO, TRADE.replace(b"}]", b',"time":5}]'))
    trades = [message for message in bench.messages() if isinstance(message, Trade)]
    assert [(trade.ts_event == trade.ts_recv, trade.flags) for trade in trades] == [(True, Flag.BAD_TIME)] * 4
    assert bench.intake.bad_times == 4
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "ticks without a plausible time: ts_event is ts_recv, flagged bad_time"
    )


def test_repeats_by_unique_ids_are_counted_as_duplicates() -> None:
    bench = Bench(ids="unique")
    once = b'{"trades":[{"symbol":"AAPL","price":1,"volume":2,"time":1723210200,"id":"a"}]}'
    bench.take(once, once)
    bench.mapper = bench.feed.mapper(TOLERANCE)  # the next connection
    bench.take(once, once.replace(b":1,", b":3,"))
    trades = [message for message in bench.messages() if isinstance(message, Trade)]
    assert [(trade.price_text, trade.flags) for trade in trades] == [("1", 0), ("3", Flag.DOUBTFUL_ID)]
    assert bench.intake.duplicates == 2


def numbered(*items: tuple[str, int, int | None]) -> bytes:
    """Return a frame of trades: (symbol, id, time in s)."""
    texts = (
        f'{{"symbol":"{symbol}","price":"{id}","volume":1,"id":{id},"time":{time or 0}}}'
        for symbol, id, time in items
    )
    return b'{"trades":[' + ",".join(texts).encode() + b"]}"


AT = 1_723_210_200


@pytest.mark.parametrize("second", [AT, 0])
def test_frame_that_lists_newest_first_is_put_right(second: int) -> None:
    bench = Bench(ids="sequential")
    bench.take(numbered(("AAPL", 1, AT)))
    bench.take(
        numbered(
            ("AAPL", 4, second), ("MSFT", 10, AT), ("AAPL", 3, second), ("MSFT", 11, AT), ("AAPL", 2, AT)
        )
    )
    messages = bench.messages()
    assert all(isinstance(message, Trade) for message in messages)
    assert [(trade.symbol, trade.trade_id) for trade in messages] == [
        ("AAPL", "1"), ("AAPL", "2"), ("MSFT", "10"), ("AAPL", "3"), ("MSFT", "11"), ("AAPL", "4"),
    ]  # fmt: skip
    stamps = [trade.ts_recv for trade in messages]
    assert stamps == sorted(set(stamps))
    assert all(trade.ts_event == (trade.ts_recv if trade.flags else AT * 10**9) for trade in messages)


@pytest.mark.parametrize(
    "items",
    [
        (("AAPL", 100, AT), ("AAPL", 1, AT + 1)),  # a reset: its times go on
        (("AAPL", 5, AT), ("AAPL", 6, AT), ("AAPL", 3, AT)),  # a repeat behind new ones
        (("AAPL", 5, AT), ("AAPL", 5, AT)),
        (("AAPL", 5, AT), ("MSFT", 4, AT)),
    ],
)
def test_other_frames_keep_their_order(items: tuple[tuple[str, int, int], ...]) -> None:
    ticks = (
        feed("json", options=JsonOptions(json_ids="sequential"))
        .mapper(TOLERANCE)
        .map(numbered(*items), START)
    )
    assert oldest_first(ticks) == list(ticks)


@given(
    st.lists(
        st.tuples(st.sampled_from(["AAPL", "MSFT"]), st.integers(1, 9), st.integers(AT, AT + 3)), max_size=8
    )
)
def test_order_of_a_frame_never_changes_which_ticks_it_has(items: list[tuple[str, int, int]]) -> None:
    ticks = (
        feed("json", options=JsonOptions(json_ids="sequential"))
        .mapper(TOLERANCE)
        .map(numbered(*items), START)
    )
    ordered = oldest_first(ticks)
    assert [tick.ts_recv for tick, _ in ordered] == [START + at for at in range(len(items))]
    assert sorted((tick.symbol, id, tick.ts_event) for tick, id in ordered) == sorted(
        (tick.symbol, id, tick.ts_event) for tick, id in ticks
    )
