"""Streams that were rolled back: Redis was flushed, restored from an old copy, or lost its newest entries.

Entries that were read are not read again, new ones are read, and a different history is reported, once.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer, trade

import tickbus
from tickbus.protocol.codec import Bell, encode
from tickbus.protocol.messages import Gap, GapKind, StreamKind, Trade
from tickbus.protocol.names import StreamId
from tickbus.redis.link import Link
from tickbus.redis.registry import check_meta
from tickbus.subscription import Subscription
from tickbus.units import MILLISECOND, SECOND
from tickbus.writer.entry import Entry

NAME = "trade:test:A"


class Live:
    """A background subscription: the numbers of its trades, and RESET or TRIMMED with a count for Gaps."""

    def __init__(self, subscription: Subscription[Any]) -> None:
        self._subscription = subscription
        self.found: list[int | str] = []
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for message in self._subscription:
            assert isinstance(message, Trade | Gap)
            self.found.append(
                f"{message.kind.name} {message.count}"
                if isinstance(message, Gap)
                else int(message.price_text)
            )

    async def expect(self, *wanted: int | str) -> None:
        """Wait for exactly these."""

        def complete() -> bool:
            if self._task.done():
                self._task.result()
            return len(self.found) >= len(wanted)

        await until_async(complete, 15, f"{wanted} of {self.found}")
        assert self.found == list(wanted)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._subscription.close()


@asynccontextmanager
async def subscribe(
    server: RedisServer, start: str = "start", cursor: dict[str, str] | None = None
) -> AsyncIterator[Live]:
    async with tickbus.connect(server.url) as bus:
        live = Live(bus.read("trade", start=start, cursor=cursor))
        yield live
        await live.stop()


class Sender(Writer):
    """A writer that returns the entries it wrote."""

    async def open(self) -> "Sender":
        await super().open()
        return self

    async def send(self, *numbers: int) -> list[Entry]:
        entries = [self.entry(self.stream(), trade(number)) for number in numbers]
        await self.publisher.commit(self.transaction(entries))
        return entries

    def ahead(self, seconds: int) -> None:
        """Set its clock ahead, like that of another machine."""
        real = self.clock.now_ms
        self.clock.now_ms = lambda: real() + seconds * SECOND // MILLISECOND  # type: ignore[method-assign]


Start = Callable[..., Awaitable[Sender]]


@pytest.fixture
async def start_writer(redis_server: RedisServer) -> AsyncIterator[Start]:
    """start_writer(ahead=0) returns a writer that has taken over; the test's end closes it."""
    opened: list[Sender] = []

    async def start(ahead: int = 0) -> Sender:
        opened.append(Sender(redis_server.url))
        opened[-1].ahead(ahead)
        return await opened[-1].open()

    yield start
    for writer in opened:
        writer.close()


async def flush(server: RedisServer) -> None:
    """Flush Redis, cut all connections: the writer recreates the bus's metadata and resends what it has."""
    server.client.flushall()
    link = await Link.open(server.url)
    await check_meta(link, KEYS)
    link.close()
    server.client.client_kill_filter(_type="normal", skipme=True)


