"""Commits of shards whose master is unavailable, and of the others.

One server with a lane per shard, as on a cluster: a taken lock stands for a master that does not respond.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer, numbers, trade

from tickbus.clock import BusClock
from tickbus.errors import Fenced
from tickbus.redis.topology import SingleServer
from tickbus.writer.fences import Fence
from tickbus.writer.publisher import Publisher
from tickbus.writer.transaction import Field, Transaction

MOMENT = 0.05
DOWN, UP = "A", next(symbol for symbol in ("B", "C", "D") if KEYS.shard(symbol) != KEYS.shard("A"))
"""Symbols whose master is down and up."""
SHARD = KEYS.shard(DOWN)


class Sharded(SingleServer):
    sharded = True


def higher(found: Mapping[int, Fence]) -> dict[int, int]:
    return {shard: fence.epoch + 1 for shard, fence in found.items()}


@asynccontextmanager
async def writing(server: RedisServer) -> AsyncIterator[Writer]:
    writer = Writer(server.url)
    writer.publisher = Publisher(Sharded(server.url), KEYS, "test", writer.clock)
    await writer.publisher.claim(range(KEYS.shards), higher)
    yield writer
    await writer.publisher.release()
    writer.close()


def part(writer: Writer, number: int) -> Transaction:
    """Return a transaction with a trade of each symbol, and a field with its number."""
    transaction = writer.transaction(
        [writer.entry(writer.stream(symbol), trade(number, symbol)) for symbol in (DOWN, UP)]
    )
    transaction.fields = [Field(SHARD, KEYS.state(SHARD, "test"), "n", str(number).encode())]
    return transaction


async def test_other_shards_continue_and_queued_parts_follow_in_order(redis_server: RedisServer) -> None:
    async with writing(redis_server) as writer:
        publisher, client = writer.publisher, redis_server.client
        async with publisher.lane(SHARD)._lock:
            for number in (1, 2, 3, 4):
                await publisher.commit(part(writer, number), MOMENT)
                assert numbers(client, writer.key(UP)) == list(range(1, number + 1))
                assert publisher.in_flight.shards == {SHARD}
            assert numbers(client, writer.key(DOWN)) == []
        await until_async(lambda: not publisher.in_flight.shards)
        assert numbers(client, writer.key(DOWN)) == [1, 2, 3, 4]
        assert client.hget(KEYS.state(SHARD, "test"), "n") == b"4"
        publisher.in_flight.check()


async def test_nothing_follows_a_failed_part(redis_server: RedisServer) -> None:
    async with writing(redis_server) as writer:
        publisher, thief = writer.publisher, Publisher(Sharded(redis_server.url), KEYS, "test", BusClock())
        async with publisher.lane(SHARD)._lock:
            await publisher.commit(part(writer, 1), MOMENT)
            await publisher.commit(part(writer, 2), MOMENT)
            await thief.claim([SHARD], higher)
        await until_async(lambda: all(running.done() for running in publisher.in_flight._parts.values()))
        assert publisher.in_flight.shards == {SHARD}  # until the failure is reported
        # as if a failover had lost the thief's fence
        redis_server.client.set(KEYS.fence(SHARD, "test"), 1)
        redis_server.client.set(KEYS.holder(SHARD, "test"), publisher.fences.holder)
        with pytest.raises(Fenced) as caught:
            await publisher.commit(part(writer, 3), MOMENT)
        assert caught.value.shards == {SHARD}
        assert not publisher.in_flight.shards
        assert numbers(redis_server.client, writer.key(DOWN)) == []
        assert numbers(redis_server.client, writer.key(UP)) == [1, 2, 3]
        thief.close()


async def test_queued_entries_are_bounded(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickbus.writer.in_flight._MAX_QUEUED", 1)
    async with writing(redis_server) as writer:
        publisher = writer.publisher
        async with publisher.lane(SHARD)._lock:
            for number in (1, 2):
                await publisher.commit(part(writer, number), MOMENT)
            waiting = asyncio.create_task(publisher.commit(part(writer, 3), MOMENT))
            await asyncio.wait((waiting,), timeout=4 * MOMENT)
            assert not waiting.done()
        await waiting
        assert numbers(redis_server.client, writer.key(DOWN)) == [1, 2, 3]


async def test_released_shard_drops_its_queued_parts(redis_server: RedisServer) -> None:
    async with writing(redis_server) as writer:
        publisher = writer.publisher
        async with publisher.lane(SHARD)._lock:
            await publisher.commit(part(writer, 1), MOMENT)
            await publisher.commit(part(writer, 2), MOMENT)
            await publisher.release([SHARD])
            assert not publisher.in_flight.shards
        await publisher.commit(writer.transaction([writer.entry(writer.stream(UP), trade(3))]))
        assert numbers(redis_server.client, writer.key(DOWN)) == []
        assert numbers(redis_server.client, writer.key(UP)) == [1, 2, 3]


async def test_shards_that_cannot_be_claimed_in_time_are_skipped(redis_server: RedisServer) -> None:
    async with writing(redis_server) as writer:
        publisher = writer.publisher
        async with publisher.lane(SHARD)._lock:
            assert (await publisher.claim([SHARD, KEYS.shard(UP)], higher, timeout=MOMENT)).keys() == {
                KEYS.shard(UP)
            }
        assert (await publisher.claim([SHARD], higher, timeout=MOMENT)).keys() == {SHARD}
