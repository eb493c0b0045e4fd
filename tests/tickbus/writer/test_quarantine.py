"""Keys that some other program wrote to: what belongs to them is held, the rest goes on, nothing is lost."""

import asyncio
import shlex
import subprocess
from collections.abc import Callable

import pytest
from support.client import Client
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer, numbers, stored, trade

from tickbus.protocol.codec import read_bell, read_head
from tickbus.protocol.names import START
from tickbus.writer.quarantine import Quarantine, top_fault, type_fault
from tickbus.writer.transaction import Field

SHARD = KEYS.shard("A")
FUTURE = "9999999999999-1"
LAST_ID = f"{2**64 - 1}-{2**64 - 1}"

ATTACKS: dict[str, Callable[[Client, str], object]] = {
    "an ID of far": lambda redis, key: redis.xadd(key, {"t": b"junk"}, id=FUTURE),
    "the last possible ID": lambda redis, key: redis.xadd(key, {"t": b"junk"}, id=LAST_ID),
    "a readable trade of the future": lambda redis, key: redis.xadd(
        key, {"t": redis.xrange(key)[0][1][b"t"]}, id=FUTURE
    ),
    "a string": lambda redis, key: [redis.delete(key), redis.set(key, "x")],
    "a hash": lambda redis, key: [redis.delete(key), redis.hset(key, "x", b"y")],
}


def run_remedy(server: RedisServer, remedy: str) -> None:
    """Run the command of a fault as its reader would."""
    program, *arguments = shlex.split(remedy)
    assert program == "redis-cli"
    subprocess.run(["redis-cli", "-p", str(server.port), *arguments], check=True, capture_output=True)


def newest_bell(redis: Client) -> int:
    """Return the newest bus time that a bell of the shard has announced."""
    bells = [read_bell(list(*row.items())) for _, row in redis.xrange(KEYS.bell(SHARD))]
    return max(bell.bus_ms for bell in bells if bell is not None)


async def ring_until_mended(writer: Writer) -> None:
    async def mended() -> bool:
        await writer.ring()
        return not writer.publisher.quarantined

    await until_async(mended, 15)


@pytest.mark.parametrize("what", list(ATTACKS))
async def test_stream_is_held_until_its_remedy_is_run_and_the_others_go_on(
    redis_server: RedisServer, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1, 2)
    await writer.write(1, symbol="B")
    before = redis_server.client.hget(KEYS.last(SHARD), "trade:test:A")
    ATTACKS[what](redis_server.client, writer.key())
    entries = [writer.entry(writer.stream("A"), trade(3)), writer.entry(writer.stream("B"), trade(2, "B"))]
    await writer.publisher.commit(writer.transaction(entries))
    await writer.write(4)
    await writer.write(3, symbol="B")
    assert numbers(redis_server.client, writer.key("B")) == [1, 2, 3]
    # its head was stored with the transaction that failed: a gateway that restarts must not believe it
    assert redis_server.client.hget(KEYS.last(SHARD), "trade:test:A") == before
    (fault,) = writer.publisher.quarantined
    assert fault.key == writer.key() and len(writer.publisher.lanes[0].quarantine) == 2
    assert caplog.text.count(fault.remedy) == 1
    run_remedy(redis_server, fault.remedy)
    await ring_until_mended(writer)
    expected = [3, 4] if what in ("a string", "a hash") else [1, 2, 3, 4]
    rows = redis_server.client.xrange(writer.key())
    assert [int(id.partition(b"-")[2]) for id, _ in rows] == expected
    await writer.write(5)
    head = redis_server.client.hget(KEYS.last(SHARD), "trade:test:A")
    assert head is not None and read_head("A", head).id.endswith("-5")
    assert not writer.publisher.lanes[0].quarantine.bytes
    writer.close()


@pytest.mark.parametrize("what", list(ATTACKS))
async def test_what_was_held_is_not_older_than_the_bus_time_that_bells_announced(
    redis_server: RedisServer, what: str
) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    ATTACKS[what](redis_server.client, writer.key())
    await writer.write(2, 3)
    (fault,) = writer.publisher.quarantined
    received = writer.publisher.lanes[0].quarantine.entries[-1].ms
    await until_async(lambda: writer.clock.now_ms() > received + 5)
    await writer.ring()
    announced = newest_bell(redis_server.client)
    assert announced > received
    await writer.write(4)
    run_remedy(redis_server, fault.remedy)
    await ring_until_mended(writer)
    rows = stored(redis_server.client, writer.key())
    assert [id.seq for id, _ in rows][-3:] == [2, 3, 4]
    assert all(id.ms >= announced for id, _ in rows[-3:])
    assert [id.ms for id, _ in rows] == sorted(id.ms for id, _ in rows)
    head = read_head("A", redis_server.client.hget(KEYS.last(SHARD), "trade:test:A") or b"")
    assert head.id == str(rows[-1][0])
    writer.close()


