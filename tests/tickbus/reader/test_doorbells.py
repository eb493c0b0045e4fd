"""What bells carry besides the names of streams: the bus clock, and who writes."""

from collections.abc import AsyncGenerator
from functools import partial

from support.redis_server import RedisServer
from support.writing import KEYS, Writer

from tickbus.reader.reader import FROM_START, Reader
from tickbus.reader.reads import Poll
from tickbus.redis.topology import locate


def start_reading(server: RedisServer) -> tuple[Reader, AsyncGenerator[Poll, None]]:
    reader = Reader(partial(locate(server.url).link, KEYS.meta), KEYS, lambda stream: True, FROM_START)
    return reader, reader.polls()


async def test_bell_without_new_entries_reports_its_clock_at_once(redis_server: RedisServer) -> None:
    """Not with the next bell: on a quiet bus that is most of a second later, and bars close by the clock."""
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    reader, polls = start_reading(redis_server)
    shard = KEYS.shard("A")
    while not (await anext(polls)).reads:
        pass
    for _ in range(5):  # a poll that waited a second in vain may be in flight
        rang = writer.clock.now_ms()
        await writer.ring()
        if (await anext(polls)).clocks.get((shard, "test"), 0) >= rang:
            break
    else:
        raise AssertionError("the clock of each ring came with a later one")
    await polls.aclose()
    reader.close()
    writer.close()


async def test_new_writer_of_a_stream_is_known_when_its_first_entry_is_delivered(
    redis_server: RedisServer,
) -> None:
    """Even for streams that the new writer does not write at first: its first bell names others."""
    first, second = await Writer(redis_server.url).open(), Writer(redis_server.url)
    symbols = [
        symbol for symbol in (f"S{number}" for number in range(99)) if KEYS.shard(symbol) == KEYS.shard("A")
    ][:3]
    for symbol in symbols:
        await first.write(1, symbol=symbol)
    reader, polls = start_reading(redis_server)
    delivered = 0

    async def epochs(wanted: int) -> list[int]:
        nonlocal delivered
        found: list[int] = []
        while delivered < wanted:
            for read in (await anext(polls)).reads:
                delivered += len(read.entries)
                found.append(reader.heads[read.stream.name].epochs[-1][0])
        return found

    assert await epochs(3) == [1, 1, 1]
    await second.open()
    second.seqs = dict.fromkeys(map(second.stream, symbols), 1)
    for number, symbol in enumerate(symbols, 4):
        await second.write(2, symbol=symbol)
        assert await epochs(number) == [2]
    await polls.aclose()
    reader.close()
    first.close()
    second.close()


async def test_new_writer_is_known_when_its_entries_precede_its_bell(redis_server: RedisServer) -> None:
    """One XREAD returns entries of both writers; the bell of the new one is in the same reply."""
    first, second = await Writer(redis_server.url).open(), Writer(redis_server.url)
    await first.write(1)
    reader, polls = start_reading(redis_server)
    while not (await anext(polls)).reads:
        pass
    await first.write(2)  # its bell is the reply to the reader, which does not read it yet
    await second.open()
    second.seqs = {second.stream(): 2}
    await second.write(3)
    while not (found := (await anext(polls)).reads):
        pass
    assert [len(read.entries) for read in found] == [2]
    assert reader.heads[first.stream().name].epochs[-1][0] == 2
    await polls.aclose()
    reader.close()
    first.close()
    second.close()
