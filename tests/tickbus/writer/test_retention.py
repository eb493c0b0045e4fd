"""The retention sweep on a real Redis: by age, by number, by bytes; and the last ID survives."""

import pytest
import redis
from support.client import Client
from support.redis_server import RedisServer

from tickbus.redis.link import Link
from tickbus.units import DAY, HOUR, SECOND, Duration, Size
from tickbus.writer.retention import sweep
from tickbus.writer.retention_policy import Retention

ALL = 1_000_000_000


def now_ms(client: Client) -> int:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


def fill(client: Client, key: str, count: int, oldest_ms: int, newest_ms: int, size: int = 20) -> None:
    pipe = client.pipeline(transaction=False)
    for at in range(count):
        pipe.xadd(
            key,
            {"t": b"x" * size},
            id=f"{oldest_ms + (newest_ms - oldest_ms) * at // max(1, count - 1)}-{at + 1}",
        )
    pipe.execute()


async def sweep_keys(server: RedisServer, keys: list[str], **policy: int) -> int:
    """Sweep these streams once and return the number of removed entries."""
    link = await Link.open(server.url)
    retention = Retention(
        Duration(policy.get("age", DAY)), policy.get("entries", ALL), Size(policy.get("bytes", 0))
    )
    result = await sweep(link, [key.encode() for key in keys], retention)
    link.close()
    return result.removed


async def test_sweep_removes_old_entries_from_quiet_streams_too(redis_server: RedisServer) -> None:
    client = redis_server.client
    now = now_ms(client)
    fill(client, "quiet", 5, now - 7_200_000, now - 7_100_000)
    fill(client, "half", 100, now - 7_200_000, now - 1000)
    fill(client, "fresh", 10, now - 1000, now)
    removed = await sweep_keys(redis_server, ["quiet", "half", "fresh", "absent"], age=HOUR)
    assert (client.xlen("quiet"), client.xlen("fresh")) == (0, 10)
    assert all(int(id.partition(b"-")[0]) >= now - HOUR // 1_000_000 for id, _ in client.xrange("half"))
    assert removed == 5 + 100 - client.xlen("half") > 50
    assert client.xinfo_stream("quiet")["last-generated-id"] == f"{now - 7_100_000}-5".encode()


async def test_one_sweep_is_enough_for_a_busy_stream(redis_server: RedisServer) -> None:
    client = redis_server.client
    now = now_ms(client)
    fill(client, "old", 30_000, now - 7_200_000, now - 7_100_000)
    fill(client, "many", 30_000, now - 1000, now)
    await sweep_keys(redis_server, ["old", "many"], age=HOUR, entries=1000)
    assert client.xlen("old") == 0
    assert 1000 <= client.xlen("many") < 1000 + 200  # whole nodes only


async def test_byte_budget_removes_the_oldest_from_all_streams_alike(redis_server: RedisServer) -> None:
    client = redis_server.client
    now = now_ms(client)
    keys = [f"s{at}" for at in range(10)]
    for key in keys:
        fill(client, key, 2000, now - 3_600_000, now, size=100)
    fill(client, "fresh", 50, now - 10, now)
    used = sum(client.memory_usage(key) for key in keys)
    await sweep_keys(redis_server, [*keys, "fresh"], bytes=used // 2)
    left = sum(client.memory_usage(key) for key in keys)
    assert used * 0.2 < left <= used // 2
    lengths = [client.xlen(key) for key in keys]
    assert max(lengths) - min(lengths) < 20
    assert client.xlen("fresh") == 50


async def test_sweep_without_anything_to_remove(redis_server: RedisServer) -> None:
    now = now_ms(redis_server.client)
    fill(redis_server.client, "a", 100, now - 1000, now)
    assert await sweep_keys(redis_server, ["a"], bytes=1 << 30) == 0
    assert await sweep_keys(redis_server, []) == 0


async def test_counter_continues_after_a_stream_is_trimmed_to_nothing(redis_server: RedisServer) -> None:
    now = now_ms(redis_server.client)
    fill(redis_server.client, "a", 10, now - 100_000, now - 50_000)
    assert await sweep_keys(redis_server, ["a"], age=SECOND) == 10
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        redis_server.client.xadd("a", {"t": b"x"}, id=f"{now - 50_000}-10")


async def test_sweep_works_on_a_full_server(redis_server: RedisServer) -> None:
    now = now_ms(redis_server.client)
    fill(redis_server.client, "a", 1000, now - 100_000, now - 50_000)
    redis_server.client.config_set("maxmemory", 1)
    assert await sweep_keys(redis_server, ["a"], age=SECOND) == 1000
