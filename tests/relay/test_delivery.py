"""Policies on sockets that never drain, without a network: what a slow client costs, and what it gets."""

import gc
import json
import tracemalloc
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import hiredis
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.conflation import Entry, Interval, Recent, TradeSummary, merged
from services.relay.delivery import (
    KERNEL_BYTES,
    Channel,
    Client,
    ConflatingSubscription,
    DroppingSubscription,
    Grid,
    Group,
    Subscription,
    look_up_takers,
)
from services.relay.followed import FollowedStream
from services.relay.selection import Scope, Selection, Symbols
from services.relay.styles import JSON, MSGPACK, NativeStyle, News
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, Quote, Side, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId

STREAM = Stream("trade", "binance", "BTC-USDT")
SELECTION = Selection("trade", Symbols(), frozenset(), frozenset(), Scope())


class FakeSink:
    """Takes everything; hands it to the kernel only when told."""

    def __init__(self) -> None:
        self.stalled = False
        self.buffered = 0
        self.writes: list[bytes] = []
        self.operations = 0
        self.closed: tuple[int, str] | None = None

    def write(self, data: bytes) -> None:
        self.operations += 1
        self.writes.append(data)
        if self.stalled:
            self.buffered += len(data)

    def ping(self, payload: bytes) -> None: ...

    async def writable(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed = code, reason

    def messages(self) -> list[Any]:
        """Return what was written, decoded frame by frame."""
        data, found = b"".join(self.writes), []
        while data:
            first, length, start = data[0], data[1], 2
            if length == 126:
                length, start = int.from_bytes(data[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(data[2:10], "big"), 10
            payload, data = data[start : start + length], data[start + length :]
            found.append(json.loads(payload) if first == 0x81 else msgspec.msgpack.decode(payload))
        self.writes.clear()
        return found


class Bench:
    """One group of subscriptions to one stream, fed by hand."""

    def __init__(self) -> None:
        self.group = Group(SELECTION)
        self.followed = FollowedStream(STREAM)
        self.group.streams[STREAM.name] = self.followed
        self.followed.users.add(self.group)
        self.seq = 0
        self.round = 0

    def client(self, style: NativeStyle = JSON, bound: int = 1 << 20) -> tuple[Client, FakeSink]:
        sink = FakeSink()
        return Client(sink, style, bound), sink

    def join(self, subscription: Subscription) -> None:
        self.group.subscriptions[subscription] = None
        subscription.client.subscriptions[subscription.id] = subscription
        self.group.join(subscription, self.round)

    def news(self, *messages: Message) -> News:
        entries = []
        for message in messages:
            self.seq += 1
            field = b"g" if isinstance(message, Gap) else b"q" if isinstance(message, Quote) else b"t"
            entries.append([b"%d-%d" % (1000 + self.seq, self.seq), [field, encode(message)]])
        self.followed.append(entries, lost=False)
        return News(STREAM, entries)

    def send(self, *messages: Message) -> None:
        """One round: to the channels and to the grids."""
        news = self.news(*messages)
        self.round += 1
        for channel in look_up_takers(self.followed):
            channel.pending.append(news)
            for client in channel.flush():
                client.flush()
        if self.followed.recent is not None:
            self.followed.recent.add(self.round, news.interval())
        self.followed.previous = self.followed.position


def trade(price: str, size: str = "1", flags: int = 0) -> Trade:
    return Trade("BTC-USDT", price, size, Side.BUY, None, 1, 2, None, None, flags)


def gap() -> Gap:
    return Gap(StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, 2, "5", "6", 2, symbol="BTC-USDT")


def prices(message: Any) -> list[str]:
    return [element["price"] for element in message["data"]]


def test_equal_subscriptions_share_their_encoded_data() -> None:
    bench = Bench()
    (one, first), (two, second) = bench.client(), bench.client()
    bench.join(Subscription(one, 1, bench.group))
    bench.join(Subscription(two, "b", bench.group))
    bench.send(trade("1"), trade("2"))
    (message,), (other,) = first.messages(), second.messages()
    assert message["id"] == 1
    assert other["id"] == "b"
    assert message["data"] == other["data"]
    assert prices(message) == ["1", "2"]


def test_lossless_client_over_its_bound_is_closed_with_its_cursors() -> None:
    bench = Bench()
    client, sink = bench.client(bound=KERNEL_BYTES + 2_000)
    bench.join(Subscription(client, 1, bench.group))
    sink.stalled = True
    while sink.closed is None:
        bench.send(trade(str(bench.seq + 1)))
    *data, closing = sink.messages()
    assert sink.closed[0] == 4429
    received = [element for message in data for element in message["data"]]
    assert [element["price"] for element in received] == [str(number) for number in range(1, bench.seq)]
    assert closing["code"] == 4429
    assert closing["cursors"] == {STREAM.name: received[-1]["cursor"]}
    bench.send(trade("0"))
    assert sink.writes == []


def test_dropping_client_is_told_how_many_it_missed() -> None:
    bench = Bench()
    client, sink = bench.client()
    subscription = DroppingSubscription(client, 1, bench.group, limit=1_000)
    bench.join(subscription)
    sink.stalled = True
    for number in range(1, 101):
        bench.send(trade(str(number)))
    sink.stalled, sink.buffered = False, 0
    subscription.resume()
    client.flush()
    messages = sink.messages()
    (dropped,) = [message for message in messages if "op" in message]
    received = [price for message in messages if "data" in message for price in prices(message)]
    assert received == sorted(received, key=int)
    assert received[-1] == "100"
    assert len(received) + dropped["count"] == 100 == len(received) + subscription.dropped
    bench.send(trade("101"))
    (message,) = sink.messages()
    assert prices(message) == ["101"]


def conflating(
    bench: Bench, grid: Grid, style: NativeStyle = JSON
) -> tuple[ConflatingSubscription, FakeSink]:
    client, sink = bench.client(style)
    subscription = ConflatingSubscription(client, 1, bench.group, grid)
    bench.join(subscription)
    return subscription, sink


def beat(bench: Bench, grid: Grid) -> int:
    """Return the bus time of the newest entry that somebody got; 0 if nobody got one."""
    newest_ms = 0
    for client, sent_ms in filter(None, grid.beat(bench.round)):
        client.flush()
        newest_ms = max(newest_ms, sent_ms)
    return newest_ms


def test_conflated_trades_hide_no_print() -> None:
    bench, grid = Bench(), Grid(4, 0)
    _, sink = conflating(bench, grid)
    bench.send(trade("5", "1"), trade("9", "0.5"))
    bench.send(trade("2", "2"), trade("4", "1"), trade("77", "9", Flag.LATE), trade("1", "1", Flag.OFF_BOOK))
    beat(bench, grid)
    (message,) = sink.messages()
    (element,) = message["data"]
    assert element == {
        "type": "summary", "stream": STREAM.name, "feed": "binance", "cursor": "1006-6", "symbol": "BTC-USDT",
        "first": "5", "high": "9", "low": "2", "last": "4", "volume": "4.5", "value": "17.5", "count": 4,
        "aside": 2, "ts_event": 1, "ts_recv": 2, "has_gap": False,
    }  # fmt: skip
    assert beat(bench, grid) == 0
    assert sink.messages() == []


def test_gaps_go_out_before_the_conflated_element() -> None:
    bench, grid = Bench(), Grid(4, 0)
    _, sink = conflating(bench, grid)
    bench.send(trade("5"), gap(), trade("6"))
    beat(bench, grid)
    (message,) = sink.messages()
    hole, summary = message["data"]
    assert (hole["type"], hole["count"]) == ("gap", 2)
    assert (summary["type"], summary["count"], summary["has_gap"]) == ("summary", 2, True)


def test_client_that_joins_within_an_interval_gets_only_what_follows() -> None:
    bench, grid = Bench(), Grid(4, 0)
    _, early = conflating(bench, grid)
    bench.send(trade("1"))
    _, late = conflating(bench, grid)
    bench.send(trade("2"))
    beat(bench, grid)
    assert [message["data"][0]["count"] for message in early.messages()] == [2]
    (message,) = late.messages()
    assert (message["data"][0]["count"], message["data"][0]["first"]) == (1, "2")


def test_clients_that_join_one_after_the_other_do_not_change_what_the_others_get() -> None:
    bench, grid = Bench(), Grid(4, 0)
    sinks = []
    for message in (gap(), trade("1"), trade("2")):
        sinks.append(conflating(bench, grid)[1])
        bench.send(message)
    beat(bench, grid)
    summaries = [sink.messages()[0]["data"][-1] for sink in sinks]
    assert [(one["count"], one["volume"], one["first"]) for one in summaries] == [
        (2, "2", "1"),
        (2, "2", "1"),
        (1, "1", "2"),
    ]


def test_round_that_is_delivered_within_a_beat_comes_with_the_next_one() -> None:
    bench, grid = Bench(), Grid(4, 0)
    sinks = [conflating(bench, grid)[1] for _ in range(2)]
    bench.send(trade("1"))
    for client, newest_ms in filter(None, grid.beat(bench.round)):
        client.flush()
        assert newest_ms == 1000 + 1
        bench.send(trade(str(10 + bench.seq)))
        bench.followed.position = StreamId(1001, 1)
    beat(bench, grid)
    for sink in sinks:
        elements = [element for message in sink.messages() for element in message["data"]]
        assert [(one["first"], one["count"]) for one in elements] == [("1", 1), ("11", 2)]


@pytest.mark.parametrize("missed", [1, 3, 40])
def test_slow_conflating_client_gets_what_it_missed_merged(missed: int) -> None:
    bench, grid = Bench(), Grid(4, 0)
    _, healthy = conflating(bench, grid)
    _, slow = conflating(bench, grid)
    slow.buffered = 1
    for number in range(1, missed + 1):
        bench.send(trade(str(number), "2"))
        beat(bench, grid)
    assert slow.writes == []
    slow.buffered = 0
    bench.send(trade("1000"))
    beat(bench, grid)
    (message,) = slow.messages()
    (element,) = message["data"]
    assert (element["first"], element["high"], element["low"], element["last"]) == ("1", "1000", "1", "1000")
    assert (element["count"], element["volume"]) == (missed + 1, str(2 * missed + 1))
    # and the shared intervals of the others were not touched
    assert [message["data"][0]["count"] for message in healthy.messages()] == [1] * (missed + 1)


def test_stalled_clients_cost_a_fixed_number_of_operations_a_round() -> None:
    bench, grid = Bench(), Grid(4, 0)
    client, stalled = bench.client(bound=KERNEL_BYTES + 500)
    bench.join(Subscription(client, 1, bench.group))
    dropping_client, dropping = bench.client()
    bench.join(DroppingSubscription(dropping_client, 1, bench.group, 500))
    _, conflated = conflating(bench, grid)
    stalled.stalled = dropping.stalled = True
    conflated.buffered = 1
    for number in range(1_000):
        bench.send(trade(str(number)))
        beat(bench, grid)
    # the lossless one is closed, the others write nothing until their sockets drain
    assert stalled.closed is not None
    assert stalled.operations < 10
    assert dropping.operations < 10
    assert conflated.operations == 0


def interval_of(seq: int, rows: Sequence[tuple[int, int, int]]) -> Interval:
    """Return trades (price, size, flags), and a gap for each price of 0."""
    made = Interval()
    for price, size, flags in rows:
        message = trade(str(price), str(size), flags) if price else gap()
        made.add(Entry(f"{seq}-{seq}", message, b"t" if price else b"g", encode(message)))
    return made


def looked_at(interval: Interval | None) -> Any:
    if interval is None:
        return None
    trades = None if interval.trades is None else interval.trades.row()
    return interval.cursor, trades, [entry.cursor for entry in interval.gaps]


ROUNDS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(1, 9), st.sampled_from([0, 0, 0, Flag.LATE])),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=8,
)


@given(ROUNDS)
def test_merged_intervals_equal_one_long_interval(parts: list[list[tuple[int, int, int]]]) -> None:
    made = [interval_of(1, part) for part in parts]
    assert looked_at(merged(made)) == looked_at(interval_of(1, [row for part in parts for row in part]))
    assert [looked_at(one) for one in made] == [looked_at(interval_of(1, part)) for part in parts]
    counted = [
        (Decimal(price), Decimal(size))
        for part in parts
        for price, size, flags in part
        if price and not flags
    ]
    trades = merged(made).trades
    if counted:
        assert trades is not None
        assert trades.volume == sum(size for _, size in counted)
        assert trades.value == sum(price * size for price, size in counted)


@given(ROUNDS, st.data())
def test_folded_rounds_give_the_same_intervals_between_marks(
    parts: list[list[tuple[int, int, int]]], data: st.DataObject
) -> None:
    whole, folded = Recent(), Recent()
    marks: set[int] = set()
    for round, part in enumerate(parts, 1):
        marks |= data.draw(st.sets(st.just(round - 1)), "somebody has everything up to here")
        for recent in (whole, folded):
            recent.add(round, interval_of(round, part))
        if data.draw(st.booleans(), "fold"):
            marks -= data.draw(st.sets(st.sampled_from(sorted(marks))) if marks else st.just(set()), "gone")
            folded.fold(sorted(marks))
    asked = [*sorted(marks), len(parts)]
    for after in asked:
        for until in asked:
            assert looked_at(folded.between(after, until)) == looked_at(whole.between(after, until))


def test_what_nobody_asks_for_is_forgotten() -> None:
    recent = Recent()
    for round in range(1, 10_001):
        recent.add(round, interval_of(round, [(round, 1, 0)]))
        if recent.is_long:
            recent.fold([round - 10, round - 5])
    assert len(recent._rounds) < 600
    assert looked_at(recent.between(9_999, 10_000)) == looked_at(interval_of(10_000, [(10_000, 1, 0)]))


def test_quotes_are_replaced_by_the_next() -> None:
    interval = Interval()
    for bid in ("1", "2"):
        quote = Quote("BTC-USDT", bid, "1", None, None, 1, 2)
        interval.add(Entry("1-1", quote, b"q", encode(quote)))
    (latest,) = interval.latest.values()
    assert isinstance(latest.message, Quote)
    assert latest.message.bid_text == "2"


def test_summary_in_msgpack_has_the_documented_order() -> None:
    bench, grid = Bench(), Grid(4, 0)
    _, sink = conflating(bench, grid, MSGPACK)
    bench.send(trade("5", "2"))
    beat(bench, grid)
    assert sink.messages() == [
        [1, [[STREAM.name, "1001-1", "c", ["BTC-USDT", "5", "5", "5", "5", "2", "10", 1, 0, 1, 2, False]]]]
    ]
    assert TradeSummary().row()[:4] == [None] * 4


def test_channel_without_news_sends_nothing() -> None:
    bench = Bench()
    client, sink = bench.client()
    bench.join(Subscription(client, 1, bench.group))
    (channel,) = bench.group.channels.values()
    assert isinstance(channel, Channel)
    assert list(channel.flush()) == []
    assert sink.writes == []
    assert bench.followed.has(StreamId(0, 0))


def test_ring_counts_what_its_entries_take() -> None:
    """As the parser of Redis's replies makes them: the bound of all rings is one of real memory."""
    payload = encode(trade("60000.25", "0.015"))
    reply = b"".join(
        b"*2\r\n$%d\r\n%b\r\n*2\r\n$1\r\nt\r\n$%d\r\n%b\r\n" % (len(id), id, len(payload), payload)
        for id in (b"1700000000000-%d" % number for number in range(1, 10_001))
    )
    tracemalloc.start()
    try:
        reader = hiredis.Reader()
        reader.feed(b"*10000\r\n" + reply)
        before = tracemalloc.get_traced_memory()[0]
        entries = reader.gets()
        followed = FollowedStream(STREAM)
        counted = followed.append(entries, lost=False)
        del entries
        gc.collect()
        real = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.85 * real < counted < 1.3 * real
    assert followed.clear() == counted
