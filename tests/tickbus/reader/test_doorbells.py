"""What bells say besides that there is news: the bus clock, and who writes."""

from functools import partial

from support.redis_server import RedisServer
from support.writing import KEYS, Writer

from tickbus.reader.reader import FROM_START, Reader
from tickbus.redis.topology import locate


async def test_a_bell_without_news_gives_its_clock_at_once(redis_server: RedisServer) -> None:
    """Not with the next bell: on a quiet bus that is most of a second later, and bars close by it."""
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    reader = Reader(partial(locate(redis_server.url).link, KEYS.meta), KEYS, lambda stream: True, FROM_START)
    rounds, shard = reader.polls(), KEYS.shard("A")
    while not (await anext(rounds)).reads:
        pass
    for _ in range(5):  # a round may be on its way that waited for a second in vain
        rang = writer.clock.now_ms()
        await writer.ring()
        if (await anext(rounds)).clocks.get((shard, "test"), 0) >= rang:
            break
    else:
        raise AssertionError("each ring's clock came with a later one")
    await rounds.aclose()
    reader.close()
    writer.close()


async def test_whoever_first_writes_a_stream_is_known_when_the_entry_is_given(
    redis_server: RedisServer,
) -> None:
    """Also of streams that the new writer does not write at once: its first bell names others."""
    first, second = await Writer(redis_server.url).open(), Writer(redis_server.url)
    symbols = [
        symbol for symbol in (f"S{number}" for number in range(99)) if KEYS.shard(symbol) == KEYS.shard("A")
    ][:3]
    for symbol in symbols:
        await first.write(1, symbol=symbol)
    reader = Reader(partial(locate(redis_server.url).link, KEYS.meta), KEYS, lambda stream: True, FROM_START)
    rounds, given = reader.polls(), 0

    async def epochs(wanted: int) -> list[int]:
        nonlocal given
        found: list[int] = []
        while given < wanted:
            for read in (await anext(rounds)).reads:
                given += len(read.entries)
                found.append(reader.heads[read.stream.name].epochs[-1][0])
        return found

    assert await epochs(3) == [1, 1, 1]
    await second.open()
    second.seqs = dict.fromkeys(map(second.of, symbols), 1)
    for number, symbol in enumerate(symbols, 4):
        await second.write(2, symbol=symbol)
        assert await epochs(number) == [2]
    await rounds.aclose()
    reader.close()
    first.close()
    second.close()


async def test_entries_that_are_read_before_the_bell_of_their_new_writer(redis_server: RedisServer) -> None:
    """One XREAD brings those of the old writer and of the new one; the bell of the new one comes in the same reply."""
    first, second = await Writer(redis_server.url).open(), Writer(redis_server.url)
    await first.write(1)
    reader = Reader(partial(locate(redis_server.url).link, KEYS.meta), KEYS, lambda stream: True, FROM_START)
    rounds = reader.polls()
    while not (await anext(rounds)).reads:
        pass
    await first.write(2)  # its bell answers the reader, which does not look yet
    await second.open()
    second.seqs = {second.of(): 2}
    await second.write(3)
    while not (found := (await anext(rounds)).reads):
        pass
    assert [len(read.entries) for read in found] == [2]
    assert reader.heads[first.of().name].epochs[-1][0] == 2
    await rounds.aclose()
    reader.close()
    first.close()
    second.close()
