"""A stream appears between the look of one client and the reader's: nobody misses its first entries."""

import asyncio
import json
import threading
from typing import Any

import pytest
from support.redis_server import RedisServer
from support.waiting import until_async
from support.writing import KEYS, Writer

from services.relay.bus_access import BusAccess
from services.relay.catch_up import CatchUp
from services.relay.delivery import Client
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


@pytest.mark.parametrize("symbols", [["NEW"], ["*"], []], ids=["name", "glob", "all"])
async def test_client_that_waits_for_a_stream_has_its_first_entries_though_another_one_finds_it(
    symbols: list[str], redis_server: RedisServer
) -> None:
    before = await Writer(redis_server.url, "before").open()
    stream = Stream("trade", "other", "NEW")
    access = BusAccess(locate(redis_server.url), KEYS)
    hub = Hub(locate(redis_server.url), access, 1 << 20, 1 << 20, 1 << 24)
    reading = asyncio.create_task(hub.run())
    await until_async(lambda: hub.up)
    sockets = [Socket(), Socket()]
    waiting, finding = (
        hub.subscribe(Client(socket, JSON, 1 << 20), Subscribe(number, symbols=chosen), Scope())
        for number, (socket, chosen) in enumerate(zip(sockets, (symbols, ["NEW", "NO"]), strict=True))
    )
    await CatchUp(hub, access, waiting, FROM_NOW, 100).run()

    write_behind(redis_server.url, 1, 2, 3)
    value = redis_server.client.hget(KEYS.last(KEYS.shard("NEW")), stream.name)
    assert stream.name not in hub.followed, "the reader was not faster"
    hub.follow(finding.group, stream, StreamId.parse(read_head(stream.name, value or b"").id))

    await CatchUp(hub, access, finding, FROM_NOW, 100).run()
    later = await Writer(redis_server.url, "other").open()
    later.seqs[stream] = 3
    await later.write(4, 5, symbol="NEW")
    await until_async(lambda: all(socket.prices[-1:] == ["5"] for socket in sockets))
    assert sockets[0].prices == ["1", "2", "3", "4", "5"]
    assert [one for one in sockets[0].messages if one.get("op") == "stream"] != []
    assert sockets[1].prices[-2:] == ["4", "5"]
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    access.close()
    before.close()
    later.close()


async def test_stream_that_appears_while_a_client_looks_is_its_own_from_the_first_entry_on(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await Writer(redis_server.url, "before").open()
    stream = Stream("trade", "other", "NEW")
    access, slow_access = (BusAccess(locate(redis_server.url), KEYS) for _ in range(2))
    hub = Hub(locate(redis_server.url), access, 1 << 20, 1 << 20, 1 << 24)
    reading = asyncio.create_task(hub.run())
    await until_async(lambda: hub.up)
    sockets = [Socket(), Socket()]
    looking, finding = (
        hub.subscribe(Client(socket, JSON, 1 << 20), Subscribe(number, symbols=chosen), Scope())
        for number, (socket, chosen) in enumerate(zip(sockets, (["NEW"], ["NEW", "NO"]), strict=True))
    )

    async def find(*asked: Any) -> Any:
        found = await access.find(*asked)
        write_behind(redis_server.url, 1, 2, 3)
        await CatchUp(hub, access, finding, FROM_NOW, 100).run()
        return found

    monkeypatch.setattr(slow_access, "find", find)
    await CatchUp(hub, slow_access, looking, FROM_NOW, 100).run()
    later = await Writer(redis_server.url, "other").open()
    later.seqs[stream] = 3
    await later.write(4, 5, symbol="NEW")
    await until_async(lambda: all(socket.prices[-1:] == ["5"] for socket in sockets))
    assert sockets[0].prices == ["1", "2", "3", "4", "5"]
    assert [one["op"] for one in sockets[0].messages if "op" in one] == ["subscribed", "stream"]
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    for each in (access, slow_access, before, later):
        each.close()
