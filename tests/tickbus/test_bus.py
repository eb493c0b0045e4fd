"""Subscriptions on a real Redis, as an app sees them: each message once, in order; losses are Gaps."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace
from support.redis_server import RedisServer
from support.waiting import until, until_async
from support.writing import KEYS, Writer, stored, trade

import tickbus
from tickbus.bus import Bus
from tickbus.errors import ConfigError, RedisUnavailable
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Gap, GapKind, Message, Quote, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reader import Reader
from tickbus.subscription import Subscription
from tickbus.units import MILLISECOND, format_time


@asynccontextmanager
async def open_bus(server: RedisServer) -> AsyncIterator[tuple[Writer, Bus]]:
    """Yield a writer, and a bus that reads what it writes."""
    writer = await Writer(server.url).open()
    async with tickbus.connect(server.url) as bus:
        yield writer, bus
    writer.close()


def number(message: Message) -> int | str:
    assert isinstance(message, Trade | Gap)
    return f"{message.kind.name} {message.count}" if isinstance(message, Gap) else int(message.price_text)


def iterate(subscription: Subscription[Any]) -> AbstractAsyncContextManager[AsyncGenerator[Any, None]]:
    """Iterate over a subscription, and close the iteration on leaving."""
    return aclosing(aiter(subscription))


async def take(subscription: Subscription[Any], count: int) -> list[int | str]:
    """Return the next `count` messages of a new iteration, as numbers."""
    found: list[int | str] = []
    async with asyncio.timeout(20), iterate(subscription) as messages:
        async for message in messages:
            found.append(number(message))
            if len(found) == count:
                break
    subscription.close()
    return found


class Collector:
    """Collects the messages of a subscription in the background. `ready` waits until it is at its start."""

    def __init__(self, subscription: Subscription[Any]) -> None:
        self.subscription = subscription
        self.messages: list[Message] = []
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for message in self.subscription:
            self.messages.append(message)

    @property
    def numbers(self) -> list[int | str]:
        return [number(message) for message in self.messages]

    async def ready(self) -> "Collector":
        await self.until(self._has_started)
        return self

    def _has_started(self) -> bool:
        reader = self.subscription._reader
        return isinstance(reader, Reader) and all(shard.swept for shard in reader._shards.values())

    async def until(self, condition: Any, seconds: float = 20.0) -> None:
        def met() -> bool:
            if self._task.done():
                self._task.result()
            return bool(condition())

        await until_async(met, seconds, str(condition))

    async def have(self, count: int, seconds: float = 20.0) -> list[int | str]:
        await self.until(lambda: len(self.messages) >= count, seconds)
        return self.numbers

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.subscription.close()


# where it starts


async def test_start_at_the_oldest_entry_and_now(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1, 2, 3)
        assert await take(bus.read("trade", start="start"), 3) == [1, 2, 3]
        live = await Collector(bus.read("trade")).ready()
        await writer.write(4, 5)
        assert await live.have(2) == [4, 5]
        await live.stop()


async def test_start_at_a_time_in_every_form(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1)
        first = writer.clock.now_ms()
        await until_async(lambda: writer.clock.now_ms() > first, what="the next one has a later ms")
        await writer.write(2)
        ms = stored(redis_server.client, writer.key())[1][0].ms
        at = datetime.fromtimestamp(ms / 1000, UTC)
        for start in (
            ms * MILLISECOND,
            ms,
            at,
            at.replace(tzinfo=None),
            format_time(ms * MILLISECOND),
            str(ms),
        ):
            assert await take(bus.read("trade", start=start), 1) == [2]
        assert await take(bus.read("trade", start=0), 2) == [1, 2]


async def test_invalid_arguments_are_config_errors(redis_server: RedisServer) -> None:
    async with tickbus.connect(redis_server.url) as bus:
        with pytest.raises(ConfigError, match="start: invalid time 'soon'"):
            bus.read("trade", start="soon")
        for start in (True, 1.5, -1):
            with pytest.raises(ConfigError, match="start: "):
                bus.read("trade", start=start)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="bar spec '1m': expected time:"):
            bus.read("bar", specs=["1m"])
        with pytest.raises(ConfigError, match="invalid specs: only bars have a spec"):
            bus.consume("sums", kind=["trade", "bar"], specs=["time:1m"])
        with pytest.raises(ConfigError, match="kind 'ticks': expected one of trade, quote, bar, signal"):
            bus.read("ticks")
        with pytest.raises(ConfigError, match="kind 'trades'"):
            await bus.snapshot("trades")
        rejected: list[tuple[dict[str, Any], str]] = [
            ({"symbols": "BTC-USDT"}, r"symbols 'BTC-USDT': expected a list, e.g. symbols=\['BTC-USDT'\]"),
            ({"feeds": "binance"}, "feeds 'binance': expected a list"),
            ({"symbols": ["btc-usdt"]}, "symbol 'btc-usdt'"),
            ({"feeds": ["Binance"]}, "name 'Binance'"),
            ({"symbols": []}, "expected at least one"),
            ({"cursor": {"quote:test:A": "1-1"}}, "cursor: 'quote:test:A' is not a trade stream"),
            ({"cursor": {"nonsense": "1-1"}}, "cursor"),
            ({"cursor": {"trade:test:A": "abc"}}, "cursor"),
            ({"cursor": {"trade:test:A": None}}, "cursor"),
        ]
        for arguments, message in rejected:
            with pytest.raises(ConfigError, match=message):
                bus.read("trade", **arguments)


async def test_second_iteration_resumes_where_the_first_stopped(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1, 2, 3, 4)
        subscription = bus.read("trade", start=str(stored(redis_server.client, writer.key())[0][0].ms))
        assert await take(subscription, 2) == [1, 2]
        await writer.write(5, 6)
        await writer.write(11, symbol="B")  # appeared meanwhile: read from its first entry
        assert sorted(await take(subscription, 4), key=str) == [11, 3, 4, 5]
        assert await take(subscription, 1) == [6]
        cursor = subscription.cursor
        assert cursor["trade:test:A"].endswith("-6") and cursor["trade:test:B"].endswith("-1")


async def test_abandoned_loop_releases_its_connection(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1, 2)
        before = len(redis_server.client.client_list())
        subscriptions = [bus.read("trade", start="start") for _ in range(5)]
        for subscription in subscriptions:
            async for message in subscription:
                assert number(message) == 1
                break
        await until_async(lambda: len(redis_server.client.client_list()) <= before)


def test_plain_loop_closed_by_another_thread_ends(redis_server: RedisServer) -> None:
    with tickbus.connect(redis_server.url) as bus:
        subscription = bus.read("trade")
        found: list[Message] = []
        loop = threading.Thread(target=lambda: found.extend(subscription))
        loop.start()
        until(lambda: subscription._thread is not None and subscription._thread._started.is_set())
        subscription.close()
        loop.join(10)
        assert not loop.is_alive() and found == []


async def test_undecodable_entry_is_a_rejected_gap_and_is_logged_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bus(redis_server) as (writer, bus):
        entries = [writer.entry(writer.stream(), trade(number)) for number in (1, 2, 3, 4)]
        entries[1] = replace(entries[1], payload=encode([1, 2]))
        entries[2] = replace(entries[2], field=b"z")
        await writer.publisher.commit(writer.transaction(entries))
        async with iterate(bus.read("trade", start="start")) as messages:
            found = [await anext(messages) for _ in range(4)]
        assert [number(found[0]), number(found[3])] == [1, 4]
        for gap, entry in zip(found[1:3], entries[1:3], strict=True):
            assert isinstance(gap, Gap)
            assert (gap.kind, gap.source, gap.count, gap.symbol) == (GapKind.REJECTED, "reader", 1, "A")
            assert gap.from_ts == gap.to_ts == entry.ms * 1_000_000
        assert await take(bus.read("trade", start="start", gaps=False), 2) == [1, 4]
    (line, _) = [record.getMessage() for record in caplog.records if "skipping this entry" in record.message]
    assert f"trade:test:A {entries[1].id}" in line and "invalid Trade in field b't'" in line


async def test_cursor_resumes_right_after_the_last_delivered_message(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1, 2, 3, 4)
        await writer.write(11, 12, symbol="B")
        seen: list[int | str] = []
        cursor: dict[str, str] = {}
        for _ in range(6):  # one message at a time, each with a new reader
            subscription = bus.read("trade", start="start", cursor=cursor)
            seen += await take(subscription, 1)
            cursor = cursor | subscription.cursor
        assert sorted(seen, key=str) == [1, 11, 12, 2, 3, 4]
        assert [one for one in seen if one in range(10)] == [1, 2, 3, 4]
        subscription = bus.read("trade", cursor=cursor)
        await writer.write(5)
        assert await take(subscription, 1) == [5]


async def test_cursor_counts_an_undecodable_entry_like_any_other(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        entries = [writer.entry(writer.stream(), trade(number)) for number in (1, 2, 3)]
        entries[1] = replace(entries[1], field=b"z")
        await writer.publisher.commit(writer.transaction(entries))
        subscription = bus.read("trade", start="start")
        async with iterate(subscription) as messages:
            assert number(await anext(messages)) == 1
            assert subscription.cursor["trade:test:A"] == str(entries[0].id)
            assert isinstance(await anext(messages), Gap)
            assert subscription.cursor["trade:test:A"] == str(entries[1].id)
        assert await take(bus.read("trade", cursor=subscription.cursor), 1) == [3]


@pytest.mark.parametrize("gaps", [True, False])
@pytest.mark.parametrize("at_a_time", [1, 7, 50])
async def test_cursor_is_exact_wherever_a_poll_of_many_streams_is_left(
    redis_server: RedisServer, at_a_time: int, gaps: bool
) -> None:
    """Streams of a trade, a Gap, a trade; of every third the first was read before, the second is trimmed."""
    symbols = [f"S{index}" for index in range(40)]
    async with open_bus(redis_server) as (writer, bus):
        cursor: dict[str, str] = {}
        expected: dict[str, list[str]] = {}
        for index, symbol in enumerate(symbols):
            stream = writer.stream(symbol)
            hole = Gap(StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, 2, count=3, symbol=symbol)
            written: list[Message] = [trade(1, symbol), hole, trade(2, symbol)]
            await writer.publisher.commit(
                writer.transaction([writer.entry(stream, message) for message in written])
            )
            expected[symbol] = ["1", "SEQUENCE", "2"]
            if index % 3 == 0:
                cursor[stream.name] = str(stored(redis_server.client, writer.key(symbol))[0][0])
                redis_server.client.xtrim(writer.key(symbol), maxlen=1, approximate=False)
                expected[symbol] = ["TRIMMED", "2"]
        if not gaps:
            expected = {symbol: [one for one in ones if one.isdigit()] for symbol, ones in expected.items()}
        found: dict[str, list[str]] = {symbol: [] for symbol in symbols}
        left = sum(map(len, expected.values()))
        async with asyncio.timeout(30):
            while left:
                subscription = bus.read("trade", start="start", cursor=cursor, gaps=gaps)
                async with iterate(subscription) as messages:
                    for _ in range(min(left, at_a_time)):
                        message = await anext(messages)
                        assert isinstance(message, Trade | Gap)
                        found[message.symbol].append(
                            message.kind.name if isinstance(message, Gap) else message.price_text
                        )
                        left -= 1
                cursor = subscription.cursor
                subscription.close()
        assert found == expected


# which streams


async def test_symbols_feeds_and_kinds_select_streams(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        other = await Writer(redis_server.url, "other").open()
        await writer.write(1)
        await writer.write(2, symbol="B")
        await other.write(3)
        quote = Quote("A", "1", None, "2", None, 7, 8)
        await writer.publisher.commit(writer.transaction([writer.entry(Stream("quote", "test", "A"), quote)]))
        assert await take(bus.read("trade", symbols=["B"], start="start"), 1) == [2]
        assert await take(bus.read("trade", feeds=["other"], start="start"), 1) == [3]
        assert await take(bus.read("trade", symbols=["A"], feeds=["test"], start="start"), 1) == [1]
        quotes = bus.read("quote", start="start")
        async with iterate(quotes) as messages:
            assert await anext(messages) == quote
        assert {stream.name: message for stream, (_, message) in (await bus.snapshot("trade")).items()} == {
            "trade:test:A": trade(1), "trade:test:B": trade(2, "B"), "trade:other:A": trade(3),
        }  # fmt: skip
        (newest,) = (await bus.snapshot("quote", symbols=["A", "NOBODY"])).items()
        assert newest[0] == Stream("quote", "test", "A")
        assert newest[1][1] == quote
        quotes.close()
        other.close()


async def test_streams_that_appear_later_are_read_from_their_first_entry(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1)
        live = await Collector(bus.read("trade")).ready()
        for symbol in "BCDEFGHIJ":
            await writer.write(100, 101, symbol=symbol)
        await live.have(18)
        assert sorted(
            (one.symbol, int(one.price_text)) for one in live.messages if isinstance(one, Trade)
        ) == [(symbol, number) for symbol in "BCDEFGHIJ" for number in (100, 101)]
        await live.stop()


async def test_empty_bus_is_read_from_its_first_entry(redis_server: RedisServer) -> None:
    async with tickbus.connect(redis_server.url) as bus:
        assert await bus.snapshot() == {}
        live = Collector(bus.read("trade"))
        await live.until(lambda: len(redis_server.client.client_list()) > 1)
        writer = await Writer(redis_server.url).open()
        await writer.write(1)
        assert await live.have(1) == [1]
        await live.stop()
        writer.close()


async def test_two_thousand_streams_are_read_completely(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        symbols = [f"S{at}" for at in range(2000)]
        await writer.publisher.commit(
            writer.transaction([writer.entry(writer.stream(symbol), trade(1, symbol)) for symbol in symbols])
        )
        live = await Collector(bus.read("trade", start="start")).ready()
        await live.have(2000)
        for first in range(2, 5):
            await writer.publisher.commit(
                writer.transaction(
                    [writer.entry(writer.stream(symbol), trade(first, symbol)) for symbol in symbols]
                )
            )
        await live.have(8000)
        by_symbol: dict[str, list[str]] = {}
        for message in live.messages:
            assert isinstance(message, Trade)
            by_symbol.setdefault(message.symbol, []).append(message.price_text)
        assert by_symbol == {symbol: ["1", "2", "3", "4"] for symbol in symbols}
        await live.stop()


async def test_more_entries_than_fit_into_one_read(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        for first in range(1, 25_001, 5_000):
            await writer.write(*range(first, first + 5_000))
        await writer.write(1, symbol="B")
        live = await Collector(bus.read("trade", start="start")).ready()
        await live.have(25_001)
        assert [number(one) for one in live.messages if isinstance(one, Trade) and one.symbol == "A"] == list(
            range(1, 25_001)
        )
        await live.stop()


# losses


async def test_trimmed_entries_are_a_gap_with_their_exact_count(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(*range(1, 11))
        cursor = {"trade:test:A": str(stored(redis_server.client, writer.key())[2][0])}
        after, before = (stored(redis_server.client, writer.key())[at][0] for at in (2, 7))
        redis_server.client.xtrim(writer.key(), maxlen=3, approximate=False)
        assert await take(bus.read("trade", cursor=cursor), 4) == ["TRIMMED 4", 8, 9, 10]
        assert await take(bus.read("trade", cursor=cursor, gaps=False), 3) == [8, 9, 10]
        subscription = bus.read("trade", cursor=cursor)
        async with iterate(subscription) as messages:
            gap = await anext(messages)
        assert gap == Gap(
            StreamKind.TRADE,
            "reader",
            GapKind.TRIMMED,
            after.ms * MILLISECOND,
            before.ms * MILLISECOND,
            count=4,
            symbol="A",
        )
        subscription.close()
        # "start" is the oldest retained entry
        assert await take(bus.read("trade", start="start"), 3) == [8, 9, 10]


async def test_entries_have_stream_and_id_of_each_message(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1, 2, 3)
        ids = [id for id, _ in stored(redis_server.client, writer.key())]
        redis_server.client.xtrim(writer.key(), maxlen=1, approximate=False)
        subscription = bus.read("trade", cursor={"trade:test:A": str(ids[0])})
        found = []
        async with aclosing(subscription.entries()) as entries:
            async for stream, id, message in entries:
                found.append((stream.name, id, number(message)))
                if len(found) == 2:
                    break
        assert found == [("trade:test:A", ids[0], "TRIMMED 1"), ("trade:test:A", ids[2], 3)]
        assert subscription.cursor == {"trade:test:A": str(ids[2])}
        subscription.close()


async def test_gateway_gaps_are_delivered_in_place_or_not_at_all(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        gap = Gap(StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, 2, "2", "4", 3, symbol="A")
        for message in (trade(1), gap, trade(5)):
            await writer.publisher.commit(writer.transaction([writer.entry(writer.stream(), message)]))
        assert await take(bus.read("trade", start="start"), 3) == [1, "SEQUENCE 3", 5]
        assert await take(bus.read("trade", start="start", gaps=False), 2) == [1, 5]


# faults


@pytest.mark.parametrize("damage", ["trim", "delete"])
async def test_missing_bells_lose_no_entries(redis_server: RedisServer, damage: str) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(0)
        live = await Collector(bus.read("trade")).ready()
        for round_ in range(20):
            # in one transaction of the test's own, so that no reader sees the bell in between
            await writer.write(3 * round_ + 1)
            for shard in range(KEYS.shards):
                if damage == "trim":
                    redis_server.client.xtrim(KEYS.bell(shard), maxlen=0, approximate=False)
                else:
                    redis_server.client.delete(KEYS.bell(shard))
            await writer.write(3 * round_ + 2, 3 * round_ + 3)
        await writer.ring()
        assert await live.have(60) == list(range(1, 61))
        await live.stop()


async def test_repeatedly_cut_connection_loses_nothing(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(0)
        live = await Collector(bus.read("trade")).ready()
        for first in range(1, 1001, 10):
            await writer.write(*range(first, first + 10))
            if first % 100 == 51:
                redis_server.client.client_kill_filter(_type="normal", skipme=True)
        assert await live.have(1000, 40) == list(range(1, 1001))
        assert live.subscription._reader is not None and live.subscription._reader.reconnects >= 3
        await live.stop()


async def test_subscription_waits_while_the_server_loads_its_data(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        for first in range(1, 151):
            await writer.write(first)
        live = await Collector(bus.read("trade", start="start")).ready()
        await live.have(150)
        redis_server.stop()
        redis_server.client.close()
        slow = RedisServer(
            redis_server._folder,
            "--key-load-delay",
            "2000",
            "--loading-process-events-interval-bytes",
            "1024",
        )
        slow.port = redis_server.port
        try:
            await asyncio.to_thread(slow.start)
            await writer.write(151)
            assert await live.have(151) == list(range(1, 152))
        finally:
            await live.stop()
            slow.close()


async def test_flushed_server_starts_a_new_history(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(1, 2)
        live = await Collector(bus.read("trade", start="start")).ready()
        await live.have(2)
        redis_server.client.flushall()
        await writer.write(3)
        await writer.write(4)
        found = await live.have(4)
        assert found[:2] == [1, 2] and found[-2:] == [3, 4]
        await live.stop()


async def test_connect_without_a_server_or_a_valid_url(redis_server: RedisServer) -> None:
    redis_server.stop()
    with pytest.raises(RedisUnavailable, match=r"no Redis at redis://127\.0\.0\.1"):
        async with tickbus.connect(redis_server.url):
            raise AssertionError("the server is stopped")
    with pytest.raises(ConfigError, match="--redis"):
        async with tickbus.connect("http://127.0.0.1"):
            raise AssertionError("the URL is invalid")


# a plain program


class Program(threading.Thread):
    """A plain `for` loop in its own thread, as in a script or a notebook."""

    def __init__(self, url: str, count: int, **options: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._count, self._options = url, count, options
        self.messages: list[Message] = []
        self.cursor: dict[str, str] = {}

    def run(self) -> None:
        with tickbus.connect(self._url) as bus:
            subscription = bus.read("trade", **self._options)
            for message in subscription:
                self.messages.append(message)
                if len(self.messages) == self._count:
                    break
            self.cursor = subscription.cursor


async def test_plain_loop_delivers_the_same_as_an_async_one(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, bus):
        await writer.write(*range(1, 2001))
        program = Program(redis_server.url, 4000, start="start")
        program.start()
        for first in range(2001, 4001, 100):
            await writer.write(*range(first, first + 100))
        live = await Collector(bus.read("trade", start="start")).ready()
        assert await live.have(4000) == list(range(1, 4001))
        await asyncio.to_thread(program.join, 20)
        assert not program.is_alive()
        assert program.messages == live.messages
        assert (
            program.cursor
            == live.subscription.cursor
            == {"trade:test:A": str(stored(redis_server.client, writer.key())[-1][0])}
        )
        await live.stop()


async def test_plain_loop_left_midway_ends_its_thread(redis_server: RedisServer) -> None:
    async with open_bus(redis_server) as (writer, _):
        for first in range(1, 40_001, 5_000):
            await writer.write(*range(first, first + 5_000))
        program = Program(redis_server.url, 3, start="start")
        program.start()
        await asyncio.to_thread(program.join, 20)
        assert [number(message) for message in program.messages] == [1, 2, 3]
        assert program.cursor == {"trade:test:A": str(stored(redis_server.client, writer.key())[2][0])}
        until(lambda: not any(thread.name == "tickbus-reader" for thread in threading.enumerate()))


def test_plain_loop_raises_errors_of_its_thread(redis_server: RedisServer) -> None:
    with tickbus.connect(redis_server.url) as bus:
        redis_server.stop()
        with pytest.raises(RedisUnavailable):
            next(iter(bus.read("trade")))


def test_stream_ids_parse_format_and_sort() -> None:
    assert StreamId.parse(b"5-7") == StreamId.parse("5-7") == StreamId(5, 7)
    assert str(StreamId(5, 7)) == "5-7"
    assert StreamId(5, 10) > StreamId(5, 9) and StreamId(6, 1) > StreamId(5, 9)
