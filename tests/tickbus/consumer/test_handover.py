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
from tickbus.protocol.messages import Message, Trade
from tickbus.protocol.names import Stream
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.redis.link import Link, Reply
from tickbus.redis.resp import Command
from tickbus.writer.transaction import Field

TRADES = StreamFilter.of(("trade",), ["test"])
OTHERS = StreamFilter.of(("trade",), ["other"])
WINDOW = 5
PLENTY = 1 << 20

read = partial(read_handover, keys=KEYS, shards=range(KEYS.shards), window_ms=WINDOW, max_bytes=PLENTY)


def numbers(handover: Handover) -> dict[str, list[int]]:
    """Return stream -> the numbers of the trades found."""
    return {
        name: [number(decode(field, payload)) for _, (field, payload) in rows]
        for name, rows in handover.written.items()
    }


def number(message: Message) -> int:
    assert isinstance(message, Trade)
    return int(message.price_text)


async def wait_out_window(writer: Writer) -> int:
    """Wait until everything written so far is older than the window. Return the bus ms then."""
    begun = writer.clock.now_ms()
    await until_async(lambda: writer.clock.now_ms() > begun + 2 * WINDOW)
    return writer.clock.now_ms()


async def test_handover_has_recent_entries_of_the_streams_that_the_service_writes(
    redis_server: RedisServer,
) -> None:
    writer, other = await Writer(redis_server.url).open(), await Writer(redis_server.url, "other").open()
    link = await Link.open(redis_server.url)
    await writer.write(1, 2, symbol="OLD")
    await writer.write(1)
    now = await wait_out_window(writer)
    await writer.write(2, 3)
    await other.write(7)
    declared = await read(link, service="test", writes=TRADES, now_ms=now)
    assert numbers(declared) == {"trade:test:A": [2, 3], "trade:test:OLD": []}
    assert declared.heads.keys() == {"trade:test:A", "trade:test:OLD", "trade:other:A"}
    assert numbers(await read(link, service="test", writes=None, now_ms=now)) == {"trade:test:A": [2, 3]}
    # streams that it rang for, but declares that it no longer writes, belong to another service by now
    assert numbers(await read(link, service="test", writes=OTHERS, now_ms=now)) == {"trade:other:A": [7]}
    assert numbers(await read(link, service="nobody", writes=None, now_ms=now)) == {}
    for end in (writer, other, link):
        end.close()


@pytest.mark.parametrize("behind", [3, 3_600_000])
async def test_handover_has_entries_with_ids_older_than_their_writing(
    behind: int, redis_server: RedisServer
) -> None:
    """While a service lags, or catches up, the times in its IDs are those of the entries it read."""
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    now = writer.clock.now_ms()
    entries = [
        replace(entry, ms=now - behind)
        for entry in [writer.entry(writer.stream(), trade(number)) for number in (1, 2, 3)]
    ]
    await writer.publisher.commit(writer.transaction(entries))
    for writes in (None, TRADES):
        assert numbers(await read(link, service="test", writes=writes, now_ms=now)) == {
            "trade:test:A": [1, 2, 3]
        }
    writer.close()
    link.close()


async def test_handover_is_limited_in_bytes_and_prefers_the_newest(redis_server: RedisServer) -> None:
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    symbols = [f"S{number}" for number in range(450)]
    for symbol in symbols:
        await writer.write(1, symbol=symbol)
    found = await read(
        link, service="test", writes=TRADES, now_ms=writer.clock.now_ms(), window_ms=3_600_000, max_bytes=1
    )
    assert sorted(found.written) == sorted(writer.stream(symbol).name for symbol in symbols)
    symbols_found = {Stream.parse(name).symbol for name, rows in found.written.items() if rows}
    assert len(symbols_found) == 200
    assert "S449" in symbols_found
    assert "S0" not in symbols_found
    writer.close()
    link.close()


@pytest.mark.parametrize("query", range(1, 6))
async def test_handover_is_consistent_if_redis_is_flushed_between_two_queries(
    query: int, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are never returned without the outputs committed with them, nor the other way round."""
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    transaction = writer.transaction([writer.entry(writer.stream(), trade(1))])
    transaction.fields = [
        Field(shard := KEYS.shard("A"), KEYS.position(shard, "test"), "trade:source:A", b"1700000000000-1")
    ]
    await writer.publisher.commit(transaction)
    ask_each, queries = link.ask_each, 0

    async def ask_each_or_flush(commands: Iterable[Command]) -> list[Reply]:
        nonlocal queries
        queries += 1
        if queries == query + 1:
            redis_server.client.flushall()
        return await ask_each(commands)

    monkeypatch.setattr(link, "ask_each", ask_each_or_flush)
    found = await read(link, service="test", writes=TRADES, now_ms=writer.clock.now_ms())
    assert (bool(found.positions), bool(found.heads), bool(found.written)) in (
        (True, True, True),
        (False, False, False),
    )
    assert queries > 6  # it has read again
    writer.close()
    link.close()
