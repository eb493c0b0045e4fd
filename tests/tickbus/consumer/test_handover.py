"""What a replica finds in shards that it takes over."""

from collections.abc import Iterable
from functools import partial

import pytest
from msgspec.structs import replace
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer, trade

from tickbus.consumer.handover import Handover, read_handover
from tickbus.protocol.codec import decode
from tickbus.protocol.names import Stream
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.redis.link import Link, Reply
from tickbus.redis.resp import Command
from tickbus.writer.transaction import Field

TRADES = StreamFilter.of(("trade",), ["test"])
OTHERS = StreamFilter.of(("trade",), ["other"])
WINDOW = 5
PLENTY = 1 << 20

look = partial(read_handover, keys=KEYS, shards=range(KEYS.shards), window_ms=WINDOW, most=PLENTY)


def numbers(found: Handover) -> dict[str, list[int]]:
    """Stream -> the trades that were found, by number."""
    return {
        name: [int(decode(field, payload).price_text) for _, (field, payload) in rows]
        for name, rows in found.written.items()
    }  # type: ignore[union-attr]


async def later(writer: Writer) -> int:
    """-> bus ms, when all that was written is older than the window."""
    begun = writer.clock.now_ms()
    await until_async(lambda: writer.clock.now_ms() > begun + 2 * WINDOW)
    return writer.clock.now_ms()


async def test_entries_of_the_window_of_streams_that_it_writes(redis_server: RedisServer) -> None:
    writer, other = await Writer(redis_server.url).open(), await Writer(redis_server.url, "other").open()
    link = await Link.open(redis_server.url)
    await writer.write(1, 2, symbol="OLD")
    await writer.write(1)
    now = await later(writer)
    await writer.write(2, 3)
    await other.write(7)
    declared = await look(link, service="test", writes=TRADES, now_ms=now)
    assert numbers(declared) == {"trade:test:A": [2, 3], "trade:test:OLD": []}
    assert declared.heads.keys() == {"trade:test:A", "trade:test:OLD", "trade:other:A"}
    assert numbers(await look(link, service="test", writes=None, now_ms=now)) == {"trade:test:A": [2, 3]}
    # what it rang for and says it does not write any more is another's by now
    assert numbers(await look(link, service="test", writes=OTHERS, now_ms=now)) == {"trade:other:A": [7]}
    assert numbers(await look(link, service="nobody", writes=None, now_ms=now)) == {}
    for end in (writer, other, link):
        end.close()


@pytest.mark.parametrize("behind", [3, 3_600_000])
async def test_entries_that_bear_older_times_than_the_moment_they_were_written(
    behind: int, redis_server: RedisServer
) -> None:
    """A service that lags, or catches up: the times in its IDs are those of what it read."""
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    now = writer.clock.now_ms()
    entries = [
        replace(entry, ms=now - behind)
        for entry in (writer.entry(writer.of(), trade(number)) for number in (1, 2, 3))
    ]
    await writer.publisher.commit(writer.transaction(entries))
    for writes in (None, TRADES):
        assert numbers(await look(link, service="test", writes=writes, now_ms=now)) == {
            "trade:test:A": [1, 2, 3]
        }
    writer.close()
    link.close()


async def test_no_more_than_there_is_room_for_and_the_newest_first(redis_server: RedisServer) -> None:
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    symbols = [f"S{number}" for number in range(450)]
    for symbol in symbols:
        await writer.write(1, symbol=symbol)
    found = await look(
        link, service="test", writes=TRADES, now_ms=writer.clock.now_ms(), window_ms=3_600_000, most=1
    )
    assert sorted(found.written) == sorted(writer.of(symbol).name for symbol in symbols)
    there = {Stream.parse(name).symbol for name, rows in found.written.items() if rows}
    assert len(there) == 200
    assert "S449" in there
    assert "S0" not in there
    writer.close()
    link.close()


@pytest.mark.parametrize("question", range(1, 6))
async def test_redis_loses_everything_between_two_questions(
    question: int, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions without the outputs that went with them, or the other way round, are never taken for what stands in Redis."""
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    transaction = writer.transaction([writer.entry(writer.of(), trade(1))])
    transaction.fields = [
        Field(shard := KEYS.shard("A"), KEYS.position(shard, "test"), "trade:source:A", b"1700000000000-1")
    ]
    await writer.publisher.commit(transaction)
    ask_all, asked = link.ask_all, 0

    async def flushed_at_some_time(commands: Iterable[Command]) -> list[Reply]:
        nonlocal asked
        asked += 1
        if asked == question + 1:
            redis_server.client.flushall()
        return await ask_all(commands)

    monkeypatch.setattr(link, "ask_all", flushed_at_some_time)
    found = await look(link, service="test", writes=TRADES, now_ms=writer.clock.now_ms())
    assert (bool(found.positions), bool(found.heads), bool(found.written)) in (
        (True, True, True),
        (False, False, False),
    )
    assert asked > 6  # it has looked again
    writer.close()
    link.close()
