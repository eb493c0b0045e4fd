"""Transactions on a real Redis: stored whole, once, by one owner, whatever happens to the server and the connection."""

import asyncio

import pytest
from support.redis_server import RedisServer
from support.waiting import until, until_async
from support.writing import KEYS, Writer, numbers, stored, trade

from tickbus.errors import Fenced
from tickbus.protocol.codec import decode_bell, decode_head
from tickbus.protocol.names import START, StreamId
from tickbus.redis.link import Link
from tickbus.writer.lane import stream_ends
from tickbus.writer.transaction import Field, Transaction


async def test_a_transaction_brings_entries_heads_and_a_ring(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    sent = await writer.write(1, 2, 3)
    await writer.write(7, symbol="B")
    assert [message for _, message in stored(redis_server.client, writer.key())] == sent
    shard = KEYS.shard("A")
    head = decode_head(redis_server.client.hget(KEYS.last(shard), "trade:test:A") or b"")
    assert StreamId.parse(head.id) == stored(redis_server.client, writer.key())[-1][0]
    (_, fields), *_ = redis_server.client.xrange(KEYS.bell(shard))
    bell = decode_bell(fields[b"d"])
    assert (bell.writer, bell.counter, bell.feed_up, bell.streams) == ("test#1", 1, True, ["trade:test:A"])
    writer.close()


async def test_bells_are_dense_on_every_shard(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    for number in range(1, 30):
        await (writer.ring() if number % 3 == 0 else writer.write(number, symbol="ABCDEFGH"[number % 8]))
    for shard in range(KEYS.shards):
        rings = [decode_bell(fields[b"d"]) for _, fields in redis_server.client.xrange(KEYS.bell(shard))]
        assert [ring.counter for ring in rings] == list(range(1, len(rings) + 1))
        assert sum(ring.streams == [] for ring in rings) == 9
        assert [ring.bus_ms for ring in rings] == sorted(ring.bus_ms for ring in rings)
    writer.close()


async def test_hashes_are_set_and_emptied(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    for fields in ({"a": b"1", "b": b"2"}, {"a": b"", "c": b"3"}):
        transaction = writer.transaction([])
        transaction.fields = [Field(0, "tickbus:{00}:state:x", name, value) for name, value in fields.items()]
        await writer.publisher.commit(transaction)
    assert redis_server.client.hgetall("tickbus:{00}:state:x") == {b"b": b"2", b"c": b"3"}
    writer.close()


async def test_without_memory_it_holds_and_then_stores_the_same_ids(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.client.config_set("maxmemory", 1)
    entries = [
        writer.entry(writer.of(symbol), trade(number, symbol))
        for number, symbol in ((2, "A"), (3, "B"), (4, "A"))
    ]
    committing = asyncio.create_task(writer.publisher.commit(writer.transaction(entries)))
    await until_async(lambda: writer.publisher.retries >= 2)
    assert numbers(redis_server.client, writer.key()) == [1]
    assert redis_server.client.exists(writer.key("B")) == 0
    redis_server.client.config_set("maxmemory", 0)
    await asyncio.wait_for(committing, 10)
    assert numbers(redis_server.client, writer.key()) == [1, 2, 4]
    assert [id for id, _ in stored(redis_server.client, writer.key())][1:] == [
        entry.id for entry in entries if entry.seq > 1
    ]
    writer.close()


async def test_a_key_that_another_program_uses_is_named(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    writer = await Writer(redis_server.url).open()
    redis_server.client.set(writer.key("B"), "mine")
    committing = asyncio.create_task(
        writer.publisher.commit(
            writer.transaction([writer.entry(writer.of(one), trade(1, one)) for one in "AB"])
        )
    )
    await until_async(lambda: f"{writer.key('B')}: WRONGTYPE" in caplog.text)
    redis_server.client.delete(writer.key("B"))
    await asyncio.wait_for(committing, 10)
    assert [numbers(redis_server.client, writer.key(symbol)) for symbol in "AB"] == [[1], [1]]
    writer.close()


async def test_without_memory_and_flushed_it_holds_too(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.client.flushall()
    redis_server.client.config_set("maxmemory", 1)
    committing = asyncio.create_task(writer.write(2))
    await until_async(lambda: writer.publisher.reconnects >= 2 or committing.done())
    redis_server.client.config_set("maxmemory", 0)
    await asyncio.wait_for(committing, 10)
    assert numbers(redis_server.client, writer.key()) == [1, 2]
    writer.close()


async def test_a_raised_fence_ends_the_old_writer_and_stores_nothing_of_it(redis_server: RedisServer) -> None:
    old = await Writer(redis_server.url).open()
    await old.write(1)
    new = await Writer(redis_server.url).open()
    assert (old.publisher.epoch, new.publisher.epoch) == (1, 2)
    with pytest.raises(Fenced, match="epoch 2 writes now, this process had epoch 1"):
        await old.write(2, 3)
    assert numbers(redis_server.client, old.key()) == [1]
    new.seqs = dict(old.seqs)
    new.seqs[new.of()] = 1
    await new.write(4)
    assert numbers(redis_server.client, old.key()) == [1, 4]
    with pytest.raises(Fenced):
        await old.write(5)
    other = await Writer(redis_server.url, "other").open()
    await other.write(1)  # another owner's fences are its own
    for writer in (old, new, other):
        writer.close()


async def test_a_fence_raised_while_the_old_writer_is_busy(redis_server: RedisServer) -> None:
    old, new = await Writer(redis_server.url).open(), Writer(redis_server.url)

    async def write_on() -> None:
        number = 0
        while True:
            number += 1
            await old.write(number)

    writing = asyncio.create_task(write_on())
    await until_async(lambda: old.seqs.get(old.of(), 0) > 50)
    await new.open()
    found = numbers(redis_server.client, old.key())  # all that the old one will ever have stored
    with pytest.raises(Fenced):
        await asyncio.wait_for(writing, 10)
    assert numbers(redis_server.client, old.key()) == found == list(range(1, len(found) + 1))
    old.close()
    new.close()


async def test_many_that_take_over_at_once_get_different_epochs(redis_server: RedisServer) -> None:
    writers = [Writer(redis_server.url) for _ in range(6)]
    errors = await asyncio.gather(*(writer.open() for writer in writers), return_exceptions=True)
    assert all(isinstance(error, Writer | Fenced) for error in errors)  # one may be overtaken while it looks
    assert sorted(writer.publisher.epoch for writer in writers) == [1, 2, 3, 4, 5, 6]
    best = max(writers, key=lambda writer: writer.publisher.epoch)
    for writer in writers:
        if writer is not best:
            with pytest.raises(Fenced):
                await writer.write(1)
    await best.write(1)
    assert numbers(redis_server.client, best.key()) == [1]
    for writer in writers:
        writer.close()


async def test_a_server_that_is_killed_and_started_again(redis_server: RedisServer) -> None:
    # everysec may put off even the write() of what it has acknowledged while the disk is busy: a killed server loses that
    redis_server.client.config_set("appendfsync", "always")
    redis_server._options += ("--appendfsync", "always")
    writer = await Writer(redis_server.url).open()

    async def write_all() -> None:
        for number in range(1, 1001):
            await writer.write(2 * number - 1, 2 * number)

    writing = asyncio.create_task(write_all())
    for at in (300, 1000):
        await until_async(lambda at=at: writer.seqs.get(writer.of(), 0) > at)  # type: ignore[misc]
        redis_server.kill()
        redis_server.client.close()
        await asyncio.to_thread(redis_server.start)
    await asyncio.wait_for(writing, 30)
    assert numbers(redis_server.client, writer.key()) == list(range(1, 2001))
    assert writer.publisher.retries >= 2
    writer.close()


async def test_a_connection_that_is_cut_again_and_again(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()

    async def write_all() -> None:
        for number in range(1, 1001):
            await writer.write(number)

    writing = asyncio.create_task(write_all())
    for at in range(100, 1000, 100):
        await until_async(lambda at=at: writer.seqs.get(writer.of(), 0) > at)  # type: ignore[misc]
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
    await asyncio.wait_for(writing, 30)
    assert writer.publisher.reconnects >= 9
    assert numbers(redis_server.client, writer.key()) == list(range(1, 1001))
    writer.close()


async def test_a_server_that_stands_still_for_a_moment(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.pause()
    committing = asyncio.create_task(writer.write(2))
    await asyncio.sleep(0)
    assert not committing.done()
    redis_server.go_on()
    await asyncio.wait_for(committing, 10)
    assert numbers(redis_server.client, writer.key()) == [1, 2]
    writer.close()


async def test_a_server_that_is_flushed(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1, 2)
    before = stored(redis_server.client, writer.key())
    era = redis_server.client.get(KEYS.era(0))
    redis_server.client.flushall()
    await writer.write(3)
    await writer.write(4)
    rows = stored(redis_server.client, writer.key())
    assert rows == before + rows[2:]
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3, 4]
    assert writer.publisher.resent == 2
    assert redis_server.client.get(KEYS.era(0)) not in (None, era)
    assert redis_server.client.get(KEYS.fence(0, "test")) == b"1"
    new = await Writer(redis_server.url).open()
    with pytest.raises(Fenced):
        await writer.write(5)
    writer.close()
    new.close()


async def test_somebody_else_in_our_stream(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.client.xadd(writer.key(), {"t": b"x"}, id=f"{writer.clock.now_ms() + 60_000}-2")
    with pytest.raises(Fenced, match="another program has written to this stream"):
        await writer.write(2)
    writer.close()


async def test_while_the_server_loads_its_data_it_waits(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    for number in range(1, 151):
        await writer.write(number)
    redis_server.stop()
    redis_server.client.close()
    slow = RedisServer(
        redis_server._folder, "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"
    )
    slow.port = redis_server.port
    committing = asyncio.create_task(writer.write(151, 152))
    try:
        await asyncio.to_thread(slow.start)
        await asyncio.wait_for(committing, 20)
        assert numbers(slow.client, writer.key()) == list(range(1, 153))
    finally:
        writer.close()
        slow.close()


async def test_ends_of_streams_that_are_empty_or_not_there(redis_server: RedisServer) -> None:
    for id in ("5-7", "6-8"):
        for key in ("a", "b"):
            redis_server.client.xadd(key, {"t": b"x"}, id=id)
    redis_server.client.xtrim("b", maxlen=0, approximate=False)
    link = await Link.open(redis_server.url)
    ends = await stream_ends(link, ["a", "b", "c"])
    assert ends == [(StreamId(5, 7), StreamId(6, 8)), (StreamId(6, 9), StreamId(6, 8)), (START, START)]
    assert await stream_ends(link, []) == []
    link.close()


async def test_what_was_stored_and_trimmed_before_its_outcome_is_known_is_no_foreign_hand(
    redis_server: RedisServer,
) -> None:
    writer = await Writer(redis_server.url).open()
    transaction = writer.transaction([writer.entry(writer.of(), trade(number)) for number in (1, 2, 3)])
    await writer.publisher.commit(transaction)
    redis_server.client.xtrim(writer.key(), maxlen=1, approximate=False)
    link = await Link.open(redis_server.url)
    assert await writer.publisher.lanes[0]._missing(link, transaction.entries) == []
    link.close()
    writer.close()


async def test_nothing_is_lost_when_the_server_is_away_at_the_start(redis_server: RedisServer) -> None:
    writer = Writer(redis_server.url)
    redis_server.client.config_set("maxmemory", 1)
    opening = asyncio.create_task(writer.publisher.take_over())
    await until_async(lambda: writer.publisher.reconnects >= 1)
    redis_server.client.config_set("maxmemory", 0)
    await asyncio.wait_for(opening, 10)
    await writer.write(1)
    assert until(lambda: numbers(redis_server.client, writer.key())) == [1]
    writer.close()


async def test_a_flush_gives_no_standby_the_idea_that_the_writer_ended(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    standby = Writer(redis_server.url)
    assert not await standby.publisher.released()
    redis_server.client.flushall()
    assert not await standby.publisher.released()
    await writer.write(2)  # the writer is alive, and heals
    assert numbers(redis_server.client, writer.key()) == [1, 2]
    redis_server.client.flushall()
    await standby.publisher.take_over()
    assert standby.publisher.epoch == 2  # an epoch that was seen is not given out again
    with pytest.raises(Fenced):
        await writer.write(3)
    writer.close()
    standby.close()


async def test_one_that_ended_cleanly_says_so(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    standby = Writer(redis_server.url)
    assert not await standby.publisher.released()
    await writer.publisher.release()
    assert await standby.publisher.released()
    writer.close()
    standby.close()


@pytest.mark.parametrize("lost", ["before it is acknowledged", "after that"])
async def test_what_was_stored_before_its_outcome_was_known_is_sent_again_if_it_is_lost(
    lost: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    (lane,), tries = writer.publisher.lanes, 0
    send = lane._send

    async def unheard(link: Link, transaction: Transaction, keep: Transaction | None) -> str | None:
        """The first try is stored, and its answer lost; the second finds it stored."""
        nonlocal tries
        if keep is None:
            return await send(link, transaction, None)
        tries += 1
        if tries == 1:
            await send(link, transaction, None)
            return "the answer was lost"
        if tries == 2 and lost == "before it is acknowledged":
            redis_server.client.delete(writer.key())
            return "another server is master, and lacks it"
        return await send(link, transaction, keep)

    monkeypatch.setattr(lane, "_send", unheard)
    await asyncio.wait_for(writer.write(2, 3), 10)
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3]
    redis_server.client.delete(writer.key())
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    await writer.write(4)
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3, 4]
    writer.close()


async def test_what_a_shard_begins_with_is_set_by_the_first_who_has_it(redis_server: RedisServer) -> None:
    """Were it set later, nothing would tell a successor of one that died in between."""
    hashes = {shard: f"tickbus:{{0{shard}}}:position:x" for shard in (1, 2)}
    first, second = Writer(redis_server.url), Writer(redis_server.url)
    fields = [Field(shard, key, "trade:test:A", b"5-5") for shard, key in hashes.items()]
    await first.publisher.claim([1], lambda found: dict.fromkeys(found, 1), fields)
    assert [redis_server.client.hgetall(key) for key in hashes.values()] == [{b"trade:test:A": b"5-5"}, {}]
    assert first.publisher.lane(1).ring.whole([], 0).fields == fields[:1]  # sent again should Redis lose it
    later = [field._replace(value=b"9-9") for field in fields]
    await second.publisher.claim([1, 2], lambda found: dict.fromkeys(found, 2), later)
    assert [redis_server.client.hgetall(key) for key in hashes.values()] == [
        {b"trade:test:A": b"5-5"},
        {b"trade:test:A": b"9-9"},
    ]
    first.close()
    second.close()
