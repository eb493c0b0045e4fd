"""A snapshot is the newest message of each stream and where to read on: no hole, no duplicate."""

import asyncio

from msgspec.structs import replace
from support.redis_server import RedisServer
from support.writing import Writer, trade

import tickbus
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, StreamKind

SYMBOLS = ("A", "B", "C")


async def write_until(writer: Writer, enough: asyncio.Event) -> int:
    """Write trades 1, 2, ... of each symbol without a pause. Return the last number."""
    number = 0
    while not enough.is_set():
        for symbol in SYMBOLS:
            await writer.write(*range(number + 1, number + 4), symbol=symbol)
        number += 3
    return number


async def test_reading_on_from_a_snapshot_has_neither_hole_nor_duplicate(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(0)  # a subscription to an empty bus would begin at the start anyway
    enough = asyncio.Event()
    writing = asyncio.create_task(write_until(writer, enough))
    async with tickbus.connect(redis_server.url) as bus:
        for _ in range(20):
            newest = await bus.snapshot("trade")
            cursor = {stream.name: str(id) for stream, (id, _) in newest.items()}
            known = {stream.symbol: int(message.price_text) for stream, (_, message) in newest.items()}
            subscription = bus.read("trade", cursor=cursor, gaps=False)
            read: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}
            async with asyncio.timeout(20):
                async for stream, _, message in subscription.entries():
                    read[stream.symbol].append(int(message.price_text))
                    if all(len(numbers) >= 5 for numbers in read.values()):
                        break
            subscription.close()
            for symbol, numbers in read.items():
                first = known.get(symbol, 0) + 1  # a stream that is not in the snapshot has begun since
                assert numbers == list(range(first, first + len(numbers))), symbol
    enough.set()
    await writing
    writer.close()


async def test_snapshot_is_the_newest_message_with_its_id(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    async with tickbus.connect(redis_server.url) as bus:
        (found,) = (await bus.snapshot()).values()
        assert found[1] == trade(1)
        await writer.write(2)
        ((stream, (id, newest)),) = (await bus.snapshot("trade", symbols=["A"])).items()
        assert (newest, id.seq) == (trade(2), 2)
        await writer.write(3)
        subscription = bus.read("trade", cursor={stream.name: str(id)})
        async for message in subscription:
            assert message == trade(3)
            break
        subscription.close()
    writer.close()


async def test_without_late_ticks_only_those_in_order_are_read(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    stream = writer.stream()
    missing = Gap(StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, 2, "2", "2", 1, symbol="A")
    repaired = Gap(
        StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, 2, "2", "2", 1, repaired=True, symbol="A"
    )
    late = replace(trade(2), flags=int(Flag.LATE))
    messages: list[Message] = [trade(1), missing, trade(3), late, repaired, trade(4)]
    await writer.publisher.commit(writer.transaction([writer.entry(stream, message) for message in messages]))
    expected = {
        (True, True): messages,
        (True, False): [trade(1), missing, trade(3), trade(4)],
        (False, True): [trade(1), trade(3), late, trade(4)],
        (False, False): [trade(1), trade(3), trade(4)],
    }
    async with tickbus.connect(redis_server.url) as bus:
        for (gaps, with_late), wanted in expected.items():
            subscription = bus.read("trade", start="start", gaps=gaps, late=with_late)
            read: list[Message] = []
            async for message in subscription:
                read.append(message)
                if message == trade(4):
                    break
            subscription.close()
            assert read == wanted
            assert subscription.cursor[stream.name].endswith("-6")
            by_entry = bus.read("trade", start="start", gaps=gaps, late=with_late)
            entries = by_entry.entries()
            assert [(await anext(entries))[2] for _ in wanted] == wanted
            by_entry.close()
    writer.close()
