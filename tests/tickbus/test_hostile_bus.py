"""Hostile bytes under every key of a bus: its readers and writers go on, or raise a documented error."""

import asyncio
import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer

import tickbus
from tickbus.bus import Bus
from tickbus.errors import ConfigError, TickbusError
from tickbus.monitoring.lag import measure
from tickbus.monitoring.status import read_status
from tickbus.protocol.codec import Bell, Head, encode, read_bell, read_head
from tickbus.protocol.messages import Trade
from tickbus.protocol.names import StreamId
from tickbus.redis.registry import read_heads
from tickbus.redis.topology import locate
from tickbus.units import Duration
from tickbus.writer.lease import Lease

SHARD = KEYS.shard("A")
OWNERS = ("test", "app")
HASHES = [KEYS.last(SHARD), *(getattr(KEYS, key)(SHARD, "app") for key in ("position", "state"))]
STREAMS = [KEYS.bell(SHARD), KEYS.stream(tickbus.Stream("trade", "test", "A"))]
STRINGS = [
    KEYS.era(SHARD),
    *(getattr(KEYS, key)(SHARD, one) for key in ("fence", "holder") for one in OWNERS),
]
NAMES = st.sampled_from(["trade:test:A", "trade:test:B", "quote:x:\x1b[2J", "bar:time:1m:test:A", "x", ""])
HEAD = encode(Head("1700000000000-7", 1, 2, b"\xc0"))  # type: ignore[arg-type]
BELL = encode(Bell("test#1", 9, 1_700_000_000_000, True, ["trade:test:A"]))
VALUES = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([HEAD, BELL, b"1700000000000-1", b"9" * 30, b"\x91" * 3_000, b"x" * 3_000]),
    # one that was right, with a few bytes changed
    st.builds(
        lambda good, at, bytes: good[: at % len(good)] + bytes + good[at % len(good) + len(bytes) :],
        st.sampled_from([HEAD, BELL]), st.integers(0, 200), st.binary(min_size=1, max_size=3),
    ),
)  # fmt: skip
IDS = st.one_of(st.just("*"), st.sampled_from(["9999999999999-1", f"{2**64 - 1}-{2**64 - 1}"]))
COMMANDS = st.one_of(
    st.tuples(st.just("HSET"), st.sampled_from(HASHES), NAMES, VALUES),
    st.tuples(
        st.just("XADD"), st.sampled_from(STREAMS), IDS, st.sampled_from(["d", "t", "g", "z", ""]), VALUES
    ),
    st.tuples(st.just("XADD"), st.sampled_from(STREAMS), st.just("*"), st.just("d"), VALUES, NAMES, VALUES),
    st.tuples(st.just("SET"), st.sampled_from([*STRINGS, *HASHES, *STREAMS]), VALUES),
    st.tuples(st.just("HSET"), st.just(KEYS.meta), st.sampled_from(
        ["service:app", "service:\x1b", "writes:app", "retention:test", "delay:test", "feed:x"]), VALUES),
    st.tuples(st.just("HSET"), st.just(KEYS.members("app")), NAMES, VALUES),
    st.tuples(st.just("SET"), st.sampled_from([KEYS.members("app"), KEYS.lease("test")]), VALUES),
    st.tuples(st.just("DEL"), st.sampled_from([*STRINGS, *HASHES, *STREAMS])),
)  # fmt: skip


@given(st.binary(max_size=80) | st.builds(lambda at: HEAD[:at], st.integers(0, 40)))
def test_decoders_of_what_stands_in_redis_are_total(value: bytes) -> None:
    for fields in ([b"d", value], [b"d", value, b"e", value], [value, b""], []):
        bell = read_bell(fields)
        assert bell is None or 0 <= bell.bus_ms < 10**13
    try:
        head = read_head("trade:test:A", value)
    except TickbusError:
        pass
    else:
        assert StreamId.parse(head.id) == StreamId.read(head.id)
    try:
        id = StreamId.read(value)
    except ValueError:
        pass
    else:
        assert id <= (2**64 - 1, 2**64 - 1)


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1-1", "1-1-1", "1_0-1", " 1-1", "1-1\n", "١-1", f"{2**64}-0"]
)
def test_text_that_redis_takes_for_no_id_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="invalid stream ID"):
        StreamId.read(text)


async def _numbers(bus: Bus, symbol: str, until: int) -> None:
    async with asyncio.timeout(15):
        async for message in bus.read("trade", symbols=[symbol], start="start", gaps=False):
            if message.price_text == str(until):
                return


