"""History, then live, at 20,000 ticks a second: whoever joins, whenever, has every entry once."""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.load import Load, written
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import JSON, MSGPACK, RelayClient, start_relay
from support.waiting import until_async
from support.writing import KEYS

from tickbus.protocol.names import Stream

Start = Callable[..., Process]
RATE, SYMBOLS = 20_000, 20
CLIENTS = 40
BEGINS = ("start", "now", "last:1500", "cursor")
_AHEAD = 500
"""So many entries a client reads beyond those that there were when it joined: past the seam."""


@pytest.fixture
def load(redis_server: RedisServer, tmp_path: Path) -> Iterator[Load]:
    started = Load(tmp_path / "load.log", redis_server.url, RATE, SYMBOLS)
    yield started
    started.close()


def number_of(element: Any) -> int:
    return int(element[3][1] if isinstance(element, list) else element["price"])


async def read(url: str, style: str, symbol: str, begin: object, enough: Callable[[list[Any]], bool]) -> Any:
    """Subscribe, and return the elements up to enough of them, Gaps included."""
    elements: list[Any] = []
    async with RelayClient(url, style) as client:
        await client.say(op="subscribe", id=1, symbols=[symbol], **{"from": begin})
        while not enough(elements):
            message = await client.hear()
            if isinstance(message, list):
                elements += message[1]
            else:
                assert message.get("op") not in ("error", "closing"), message
                elements += message.get("data", [])
    return elements


def cursor_of(redis: RedisServer, symbol: str, number: int) -> str:
    """Return the cursor of the trade with this number."""
    entries = redis.client.xrange(KEYS.stream(Stream("trade", "test", symbol)), count=number)
    return entries[-1][0].decode()


async def test_clients_that_join_at_random_times_have_neither_hole_nor_double(
    redis_server: RedisServer, start: Start, load: Load
) -> None:
    _, url = start_relay(start, redis_server.url, "--ring-bytes", "1MB")
    chance = random.Random(20_000)
    resume = 100
    await until_async(lambda: written(load.output) > resume, 20, "there are entries")

    async def join(number: int) -> None:
        after = chance.randrange(100, 6_000)
        begin, style = BEGINS[number % len(BEGINS)], (JSON, MSGPACK)[number // len(BEGINS) % 2]
        symbol = f"L{chance.randrange(SYMBOLS)}"
        await until_async(lambda: written(load.output) >= after, 40, "its time to join")
        there = written(load.output)
        where: object = begin
        if begin == "cursor":
            where = {f"trade:test:{symbol}": await asyncio.to_thread(cursor_of, redis_server, symbol, resume)}
        elements = await read(
            url, style, symbol, where,
            lambda found: bool(found) and number_of(found[-1]) >= there + _AHEAD,
        )  # fmt: skip
        numbers = [number_of(element) for element in elements]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), (number, begin, style)
        first = {"start": 1, "cursor": resume + 1}.get(begin)
        assert first in (None, numbers[0]), (begin, numbers[0])

    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        for number in range(CLIENTS):
            tasks.create_task(join(number))
    count, rate = await asyncio.to_thread(load.finish)
    print(f"{count} of each of {SYMBOLS} symbols, {rate:.0f} a second")


async def test_what_was_trimmed_meanwhile_is_told_with_its_count(
    redis_server: RedisServer, start: Start, load: Load
) -> None:
    """Clients resume from the beginning of a stream that loses its oldest entries all the time."""
    _, url = start_relay(start, redis_server.url, "--ring-bytes", "1MB")
    await until_async(lambda: written(load.output) > 1_000, 20, "there are entries")
    stream = "trade:test:L0"
    cursor = cursor_of(redis_server, "L0", 10)
    done = asyncio.Event()

    async def trim() -> None:
        while not done.is_set():
            redis_server.client.xtrim(KEYS.stream(Stream.parse(stream)), maxlen=700, approximate=False)
            await asyncio.sleep(0)

    async def resume(style: str) -> None:
        there = written(load.output)
        elements = await read(
            url, style, "L0", {stream: cursor},
            lambda found: bool(found) and _is_trade(found[-1]) and number_of(found[-1]) >= there + 2_000,
        )  # fmt: skip
        assert not _is_trade(elements[0]), "the trim is told first"
        have = 10
        for element in elements:
            if _is_trade(element):
                assert number_of(element) == have + 1
                have += 1
            else:
                gap = element if isinstance(element, dict) else element[3]
                have += gap["count"] if isinstance(gap, dict) else gap[7]

    trimming = asyncio.create_task(trim())
    try:
        await until_async(
            lambda: redis_server.client.xlen(KEYS.stream(Stream.parse(stream))) <= 800, 20, "it is trimmed"
        )
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for style in (JSON, MSGPACK) * 3:
                tasks.create_task(resume(style))
    finally:
        done.set()
        await trimming


def _is_trade(element: Any) -> bool:
    return (element[2] if isinstance(element, list) else element["type"]) in ("t", "trade")
