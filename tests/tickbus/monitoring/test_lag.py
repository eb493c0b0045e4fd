"""How far a service is behind, compared with numbers computed by hand."""

from support.redis_server import RedisServer
from support.writing import KEYS, Writer, stored

from tickbus.monitoring.lag import StreamLag, measure
from tickbus.protocol.codec import NIL, Head, encode
from tickbus.protocol.names import START, StreamId
from tickbus.protocol.stream_filter import StreamFilter, encode_filter
from tickbus.redis.link import Link
from tickbus.redis.registry import read_heads


async def lags(
    server: RedisServer, positions: dict[str, StreamId], wanted: str = "trade"
) -> dict[str, StreamLag]:
    link = await Link.open(server.url)
    heads = await read_heads(link, KEYS, range(KEYS.shards))
    found = await measure(link, KEYS, heads, positions, lambda stream: stream.kind == wanted)
    link.close()
    return {lag.stream.name: lag for lag in found}


async def test_lag_in_ticks_is_exact_even_after_trimming(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(*range(1, 21))
    await writer.write(1, 2, symbol="B")
    ids = [id for id, _ in stored(redis_server.client, writer.key())]
    b = stored(redis_server.client, writer.key("B"))[-1][0]
    redis_server.client.hset(KEYS.meta, "retention:test", "10000,1000")

    found = await lags(redis_server, {"trade:test:A": ids[4], "trade:test:B": b})
    a = found["trade:test:A"]
    assert (a.ticks, a.lost) == (15, 0)
    assert 0 <= a.seconds < 5 and 0 < a.headroom <= 10 - a.seconds + 0.1
    assert found["trade:test:B"] == StreamLag(writer.stream("B"), 0, 0, 0.0, 10.0)

    redis_server.client.xtrim(writer.key(), maxlen=8, approximate=False)
    a = (await lags(redis_server, {"trade:test:A": ids[4]}))["trade:test:A"]
    assert (a.ticks, a.lost) == (15, 7)

    redis_server.client.xtrim(writer.key(), maxlen=0, approximate=False)
    a = (await lags(redis_server, {"trade:test:A": ids[4]}))["trade:test:A"]
    assert (a.ticks, a.lost, a.headroom) == (15, 15, 0.0)
    writer.close()


async def test_service_without_a_position_lags_by_everything(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1, 2, 3)
    assert {name: lag.ticks for name, lag in (await lags(redis_server, {})).items()} == {"trade:test:A": 3}
    assert await lags(redis_server, {}, "quote") == {}
    assert (await lags(redis_server, {"trade:test:A": START}))["trade:test:A"].ticks == 3
    writer.close()


async def test_lag_in_seconds_is_the_age_of_the_oldest_unread_entry(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    client = redis_server.client
    seconds, micros = client.time()
    now = int(seconds) * 1000 + int(micros) // 1000
    key = writer.key()
    client.delete(key)
    for seq, age in ((1, 90_000), (2, 60_000), (3, 30_000)):
        client.xadd(key, {"t": b"x"}, id=f"{now - age}-{seq}")
    client.hset(KEYS.last(KEYS.shard("A")), "trade:test:A", encode(Head(f"{now - 30_000}-3", None, 0, NIL)))
    client.hset(KEYS.meta, "retention:test", "100000,5")
    lag = (await lags(redis_server, {"trade:test:A": StreamId(now - 90_000, 1)}))["trade:test:A"]
    assert (lag.ticks, lag.lost) == (2, 0)
    assert 60 <= lag.seconds < 65
    # by age, 100 - 60 s are left; by number: 5 are kept, 2 are unread and came in 30 s, so 3 more take 45 s
    assert 35 < lag.headroom <= 40
    writer.close()


async def test_headroom_follows_the_retention_of_the_stream_writer(redis_server: RedisServer) -> None:
    """For bars that is the service that builds them, whatever its name; otherwise a day."""
    client, empty = redis_server.client, encode(Head("0-0", None, 0, NIL))
    for name in ("bar:time:1m:test:A", "bar:time:1h:test:A", "signal:spread:A"):
        client.hset(KEYS.last(KEYS.shard("A")), name, empty)
    meta: dict[str, str | bytes] = {
        "retention:minutes": "60000,5",
        "retention:test": "1000,5",
        "writes:minutes": encode_filter(StreamFilter.of(["bar"], specs=["time:1m"])),
    }
    client.hset(KEYS.meta, mapping=meta)
    found = {**await lags(redis_server, {}, "bar"), **await lags(redis_server, {}, "signal")}
    assert {name: lag.headroom for name, lag in found.items()} == {
        "bar:time:1m:test:A": 60, "bar:time:1h:test:A": 86_400, "signal:spread:A": 86_400,
    }  # fmt: skip
