"""Transactions on a real Redis: stored whole, once, by one owner, whatever happens to the server."""

import asyncio
from itertools import count

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


async def test_transaction_stores_entries_heads_and_a_ring(redis_server: RedisServer) -> None:
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


async def test_bell_counters_are_dense_on_every_shard(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    for number in range(1, 30):
        await (writer.ring() if number % 3 == 0 else writer.write(number, symbol="ABCDEFGH"[number % 8]))
    for shard in range(KEYS.shards):
        rings = [decode_bell(fields[b"d"]) for _, fields in redis_server.client.xrange(KEYS.bell(shard))]
        assert [ring.counter for ring in rings] == list(range(1, len(rings) + 1))
        assert sum(ring.streams == [] for ring in rings) == 9
        assert [ring.bus_ms for ring in rings] == sorted(ring.bus_ms for ring in rings)
    writer.close()


async def test_hash_fields_are_set_and_deleted(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    for fields in ({"a": b"1", "b": b"2"}, {"a": b"", "c": b"3"}):
        transaction = writer.transaction([])
        transaction.fields = [Field(0, "tickbus:{00}:state:x", name, value) for name, value in fields.items()]
        await writer.publisher.commit(transaction)
    assert redis_server.client.hgetall("tickbus:{00}:state:x") == {b"b": b"2", b"c": b"3"}
    writer.close()


async def test_redis_out_of_memory_delays_entries_but_keeps_their_ids(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.client.config_set("maxmemory", 1)
    entries = [
        writer.entry(writer.stream(symbol), trade(number, symbol))
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


async def test_flushed_redis_out_of_memory_delays_entries(redis_server: RedisServer) -> None:
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


async def test_raised_fence_stops_the_old_writer_and_stores_nothing_of_it(redis_server: RedisServer) -> None:
    old = await Writer(redis_server.url).open()
    await old.write(1)
    new = await Writer(redis_server.url).open()
    assert (old.publisher.epoch, new.publisher.epoch) == (1, 2)
    with pytest.raises(Fenced, match="fenced by epoch 2, this process had epoch 1"):
        await old.write(2, 3)
    assert numbers(redis_server.client, old.key()) == [1]
    new.seqs = dict(old.seqs)
    new.seqs[new.stream()] = 1
    await new.write(4)
    assert numbers(redis_server.client, old.key()) == [1, 4]
    with pytest.raises(Fenced):
        await old.write(5)
    other = await Writer(redis_server.url, "other").open()
    await other.write(1)  # another owner has its own fences
    for writer in (old, new, other):
        writer.close()


async def test_fence_raised_while_the_old_writer_is_busy(redis_server: RedisServer) -> None:
    old, new = await Writer(redis_server.url).open(), Writer(redis_server.url)

    async def write_on() -> None:
        number = 0
        while True:
            number += 1
            await old.write(number)

    writing = asyncio.create_task(write_on())
    await until_async(lambda: old.seqs.get(old.stream(), 0) > 50)
    await new.open()
    found = numbers(redis_server.client, old.key())  # the old writer must not store anything more
    with pytest.raises(Fenced):
        await asyncio.wait_for(writing, 10)
    assert numbers(redis_server.client, old.key()) == found == list(range(1, len(found) + 1))
    old.close()
    new.close()


async def test_concurrent_takeovers_get_different_epochs(redis_server: RedisServer) -> None:
    writers = [Writer(redis_server.url) for _ in range(6)]
    errors = await asyncio.gather(*(writer.open() for writer in writers), return_exceptions=True)
    assert all(
        isinstance(error, Writer | Fenced) for error in errors
    )  # one may be overtaken during its takeover
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


async def test_killed_and_restarted_server_loses_nothing(redis_server: RedisServer) -> None:
    # with everysec even the write() of acknowledged data may be delayed by a busy disk: a kill loses it
    redis_server.client.config_set("appendfsync", "always")
    redis_server._options += ("--appendfsync", "always")
    writer = await Writer(redis_server.url).open()

    async def write_all() -> None:
        for number in range(1, 1001):
            await writer.write(2 * number - 1, 2 * number)

    writing = asyncio.create_task(write_all())
    for at in (300, 1000):
        await until_async(lambda at=at: writer.seqs.get(writer.stream(), 0) > at)  # type: ignore[misc]
        redis_server.kill()
        redis_server.client.close()
        await asyncio.to_thread(redis_server.start)
    await asyncio.wait_for(writing, 30)
    assert numbers(redis_server.client, writer.key()) == list(range(1, 2001))
    assert writer.publisher.retries >= 2
    writer.close()


async def test_repeatedly_cut_connection_loses_nothing(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()

    cut = asyncio.Event()

    async def write_until_cut() -> int:
        for number in count(1):
            await writer.write(number)
            if cut.is_set():
                return number
        raise AssertionError

    writing = asyncio.create_task(write_until_cut())
    for cuts in range(1, 10):
        at = writer.seqs.get(writer.stream(), 0) + 10
        await until_async(lambda at=at: writer.seqs.get(writer.stream(), 0) > at)  # type: ignore[misc]
        redis_server.client.client_kill_filter(_type="normal", skipme=True)
        await until_async(lambda cuts=cuts: writer.publisher.reconnects >= cuts)  # type: ignore[misc]
    cut.set()
    last = await asyncio.wait_for(writing, 30)
    assert numbers(redis_server.client, writer.key()) == list(range(1, last + 1))
    writer.close()


async def test_connection_that_ended_between_two_commits_is_counted(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    link = writer.publisher.lanes[0]._link
    assert link is not None
    await until_async(lambda: link.closed)
    await writer.write(2)
    assert writer.publisher.reconnects == 1
    assert numbers(redis_server.client, writer.key()) == [1, 2]
    writer.close()


async def test_paused_server_delays_a_commit(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.pause()
    committing = asyncio.create_task(writer.write(2))
    await asyncio.sleep(0)
    assert not committing.done()
    redis_server.resume()
    await asyncio.wait_for(committing, 10)
    assert numbers(redis_server.client, writer.key()) == [1, 2]
    writer.close()


async def test_flushed_server_gets_recent_entries_again(redis_server: RedisServer) -> None:
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


async def test_commit_waits_while_the_server_loads_its_data(redis_server: RedisServer) -> None:
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


async def test_stream_ends_of_empty_and_missing_streams(redis_server: RedisServer) -> None:
    for id in ("5-7", "6-8"):
        for key in ("a", "b"):
            redis_server.client.xadd(key, {"t": b"x"}, id=id)
    redis_server.client.xtrim("b", maxlen=0, approximate=False)
    link = await Link.open(redis_server.url)
    ends = await stream_ends(link, ["a", "b", "c"])
    assert ends == [(StreamId(5, 7), StreamId(6, 8)), (StreamId(6, 9), StreamId(6, 8)), (START, START)]
    assert await stream_ends(link, []) == []
    link.close()


async def test_entries_trimmed_before_their_outcome_is_known_are_not_taken_for_a_foreign_writer(
    redis_server: RedisServer,
) -> None:
    writer = await Writer(redis_server.url).open()
    transaction = writer.transaction([writer.entry(writer.stream(), trade(number)) for number in (1, 2, 3)])
    await writer.publisher.commit(transaction)
    redis_server.client.xtrim(writer.key(), maxlen=1, approximate=False)
    link = await Link.open(redis_server.url)
    assert await writer.publisher.lanes[0]._missing(link, transaction.entries) == []
    link.close()
    writer.close()


async def test_takeover_waits_while_the_server_rejects_writes(redis_server: RedisServer) -> None:
    writer = Writer(redis_server.url)
    redis_server.client.config_set("maxmemory", 1)
    opening = asyncio.create_task(writer.publisher.take_over())
    await until_async(lambda: writer.publisher.reconnects >= 1)
    redis_server.client.config_set("maxmemory", 0)
    await asyncio.wait_for(opening, 10)
    await writer.write(1)
    assert until(lambda: numbers(redis_server.client, writer.key())) == [1]
    writer.close()


async def test_flush_does_not_look_like_a_release(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    standby = Writer(redis_server.url)
    assert not await standby.publisher.released()
    redis_server.client.flushall()
    assert not await standby.publisher.released()
    await writer.write(2)  # the writer is alive, and recovers
    assert numbers(redis_server.client, writer.key()) == [1, 2]
    redis_server.client.flushall()
    await standby.publisher.take_over()
    assert standby.publisher.epoch == 2  # an epoch once seen is not assigned again
    with pytest.raises(Fenced):
        await writer.write(3)
    writer.close()
    standby.close()


async def test_clean_exit_releases_the_fences(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    standby = Writer(redis_server.url)
    assert not await standby.publisher.released()
    await writer.publisher.release()
    assert await standby.publisher.released()
    writer.close()
    standby.close()


@pytest.mark.parametrize("lost", ["before it is acknowledged", "after that"])
async def test_entries_lost_around_an_unknown_outcome_are_resent(
    lost: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    (lane,), tries = writer.publisher.lanes, 0
    send = lane._send

    async def lose_reply(link: Link, transaction: Transaction, retained: Transaction | None) -> str | None:
        """The first try is stored, but its reply is lost; the second finds it stored."""
        nonlocal tries
        if retained is None:
            return await send(link, transaction, None)
        tries += 1
        if tries == 1:
            await send(link, transaction, None)
            return "the reply was lost"
        if tries == 2 and lost == "before it is acknowledged":
            redis_server.client.delete(writer.key())
            return "another server is master, and lacks it"
        return await send(link, transaction, retained)

    monkeypatch.setattr(lane, "_send", lose_reply)
    await asyncio.wait_for(writer.write(2, 3), 10)
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3]
    redis_server.client.delete(writer.key())
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    await writer.write(4)
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3, 4]
    writer.close()


async def test_initial_fields_of_a_shard_are_set_by_its_first_owner(redis_server: RedisServer) -> None:
    """If they were set later, a successor of an owner that died in between would never know them."""
    hashes = {shard: f"tickbus:{{0{shard}}}:position:x" for shard in (1, 2)}
    first, second = Writer(redis_server.url), Writer(redis_server.url)
    fields = [Field(shard, key, "trade:test:A", b"5-5") for shard, key in hashes.items()]
    await first.publisher.claim([1], lambda found: dict.fromkeys(found, 1), fields)
    assert [redis_server.client.hgetall(key) for key in hashes.values()] == [{b"trade:test:A": b"5-5"}, {}]
    assert first.publisher.lane(1).replay.recovery([], 0).fields == fields[:1]  # resent if Redis loses it
    later = [field._replace(value=b"9-9") for field in fields]
    await second.publisher.claim([1, 2], lambda found: dict.fromkeys(found, 2), later)
    assert [redis_server.client.hgetall(key) for key in hashes.values()] == [
        {b"trade:test:A": b"5-5"},
        {b"trade:test:A": b"9-9"},
    ]
    first.close()
    second.close()
