"""A bus that lives as long as its program: what a subscription or a consumer used goes with it."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, suppress
from pathlib import Path

from support.redis_server import RedisServer
from support.waiting import until, until_async
from support.writing import Writer

import tickbus
from tickbus.bus import Bus
from tickbus.consumer.batch import Batch
from tickbus.consumer.consumer import ShardConsumer
from tickbus.consumer.membership import Membership
from tickbus.reader.reader import Reader
from tickbus.redis.link import Link
from tickbus.subscription import Consumer, Subscription
from tickbus.writer.publisher import Publisher

SUBSCRIPTIONS = 1_000
CONSUMERS = 200
AT_ONCE = 40

_DESCRIPTORS = Path("/proc/self/fd")
KEPT = (Subscription, Consumer, Reader, Link, Batch, ShardConsumer, Membership, Publisher)


class Everything:
    """What this process holds now: objects of ours, tasks, threads, file descriptors, connections."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.at_start = self._count()

    def _count(self) -> dict[str, int]:
        gc.collect()
        found = {kind.__name__: 0 for kind in KEPT}
        for one in gc.get_objects():
            if isinstance(one, KEPT):
                found[type(one).__name__] += 1
        # the pool of asyncio.to_thread is ours, not the library's
        found["threads"] = sum(not one.name.startswith("asyncio_") for one in threading.enumerate())
        found["descriptors"] = len(list(_DESCRIPTORS.iterdir())) if _DESCRIPTORS.exists() else 0
        found["connections"] = len(self._server.client.client_list())
        with suppress(RuntimeError):
            found["tasks"] = len(asyncio.all_tasks())
        return found

    def is_as_at_start(self) -> bool:
        self.now = self._count()
        return all(self.now[what] <= count for what, count in self.at_start.items())


async def left_by_break(bus: Bus, _: str) -> None:
    async for _message in bus.read("trade", start="start"):
        break


async def left_by_an_error(bus: Bus, _: str) -> None:
    with suppress(ZeroDivisionError):
        async for _message in bus.read("trade", start="start"):
            raise ZeroDivisionError


async def left_by_cancellation(bus: Bus, _: str) -> None:
    began = asyncio.Event()

    async def read() -> None:
        async for _message in bus.read("trade", start="start"):
            began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def left_without_a_word(bus: Bus, _: str) -> None:
    messages = aiter(bus.read("trade", start="start"))
    await anext(messages)
    del messages


async def left_by_closing_the_iteration(bus: Bus, _: str) -> None:
    async with aclosing(bus.read("trade", start="start").entries()) as entries:
        await anext(entries)


async def left_by_closing_the_subscription(bus: Bus, _: str) -> None:
    subscription = bus.read("trade", start="start")
    async for _message in subscription:
        subscription.close()


async def never_begun(bus: Bus, _: str) -> None:
    bus.read("trade", start="start")


async def left_by_a_plain_loop(bus: Bus, _: str) -> None:
    def read() -> None:
        for _message in bus.read("trade", start="start"):
            break

    await asyncio.to_thread(read)


async def left_by_closing_a_plain_iterator(bus: Bus, _: str) -> None:
    def read() -> None:
        messages: Iterator[object] = iter(bus.read("trade", start="start"))
        with closing(messages):  # type: ignore[type-var]
            next(messages)

    await asyncio.to_thread(read)


WAYS = [
    left_by_break,
    left_by_an_error,
    left_by_cancellation,
    left_without_a_word,
    left_by_closing_the_iteration,
    left_by_closing_the_subscription,
    never_begun,
    left_by_a_plain_loop,
    left_by_closing_a_plain_iterator,
]


@asynccontextmanager
async def bus_with_a_trade(server: RedisServer) -> AsyncIterator[Bus]:
    writer = await Writer(server.url).open()
    await writer.write(1)
    writer.close()
    async with tickbus.connect(server.url) as bus:
        yield bus


async def leave_many(ways: Sequence[Callable[[Bus, str], Awaitable[None]]], bus: Bus, count: int) -> None:
    """Leave this many, a few at a time, in all these ways in turn."""
    for at in range(0, count, AT_ONCE):
        await asyncio.gather(
            *(ways[one % len(ways)](bus, f"app{one}") for one in range(at, min(count, at + AT_ONCE)))
        )


async def test_a_thousand_subscriptions_leave_nothing(redis_server: RedisServer) -> None:
    asyncio.get_running_loop().set_debug(False)  # ten times slower with it
    async with bus_with_a_trade(redis_server) as bus:
        before = Everything(redis_server)
        await leave_many(WAYS, bus, SUBSCRIPTIONS)
        await until_async(before.is_as_at_start, 20, f"nothing more than {before.at_start}")
        assert not len(bus._subscriptions)


def test_plain_loops_leave_nothing(redis_server: RedisServer) -> None:
    async def write() -> None:
        writer = await Writer(redis_server.url).open()
        await writer.write(1)
        writer.close()

    asyncio.run(write())
    with tickbus.connect(redis_server.url) as bus:
        before = Everything(redis_server)
        for _ in range(100):
            for _message in bus.read("trade", start="start"):
                break
        until(before.is_as_at_start, 20, f"nothing more than {before.at_start}")
        assert not len(bus._subscriptions)


async def consume_and_break(bus: Bus, service: str) -> None:
    async for batch in bus.consume(service):
        if batch.reads:
            break


async def consume_and_fail(bus: Bus, service: str) -> None:
    with suppress(ZeroDivisionError):
        async for batch in bus.consume(service):
            if batch.reads:
                raise ZeroDivisionError


async def consume_and_close(bus: Bus, service: str) -> None:
    consumer = bus.consume(service)
    async for batch in consumer:
        if batch.reads:
            await consumer.close()
            break


async def consume_until_cancelled(bus: Bus, service: str) -> None:
    began = asyncio.Event()

    async def consume() -> None:
        async for batch in bus.consume(service):
            if batch.reads:
                began.set()

    task = asyncio.create_task(consume())
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def consume_nothing(bus: Bus, service: str) -> None:
    await bus.consume(service).shard_consumer()


CONSUMED = [consume_and_break, consume_and_fail, consume_and_close, consume_until_cancelled, consume_nothing]


async def test_consumers_leave_nothing(redis_server: RedisServer) -> None:
    asyncio.get_running_loop().set_debug(False)
    async with bus_with_a_trade(redis_server) as bus:
        before = Everything(redis_server)
        await leave_many(CONSUMED, bus, CONSUMERS)
        await until_async(before.is_as_at_start, 30, f"nothing more than {before.at_start}")
        assert not len(bus._consumers)
