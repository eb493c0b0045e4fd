"""A stream appears between the look of one client and the reader's: nobody misses its first entries."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer

from services.relay.bus_access import BusAccess
from services.relay.catch_up import CatchUp
from services.relay.delivery import Client, Subscription
from services.relay.hub import Hub
from services.relay.requests import FROM_NOW, Subscribe
from services.relay.selection import Scope
from services.relay.styles import JSON
from tickbus.protocol.codec import read_head
from tickbus.protocol.names import Stream, StreamId
from tickbus.redis.topology import locate


class Socket:
    """Takes everything."""

    buffered = 0

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def ping(self, payload: bytes) -> None: ...

    async def writable(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed: {code} {reason}")

    @property
    def messages(self) -> list[Any]:
        """Return the frames, decoded: none is longer than 64 KiB."""
        data, found = self.data, []
        while data:
            start = 4 if data[1] == 126 else 2
            length = int.from_bytes(data[2:4], "big") if data[1] == 126 else data[1]
            found.append(json.loads(data[start : start + length]))
            data = data[start + length :]
        return found

    @property
    def prices(self) -> list[str]:
        return [one["price"] for message in self.messages for one in message.get("data", [])]


def write_behind(url: str, *numbers: int) -> None:
    """Write trades while nothing else of this loop runs: the reader cannot see them yet."""

    async def write() -> None:
        writer = await Writer(url, "other").open()
        await writer.write(*numbers, symbol="NEW")
        writer.close()

    thread = threading.Thread(target=lambda: asyncio.run(write()))
    thread.start()
    thread.join()


class Market:
    """A hub at a bus on which `NEW` has yet to appear."""

    stream = Stream("trade", "other", "NEW")

    def __init__(self, url: str) -> None:
        self.url = url
        self.access = BusAccess(locate(url), KEYS)
        self.hub = Hub(locate(url), self.access, 1 << 20, 1 << 20, 1 << 24)
        self.sockets: list[Socket] = []

    def subscribe(self, *symbols: str) -> Subscription:
        """Return a subscription that has yet to catch up; its client is the newest socket."""
        self.sockets.append(Socket())
        request = Subscribe(len(self.sockets), symbols=list(symbols))
        return self.hub.subscribe(Client(self.sockets[-1], JSON, 1 << 20), request, Scope())

    async def catch_up(self, subscription: Subscription) -> None:
        await CatchUp(self.hub, self.access, subscription, FROM_NOW, 100).run()

    async def go_on(self) -> None:
        """Write the trades 4 and 5, and wait until everybody has them."""
        writer = await Writer(self.url, "other").open()
        writer.seqs[self.stream] = 3
        await writer.write(4, 5, symbol="NEW")
        await until_async(lambda: all(socket.prices[-1:] == ["5"] for socket in self.sockets))
        writer.close()


@pytest.fixture
async def market(redis_server: RedisServer) -> AsyncIterator[Market]:
    before = await Writer(redis_server.url, "before").open()
    market = Market(redis_server.url)
    reading = asyncio.create_task(market.hub.run())
    await until_async(lambda: market.hub.up)
    yield market
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    market.access.close()
    before.close()


@pytest.mark.parametrize("symbols", [["NEW"], ["*"], []], ids=["name", "glob", "all"])
async def test_client_that_waits_for_a_stream_has_its_first_entries_though_another_one_finds_it(
    symbols: list[str], market: Market, redis_server: RedisServer
) -> None:
    waiting, finding = market.subscribe(*symbols), market.subscribe("NEW", "NO")
    await market.catch_up(waiting)
    write_behind(market.url, 1, 2, 3)
    value = redis_server.client.hget(KEYS.last(KEYS.shard("NEW")), market.stream.name)
    assert market.stream.name not in market.hub.followed, "the reader was not faster"
    head = StreamId.parse(read_head(market.stream.name, value or b"").id)
    market.hub.follow(finding.group, market.stream, head)
    await market.catch_up(finding)
    await market.go_on()
    first, second = market.sockets
    assert first.prices == ["1", "2", "3", "4", "5"]
    assert [one["op"] for one in first.messages if "op" in one] == ["subscribed", "stream"]
    assert second.prices == ["4", "5"]


async def test_stream_that_appears_while_a_client_looks_is_its_own_from_the_first_entry_on(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, finding = market.subscribe("NEW"), market.subscribe("NEW", "NO")
    find = market.access.find

    async def look(*asked: Any) -> Any:
        found = await find(*asked)
        monkeypatch.setattr(market.access, "find", find)
        write_behind(market.url, 1, 2, 3)
        await market.catch_up(finding)
        return found

    monkeypatch.setattr(market.access, "find", look)
    await market.catch_up(looking)
    await market.go_on()
    first, second = market.sockets
    assert first.prices == ["1", "2", "3", "4", "5"]
    assert [one["op"] for one in first.messages if "op" in one] == ["subscribed", "stream"]
    assert second.prices == ["4", "5"]
