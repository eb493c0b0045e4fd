"""What a replica finds in shards that it takes over."""

from support.redis_server import RedisServer
from support.writing import KEYS, Writer, trade

from tickbus.handover import Handover, read_handover
from tickbus.link import Link
from tickbus.names import Stream
from tickbus.selection import Selection
from tickbus.wire import decode

SHARDS = range(KEYS.shards)
TRADES = Selection.of(("trade",), ["test"])
PLENTY = 1 << 20


def numbers(found: Handover) -> dict[str, list[int]]:
    """Stream -> the trades that were found, by number."""
    return {name: [int(decode(field, payload).price_text) for _, (field, payload) in rows] for name, rows in found.written.items()}  # type: ignore[union-attr]


async def test_entries_of_the_window_of_streams_that_it_writes(redis_server: RedisServer) -> None:
    writer, other = await Writer(redis_server.url).open(), await Writer(redis_server.url, "other").open()
    link = await Link.open(redis_server.url)
    await writer.write(1, 2, symbol="OLD")
    await writer.write(1, symbol="A")
    since = writer.clock.now_ms() + 1
    while writer.clock.now_ms() <= since:
        await link.ask("PING")
    await writer.write(2, 3, symbol="A")
    await other.write(7, symbol="A")
    declared = await read_handover(link, KEYS, "test", SHARDS, TRADES, since, PLENTY)
    assert numbers(declared) == {"trade:test:A": [2, 3], "trade:test:OLD": []}
    assert declared.heads.keys() == {"trade:test:A", "trade:test:OLD", "trade:other:A"}
    rung = await read_handover(link, KEYS, "test", SHARDS, None, since, PLENTY)
    assert numbers(rung) == {"trade:test:A": [2, 3]}
    assert numbers(await read_handover(link, KEYS, "nobody", SHARDS, None, since, PLENTY)) == {}
    for end in (writer, other, link):
        end.close()


async def test_entries_that_are_older_than_the_moment_they_were_written(redis_server: RedisServer) -> None:
    """A service that catches up: the times in its IDs are those of what it read."""
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    since = writer.clock.now_ms()
    stream = writer.of()
    entries = [(entry[0], since - 3_600_000, *entry[2:]) for entry in (writer.entry(stream, trade(number)) for number in (1, 2, 3))]
    await writer.publisher.commit(writer.transaction(entries))
    assert numbers(await read_handover(link, KEYS, "test", SHARDS, None, since, PLENTY)) == {"trade:test:A": [1, 2, 3]}
    assert numbers(await read_handover(link, KEYS, "test", SHARDS, TRADES, since, PLENTY)) == {"trade:test:A": [1, 2, 3]}
    writer.close()
    link.close()


async def test_no_more_than_there_is_room_for(redis_server: RedisServer) -> None:
    writer, link = await Writer(redis_server.url).open(), await Link.open(redis_server.url)
    symbols = [f"S{number}" for number in range(450)]
    for symbol in symbols:
        await writer.write(1, symbol=symbol)
    found = await read_handover(link, KEYS, "test", SHARDS, TRADES, 0, 1)
    assert sorted(found.written) == sorted(Stream("trade", "test", symbol).name for symbol in symbols)
    assert sum(map(len, found.written.values())) == 200
    writer.close()
    link.close()
