"""The recorder is killed and Redis lost at the same moment: what had been read is in the files, once."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from recorder.recorded import rows_of
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import KEYS, Writer

from services.recorder.buffer import Run
from services.recorder.spool_format import unpack

SYMBOLS = [f"S{number}" for number in range(12)]
NUMBERS = range(1, 41)


async def write(url: str) -> None:
    writer = await Writer(url).open()
    for number in NUMBERS:
        for symbol in SYMBOLS:
            await writer.write(number, symbol=symbol)
    writer.publisher.close()


def spooled(data_dir: Path) -> int:
    found = 0
    for path in data_dir.glob("_spool/*/*.spool"):
        with path.open("rb") as file:
            found += sum(len(run.rows.payloads) for run in unpack(file) if isinstance(run, Run))
    return found


def recorded(data_dir: Path) -> list[tuple[str, str]]:
    return sorted((row["symbol"], row["trade_id"]) for row in rows_of(data_dir, "trade"))


def test_rows_survive_loss_of_recorder_and_redis(
    start: Callable[..., Process], redis_server: RedisServer, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    options = (
        "--data-dir",
        str(data_dir),
        "--redis",
        redis_server.url,
        "--shards",
        str(KEYS.shards),
        "--lease-ttl",
        "500ms",
    )
    expected = sorted((symbol, str(number)) for symbol in SYMBOLS for number in NUMBERS)
    asyncio.run(write(redis_server.url))
    recorder = start("recorder", *options, "--flush-interval", "1h").wait_ready()
    until(lambda: spooled(data_dir) == len(expected))
    recorder.kill()
    redis_server.client.flushall()
    assert recorded(data_dir) == []
    recorder = start("recorder", *options, "--flush-interval", "100ms").wait_ready()
    until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="trade") == len(expected))
    assert recorded(data_dir) == expected
    # the bus starts over: counters from 1, later times
    asyncio.run(write(redis_server.url))
    until(lambda: recorder.metric("tickbus_recorder_rows_total", kind="trade") == 2 * len(expected))
    assert recorder.stop() == 0
    assert recorded(data_dir) == sorted([*expected, *expected])
    assert list(data_dir.glob("_spool/*/*")) == []
