"""Bars of trades that our gateway never writes but the bus may contain: other writers, versions, clocks."""

from collections.abc import Callable
from decimal import Context, Decimal

import msgspec
from msgspec.structs import replace
from support.bus import gaps_in, messages_in
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import Writer

from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Bar, Quote, Side, Trade
from tickbus.protocol.names import Keys
from tickbus.units import SECOND
from tickbus.writer.entry import Entry

Start = Callable[..., Process]
YEAR_2024 = 1_704_067_200 * SECOND
OPTIONS = ("bars", "--lease-ttl", "500ms", "--redis")


def trade(number: int, price: str = "1", size: str = "1", ts_event: int = 0) -> Trade:
    return Trade("A", price, size, Side.BUY, str(number), ts_event or YEAR_2024 + number * SECOND, 1)


def bars_message() -> Bar:
    return Bar("tick:1", 1, 1, "1", "1", "1", "1", "1", "1", "1", 1, "1", "0", symbol="A")


def bars_of(redis: RedisServer, spec: str) -> list[Bar]:
    return messages_in(redis, "bar", "test", "A", spec)


async def test_unreadable_trade_is_skipped_and_the_others_continue(
    redis_server: RedisServer, start: Start
) -> None:
    writer = await Writer(redis_server.url, keys=Keys()).open()
    unknown_side = list(msgspec.msgpack.decode(encode(trade(4))))
    unknown_side[3] = 9
    trades = [
        trade(1),
        trade(2, "1e5"),
        trade(3, size="+.5"),
        trade(5, "abc"),
        trade(6, ts_event=(1 << 64) - 1),
        trade(7),
    ]
    entries: list[Entry] = [writer.entry(writer.stream(), trade) for trade in trades]
    entries.insert(3, replace(writer.entry(writer.stream(), trade(4)), payload=encode(unknown_side)))
    entries.sort(key=lambda entry: entry.seq)
    await writer.publisher.commit(writer.transaction(entries))
    bars = start(*OPTIONS, redis_server.url, "--specs", "tick:1").wait_ready()
    until(lambda: len(bars_of(redis_server, "tick:1")) == 5, 20)
    assert [(bar.open_text, bar.volume_text) for bar in bars_of(redis_server, "tick:1")] == [
        ("1", "1"), ("100000", "1"), ("1", "0.5"), ("1", "1"), ("1", "1"),
    ]  # fmt: skip
    assert bars.metric("tickbus_bars_ignored_trades_total", reason="unreadable") == 2
    assert bars.stop() == 0
    writer.close()


async def test_entries_that_are_no_trades_are_skipped(redis_server: RedisServer, start: Start) -> None:
    """Other messages, in the stream of trades: bars go on, whoever skips them."""
    writer = await Writer(redis_server.url, keys=Keys()).open()
    stream = writer.stream()
    quote, bar = Quote("A", "1", "1", "2", "1", 1, 1), bars_message()
    entries = [writer.entry(stream, message) for message in (trade(1), quote, bar, trade(2), trade(3))]
    entries[3] = replace(entries[3], payload=b"\x91" * 3000)
    transaction = writer.transaction(entries)
    await writer.publisher.commit(transaction)
    bars = start(*OPTIONS, redis_server.url, "--specs", "tick:1").wait_ready()
    until(lambda: len(bars_of(redis_server, "tick:1")) == 2, 20)
    assert bars.stop() == 0
    assert [bar.start for bar in bars_of(redis_server, "tick:1")] == [
        YEAR_2024 + at * SECOND for at in (1, 3)
    ]
    writer.close()


