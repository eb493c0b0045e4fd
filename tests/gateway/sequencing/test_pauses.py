"""A stream whose subscription ends and begins again: two Gaps of kind `unsubscribed`, nothing that counts as
missing. docs/subscriptions.md."""

from gateway.sequencing.test_outages import START, Feed
from gateway.sequencing.test_sequencer import QUOTES, TRADES, Bench
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.sequencing.stream_state import StreamState
from tickbus.protocol.messages import Gap, GapKind, Trade
from tickbus.protocol.wants import Topic
from tickbus.units import SECOND
from tickbus.writer.entry import Entry

TRADE, QUOTE = Topic("trade", "A"), Topic("quote", "A")


class Pausing(Bench):
    """A bench whose streams can be dropped and added again, as they were left or from their heads."""

    dropped: StreamState | None = None

    def drop(self, topic: Topic = TRADE) -> None:
        self.sequencer.measure_latency()
        self.dropped = self.sequencer.drop(topic, self.now())
        assert self.dropped is not None

    def add(self) -> None:
        assert self.dropped is not None
        self.sequencer.add(self.dropped)
        self.sequencer.resumed(self.now(), [Topic(self.dropped.stream.kind, "A")])


def test_pause_is_told_at_its_end_by_the_ids_that_it_missed() -> None:
    bench = Pausing()
    bench.send(5)
    bench.drop()
    bench.add()
    bench.send(9)
    bench.store()
    assert bench.gaps() == [
        ("UNSUBSCRIBED", None, None, None, False),
        ("UNSUBSCRIBED", "6", "8", None, False),
    ]
    head = bench.heads[TRADES.name]
    assert (head.gaps, head.missing, head.holes) == ({"unsubscribed": 2}, 0, [])


def test_pause_that_missed_nothing_is_told_once() -> None:
    bench = Pausing()
    bench.send(5)
    bench.drop()
    bench.add()
    bench.send(6)
    assert bench.gaps() == [("UNSUBSCRIBED", None, None, None, False)]
    assert bench.ids() == [5, 6]


def test_what_comes_after_the_drop_is_ignored_and_counted() -> None:
    bench = Pausing()
    bench.send(5)
    bench.drop()
    bench.send(6)
    assert (bench.ids(), bench.sequencer.unwanted) == ([5], 1)


def test_first_subscription_ever_has_no_gap_even_if_it_ends_before_a_tick() -> None:
    bench = Pausing()
    bench.drop()
    bench.add()
    bench.send(5)
    assert bench.gaps() == []


def test_stream_that_ends_again_before_it_ticked_is_not_ended_twice() -> None:
    bench = Pausing()
    bench.send(5)
    bench.drop()
    bench.add()
    bench.drop()
    bench.add()
    bench.send(9)
    assert bench.gaps() == [
        ("UNSUBSCRIBED", None, None, None, False),
        ("UNSUBSCRIBED", "6", "8", None, False),
    ]


def test_held_trade_is_stored_before_the_stream_ends() -> None:
    bench = Pausing()
    bench.send(5)
    bench.send(1 << 52)
    bench.drop()
    assert bench.ids() == [5, 1 << 52]
    assert [gap[0] for gap in bench.gaps()] == ["SEQUENCE", "UNSUBSCRIBED"]


def test_open_outage_keeps_its_kind_and_an_outage_of_the_pause_adds_nothing() -> None:
    bench = Pausing()
    bench.send(5)
    bench.outage()
    bench.drop()
    bench.outage()
    bench.resumed()
    bench.add()
    bench.send(9)
    assert bench.gaps() == [
        ("DISCONNECT", None, None, None, False),
        ("UNSUBSCRIBED", None, None, None, False),
        ("UNSUBSCRIBED", "6", "8", None, False),
    ]


def test_successor_goes_on_with_the_kind_of_the_pause() -> None:
    bench = Pausing()
    bench.send(5)
    bench.drop()
    bench.store()
    bench.start()
    state = bench.states[0]
    state.end(bench.heads[TRADES.name].ts_recv)  # as the gateway does for a stream that ends so
    bench.resumed()
    bench.send(8)
    assert bench.gaps()[1:] == [("UNSUBSCRIBED", "6", "7", None, False)]


def test_without_ids_the_pause_ends_with_the_acknowledgement() -> None:
    bench = Pausing()
    bench.quote()
    bench.drop(QUOTE)
    bench.recv += 10 * SECOND
    bench.add()
    acknowledged = bench.recv
    bench.recv += 10 * SECOND
    bench.quote()
    first, second = [message for message in bench.messages(QUOTES) if isinstance(message, Gap)]
    assert (first.kind, second.kind) == (GapKind.UNSUBSCRIBED, GapKind.UNSUBSCRIBED)
    assert first.from_ts == first.to_ts <= second.from_ts
    assert second.to_ts == acknowledged - bench.delay
    assert second.to_ts - second.from_ts >= 10 * SECOND


def test_pause_of_one_symbol_leaves_the_others_alone() -> None:
    feed = Feed()
    for symbol in "AB":
        feed.at(0).tick(symbol)
    feed.sequencer.drop(QUOTE, START + SECOND)
    for second in range(2, 6):
        feed.at(second).tick("B")
    assert feed.gaps("B") == []


@given(
    steps=st.lists(
        st.sampled_from(["tick", "tick", "skip", "drop", "add", "outage", "resumed", "restart"]), max_size=40
    )
)
def test_counters_stay_dense_and_every_missing_id_is_told_once(steps: list[str]) -> None:
    bench = Pausing()
    vendor_id, delivered, on = 1, [], True
    for step in steps:
        if step == "skip":
            vendor_id += 3
        elif step == "tick":
            vendor_id += 1
            bench.send(vendor_id)
            if on:
                delivered.append(vendor_id)
        elif step == "drop" and on:
            bench.drop()
            on = False
        elif step == "add" and not on:
            bench.add()
            on = True
        elif step == "outage":
            bench.outage()
        elif step == "resumed":
            bench.resumed()
        elif step == "restart" and on:
            bench.store()
            bench.start()
    bench.store()
    entries: list[Entry] = [entry for entry, _ in bench.stored if entry.stream.stream == TRADES]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert bench.ids() == delivered
    told = [
        number
        for gap in bench.messages()
        if isinstance(gap, Gap) and gap.from_id is not None and gap.to_id is not None
        for number in range(int(gap.from_id), int(gap.to_id) + 1)
    ]
    missing = set(range(delivered[0], delivered[-1])) - set(delivered) if delivered else set()
    assert (len(told), set(told)) == (len(set(told)), missing)
    first = next((message for message in bench.messages()), None)
    assert first is None or isinstance(first, Trade)
