"""Redis loses acknowledged entries: what is resent, and what the bus clock shows meanwhile.

Bugs in both were found by the soak.
"""

from collections.abc import Iterable

import pytest
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer, numbers, trade

from tickbus.errors import RedisUnavailable
from tickbus.protocol.codec import decode_bell
from tickbus.redis.link import Link, Reply
from tickbus.redis.resp import Command


def lose_power(redis_server: RedisServer, size: int) -> None:
    redis_server.kill()
    redis_server.truncate_log(size)
    redis_server.start()


async def test_bus_clock_does_not_pass_entries_waiting_behind_a_lost_tail(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    size = redis_server.log_size()
    await writer.write(2)
    waiting = writer.transaction([writer.entry(writer.stream(), trade(3))])
    lose_power(redis_server, size)
    received = waiting.bus_ms
    await until_async(lambda: writer.clock.now_ms() > received + 10, what="time to pass")
    await writer.publisher.commit(waiting)
    bells = [
        decode_bell(fields[b"d"]) for _, fields in redis_server.client.xrange(KEYS.bell(KEYS.shard("A")))
    ]
    assert max(bell.bus_ms for bell in bells) <= received
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3]
    writer.close()


async def test_resent_entries_are_resent_once_per_loss(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    size = redis_server.log_size()
    await writer.write(2, 3)
    lose_power(redis_server, size)
    await writer.write(4)
    assert writer.publisher.resent == 2
    lose_power(redis_server, size)
    await writer.write(5)
    assert writer.publisher.resent == 2 + 3
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3, 4, 5]
    writer.close()


async def test_flush_between_two_queries_is_not_taken_for_a_foreign_writer(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await Writer(redis_server.url).open()
    transaction = writer.transaction([writer.entry(writer.stream(), trade(number)) for number in (1, 2, 3)])
    await writer.publisher.commit(transaction)
    link = await Link.open(redis_server.url)
    ask_all = link.ask_all

    async def flushed_first(commands: Iterable[Command]) -> list[Reply]:
        redis_server.client.flushall()
        return await ask_all(commands)

    monkeypatch.setattr(link, "ask_all", flushed_first)
    with pytest.raises(RedisUnavailable, match="lost its data"):
        await writer.publisher.lanes[0]._missing(link, transaction.entries)
    link.close()
    writer.close()


async def test_stream_with_a_new_writer_keeps_its_head(redis_server: RedisServer) -> None:
    """A service was reconfigured to write other streams, and a second one now writes its former streams."""
    first, second = await Writer(redis_server.url).open(), await Writer(redis_server.url, "second").open()
    await first.write(1, 2)
    second.seqs = {first.stream(): 2}
    await second.publisher.commit(
        second.transaction([second.entry(first.stream(), trade(number)) for number in (3, 4)])
    )
    head = redis_server.client.hget(KEYS.last(KEYS.shard("A")), first.stream().name)
    size = redis_server.log_size()
    await first.write(1, symbol="B")
    lose_power(redis_server, size)
    await first.write(2, symbol="B")
    assert numbers(redis_server.client, first.key("B")) == [1, 2]
    assert numbers(redis_server.client, first.key()) == [1, 2, 3, 4]
    assert redis_server.client.hget(KEYS.last(KEYS.shard("A")), first.stream().name) == head
    first.close()
    second.close()
