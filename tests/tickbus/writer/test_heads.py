"""The head of a stream, entry by entry: which tick it shows, and what the Gaps make of its counts."""

import pytest

from tickbus.protocol.codec import Hole, decode, encode
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, Quote, Side, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.units import SECOND
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.heads import MAX_HOLES, REORDER_WINDOW, HeadBuilder

AT = 1_800_000_000 * SECOND
TRADES = StreamWriter(Keys(), Stream("trade", "x", "A"))
QUOTES = StreamWriter(Keys(), Stream("quote", "x", "A"))


def trade(number: int, event: int, recv: int, flags: int = 0) -> Trade:
    return Trade("A", str(number), "1", Side.BUY, str(number), AT + event, AT + recv, flags=flags)


def quote(number: int, event: int, recv: int, flags: int = 0) -> Quote:
    return Quote("A", str(number), "1", None, None, AT + event, AT + recv, flags)


def gap(first: int, last: int, kind: GapKind = GapKind.SEQUENCE, *, repaired: bool = False) -> Gap:
    count = last - first + 1
    return Gap(
        StreamKind.TRADE, "gateway", kind, AT, AT, str(first), str(last), count, False, repaired, "A"
    )  # fmt: skip


def add(builder: HeadBuilder, message: Message, vendor_id: int = -1) -> None:
    writer = QUOTES if isinstance(message, Quote) else TRADES
    field = b"g" if isinstance(message, Gap) else b"q" if isinstance(message, Quote) else b"t"
    entry = Entry(writer, AT // 1_000_000, builder.seq + 1, field, encode(message), vendor_id)
    builder.add(entry, message)


def shown(builder: HeadBuilder, field: bytes = b"t") -> str | None:
    tick = decode(field, builder.tick)
    return tick.price_text if isinstance(tick, Trade) else tick.bid_text if isinstance(tick, Quote) else None


@pytest.mark.parametrize("flag", [Flag.LATE, Flag.DOUBTFUL_ID, Flag.LATE | Flag.BACKFILLED])
def test_trade_out_of_order_does_not_replace_the_newest(flag: Flag) -> None:
    builder = HeadBuilder()
    add(builder, trade(5, 5, 6), 5)
    add(builder, trade(3, 9, 10, flag), 5)
    assert shown(builder) == "5"
    assert (builder.seq, builder.vendor_id, builder.ts_event) == (2, 5, AT + 5)


def test_order_of_ids_goes_before_that_of_times() -> None:
    builder = HeadBuilder()
    add(builder, trade(5, 5 * SECOND, 6 * SECOND), 5)
    add(builder, trade(6, 4 * SECOND, 7 * SECOND), 6)
    assert shown(builder) == "6"


def test_without_ids_an_older_tick_does_not_replace_the_newest() -> None:
    for restored in (False, True):
        builder = HeadBuilder()
        add(builder, quote(1, 5 * SECOND, 6 * SECOND))
        if restored:
            builder = HeadBuilder(builder.build())
        add(builder, quote(2, 4 * SECOND, 7 * SECOND))
        assert shown(builder, b"q") == "1"
        add(builder, quote(3, 5 * SECOND, 8 * SECOND))
        assert shown(builder, b"q") == "3"


def test_vendor_that_sets_its_clock_back_is_believed_after_a_while() -> None:
    builder = HeadBuilder()
    add(builder, quote(1, 3600 * SECOND, 3600 * SECOND))
    add(builder, quote(2, SECOND, 3600 * SECOND + REORDER_WINDOW))
    assert shown(builder, b"q") == "1"
    add(builder, quote(3, 2 * SECOND, 3600 * SECOND + REORDER_WINDOW + 1))
    assert shown(builder, b"q") == "3"


def test_time_far_ahead_does_not_hide_later_ticks() -> None:
    builder = HeadBuilder()
    add(builder, quote(1, 10**6 * SECOND, SECOND, Flag.FUTURE_TIME))
    add(builder, quote(2, SECOND, 2 * SECOND))
    assert shown(builder, b"q") == "2"


def test_void_and_unsubscribed_gaps_count_nothing_as_missing() -> None:
    builder = HeadBuilder()
    add(builder, trade(1, 1, 1), 1)
    add(builder, gap(2, 1001))
    add(builder, gap(3, 4, repaired=True))
    add(builder, gap(5, 1001, GapKind.VOID, repaired=True))
    add(builder, gap(2000, 2009, GapKind.UNSUBSCRIBED))
    head = builder.build()
    assert (head.missing, head.holes) == (1, [Hole(2, 2)])
    assert (head.gaps, head.repaired) == ({"sequence": 1, "unsubscribed": 1}, 2)
    assert builder.counts.reported == 3


def test_holes_beyond_the_newest_256_are_counted() -> None:
    builder = HeadBuilder()
    for number in range(MAX_HOLES + 3):
        add(builder, gap(10 * number, 10 * number + 4))
    add(builder, gap(10 * 100 + 2, 10 * 100 + 2, repaired=True))  # one more: it splits a hole
    head = builder.build()
    assert (len(head.holes), head.forgotten, head.holes[0]) == (MAX_HOLES, 4, Hole(40, 44))
    assert encode(head) == builder.pack()
