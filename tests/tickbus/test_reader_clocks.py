"""The bus clock as a reader gives it out."""

from functools import partial

from support.redis_server import RedisServer
from support.writing import KEYS, Writer

from tickbus.reader import FROM_START, Reader
from tickbus.topology import locate


async def test_a_bell_without_news_gives_its_clock_at_once(redis_server: RedisServer) -> None:
    """Not with the next bell: on a quiet bus that is most of a second later, and bars close by it."""
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    reader = Reader(partial(locate(redis_server.url).link, KEYS.meta), KEYS, lambda stream: True, FROM_START)
    rounds, shard = reader.rounds(), KEYS.shard("A")
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
