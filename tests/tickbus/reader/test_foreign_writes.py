"""What other programs write to the keys of a bus: readers go on, skip it, and say so."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support.client import Client
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer, trade

from tickbus.protocol.codec import Bell, Head, decode, encode
from tickbus.protocol.messages import Trade
from tickbus.reader.reader import FROM_START, Reader
from tickbus.redis.topology import locate

SHARD = KEYS.shard("A")
OTHER = next(f"S{number}" for number in range(99) if KEYS.shard(f"S{number}") != SHARD)
BELL, LAST = KEYS.bell(SHARD), KEYS.last(SHARD)
FUTURE = "9999999999999-1"
LAST_ID = f"{2**64 - 1}-{2**64 - 1}"


class Follower:
    """A reader in the background: the numbers of the trades by symbol, and what was lost."""

    def __init__(self, url: str) -> None:
        self.reader = Reader(partial(locate(url).link, KEYS.meta), KEYS, lambda stream: True, FROM_START)
        self.numbers: dict[str, list[int]] = {}
        self.lost: list[Any] = []
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for poll in self.reader.polls():
            for read in poll.reads:
                self.lost += [read.lost] if read.lost is not None else []
                messages = [decode(field, payload) for _, (field, payload) in read.entries]
                self.numbers.setdefault(read.stream.symbol, []).extend(
                    int(message.price_text) for message in messages if isinstance(message, Trade)
                )

    async def expect(self, symbol: str, *numbers: int) -> None:
        def arrived() -> bool:
            if self._task.done():
                self._task.result()
            return self.numbers.get(symbol) == list(numbers)

        await until_async(arrived, 15, f"{numbers} of {symbol}; found {self.numbers}")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.reader.close()


def bell(**changes: Any) -> bytes:
    fields = {"writer": "x#1", "counter": 1, "bus_ms": 1, "feed_up": True, "streams": [], **changes}
    return encode(Bell(**fields))


BELLS: dict[str, Callable[[Client], object]] = {
    "no MessagePack": lambda redis: redis.xadd(BELL, {"d": b"garbage"}),
    "an empty payload": lambda redis: redis.xadd(BELL, {"d": b""}),
    "two fields": lambda redis: redis.xadd(BELL, {"d": b"x", "e": b"y"}),
    "another field": lambda redis: redis.xadd(BELL, {"t": bell()}),
    "nested too deeply": lambda redis: redis.xadd(BELL, {"d": b"\x91" * 100_000}),
    "a time of far": lambda redis: redis.xadd(BELL, {"d": bell(bus_ms=2**62)}),
    "a stream that is none": lambda redis: redis.xadd(BELL, {"d": bell(streams=["a:b", "\x1b[2J", ""])}),
    "a writer with a long epoch": lambda redis: redis.xadd(BELL, {"d": bell(writer="x#" + "9" * 5_000)}),
    "an ID of far": lambda redis: redis.xadd(BELL, {"d": b"x"}, id=FUTURE),
    "a string": lambda redis: [redis.delete(BELL), redis.set(BELL, "x")],
    "a list": lambda redis: [redis.delete(BELL), redis.execute_command("RPUSH", BELL, "x")],
    "nothing": lambda redis: redis.delete(BELL),
}
HEADS: dict[str, Callable[[Client], object]] = {
    "junk under a stream that is none": lambda redis: redis.hset(LAST, "trade:x:Y", b"junk"),
    "junk under any name": lambda redis: redis.hset(LAST, b"\xff\x1b[2J", b"junk"),
    "junk under its own name": lambda redis: redis.hset(LAST, "trade:test:A", b"junk"),
    "a head whose ID is none": lambda redis: redis.hset(
        LAST, "trade:test:A", encode(Head("5", None, 0, b"\xc0"))  # type: ignore[arg-type]
    ),
    "a head of another shard": lambda redis: redis.hset(
        LAST, f"trade:test:{OTHER}", encode(Head("1-1", None, 0, b"\xc0"))  # type: ignore[arg-type]
    ),
    "an era of another type": lambda redis: [
        redis.delete(KEYS.era(SHARD)), redis.execute_command("RPUSH", KEYS.era(SHARD), "x")
    ],
    "nothing": lambda redis: redis.delete(LAST),
}  # fmt: skip


@pytest.mark.parametrize("what", [*(("bell", name) for name in BELLS), *(("head", name) for name in HEADS)])
async def test_reader_goes_on_after_a_foreign_bell_or_head(
    redis_server: RedisServer, what: tuple[str, str]
) -> None:
    """Those that read already, and those that begin afterwards."""
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    await writer.write(1, symbol=OTHER)
    follower = Follower(redis_server.url)
    await follower.expect("A", 1)
    {"bell": BELLS, "head": HEADS}[what[0]][what[1]](redis_server.client)
    await writer.write(2)
    await writer.write(2, symbol=OTHER)
    later = Follower(redis_server.url)
    for one in (follower, later):
        await one.expect("A", 1, 2)
        await one.expect(OTHER, 1, 2)
    await writer.write(3)
    for one in (follower, later):
        await one.expect("A", 1, 2, 3)
        assert one.lost == []
        await one.close()
    writer.close()


async def test_bell_that_cannot_ring_any_more_is_mended_and_read_again(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    follower = Follower(redis_server.url)
    await follower.expect("A", 1)
    redis_server.client.xadd(BELL, {"d": b"x"}, id=LAST_ID)
    await writer.write(2)
    await follower.expect("A", 1, 2)
    assert [fault.key for fault in writer.publisher.quarantined] == [BELL]
    redis_server.client.execute_command("RENAME", BELL, f"{BELL}:foreign")
    await until_async(lambda: _ring(writer), 15, "the writer rings again")
    await writer.write(3)
    await follower.expect("A", 1, 2, 3)
    assert redis_server.client.exists(BELL) and "is no bell" in caplog.text
    await follower.close()
    writer.close()


async def _ring(writer: Writer) -> bool:
    await writer.ring()
    return not writer.publisher.quarantined


JUNK: dict[str, list[dict[str, bytes]]] = {
    "junk": [{"t": b"junk"}],
    "several fields": [{"t": b"junk", "g": b"junk"}],
    "a field of nobody": [{"z": b"junk"}],
    "a copy of a trade": [{"t": encode(trade(1))}],
    "hundreds": 300 * [{"t": b"junk"}],
}


@pytest.mark.parametrize("what", list(JUNK))
async def test_entry_that_is_not_ours_is_skipped_and_nothing_counts_as_lost(
    redis_server: RedisServer, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1, 2)
    follower = Follower(redis_server.url)
    await follower.expect("A", 1, 2)
    # as with XADD and *, but not in the millisecond of an entry of ours
    begin = writer.clock.now_ms() + 1
    for ms, fields in enumerate(JUNK[what], begin):
        redis_server.client.xadd(writer.key(), fields, id=f"{ms}-0")
    await until_async(lambda: writer.clock.now_ms() > begin + len(JUNK[what]))
    await writer.write(3)
    await writer.write(4, 5)
    later = Follower(redis_server.url)
    for one in (follower, later):
        await one.expect("A", 1, 2, 3, 4, 5)
        assert one.lost == []
        assert one.reader.foreign["entry"] == len(JUNK[what])
        await one.close()
    assert caplog.text.count("that no writer of this bus wrote") == 2  # one line a reader
    writer.close()


@pytest.mark.parametrize("id", [FUTURE, "9" * 18 + "-7", LAST_ID])
async def test_entry_with_an_id_of_far_is_skipped_and_what_comes_below_is_read(
    redis_server: RedisServer, id: str
) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    follower = Follower(redis_server.url)
    await follower.expect("A", 1)
    redis_server.client.xadd(writer.key(), {"t": b"junk"}, id=id)
    await writer.write(1, symbol=OTHER)
    await writer.ring()
    later = Follower(redis_server.url)
    for one in (follower, later):
        await one.expect(OTHER, 1)
        await one.expect("A", 1)
    redis_server.client.execute_command("XDEL", writer.key(), id)
    redis_server.client.execute_command("XSETID", writer.key(), _newest(redis_server, writer))
    await writer.write(2)
    for one in (follower, later):
        await one.expect("A", 1, 2)
        assert one.lost == []
        await one.close()
    writer.close()


def _newest(server: RedisServer, writer: Writer) -> bytes:
    return server.client.xrevrange(writer.key(), count=1)[0][0]


async def test_entry_ahead_of_the_clock_is_ours_if_its_head_says_so(redis_server: RedisServer) -> None:
    """The clock of the server was set back while its gateway ran: its bus time goes on."""
    writer = await Writer(redis_server.url).open()
    writer.clock.not_before(writer.clock.now_ns() + 3_600 * 10**9)
    await writer.write(1)
    follower = Follower(redis_server.url)
    await follower.expect("A", 1)
    await writer.write(2)
    await follower.expect("A", 1, 2)
    assert not follower.reader.foreign
    await follower.close()
    writer.close()


async def test_key_that_is_no_stream_concerns_that_stream_alone(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    neighbours = [f"S{number}" for number in range(200) if KEYS.shard(f"S{number}") == SHARD][:3]
    for symbol in ("A", *neighbours):
        await writer.write(1, symbol=symbol)
    redis_server.client.delete(writer.key())
    redis_server.client.set(writer.key(), "x")
    follower = Follower(redis_server.url)
    for symbol in neighbours:
        await follower.expect(symbol, 1)
    for symbol in neighbours:
        await writer.write(2, symbol=symbol)
        await follower.expect(symbol, 1, 2)
    assert "A" not in follower.numbers and follower.reader.foreign["entry"] >= 1
    await follower.close()
    writer.close()


async def test_heads_that_are_no_hash_stop_no_reader(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    follower = Follower(redis_server.url)
    await follower.expect("A", 1)
    redis_server.client.delete(LAST)
    redis_server.client.set(LAST, "x")
    await writer.write(2, symbol="A")  # held: its head cannot be stored
    await writer.write(1, symbol=OTHER)
    later = Follower(redis_server.url)
    for one in (follower, later):
        await one.expect(OTHER, 1)
    redis_server.client.execute_command("RENAME", LAST, f"{LAST}:foreign")
    await until_async(lambda: _ring(writer), 15, "the writer is out of quarantine")
    for one in (follower, later):
        await one.expect("A", 1, 2)
        await one.close()
    assert redis_server.client.hexists(LAST, "trade:test:A")
    writer.close()
