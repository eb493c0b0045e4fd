"""Streams that went back: Redis was flushed, restored from an old copy, or lost its newest entries. What was read is not read again,
what is new is read, and a history that is another one is told, once."""

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
from tickbus.bus import Subscription
from tickbus.protocol.codec import Bell, encode
from tickbus.protocol.messages import Gap, GapKind, StreamKind, Trade
from tickbus.protocol.names import StreamId
from tickbus.redis.link import Link
from tickbus.redis.registry import check_meta
from tickbus.units import MILLISECOND, SECOND
from tickbus.writer.entry import Entry

NAME = "trade:test:A"


class Live:
    """A reading that runs beside the test: the numbers of its trades, and RESET or TRIMMED with a count for its Gaps."""

    def __init__(self, reading: Subscription[Any]) -> None:
        self._reading = reading
        self.found: list[int | str] = []
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for message in self._reading:
            assert isinstance(message, Trade | Gap)
            self.found.append(
                f"{message.kind.name} {message.count}"
                if isinstance(message, Gap)
                else int(message.price_text)
            )

    async def have(self, *wanted: int | str) -> None:
        """Exactly these."""

        def there() -> bool:
            if self._task.done():
                self._task.result()
            return len(self.found) >= len(wanted)

        await until_async(there, 15, f"{wanted} of {self.found}")
        assert self.found == list(wanted)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._reading.close()


@asynccontextmanager
async def reading(
    server: RedisServer, start: str = "start", cursor: dict[str, str] | None = None
) -> AsyncIterator[Live]:
    async with tickbus.connect(server.url) as bus:
        live = Live(bus.read("trade", start=start, cursor=cursor))
        yield live
        await live.stop()


class Sending(Writer):
    """Says what it wrote."""

    async def open(self) -> "Sending":
        await super().open()
        return self

    async def send(self, *numbers: int) -> list[Entry]:
        entries = [self.entry(self.of(), trade(number)) for number in numbers]
        await self.publisher.commit(self.transaction(entries))
        return entries

    def ahead(self, seconds: int) -> None:
        """Its clock is that of another machine."""
        real = self.clock.now_ms
        self.clock.now_ms = lambda: real() + seconds * SECOND // MILLISECOND  # type: ignore[method-assign]


Open = Callable[..., Awaitable[Sending]]


@pytest.fixture
async def begin(redis_server: RedisServer) -> AsyncIterator[Open]:
    """begin(ahead=0) -> a writer that has taken over, closed with the test."""
    opened: list[Sending] = []

    async def begun(ahead: int = 0) -> Sending:
        opened.append(Sending(redis_server.url))
        opened[-1].ahead(ahead)
        return await opened[-1].open()

    yield begun
    for writer in opened:
        writer.close()


async def flush(server: RedisServer) -> None:
    """FLUSHALL and lost connections: the writer makes anew what the bus knows of itself, and sends again what it has."""
    server.client.flushall()
    link = await Link.open(server.url)
    await check_meta(link, KEYS)
    link.close()
    server.client.client_kill_filter(_type="normal", skipme=True)


class Copy:
    """A copy of a server's data, as a backup takes it."""

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


async def test_flushed_and_sent_again_from_the_ring_nothing_comes_twice(
    redis_server: RedisServer, begin: Open
) -> None:
    writer = await begin()
    sent = await writer.send(1, 2, 3, 4)
    async with reading(redis_server) as live:
        await live.have(1, 2, 3, 4)
        await flush(redis_server)
        await writer.send(5)
        await live.have(1, 2, 3, 4, 5)
    async with reading(redis_server, cursor={NAME: str(sent[0].id)}) as late:
        await late.have(2, 3, 4, 5)


async def test_flushed_and_begun_anew_is_told_in_front_of_what_is_new(
    redis_server: RedisServer, begin: Open
) -> None:
    writer = await begin()
    await writer.send(1, 2, 3)
    async with reading(redis_server) as live:
        await live.have(1, 2, 3)
        redis_server.client.flushall()
        writer = await begin()
        await writer.send(11)
        await writer.send(12, 13, 14, 15)
        await live.have(1, 2, 3, "RESET None", 11, 12, 13, 14, 15)