class Copy:
    """A copy of a server's data, as made by a backup."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self._server, self._folder = server, folder

    async def take(self) -> "Copy":
        self._server.stop()
        shutil.copytree(self._server._folder, self._folder)
        await asyncio.to_thread(self._server.start)
        return self

    async def restore(self) -> None:
        self._server.kill()
        shutil.rmtree(self._server._folder)
        shutil.copytree(self._folder, self._server._folder)
        await asyncio.to_thread(self._server.start)


async def test_entries_resent_after_a_flush_are_not_read_twice(
    redis_server: RedisServer, start_writer: Start
) -> None:
    writer = await start_writer()
    sent = await writer.send(1, 2, 3, 4)
    async with subscribe(redis_server) as live:
        await live.expect(1, 2, 3, 4)
        await flush(redis_server)
        await writer.send(5)
        await live.expect(1, 2, 3, 4, 5)
    async with subscribe(redis_server, cursor={NAME: str(sent[0].id)}) as late:
        await late.expect(2, 3, 4, 5)


async def test_new_history_after_a_flush_is_reported_before_its_entries(
    redis_server: RedisServer, start_writer: Start
) -> None:
    writer = await start_writer()
    await writer.send(1, 2, 3)
    async with subscribe(redis_server) as live:
        await live.expect(1, 2, 3)
        redis_server.client.flushall()
        writer = await start_writer()
        await writer.send(11)
        await writer.send(12, 13, 14, 15)
        await live.expect(1, 2, 3, "RESET None", 11, 12, 13, 14, 15)


async def test_reset_gap_gives_position_and_times(redis_server: RedisServer, start_writer: Start) -> None:
    writer = await start_writer()
    (one,) = await writer.send(1)
    cursor = {NAME: f"{one.ms}-7"}
    async with tickbus.connect(redis_server.url) as bus:
        subscription = bus.read("trade", cursor=cursor)
        entries = subscription.entries()
        await until_async(lambda: writer.clock.now_ms() > one.ms)
        (two,) = await writer.send(2)
        async with asyncio.timeout(10):
            assert await anext(entries) == (
                writer.stream(), StreamId(one.ms, 7),
                Gap(
                    StreamKind.TRADE, "reader", GapKind.RESET, one.ms * MILLISECOND, two.ms * MILLISECOND,
                    symbol="A",
                ),
            )  # fmt: skip
            assert await anext(entries) == (writer.stream(), StreamId(two.ms, 2), trade(2))
        await entries.aclose()
        subscription.close()


@pytest.mark.parametrize("healed", [True, False])
async def test_restored_old_copy_is_reported_unless_the_gateway_heals_it(
    redis_server: RedisServer, start_writer: Start, tmp_path: Path, healed: bool
) -> None:
    writer = await start_writer()
    await writer.send(1, 2)
    copy = await Copy(redis_server, tmp_path / "copy").take()
    await writer.send(3, 4, 5)
    async with subscribe(redis_server) as live:
        await live.expect(1, 2, 3, 4, 5)
        if not healed:
            writer.close()
        await copy.restore()
        if healed:  # by the gateway that still has the entries
            await writer.ring()
            await writer.send(6)
            await live.expect(1, 2, 3, 4, 5, 6)
        else:  # another gateway continues from what it finds
            writer = await start_writer()
            writer.seqs[writer.stream()] = 2
            await writer.send(13)
            await writer.send(14)
            await live.expect(1, 2, 3, 4, 5, "RESET None", 13, 14)


async def test_new_history_with_an_earlier_clock_is_read_from_its_start(
    redis_server: RedisServer, start_writer: Start
) -> None:
    fast = await start_writer(ahead=3600)
    await fast.send(1, 2)
    async with subscribe(redis_server) as live:
        await live.expect(1, 2)
        redis_server.client.flushall()
        writer = await start_writer()
        await writer.send(11, 12)
        await writer.ring()
        await live.expect(1, 2, "RESET None", 11, 12)
        await writer.send(13)
        await live.expect(1, 2, "RESET None", 11, 12, 13)


async def test_cursor_ahead_of_the_clock_reports_a_reset(
    redis_server: RedisServer, start_writer: Start
) -> None:
    writer = await start_writer()
    (one,) = await writer.send(1)
    async with subscribe(redis_server, cursor={NAME: f"{one.ms + 3_600_000}-50"}) as live:
        await writer.send(2)
        # entries that existed at the first sweep count as read; the loss is reported before what follows
        while not live.found:
            await writer.send(writer.seqs[writer.stream()] + 1)
        assert live.found[0] == "RESET None" and isinstance(live.found[1], int)
        await live.expect("RESET None", *range(live.found[1], writer.seqs[writer.stream()] + 1))


async def test_vanished_stream_keeps_its_position(redis_server: RedisServer, start_writer: Start) -> None:
    writer = await start_writer()
    await writer.send(1, 2)
    async with subscribe(redis_server) as live:
        await live.expect(1, 2)
        redis_server.client.flushall()
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
        await writer.ring()
        await writer.send(3)  # the counter continues: a reader that has read 2 misses nothing
        await live.expect(1, 2, 3)


async def test_rolled_back_bells_are_read(redis_server: RedisServer, start_writer: Start) -> None:
    writer = await start_writer()
    await writer.send(1)
    async with subscribe(redis_server) as live:
        await live.expect(1)
        # the clock of a new master may be behind that of the old one, and so are the IDs of its bells
        for shard in range(KEYS.shards):
            redis_server.client.xadd(
                KEYS.bell(shard), {"d": _bell(writer)}, f"{writer.clock.now_ms() + 3_600_000}-0"
            )
        await writer.send(2)
        await live.expect(1, 2)
        for shard in range(KEYS.shards):
            redis_server.client.delete(KEYS.bell(shard))
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
        await writer.send(3)
        await writer.ring()
        await live.expect(1, 2, 3)


def _bell(writer: Writer) -> bytes:
    return encode(Bell("other#1", 1, writer.clock.now_ms(), None, []))
