"""A gateway whose stream some other program wrote to: its ticks are held, over restarts too, and reported."""

import asyncio
from pathlib import Path

import pytest
from gateway.test_gateway import STREAM, Running, on_the_bus
from support.bus import gaps_in
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS

from tickbus.protocol.codec import Head, encode, read_bell, read_head
from tickbus.protocol.messages import GapKind
from tickbus.protocol.names import StreamId

FUTURE = "9999999999999-1"
KEY, LAST = KEYS.stream(STREAM), KEYS.last(KEYS.shard("A"))


def mend(server: RedisServer) -> None:
    server.client.execute_command("XDEL", KEY, FUTURE)
    rows = server.client.xrevrange(KEY, count=1)
    server.client.execute_command("XSETID", KEY, rows[0][0] if rows else "0-1")


async def test_ticks_are_held_and_overflow_beyond_the_bound_is_reported(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = await Running(redis_server, tmp_path / "spill").open()
    one.backlog.max_bytes = 40_000
    running = asyncio.create_task(one.run())
    one.receive(10)
    await one.stored(10)
    redis_server.client.xadd(KEY, {"t": b"junk"}, id=FUTURE)
    quarantine = one.gateway.publisher.lanes[0].quarantine
    while not one.gateway.intake.held_back:
        one.receive(10)
        await until_async(lambda: not one.backlog)
    assert len(quarantine) + 10 == one.next - 1 and quarantine.bytes < 40_000
    first_dropped = one.next
    for _ in range(50):
        assert one.gateway.intake._fitting(one.ticks(10)) == ()
    mend(redis_server)
    await until_async(lambda: not one.gateway.intake.held_back, 20)
    one.receive(5)
    await until_async(lambda: one.gateway.published["trade"] == one.next - 1 - 500, 20)
    assert on_the_bus(redis_server) == [*range(1, first_dropped), *range(one.next - 5, one.next)]
    (gap,) = gaps_in(redis_server, "trade", "x", "A", shards=KEYS.shards)
    assert (gap.kind, gap.count, gap.from_id) == (GapKind.OVERFLOW, 500, str(first_dropped))
    assert "no more room for trade:A" in caplog.text
    one.stopping.set()
    await running


async def test_what_is_held_at_the_end_is_written_by_a_later_start(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    one = await Running(redis_server, tmp_path / "spill").open()
    running = asyncio.create_task(one.run())
    one.receive(10)
    await one.stored(10)
    redis_server.client.xadd(KEY, {"t": b"junk"}, id=FUTURE)
    one.receive(10)
    await until_async(lambda: len(one.gateway.publisher.lanes[0].quarantine) == 10)
    one.stopping.set()
    await running
    bells = [
        read_bell(list(*row.items())) for _, row in redis_server.client.xrange(KEYS.bell(KEYS.shard("A")))
    ]
    two = await Running(redis_server, tmp_path / "spill").open()  # still not mended: held again
    assert two.next == 21 and len(two.gateway.publisher.lanes[0].quarantine) == 10
    running = asyncio.create_task(two.run())
    two.receive(10)
    mend(redis_server)
    await two.stored(20)
    assert on_the_bus(redis_server) == list(range(1, 31))
    announced = max(bell.bus_ms for bell in bells if bell is not None)
    first_held = StreamId.parse(redis_server.client.xrange(KEY)[10][0])
    assert first_held.seq == 11 and first_held.ms >= announced
    two.stopping.set()
    await running


HEADS = {
    "junk": b"junk",
    "nothing": None,
    "an older one": encode(Head("1-1", 1, 0, b"\xc0")),  # type: ignore[arg-type]
    "one of far": encode(Head("9999999999999-77", 9_000, 0, b"\xc0")),  # type: ignore[arg-type]
    "one whose tick is none": encode(Head("1-1", 1, 0, b"\x01")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", list(HEADS))
async def test_head_that_is_not_ours_is_rebuilt_at_the_next_start(
    redis_server: RedisServer, tmp_path: Path, what: str
) -> None:
    one = await Running(redis_server, tmp_path / "spill").open()
    running = asyncio.create_task(one.run())
    one.receive(10)
    one.next = 14  # a hole
    one.receive(2)
    await one.stored(12)
    one.stopping.set()
    await running
    stored = redis_server.client.hget(LAST, STREAM.name)
    assert stored is not None
    redis_server.client.xadd(KEY, {"t": b"junk"}, id=f"{StreamId.parse(read_head('', stored).id).ms}-14")
    redis_server.client.hdel(LAST, STREAM.name)
    if (value := HEADS[what]) is not None:
        redis_server.client.hset(LAST, STREAM.name, value)
    redis_server.client.execute_command("XDEL", KEY, f"{StreamId.parse(read_head('', stored).id).ms}-14")
    newest = redis_server.client.xrevrange(KEY, count=1)[0][0]
    redis_server.client.execute_command("XSETID", KEY, newest)
    two = await Running(redis_server, tmp_path / "spill").open()
    assert two.next == 16 and not two.gateway.publisher.quarantined
    running = asyncio.create_task(two.run())
    two.receive(1)
    await two.stored(1)
    before = read_head("", stored)
    after = read_head("", redis_server.client.hget(LAST, STREAM.name) or b"")
    assert StreamId.parse(after.id).seq == StreamId.parse(before.id).seq + 1
    assert (after.vendor_id, after.holes, after.gaps, after.missing) == (
        before.vendor_id and before.vendor_id + 1, before.holes, before.gaps, before.missing,
    )  # fmt: skip
    two.stopping.set()
    await running