async def test_the_gap_of_a_reset_says_where_it_lies(redis_server: RedisServer, begin: Open) -> None:
    writer = await begin()
    (one,) = await writer.send(1)
    cursor = {NAME: f"{one.ms}-7"}
    async with tickbus.connect(redis_server.url) as bus:
        reading = bus.read("trade", cursor=cursor)
        entries = reading.entries()
        await until_async(lambda: _later(writer, one.ms))
        (two,) = await writer.send(2)
        async with asyncio.timeout(10):
            assert await anext(entries) == (
                writer.of(), StreamId(one.ms, 7),
                Gap(StreamKind.TRADE, "reader", GapKind.RESET, one.ms * MILLISECOND, two.ms * MILLISECOND, symbol="A"),
            )  # fmt: skip
            assert await anext(entries) == (writer.of(), StreamId(two.ms, 2), trade(2))
        await entries.aclose()  # type: ignore[attr-defined]
        reading.close()


def _later(writer: Sending, ms: int) -> bool:
    return writer.clock.now_ms() > ms


@pytest.mark.parametrize("healed", [True, False])
async def test_restored_from_an_old_copy(
    redis_server: RedisServer, begin: Open, tmp_path: Path, healed: bool
) -> None:
    writer = await begin()
    await writer.send(1, 2)
    copy = await Copy(redis_server, tmp_path / "copy").take()
    await writer.send(3, 4, 5)
    async with reading(redis_server) as live:
        await live.have(1, 2, 3, 4, 5)
        if not healed:
            writer.close()
        await copy.restore()
        if healed:  # by the gateway that still has them
            await writer.ring()
            await writer.send(6)
            await live.have(1, 2, 3, 4, 5, 6)
        else:  # another one goes on from what it finds
            writer = await begin()
            writer.seqs[writer.of()] = 2
            await writer.send(13)
            await writer.send(14)
            await live.have(1, 2, 3, 4, 5, "RESET None", 13, 14)


async def test_a_new_history_of_an_earlier_clock_is_read_from_its_start(
    redis_server: RedisServer, begin: Open
) -> None:
    fast = await begin(ahead=3600)
    await fast.send(1, 2)
    async with reading(redis_server) as live:
        await live.have(1, 2)
        redis_server.client.flushall()
        writer = await begin()
        await writer.send(11, 12)
        await writer.ring()
        await live.have(1, 2, "RESET None", 11, 12)
        await writer.send(13)
        await live.have(1, 2, "RESET None", 11, 12, 13)


async def test_a_position_of_an_earlier_run_that_is_ahead_of_the_clock(
    redis_server: RedisServer, begin: Open
) -> None:
    writer = await begin()
    (one,) = await writer.send(1)
    async with reading(redis_server, cursor={NAME: f"{one.ms + 3_600_000}-50"}) as live:
        await writer.send(2)
        # what was there when the reader first looked counts as read, and the loss is told in front of what follows
        while not live.found:
            await writer.send(writer.seqs[writer.of()] + 1)
        assert live.found[0] == "RESET None" and isinstance(live.found[1], int)
        await live.have("RESET None", *range(live.found[1], writer.seqs[writer.of()] + 1))


async def test_a_stream_that_vanished_keeps_its_position(redis_server: RedisServer, begin: Open) -> None:
    writer = await begin()
    await writer.send(1, 2)
    async with reading(redis_server) as live:
        await live.have(1, 2)
        redis_server.client.flushall()
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
        await writer.ring()
        await writer.send(3)  # the counter goes on: nothing is missing for who has read 2
        await live.have(1, 2, 3)


async def test_bells_that_went_back_are_heard(redis_server: RedisServer, begin: Open) -> None:
    writer = await begin()
    await writer.send(1)
    async with reading(redis_server) as live:
        await live.have(1)
        # the clock of a new master may be behind that of the old one: so are the IDs of its bells
        for shard in range(KEYS.shards):
            redis_server.client.xadd(
                KEYS.bell(shard), {"d": _bell(writer)}, f"{writer.clock.now_ms() + 3_600_000}-0"
            )
        await writer.send(2)
        await live.have(1, 2)
        for shard in range(KEYS.shards):
            redis_server.client.delete(KEYS.bell(shard))
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
        await writer.send(3)
        await writer.ring()
        await live.have(1, 2, 3)


def _bell(writer: Writer) -> bytes:
    return encode(Bell("other#1", 1, writer.clock.now_ms(), None, []))
