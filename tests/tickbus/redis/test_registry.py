"""What a bus stores about itself comes back as it was written, or not at all."""

import pytest
from support.redis_server import RedisServer

from tickbus.errors import ConfigError
from tickbus.protocol.names import Keys
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.redis.registry import (
    check_conflicting_writers,
    check_replicas,
    read_delay,
    register_service,
    write_delay,
)
from tickbus.redis.topology import locate


@pytest.mark.parametrize("delay", [0, 5, -33_000_000, 900 * 10**9])
async def test_delay_is_handed_on_from_gateway_to_gateway(redis_server: RedisServer, delay: int) -> None:
    """It is negative where the vendor's clock is ahead."""
    link = await locate(redis_server.url).connect()
    assert await read_delay(link, Keys(), "binance") is None
    await write_delay(link, Keys(), "binance", delay)
    await write_delay(link, Keys(), "binance", None)
    assert await read_delay(link, Keys(), "binance") == delay
    link.close()


@pytest.mark.parametrize("stored", [b"", b"-", b"x", b"1e3", b"9" * 19, b"\xff", b"--1"])
async def test_delay_that_is_no_time_is_unknown(redis_server: RedisServer, stored: bytes) -> None:
    redis_server.client.hset(Keys().meta, "delay:binance", stored)
    link = await locate(redis_server.url).connect()
    assert await read_delay(link, Keys(), "binance") is None
    link.close()


async def test_heartbeat_of_the_far_future_keeps_no_service_from_starting(redis_server: RedisServer) -> None:
    """Some other program wrote it: no lease is that long."""
    keys, other = Keys(), StreamFilter.of(("quote",))
    link = await locate(redis_server.url).connect()
    await register_service(link, keys, "bars", other, other)
    redis_server.client.hset(keys.members("bars"), "host:1:x", "170000000000000000")
    await check_replicas(link, keys, "bars", StreamFilter.of(("trade",)), None)
    await check_conflicting_writers(link, keys, "mine", other)
    link.close()


async def test_replica_that_is_alive_keeps_others_from_starting(redis_server: RedisServer) -> None:
    keys, other = Keys(), StreamFilter.of(("quote",))
    link = await locate(redis_server.url).connect()
    await register_service(link, keys, "bars", other, other)
    seconds, _ = redis_server.client.time()
    redis_server.client.hset(keys.members("bars"), "host:1:x", (seconds + 60) * 1000)
    with pytest.raises(ConfigError, match="service 'bars' is running and writes the same streams"):
        await check_conflicting_writers(link, keys, "mine", other)
    link.close()
