"""The bus through a relay is the bus: same messages, cursors and gaps, over lost relays."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.processes import Process
from support.redis_server import RedisServer, free_port
from support.relay import start_relay
from support.writing import Writer, trade

import tickbus
import tickbus.remote
from tickbus.errors import ConfigError, RelayRefused, RelayUnavailable
from tickbus.protocol.messages import Gap, Trade

Start = Callable[..., Process]
STREAM = "trade:test:A"


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    yield opened
    opened.close()


async def read(subscription: "tickbus.Subscription[Trade]", count: int) -> list[Trade]:
    """Return the next messages."""
    messages: list[Trade] = []
    async for message in subscription:
        messages.append(message)
        if len(messages) == count:
            break
    return messages


async def take(messages: AsyncIterator[Trade], count: int) -> list[tuple[str, str]]:
    """Return symbol and price of the next messages of an iteration that goes on."""
    return [(message.symbol, message.price_text) for message in [await anext(messages) for _ in range(count)]]


async def test_messages_and_cursors_are_those_of_the_bus(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(1, 2, 3)
    _, url = start_relay(start, redis_server.url)
    async with tickbus.remote.connect(url) as remote, tickbus.connect(redis_server.url) as bus:
        far, near = (
            remote.read("trade", start="start", gaps=False),
            bus.read("trade", start="start", gaps=False),
        )
        assert await read(far, 2) == await read(near, 2) == [trade(1), trade(2)]
        assert far.cursor == near.cursor
        # a cursor of the one is understood by the other
        assert await read(remote.read("trade", cursor=near.cursor, gaps=False), 1) == [trade(3)]
        assert await read(bus.read("trade", cursor=far.cursor, gaps=False), 1) == [trade(3)]
        assert await remote.snapshot("trade") == await bus.snapshot("trade")


def test_plain_loop_reads_too(redis_server: RedisServer, start: Start) -> None:
    async def write() -> None:
        writer = await Writer(redis_server.url).open()
        await writer.write(1, 2)
        writer.close()

    asyncio.run(write())
    _, url = start_relay(start, redis_server.url)
    with tickbus.remote.connect(url) as bus:
        seen = []
        for message in bus.read("trade", start="start", gaps=False):
            seen.append(message)
            if len(seen) == 2:
                break
    assert seen == [trade(1), trade(2)]


async def test_trimmed_entries_are_a_gap(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    await writer.write(*range(1, 11))
    ids = [id.decode() for id, _ in redis_server.client.xrange(writer.key())]
    redis_server.client.xtrim(writer.key(), minid=ids[6], approximate=False)
    _, url = start_relay(start, redis_server.url)
    async with tickbus.remote.connect(url) as bus:
        subscription = bus.read("trade", cursor={STREAM: ids[1]})
        found = []
        async for message in subscription:
            found.append(message)
            if len(found) == 5:
                break
        gap, *rest = found
        assert isinstance(gap, Gap)
        assert gap.count == 4
        assert rest == [trade(number) for number in (7, 8, 9, 10)]


async def test_reading_goes_on_at_another_relay_without_hole_or_double(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(0)
    ports = free_port(), free_port()
    first = start("relay", "--redis", redis_server.url, "--shards", "8", "--port", str(ports[0]))
    first.wait_for("serving")
    urls = [f"ws://127.0.0.1:{port}" for port in ports]
    enough = asyncio.Event()

    async def write() -> None:
        number = 1
        while not enough.is_set():
            await writer.write(*range(number, number + 20))
            number += 20
            await asyncio.sleep(0.005)  # a market's pace: the reader must catch up after the kill

    async with tickbus.remote.connect(urls) as bus:
        subscription = bus.read("trade", start="start", gaps=False)
        numbers = [int(message.price_text) for message in await read(subscription, 1)]
        writing = asyncio.create_task(write())
        seen = 0
        async with asyncio.timeout(50):
            async for message in subscription:
                numbers.append(int(message.price_text))
                seen += 1
                if seen == 500:
                    first.process.kill()
                    second = start(
                        "relay", "--redis", redis_server.url, "--shards", "8", "--port", str(ports[1])
                    )
                    await asyncio.to_thread(second.wait_for, "serving")
                if seen == 3000:
                    break
        enough.set()
        await writing
    assert numbers == list(range(3001))


async def test_refusals_and_absence_are_errors_of_one_line(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="ws://host:port"):
        tickbus.remote.connect("http://x")
    async with tickbus.remote.connect(f"ws://127.0.0.1:{free_port()}") as bus:
        with pytest.raises(RelayUnavailable, match="no relay at"):
            await read(bus.read("trade", gaps=False), 1)
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[token]]\nname = "desk"\nsha256 = "{"0" * 64}"\n')
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    async with tickbus.remote.connect(url, token="wrong") as bus:
        with pytest.raises(RelayRefused, match="check the token"):
            await read(bus.read("trade", gaps=False), 1)


async def test_more_streams_than_one_request_can_name_are_resumed(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    names = [f"S{number}" for number in range(250)]
    for name in names:
        await writer.write(1, 2, symbol=name)
    port = free_port()
    options = ("relay", "--redis", redis_server.url, "--shards", "8", "--port", str(port))
    relay = start(*options)
    relay.wait_for("serving")
    async with tickbus.remote.connect(f"ws://127.0.0.1:{port}") as bus:
        messages = aiter(bus.read("trade", start="start", gaps=False))
        first = await take(messages, 2 * len(names))
        assert sorted(first) == sorted((name, price) for name in names for price in ("1", "2"))
        reading = asyncio.create_task(take(messages, 2 * len(names) + 1))
        relay.process.kill()
        for name in names:
            await writer.write(3, symbol=name)
        await writer.write(1, symbol="NEW")
        again = start(*options)
        await asyncio.to_thread(again.wait_for, "serving")
        for name in names:
            await writer.write(4, symbol=name)
        second = await asyncio.wait_for(reading, 40)
    assert sorted(second) == sorted(
        [("NEW", "1"), *((name, price) for name in names for price in ("3", "4"))]
    )
