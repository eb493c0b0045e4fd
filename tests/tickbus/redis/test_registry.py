"""What a bus stores about itself comes back as it was written, or not at all."""

import pytest
from support.redis_server import RedisServer

from tickbus.protocol.names import Keys
from tickbus.redis.registry import read_delay, write_delay
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