async def test_stream_is_mended_by_xdel_and_xsetid_too(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    newest = redis_server.client.xrevrange(writer.key(), count=1)[0][0]
    redis_server.client.xadd(writer.key(), {"t": b"junk"}, id=FUTURE)
    await writer.write(2)
    redis_server.client.execute_command("XDEL", writer.key(), FUTURE)
    await writer.write(3)  # the last ID of the stream is still not ours
    assert len(writer.publisher.quarantined) == 1
    redis_server.client.execute_command("XSETID", writer.key(), newest)
    await ring_until_mended(writer)
    assert numbers(redis_server.client, writer.key()) == [1, 2, 3]
    writer.close()


async def test_foreign_entry_that_was_not_seen_before_the_connection_broke_fences_nobody(
    redis_server: RedisServer,
) -> None:
    """The outcome of a transaction is unknown, and its entries are not where newer ones are."""
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    redis_server.pause()
    committing = asyncio.create_task(writer.write(2))
    await asyncio.sleep(0)
    writer.publisher.lanes[0]._link.close()  # type: ignore[union-attr]
    redis_server.resume()
    redis_server.client.xadd(writer.key(), {"t": b"junk"}, id=FUTURE)
    await asyncio.wait_for(committing, 20)
    await writer.write(1, symbol="B")
    assert numbers(redis_server.client, writer.key("B")) == [1]
    writer.close()


@pytest.mark.parametrize("suffix", ["position", "state"])
async def test_hash_of_another_type_holds_its_shard_and_is_written_again(
    redis_server: RedisServer, suffix: str
) -> None:
    writer = await Writer(redis_server.url).open()
    key = getattr(KEYS, suffix)(SHARD, "test")

    async def set_field(value: bytes) -> None:
        transaction = writer.transaction([])
        transaction.fields = [Field(SHARD, key, "trade:x:A", value), Field(SHARD, key, value.decode(), b"1")]
        await writer.publisher.commit(transaction)

    await set_field(b"1-1")
    redis_server.client.delete(key)
    redis_server.client.set(key, "x")
    await set_field(b"2-2")
    await writer.write(1, symbol="B")
    assert [fault.key for fault in writer.publisher.quarantined] == [key]
    run_remedy(redis_server, writer.publisher.quarantined[0].remedy)
    await ring_until_mended(writer)
    # all that was ever acknowledged, not only what was held
    assert redis_server.client.hgetall(key) == {b"trade:x:A": b"2-2", b"1-1": b"1", b"2-2": b"1"}
    writer.close()


@pytest.mark.parametrize("value", [b"junk", b"", b"-1", b"9" * 40, "list"])
async def test_fence_that_is_no_number_is_set_again(redis_server: RedisServer, value: bytes | str) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    fence = KEYS.fence(KEYS.shard("A"), "test")
    redis_server.client.delete(fence)
    if isinstance(value, bytes):
        redis_server.client.set(fence, value)
    else:
        redis_server.client.execute_command("RPUSH", fence, "x")
    await writer.write(2)
    assert numbers(redis_server.client, writer.key()) == [1, 2]
    assert redis_server.client.get(fence) == b"1"
    standby = Writer(redis_server.url)
    await standby.publisher.take_over()
    assert standby.publisher.epoch == 2
    writer.close()
    standby.close()


async def test_stream_that_is_none_any_more_when_history_was_lost_holds_up_no_other(
    redis_server: RedisServer,
) -> None:
    """Found by Hypothesis: what was lost is resent, but not to a key that is no stream."""
    writer = await Writer(redis_server.url).open()
    await writer.write(1, 2)
    await writer.write(1, symbol="B")
    redis_server.client.delete(KEYS.fence(SHARD, "test"))
    redis_server.client.set(writer.key(), "x")
    await writer.write(3)
    await writer.write(2, symbol="B")
    assert numbers(redis_server.client, writer.key("B")) == [1, 2]
    (fault,) = writer.publisher.quarantined
    run_remedy(redis_server, fault.remedy)
    await ring_until_mended(writer)
    await writer.write(4)
    assert [id.seq for id, _ in stored(redis_server.client, writer.key())] == [3, 4]
    writer.close()


@pytest.mark.parametrize("key", [KEYS.fence, KEYS.holder])
async def test_half_of_a_fence_that_some_other_program_wrote_is_no_takeover(
    redis_server: RedisServer, key: Callable[[int, str], str]
) -> None:
    writer = await Writer(redis_server.url).open()
    redis_server.client.set(key(SHARD, "test"), b"999")
    await writer.write(1)
    assert numbers(redis_server.client, writer.key()) == [1]
    assert redis_server.client.get(KEYS.fence(SHARD, "test")) == b"1"
    writer.close()


def test_what_a_service_stores_of_a_shard_is_held_together(redis_server: RedisServer) -> None:
    assert top_fault("k", START, "x").remedy.startswith("redis-cli RENAME")
    quarantine = Quarantine(whole_shards=True)
    writer = Writer(redis_server.url)
    stream = writer.stream("A")
    entries = [writer.entry(stream, trade(1)), writer.entry(writer.stream("B"), trade(1, "B"))]
    transaction = writer.transaction(entries)
    transaction.fields = [Field(SHARD, "p", "A", b"1-1"), Field(KEYS.shard("B"), "p", "B", b"1-1")]
    quarantine.add(quarantine.scope(entries[0].stream), type_fault("k", "stream"))
    sent = quarantine.take_out(transaction)
    assert [entry.stream.name for entry in sent.entries] == ["trade:test:B"]
    assert [field.name for field in sent.fields] == ["B"]
    again = quarantine.take_out(transaction)
    assert len(quarantine) == 2 and len(again.entries) == 1
    lifted = quarantine.lift(SHARD, sent, {}, 0)
    assert [entry.stream.name for entry in lifted.entries] == 2 * ["trade:test:A"] + ["trade:test:B"]
    assert {field.name for field in lifted.fields} == {"A", "B"}
    assert [entry.id for entry in lifted.entries[:2]] == 2 * [entries[0].id], "an output keeps its cause's ID"
    assert not quarantine and not quarantine.bytes
    writer.close()
