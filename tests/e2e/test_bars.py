"""What the bar service reports of odd feeds, and how its first bars tell the start of a stream."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.bus import messages_in
from support.market import Market
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.waiting import until, until_async
from support.writing import Writer

from tickbus.protocol.codec import decode_head, encode
from tickbus.protocol.messages import Bar, Flag, Message, Quote, Side, Trade
from tickbus.protocol.names import Keys
from tickbus.units import SECOND

Start = Callable[..., Process]
T0 = 1_795_845_600 * SECOND
OPTIONS = ("bars", "--lease-ttl", "500ms", "--grace", "1s", "--redis")


def trade(at: float, ahead: float = 0, price: str = "1", size: str = "1") -> Trade:
    """`at`: seconds after T0, received at the same time; `ahead`: the vendor's clock, seconds."""
    flags = int(Flag.FUTURE_TIME) if ahead else 0
    ts, recv = round((at + ahead) * SECOND) + T0, round(at * SECOND) + T0
    return Trade("A", price, size, Side.BUY, None, ts, recv, flags=flags)


async def write(
    writer: Writer, messages: Sequence[Message], subscribed: int = 0, kind: str = "trade"
) -> None:
    stream = writer.stream(kind=kind)
    transaction = writer.transaction([writer.entry(stream, message) for message in messages])
    transaction.heads = {
        state: encode(replace(decode_head(head), subscribed=subscribed))
        for state, head in transaction.heads.items()
    }
    await writer.publisher.commit(transaction)


def newest(redis: RedisServer, spec: str) -> dict[float, Bar]:
    """Return the last revision of each bar by its start in seconds after T0."""
    bars = messages_in(redis, "bar", "test", "A", spec)
    return {(bar.start - T0) / SECOND: bar for bar in bars}


async def until_built(redis: RedisServer, writer: Writer, spec: str, start: float) -> None:
    """Let bus time pass until there is a bar of this start, in seconds after T0."""

    async def built() -> bool:
        await writer.ring()
        return start in newest(redis, spec)

    await until_async(built, 20)


async def test_clock_that_is_ahead_is_reported_and_bars_go_on(
    redis_server: RedisServer, start: Start
) -> None:
    writer = await Writer(redis_server.url, keys=Keys()).open()
    await write(writer, [trade(at / 10, ahead=8) for at in range(60)])
    options = (*OPTIONS, redis_server.url, "--specs", "time:1s")
    bars = start(*options)
    bars.wait_for(r"WARNING .*trade:test:A: the vendor's clock is ahead of ours by 8.000 s")
    until(lambda: "trade:test:A: the vendor's clock is ahead" in bars.get("/readyz")[1], 20)
    assert bars.metric("tickbus_bars_clock_ahead_streams", feed="test") == 1
    until(
        lambda: "test: the vendor's clock is ahead" in tickbus("status", "--redis", redis_server.url).stdout,
        20,
    )
    await write(writer, [trade(at / 10, ahead=8) for at in range(60, 150)])
    bars.wait_ready()
    await until_built(redis_server, writer, "time:1s", 12)
    until(lambda: bars.metric("tickbus_bars_clock_ahead_streams", feed="test") == 1, 20)
    assert bars.get("/readyz")[0] == 200
    assert bars.stop() == 0
    assert bars.output.count("WARNING") == 1
    # the state is kept; the first trade without the flag ends it
    bars = start(*options).wait_ready()
    until(lambda: bars.metric("tickbus_bars_clock_ahead_streams", feed="test") == 1, 20)
    await write(writer, [trade(40 + at) for at in range(4)])
    await until_built(redis_server, writer, "time:1s", 41)
    assert bars.metric("tickbus_bars_clock_ahead_streams", feed="test") == 0
    assert "trade:test:A: the vendor's clock is not ahead any more" in bars.output
    until(lambda: "clock is ahead" not in tickbus("status", "--redis", redis_server.url).stdout, 20)
    assert bars.stop() == 0
    found = newest(redis_server, "time:1s")
    assert {at: (bar.trades, bar.quality) for at, bar in found.items() if at < 41} == {
        8: (10, ("partial", "clock_ahead")),
        **dict.fromkeys(range(9, 23), (10, ("clock_ahead",))),
        40: (1, ()),
    }
    writer.close()


async def test_what_was_read_is_committed_at_an_orderly_end(redis_server: RedisServer, start: Start) -> None:
    """Positions alone are committed four times a second: the end comes in between."""
    writer = await Writer(redis_server.url, keys=Keys()).open()
    keys, name, written = Keys(), "trade:test:A", 0
    for _ in range(2):
        bars = start(*OPTIONS, redis_server.url, "--specs", "time:1d").wait_ready()
        for _ in range(20):
            await write(writer, [trade(written / 10)])
            written += 1
        until(lambda: bars.metric("tickbus_consumer_read_total") == 20, what="nothing is read twice")  # noqa: B023
        assert bars.stop() == 0
        head = decode_head(redis_server.client.hget(keys.last(keys.shard("A")), name) or b"")
        position = redis_server.client.hget(keys.position(keys.shard("A"), "bars"), name) or b""
        assert (position.decode(), int(head.id.partition("-")[2])) == (head.id, written)
    writer.close()


