"""One hole, one Gap, in streams without vendor ids: docs/decisions/0015-outages.md."""

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.vendors.feed import NO_ID
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap, GapKind, Message, Quote
from tickbus.protocol.names import Keys, Stream
from tickbus.units import SECOND
from tickbus.writer.entry import Entry

START = 1_800_000_000 * SECOND


@dataclass
class Feed:
    """Quotes of A and B, received as they are made, at times in seconds."""

    entries: list[Entry] = field(default_factory=list)
    now: int = START

    def __post_init__(self) -> None:
        streams = [StreamState(Keys(), Stream("quote", "vendor", symbol), False) for symbol in "AB"]
        self.sequencer = Sequencer(streams, self.entries.append)
        self.last_tick = 0

    def at(self, seconds: float) -> "Feed":
        self.now = START + int(seconds * SECOND)
        return self

    def tick(self, symbol: str) -> None:
        self.last_tick = self.now
        self.sequencer.accept([(Quote(symbol, "1", "1", "2", "1", self.now, self.now), NO_ID)])

    def silent(self) -> None:
        """The connection is left for its silence."""
        self.sequencer.outage(GapKind.STALE, self.last_tick or self.now)

    def closed(self) -> None:
        self.sequencer.outage(GapKind.DISCONNECT, self.now)

    def resumed(self) -> None:
        self.sequencer.resumed(self.now)

    def held(self) -> None:
        self.sequencer.lasted(self.now)

    def finish(self) -> None:
        self.sequencer.finish(self.now)

    def messages(self, symbol: str) -> list[Message]:
        return [decode(one.field, one.payload) for one in self.entries if one.stream.stream.symbol == symbol]

    def gaps(self, symbol: str) -> list[tuple[str, float, float]]:
        return [
            (gap.kind.name, (gap.from_ts - START) / SECOND, (gap.to_ts - START) / SECOND)
            for gap in self.messages(symbol)
            if isinstance(gap, Gap)
        ]


def test_rest_of_the_market_is_one_gap_up_to_the_connection_that_ticked() -> None:
    feed = Feed()
    feed.at(0).tick("A")
    for second in (60, 120, 180):
        feed.at(second).silent()
        feed.at(second + 1).resumed()
        feed.at(second + 6).held()
    assert feed.gaps("A") == feed.gaps("B") == []
    feed.at(200).tick("A")
    assert feed.gaps("A") == feed.gaps("B") == [("STALE", 0, 181)]
    assert [type(message).__name__ for message in feed.messages("A")] == ["Quote", "Gap", "Quote"]


def test_connections_accepted_and_closed_are_one_gap() -> None:
    feed = Feed()
    feed.at(0).tick("A")
    for second in (1, 2, 3):
        feed.at(second).closed()
        feed.at(second + 0.5).resumed()
    feed.at(5).tick("B")
    assert feed.gaps("A") == feed.gaps("B") == [("DISCONNECT", 1, 3.5)]


def test_disconnect_is_reported_without_a_tick_once_the_connection_holds() -> None:
    feed = Feed()
    feed.at(0).tick("A")
    feed.at(1).closed()
    feed.at(2).resumed()
    assert feed.gaps("A") == []
    feed.at(7).held()
    assert feed.gaps("A") == feed.gaps("B") == [("DISCONNECT", 1, 2)]
    # what is missing later, with no tick in between, is one more Gap at most, and begins where that one ends
    feed.at(62).silent()
    feed.at(63).resumed()
    feed.at(68).held()
    feed.at(100).closed()
    feed.at(101).resumed()
    feed.at(106).held()
    assert len(feed.gaps("A")) == 1
    feed.at(110).tick("A")
    assert feed.gaps("A") == feed.gaps("B") == [("DISCONNECT", 1, 2), ("STALE", 2, 101)]
    feed.at(111).closed()
    feed.at(112).resumed()
    feed.at(117).held()
    assert feed.gaps("B")[2:] == [("DISCONNECT", 111, 112)]


def test_feed_that_never_ticked_has_no_hole() -> None:
    feed = Feed()
    for second in (1, 2, 3):
        feed.at(second).resumed()
        feed.silent()
        feed.closed()
        feed.resumed()
        feed.held()
    feed.at(4).tick("A")
    feed.finish()
    assert feed.gaps("A") == feed.gaps("B") == []


def test_tick_before_the_acknowledgement_ends_the_hole_of_its_stream() -> None:
    feed = Feed()
    feed.at(0).tick("A")
    feed.at(1).closed()
    feed.at(3).tick("A")
    assert feed.gaps("A") == [("DISCONNECT", 1, 3)]
    assert feed.gaps("B") == []
    feed.at(4).resumed()
    feed.at(5).tick("A")
    assert feed.gaps("B") == [("DISCONNECT", 1, 4)]
    assert len(feed.gaps("A")) == 1


def test_hole_that_no_tick_ended_is_reported_at_the_stop() -> None:
    feed = Feed()
    feed.at(0).tick("A")
    feed.at(60).silent()
    feed.at(61).resumed()
    feed.at(100).finish()
    assert feed.gaps("A") == feed.gaps("B") == [("STALE", 0, 100)]


STEPS = st.lists(st.sampled_from(["A", "B", "silent", "closed", "resumed", "held"]), min_size=1, max_size=60)


@given(STEPS)
def test_gaps_never_overlap_and_are_at_most_two_between_ticks(steps: list[str]) -> None:
    feed = Feed()
    ticks = 0
    for second, step in enumerate(steps):
        feed.at(second)
        if step in "AB":
            feed.tick(step)
            ticks += 1
        else:
            getattr(feed, step)()
    for symbol in "AB":
        gaps = feed.gaps(symbol)
        assert all(before[2] <= after[1] for before, after in pairwise(gaps))
        assert len(gaps) <= 2 * ticks
        assert all(start <= end for _, start, end in gaps)
