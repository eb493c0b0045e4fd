"""A reader after Redis lost its newest entries just after they were read. The soak found both cases."""

from typing import cast

import msgspec
import pytest
from support.writing import KEYS, trade

from tickbus.errors import RedisUnavailable
from tickbus.protocol.codec import Bell, Head, encode
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reader import FROM_START, Reader
from tickbus.redis.link import Link, Reply

STREAM = Stream("trade", "test", "A")
SHARD = KEYS.shard("A")
READ, LEFT, RESENT = StreamId(6_806, 215), StreamId(4_397, 208), StreamId(7_041, 221)


async def unreachable() -> Link:
    raise RedisUnavailable("no server in this test")


def ring(id: bytes, counter: int, bus_ms: int, feed_up: bool | None) -> tuple[bytes, tuple[bytes, bytes]]:
    return id, (b"d", encode(Bell("test#1", counter, bus_ms, feed_up, [STREAM.name])))


def receive_bell(reader: Reader, id: bytes, counter: int, bus_ms: int, feed_up: bool | None) -> None:
    rows = [(KEYS.bell(SHARD).encode(), [ring(id, counter, bus_ms, feed_up)])]
    reader._process_bells(reader._decode_bells(rows))


def swept_reader() -> Reader:
    """Return a reader that had read up to READ when the server was rolled back to LEFT."""
    reader = Reader(unreachable, KEYS, lambda _: True, FROM_START, {STREAM.name: READ})
    head = Head(str(LEFT), None, 0, msgspec.Raw(encode(trade(1))))
    bells = [ring(b"5257-0", 63, 5_255, False)]
    reader._sweep_shard(SHARD, b"era", bells, [STREAM.name.encode(), encode(head)])
    return reader


def test_bell_older_than_the_position_does_not_lower_it() -> None:
    """The gateway resent the lost tail, and more; all is read when the bell of its first part arrives."""
    reader = swept_reader()
    (tracked,) = reader._tracked.values()
    tracked.read_to, tracked.seq = str(RESENT).encode(), RESENT.seq
    receive_bell(reader, b"7042-0", 79, RESENT.ms - 9, True)
    assert reader.positions == {STREAM.name: RESENT}


@pytest.mark.parametrize(("bus_ms", "position"), [(READ.ms - 1, LEFT), (READ.ms, READ)])
def test_bell_of_a_writer_behind_the_position_lowers_it(bus_ms: int, position: StreamId) -> None:
    reader = swept_reader()
    receive_bell(reader, b"7042-0", 1, bus_ms, True)
    assert reader.positions == {STREAM.name: position}


async def test_lost_connection_discards_clocks_whose_entries_were_not_read() -> None:
    reader = swept_reader()
    receive_bell(reader, b"7042-0", 79, 9_000, True)
    assert reader._unreported == {SHARD}
    reader._connect = _connect_to_empty
    await reader._ensure_link()
    assert reader._unreported == set()
    assert reader._shards[SHARD].clocks == {}


class _Empty:
    closed = False

    async def ask_each(self, commands: list[object]) -> list[Reply]:
        return [None, [], []] * (len(commands) // 3)


async def _connect_to_empty() -> Link:
    return cast(Link, _Empty())