async def test_feed_of_quotes_makes_no_bars_and_says_so(redis_server: RedisServer, start: Start) -> None:
    writer = await Writer(redis_server.url, keys=Keys()).open()
    await write(writer, [Quote("A", "1", "1", "2", "1", T0, T0)], kind="quote")
    bars = start(*OPTIONS, redis_server.url)
    bars.wait_for(r"WARNING .*test: no bars: its 1 streams on the bus are all quotes")
    until(lambda: "only quotes" in bars.get("/readyz")[1], 20)
    assert bars.get("/readyz") == (503, "no bars: test: only quotes on the bus, no trades\n")
    assert bars.metric("tickbus_bars_streams", feed="test") == 0
    assert "tickbus_bars_streams{" in bars.get("/metrics")[1]
    assert bars.stop() == 0
    await write(writer, [trade(0)])
    bars = start(*OPTIONS, redis_server.url).wait_ready()
    until(lambda: bars.metric("tickbus_bars_streams", feed="test") == 1, 20)
    assert bars.stop() == 0
    writer.close()


@pytest.mark.parametrize(
    ("subscribed", "partial"),
    [(0, [True, True]), (T0 - SECOND, [False, True]), (T0 - 600 * SECOND, [False] * 2)],
)
async def test_first_bars_are_complete_if_the_subscription_was_in_time(
    redis_server: RedisServer, start: Start, subscribed: int, partial: list[bool]
) -> None:
    """T0 is a whole minute, and the first tick comes 20.5 s later."""
    writer = await Writer(redis_server.url, keys=Keys()).open()
    begin = T0 + 20 * SECOND
    messages = [trade(20 + at) for at in (0.5, 1.5, 61, 130)]
    await write(writer, messages, subscribed and begin + subscribed - T0)
    bars = start(*OPTIONS, redis_server.url, "--specs", "time:1s,time:1m,tick:1").wait_ready()
    await until_built(redis_server, writer, "time:1m", 60)
    assert bars.stop() == 0
    # the last ones may be closed by now, or not
    assert [bar.quality for bar in newest(redis_server, "time:1s").values()][:3] == [
        ("partial",) if partial[0] else (), (), (),
    ]  # fmt: skip
    assert [bar.quality for bar in newest(redis_server, "time:1m").values()][:2] == [
        ("partial",) if partial[1] else (), (),
    ]  # fmt: skip
    assert [bar.quality for bar in messages_in(redis_server, "bar", "test", "A", "tick:1")] == [()] * 4
    writer.close()


async def test_state_that_is_not_ours_concerns_its_stream_alone(
    redis_server: RedisServer, start: Start
) -> None:
    writer = await Writer(redis_server.url, keys=Keys()).open()
    await write(writer, [trade(at) for at in range(5)], T0 - 600 * SECOND)
    options = (*OPTIONS, redis_server.url, "--specs", "time:1s")
    bars = start(*options).wait_ready()
    await until_built(redis_server, writer, "time:1s", 1)
    until(bars.caught_up, 20)
    assert bars.stop() == 0
    keys = Keys()
    redis_server.client.hset(keys.state(keys.shard("A"), "bars"), "trade:test:A", b"\xffgarbage")
    bars = start(*options).wait_ready()
    await write(writer, [trade(at) for at in (10, 11, 20)])
    await until_built(redis_server, writer, "time:1s", 11)
    assert "trade:test:A: cannot decode the stored bar state" in bars.output
    assert bars.stop() == 0
    found = newest(redis_server, "time:1s")
    assert [found[at].quality for at in (0, 1, 10, 11)] == [(), (), ("partial",), ()]
    writer.close()


async def test_first_bars_of_a_live_feed_are_partial(
    redis_server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """Those that began before the subscription was acknowledged say so, the others do not."""
    market = Market(start, redis_server, tmp_path, rate=200)
    gateway = market.gateway().wait_ready()
    bars = start(*OPTIONS, redis_server.url, "--specs", "time:1s,tick:1").wait_ready()
    key = market.symbols[0]

    def seconds() -> list[Bar]:
        return messages_in(redis_server, "bar", "binance", key, "time:1s")

    await until_async(lambda: len(seconds()) >= 2, 20)
    assert [process.stop() for process in (gateway, bars, market.simulator)] == [0, 0, 0]
    head = decode_head(
        redis_server.client.hget(Keys().last(Keys().shard(key)), f"trade:binance:{key}") or b""
    )
    first = messages_in(redis_server, "trade", "binance", key)[0]
    assert 0 < head.subscribed <= first.ts_recv
    built = seconds()
    assert [bar.quality for bar in built] == [
        ("partial",) if bar.start < head.subscribed else () for bar in built
    ]
    assert built[0].start < head.subscribed + 2 * SECOND
    assert messages_in(redis_server, "bar", "binance", key, "tick:1")[0].quality == ()
