"""What a reader makes of a Redis that lost its newest entries just after they were read. Both cases were found by the soak."""

import msgspec
import pytest
from support.writing import KEYS, trade

from tickbus.errors import RedisUnavailable
from tickbus.protocol.codec import Bell, Head, encode
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reader import FROM_START, Reader
from tickbus.redis.link import Link

STREAM = Stream("trade", "test", "A")
SHARD = KEYS.shard("A")
READ, LEFT, AGAIN = StreamId(6_806, 215), StreamId(4_397, 208), StreamId(7_041, 221)


async def nowhere() -> Link:
    raise RedisUnavailable("no server in this test")


def ring(id: bytes, counter: int, bus_ms: int, feed_up: bool | None) -> tuple[bytes, tuple[bytes, bytes]]:
    return id, (b"d", encode(Bell("test#1", counter, bus_ms, feed_up, [STREAM.name])))  # type: ignore[arg-type]


def hear(reader: Reader, id: bytes, counter: int, bus_ms: int, feed_up: bool | None) -> None:
    reader._hear(reader._decode([(KEYS.bell(SHARD).encode(), [ring(id, counter, bus_ms, feed_up)])]))


def swept() -> Reader:
    """It had read up to READ; the server went back to LEFT."""
    reader = Reader(nowhere, KEYS, lambda _: True, FROM_START, {STREAM.name: READ})
    head = Head(str(LEFT), None, 0, msgspec.Raw(encode(trade(1))))
    reader._sweep_shard(
        SHARD, b"era", [ring(b"5257-0", 63, 5_255, False)], [STREAM.name.encode(), encode(head)]
    )  # type: ignore[arg-type]
    return reader


def test_a_bell_that_is_older_than_what_was_read_since_lowers_nothing() -> None:
    """The gateway sent the lost tail again, and more; that is read already when the bell of the first of it is heard."""
    reader = swept()
    (followed,) = reader._followed.values()
    followed.read_to, followed.seq = str(AGAIN).encode(), AGAIN.seq
    hear(reader, b"7042-0", 79, AGAIN.ms - 9, True)
    assert reader.positions == {STREAM.name: AGAIN}


@pytest.mark.parametrize(("bus_ms", "position"), [(READ.ms - 1, LEFT), (READ.ms, READ)])
def test_a_writer_that_is_behind_our_position_still_does(bus_ms: int, position: StreamId) -> None:
    reader = swept()
    hear(reader, b"7042-0", 1, bus_ms, True)
    assert reader.positions == {STREAM.name: position}


async def test_clocks_whose_news_was_not_read_before_the_connection_broke_do_not_hold() -> None:
    reader = swept()
    hear(reader, b"7042-0", 79, 9_000, True)
    assert reader._told == {SHARD}
    reader._connect = _connected  # type: ignore[assignment]
    await reader._linked()
    assert reader._told == set()
    assert reader._shards[SHARD].clocks == {}


class _Empty:
    closed = False

    async def ask_all(self, commands: list[object]) -> list[object]:
        return [reply for _ in range(len(commands) // 3) for reply in (None, [], [])]


async def _connected() -> _Empty:
    return _Empty()