async def _consume(bus: Bus, service: str, until: int) -> None:
    """Read the stream of the symbol in the sound shard as a service."""
    async with asyncio.timeout(20):
        async for batch in bus.consume(service, lease_ttl="300ms"):
            for stream, _, message in batch:
                if isinstance(message, Trade) and (stream.symbol, message.price_text) == ("B", str(until)):
                    await batch.commit(state={stream: b"1"})
                    return


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(COMMANDS, min_size=1, max_size=6))
def test_bus_goes_on_whatever_others_write(
    redis_server: RedisServer, commands: list[tuple[Any, ...]]
) -> None:
    """All but the stream, or the shard, that was written to."""

    async def attack() -> None:
        asyncio.get_running_loop().set_debug(False)
        redis_server.client.flushall()
        writer = await Writer(redis_server.url).open()
        await writer.write(1)
        await writer.write(1, symbol="B")
        async with tickbus.connect(redis_server.url) as bus:
            service = f"app{secrets.token_hex(3)}"
            live = asyncio.create_task(_numbers(bus, "B", 3))
            consuming = asyncio.create_task(_consume(bus, service, 3))
            for command in commands:
                try:
                    redis_server.client.execute_command(*command)
                except Exception as error:  # noqa: BLE001 - whatever redis-py calls a refusal
                    assert "Error" in type(error).__name__ or "rejected" in str(error)
            await writer.write(2)
            await writer.write(2, symbol="B")
            await writer.write(3, symbol="B")
            await asyncio.gather(live, consuming, _numbers(bus, "B", 3), _consume(bus, "app", 3))
            await bus.snapshot("trade")
        link = await locate(redis_server.url).connect()
        heads = await read_heads(link, KEYS, range(KEYS.shards))
        await measure(link, KEYS, heads, {}, lambda stream: True)
        status = await read_status(link, KEYS.prefix)
        assert status is not None and "trade:test:B" in status.heads
        link.close()
        lease = Lease(lambda: locate(redis_server.url).link(""), KEYS, "test", Duration(200_000_000))
        async with asyncio.timeout(10):
            await lease.acquire(writer.publisher.released)
        await lease.release()
        writer.close()

    asyncio.run(attack())


@pytest.mark.parametrize("value", [b"junk", b"0", b"-3", b"1" * 30])
async def test_bus_without_a_valid_number_of_shards_is_refused_in_one_line(
    redis_server: RedisServer, value: bytes
) -> None:
    redis_server.client.hset(KEYS.meta, "shards", value)
    with pytest.raises(ConfigError, match="invalid number of shards"):
        async with tickbus.connect(redis_server.url):
            pass


async def test_bus_of_another_schema_is_refused_by_readers_too(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    writer.close()
    redis_server.client.hset(KEYS.meta, "schema", b"2")
    with pytest.raises(ConfigError, match=r"schema 2, this version of tickbus writes 1"):
        async with tickbus.connect(redis_server.url):
            pass
    link = await locate(redis_server.url).connect()
    with pytest.raises(ConfigError, match="schema 2"):
        await read_status(link, KEYS.prefix)
    link.close()


async def test_status_names_each_fault_with_what_mends_it(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    for symbol in ("A", "B", "C"):
        await writer.write(1, symbol=symbol)
    client = redis_server.client
    client.xadd(writer.key("A"), {"t": b"junk"}, id="9999999999999-1")
    client.delete(writer.key("B"))
    client.set(writer.key("B"), "x")
    client.hset(KEYS.last(KEYS.shard("C")), "trade:test:C", b"junk")
    client.hset(KEYS.meta, "service:app", b"{}")
    client.hset(KEYS.position(SHARD, "app"), "trade:test:A", b"junk")
    link = await locate(redis_server.url).connect()
    status = await read_status(link, KEYS.prefix)
    link.close()
    assert status is not None
    faults = "\n".join(status.faults)
    assert (
        f"{writer.key('A')}: its entry 9999999999999-1 was not written by this bus; fix: redis-cli" in faults
    )
    assert f"{writer.key('B')} is no stream" in faults
    assert "invalid head of trade:test:C" in faults
    assert "the position of trade:test:A cannot be read" in faults
    assert len(status.faults) == 4
    writer.close()


async def test_consumer_leaves_out_only_the_stream_whose_position_was_overwritten(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """To read it from anywhere else would repeat or lose entries."""
    writer = await Writer(redis_server.url).open()
    neighbour = next(one for one in (f"S{at}" for at in range(99)) if KEYS.shard(one) == SHARD)
    for symbol in ("A", neighbour):
        await writer.write(1, symbol=symbol)
    redis_server.client.hset(KEYS.position(SHARD, "app"), "trade:test:A", b"junk")
    async with tickbus.connect(redis_server.url) as bus:
        seen: set[str] = set()
        async with asyncio.timeout(15):
            async for batch in bus.consume("app"):
                seen |= {stream.symbol for stream, _, _ in batch}
                if batch.reads:
                    await batch.commit()
                if neighbour in seen:
                    break
    assert seen == {neighbour}
    assert redis_server.client.hget(KEYS.position(SHARD, "app"), "trade:test:A") == b"junk"
    assert f"redis-cli HSET '{KEYS.position(SHARD, 'app')}' 'trade:test:A'" in caplog.text
    writer.close()


@pytest.mark.parametrize("kind", ["string without an expiry", "list"])
async def test_lease_of_some_other_program_is_taken(redis_server: RedisServer, kind: str) -> None:
    key = KEYS.lease("test")

    def overwrite() -> None:
        redis_server.client.delete(key)
        if kind == "list":
            redis_server.client.execute_command("RPUSH", key, "x")
        else:
            redis_server.client.set(key, b"\xff mine")

    overwrite()
    lease = Lease(lambda: locate(redis_server.url).link(""), KEYS, "test", Duration(300_000_000))
    async with asyncio.timeout(10):
        await lease.acquire()
    keeping = asyncio.create_task(lease.keep())
    overwrite()
    await until_async(
        lambda: (
            redis_server.client.execute_command("TYPE", key) == b"string"
            and redis_server.client.get(key) == lease.holder.encode()
        )
    )
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    lease.close()
