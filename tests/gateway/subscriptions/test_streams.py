"""Streams that are opened and ended while a gateway runs, with their heads in a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from gateway.test_gateway import STREAM, Running, head_of
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS

from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Stream
from tickbus.protocol.wants import Topic

A = Topic("trade", "A")
LAST = KEYS.last(KEYS.shard("A"))


@asynccontextmanager
async def running(server: RedisServer, folder: Path, *fixed: str) -> AsyncIterator[Running]:
    one = await Running(server, folder, fixed).open()
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        one.stopping.set()
        await task


async def opened(one: Running) -> dict[Topic, str]:
    with closing(await one.connect()) as link:
        refused = await one.streams.open(link, [A])
    one.gateway.intake.resumed([A])
    return refused


def gaps(server: RedisServer) -> list[tuple[str, str | None, str | None, int | None]]:
    """Return kind, first and last id and count of the Gaps on the bus."""
    found = [decode(*fields) for _, fields in _entries(server)]
    return [(gap.kind.name, gap.from_id, gap.to_id, gap.count) for gap in found if isinstance(gap, Gap)]


def counters(server: RedisServer) -> list[int]:
    return [int(id.split(b"-")[1]) for id, _ in _entries(server)]


def _entries(server: RedisServer) -> list[tuple[bytes, tuple[bytes, bytes]]]:
    rows = server.client.xrange(KEYS.stream(STREAM))
    return [(id, next(iter(fields.items()))) for id, fields in rows]


ENDED = ("UNSUBSCRIBED", None, None, None)


async def test_stream_that_an_earlier_gateway_ended_returns_as_unsubscribed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Nobody wanted what came meanwhile: it is not missing."""
    async with running(redis_server, tmp_path, "A") as one:
        one.receive(5)
        await one.stored(5)
    async with running(redis_server, tmp_path) as one:
        assert await opened(one) == {}
        one.next = 9
        one.receive(2)
        await one.stored(2)
        assert gaps(redis_server) == [ENDED, ("UNSUBSCRIBED", "6", "8", None)]
        head = await head_of(one)
        assert (head.missing, head.holes, head.gaps) == (0, [], {"unsubscribed": 2})
    assert counters(redis_server) == list(range(1, 10))


async def test_stream_that_ended_here_goes_on_from_memory(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running(redis_server, tmp_path, "A") as one:
        one.receive(5)
        one.streams.end([A], one.gateway.intake.stamp())
        assert one.sequencer.streams == []
        one.next = 8
        assert await opened(one) == {}
        one.receive(1)
        await one.stored(6)
        assert gaps(redis_server) == [ENDED, ("UNSUBSCRIBED", "6", "7", None)]
    assert counters(redis_server) == list(range(1, 9))


async def test_stream_that_never_ticked_leaves_no_head(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running(redis_server, tmp_path) as one:
        assert await opened(one) == {}
        assert redis_server.client.hget(LAST, STREAM.name) is not None
        one.streams.end([A], one.gateway.intake.stamp())
        await until_async(lambda: redis_server.client.hget(LAST, STREAM.name) is None)
        assert await opened(one) == {}
        one.receive(1)
        await one.stored(1)
    assert (gaps(redis_server), counters(redis_server)) == ([], [1])


async def test_head_of_a_stream_that_never_ticked_is_no_history(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """A gateway was killed before it could delete it."""
    async with running(redis_server, tmp_path, "A"):
        pass
    assert redis_server.client.hget(LAST, STREAM.name) is not None
    async with running(redis_server, tmp_path) as one:
        assert await opened(one) == {}
        one.receive(1)
        await one.stored(1)
    assert gaps(redis_server) == []


async def test_stream_that_takes_no_entries_is_refused_alone(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running(redis_server, tmp_path, "B") as one:
        redis_server.client.set(KEYS.stream(STREAM), "foreign")
        (why,) = (await opened(one)).values()
        assert KEYS.stream(STREAM) in why
        assert [state.stream for state in one.sequencer.streams] == [Stream("trade", "x", "B")]
        redis_server.client.delete(KEYS.stream(STREAM))
        assert await opened(one) == {}


async def test_overwritten_head_is_rebuilt_before_the_stream_goes_on(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running(redis_server, tmp_path, "A") as one:
        one.receive(5)
        await one.stored(5)
    async with running(redis_server, tmp_path) as one:
        await until_async(lambda: len(counters(redis_server)) == 6)
        redis_server.client.hset(LAST, STREAM.name, "garbage")
        assert await opened(one) == {}
        one.next = 9
        one.receive(1)
        await one.stored(1)
    assert gaps(redis_server) == [ENDED, ("UNSUBSCRIBED", "6", "8", None)]
    assert counters(redis_server) == list(range(1, 9))