async def test_numbers_beyond_the_files_range(redis_server: RedisServer, start: Start) -> None:
    """A sum that no column holds stays on the bus, exact. A trade that no bar can take, of an older gateway,
    is counted and reported, and is a hole in its bar by the vendor's clock."""
    writer = await Writer(redis_server.url, keys=Keys()).open()
    most = "99999999999999999999.999999999999999999"
    trades = [trade(1, most, most), trade(2, most, most), trade(10, "1" + 64 * "0"), trade(11), trade(20)]
    trades.append(trade(40))
    await writer.publisher.commit(writer.transaction([writer.entry(writer.stream(), t) for t in trades]))
    bars = start(*OPTIONS, redis_server.url, "--specs", "time:10s,value:1000", "--grace", "1s").wait_ready()
    await writer.ring()
    until(lambda: len(bars_of(redis_server, "time:10s")) == 3, 20)
    assert bars.metric("tickbus_bars_ignored_trades_total", reason="unreadable") == 1
    assert "trade:test:A" in bars.wait_for(r"ERROR .*skipping entry.*")[0]
    assert bars.stop() == 0
    first, second, third = bars_of(redis_server, "time:10s")
    exactly = Context(prec=100)
    value = exactly.multiply(Decimal(most), Decimal(most))
    assert (first.volume, first.trades) == (exactly.multiply(2, Decimal(most)), 2)
    assert first.value == exactly.quantize(exactly.add(value, value), Decimal("1e-18"))
    assert [bar.quality for bar in (first, second, third)] == [("partial",), ("has_gap",), ()]
    assert [bar.value for bar in bars_of(redis_server, "value:1000")] == [
        exactly.quantize(value, Decimal("1e-18"))
    ] * 2
    writer.close()


async def test_trades_trimmed_unread_mark_their_bars_by_the_vendors_clock(
    redis_server: RedisServer, start: Start
) -> None:
    writer = await Writer(redis_server.url, keys=Keys()).open()

    async def write(*numbers: int) -> None:
        await writer.publisher.commit(
            writer.transaction([writer.entry(writer.stream(), trade(number)) for number in numbers])
        )

    options = (*OPTIONS, redis_server.url, "--specs", "time:10s", "--grace", "1s")
    await write(*range(10, 35))
    bars = start(*options).wait_ready()
    await writer.ring()
    until(lambda: len(bars_of(redis_server, "time:10s")) >= 2, 20)
    until(lambda: bars.metric("tickbus_consumer_lag_ticks") == 0, 20)
    assert bars.stop() == 0
    await write(*range(35, 60))
    oldest = redis_server.client.xrange(writer.key())[25 + 7][0]
    redis_server.client.xtrim(writer.key(), minid=oldest, approximate=False)
    bars = start(*options).wait_ready()
    await writer.ring()
    until(lambda: any(bar.start == YEAR_2024 + 40 * SECOND for bar in bars_of(redis_server, "time:10s")), 20)
    assert bars.stop() == 0
    final = {(bar.start - YEAR_2024) // SECOND: bar for bar in bars_of(redis_server, "time:10s")}
    assert {at: (bar.trades, list(bar.quality)) for at, bar in final.items() if at < 50} == {
        10: (10, ["partial"]), 20: (10, []), 30: (5, ["has_gap"]), 40: (8, ["has_gap"]),
    }  # fmt: skip
    (gap,) = gaps_in(redis_server, "bar", "test", "A", "time:10s")
    assert ((gap.from_ts - YEAR_2024) // SECOND, (gap.to_ts - YEAR_2024) // SECOND, gap.count) == (34, 42, 7)
    writer.close()


async def test_state_that_some_other_program_overwrote_begins_anew_with_partial_bars(
    redis_server: RedisServer, start: Start
) -> None:
    writer = await Writer(redis_server.url, keys=Keys()).open()

    async def write(*numbers: int) -> None:
        await writer.publisher.commit(
            writer.transaction([writer.entry(writer.stream(), trade(number)) for number in numbers])
        )

    options = (*OPTIONS, redis_server.url, "--specs", "tick:2")
    await write(1, 2, 3)
    bars = start(*options).wait_ready()
    until(lambda: len(bars_of(redis_server, "tick:2")) == 1, 20)
    until(lambda: bars.metric("tickbus_consumer_lag_ticks") == 0, 20)
    assert bars.stop() == 0
    keys = Keys()
    redis_server.client.hset(keys.state(keys.shard("A"), "bars"), "trade:test:A", b"junk")
    bars = start(*options).wait_ready()
    await write(4, 5)
    until(lambda: len(bars_of(redis_server, "tick:2")) == 2, 20)
    assert bars.stop() == 0
    assert [(bar.trades, list(bar.quality)) for bar in bars_of(redis_server, "tick:2")] == [
        (2, []), (2, ["partial"]),
    ]  # fmt: skip
    writer.close()
