"""A token without history resumes what its client has just missed, and reads nothing older."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from relay.test_server import TOKEN, token_row
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import RelayClient, start_relay
from support.writing import Writer, trade

from services.relay.catch_up import RESUME_MINUTES

Start = Callable[..., Process]
STREAM = "trade:test:A"
OLD_MS = RESUME_MINUTES * 60_000 + 5_000


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    yield opened
    opened.close()


@pytest.fixture
def url(redis_server: RedisServer, start: Start, tmp_path: Path) -> str:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("kiosk", TOKEN, "history = false"))
    return start_relay(start, redis_server.url, "--tokens", str(tokens))[1]


class Kiosk(RelayClient):
    """A client without history."""

    def __init__(self, url: str) -> None:
        super().__init__(url, additional_headers={"Authorization": f"Bearer {TOKEN}"})

    async def resume(self, cursors: dict[str, str]) -> Any:
        return await self.ask(op="subscribe", id=1, **{"from": cursors})


async def write_long_ago(writer: Writer, *numbers: int, symbol: str = "A") -> None:
    """Write trades whose IDs are older than a client without history may read."""
    stream = writer.stream(symbol)
    entries = [writer.entry(stream, trade(number, symbol)) for number in numbers]
    old = [msgspec.structs.replace(entry, ms=entry.ms - OLD_MS) for entry in entries]
    await writer.publisher.commit(writer.transaction(old))


def cursors_of(redis: RedisServer, writer: Writer) -> list[str]:
    return [id.decode() for id, _ in redis.client.xrange(writer.key())]


def prices(elements: list[Any]) -> list[int]:
    return [int(element["price"]) for element in elements if element["type"] == "trade"]


async def test_missed_entries_are_delivered_after_a_short_absence(
    redis_server: RedisServer, writer: Writer, url: str
) -> None:
    await writer.write(1, 2)
    async with Kiosk(url) as client:
        answer = await client.ask(op="subscribe", id=1)
        (stream,) = answer["streams"]
    await writer.write(3, 4)
    async with Kiosk(url) as client:
        await client.resume({STREAM: f"{stream['cursor']}@{stream['history']}"})
        assert prices(await client.data(2)) == [3, 4]
        assert (await client.hear())["op"] == "replay_completed"
        await writer.write(5)
        assert prices(await client.data(1)) == [5]


async def test_quiet_stream_is_resumed_however_old_its_cursor_is(
    redis_server: RedisServer, writer: Writer, url: str
) -> None:
    await write_long_ago(writer, 1, 2)
    (_, newest) = cursors_of(redis_server, writer)
    async with Kiosk(url) as client:
        assert (await client.resume({STREAM: newest}))["op"] == "subscribed"
        assert (await client.hear())["op"] == "replay_completed"
    await writer.write(3)
    async with Kiosk(url) as client:
        await client.resume({STREAM: newest})
        assert prices(await client.data(1)) == [3]


@pytest.mark.parametrize("which", ["old", "start", "another history", "far ahead"])
async def test_older_entries_are_refused_in_one_line(
    redis_server: RedisServer, writer: Writer, url: str, which: str
) -> None:
    await write_long_ago(writer, 1, 2)
    await writer.write(3)
    first, _, newest = cursors_of(redis_server, writer)
    cursor = {
        "old": first,
        "start": "0-0",
        "another history": f"{newest}@0123456789abcdef",
        "far ahead": f"{int(newest.partition('-')[0]) + 1_000_000_000}-9",
    }[which]
    async with Kiosk(url) as client:
        answer = await client.resume({STREAM: cursor})
        if which == "far ahead":  # it could be one that Redis has lost: seen after a few seconds
            assert answer["op"] == "subscribed"
            answer = await client.hear()
        assert answer["op"] == "error"
        assert "older than 5 minutes" in answer["reason"]
        # the connection and the id go on
        assert (await client.ask(op="subscribe", id=1))["op"] == "subscribed"
        await writer.write(4)
        assert prices(await client.data(1)) == [4]


async def test_streams_without_a_cursor_are_new_or_begin_now(
    redis_server: RedisServer, writer: Writer, url: str
) -> None:
    await writer.write(1)
    (cursor,) = cursors_of(redis_server, writer)
    await write_long_ago(writer, 1, symbol="OLD")
    await writer.write(2, symbol="OLD")
    await writer.write(1, symbol="NEW")
    async with Kiosk(url) as client:
        await client.resume({STREAM: cursor})
        (element,) = await client.data(1)
        assert (element["stream"], element["price"]) == ("trade:test:NEW", "1")
        await writer.write(3, symbol="OLD")
        (element,) = await client.data(1)
        assert (element["stream"], element["price"]) == ("trade:test:OLD", "3")


@pytest.mark.parametrize("begin", ["start", "last:5", 1_700_000_000, "2026-01-01"])
async def test_history_stays_refused(writer: Writer, url: str, begin: str | int) -> None:
    async with Kiosk(url) as client:
        answer = await client.ask(op="subscribe", id=1, **{"from": begin})
        assert "may not read history" in answer["reason"]
