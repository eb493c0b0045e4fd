"""The native protocol on a real bus: what a client receives is what the bus holds."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import JSON, MSGPACK, RelayClient, start_relay
from support.writing import Writer, trade

from tickbus.protocol.codec import encode
from tickbus.protocol.json_form import json_object
from tickbus.protocol.messages import Gap, GapKind, StreamKind
from tickbus.protocol.names import Stream

Start = Callable[..., Process]
STREAM = "trade:test:A"


def numbers(elements: list[dict[str, str]]) -> list[int]:
    return [int(element["price"]) for element in elements]


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    yield opened
    opened.close()


async def test_example_of_the_design(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    await writer.write(1, 2, 3)
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        answer = await client.ask(
            op="subscribe", id=1, kind="trade", symbols=["A"], policy="lossless", **{"from": "start"}
        )
        (stream,) = answer.pop("streams")
        assert answer == {"op": "subscribed", "id": 1}
        assert (stream["stream"], stream["cursor"]) == (STREAM, "0-0")
        era = redis_server.client.get(writer.keys.era(writer.keys.shard("A")))
        assert era is not None
        assert stream["history"] == era.decode()
        message = await client.hear()
        assert message["id"] == 1
        ids = [id.decode() for id, _ in redis_server.client.xrange(writer.key())]
        expected = [
            msgspec.json.decode(json_object(writer.stream(), id, trade(number), "cursor"))
            for number, id in enumerate(ids, 1)
        ]
        assert message["data"] == expected
        assert await client.hear() == {"op": "replay_completed", "id": 1}
        await writer.write(4)
        assert numbers((await client.hear())["data"]) == [4]


async def test_msgpack_has_the_payloads_of_the_bus(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(1, 2)
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url, MSGPACK) as client:
        await client.say(op="subscribe", id="x", symbols=["A"], **{"from": "start"})
        elements = await client.data(2)
    stored = [
        [STREAM, id.decode(), field.decode(), msgspec.msgpack.decode(payload)]
        for id, fields in redis_server.client.xrange(writer.key())
        for field, payload in fields.items()
    ]
    assert elements == stored


async def test_from_now_begins_after_the_newest_entry(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(1, 2)
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        (stream,) = (await client.ask(op="subscribe", id=1, symbols=["A"]))["streams"]
        assert stream["cursor"].endswith("-2")
        await writer.write(3)
        assert numbers(await client.data(1)) == [3]


@pytest.mark.parametrize(
    ("begin", "expected"), [("start", [1, 2, 3, 4]), ("last:2", [3, 4]), ("last:9", [1, 2, 3, 4])]
)
async def test_history_then_live(
    redis_server: RedisServer, start: Start, writer: Writer, begin: str, expected: list[int]
) -> None:
    await writer.write(1, 2)
    await writer.publisher.commit(
        writer.transaction(
            [writer.entry(writer.stream(), Gap(StreamKind.TRADE, "gateway", GapKind.STALE, 1, 2, symbol="A"))]
        )
    )
    await writer.write(3, 4)
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.ask(op="subscribe", id=1, symbols=["A"], **{"from": begin})
        elements = (await client.hear())["data"]
        assert numbers([element for element in elements if element["type"] == "trade"]) == expected
        assert (await client.hear())["op"] == "replay_completed"
        await writer.write(5)
        assert numbers(await client.data(1)) == [5]


async def test_cursor_resumes_right_after_it(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    await writer.write(1, 2, 3, 4)
    ids = [id.decode() for id, _ in redis_server.client.xrange(writer.key())]
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.say(op="subscribe", id=1, symbols=["A"], **{"from": {STREAM: ids[1]}})
        assert numbers(await client.data(2)) == [3, 4]


async def test_trimmed_cursor_is_reported_with_the_count(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(*range(1, 11))
    ids = [id.decode() for id, _ in redis_server.client.xrange(writer.key())]
    redis_server.client.xtrim(writer.key(), minid=ids[6], approximate=False)
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.say(op="subscribe", id=1, symbols=["A"], **{"from": {STREAM: ids[1]}})
        gap, *rest = await client.data(5)
        assert (gap["type"], gap["kind"], gap["count"], gap["source"]) == ("gap", "trimmed", 4, "relay")
        assert numbers(rest) == [7, 8, 9, 10]


async def test_cursor_of_another_history_is_a_reset(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(1, 2, 3)
    ids = [id.decode() for id, _ in redis_server.client.xrange(writer.key())]
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.say(
            op="subscribe", id=1, symbols=["A"], **{"from": {STREAM: f"{ids[1]}@0123456789abcdef"}}
        )
        gap, *rest = await client.data(4)
        assert (gap["type"], gap["kind"], gap["count"]) == ("gap", "reset", None)
        assert numbers(rest) == [1, 2, 3]


async def test_symbol_without_a_stream_follows_when_it_has_one(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(1)
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        assert (await client.ask(op="subscribe", id=7, symbols=["B", "NEW-*"]))["streams"] == []
        await writer.write(10, 11, symbol="B")
        announced = await client.hear()
        assert (announced["op"], announced["id"], announced["stream"]) == ("stream", 7, "trade:test:B")
        assert numbers(await client.data(2)) == [10, 11]
        await writer.write(12, symbol="NEW-X")
        assert (await client.hear())["stream"] == "trade:test:NEW-X"
        assert numbers(await client.data(1)) == [12]


async def test_unsubscribe_ends_the_data(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    await writer.write(1)
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.ask(op="subscribe", id=1, symbols=["A"])
        await client.ask(op="subscribe", id=2, symbols=["A"])
        assert await client.ask(op="unsubscribe", id=1) == {"op": "unsubscribed", "id": 1}
        await writer.write(2)
        assert (await client.hear())["id"] == 2
        assert await client.ask(op="ping", id=3) == {"op": "pong", "id": 3}
        # followed again after nobody read it: from now, without what came between
        await client.ask(op="unsubscribe", id=2)
        await writer.write(3)
        await client.ask(op="subscribe", id=4, symbols=["A"])
        await writer.write(4)
        assert numbers(await client.data(1)) == [4]


@pytest.mark.parametrize("style", [JSON, MSGPACK])
async def test_history_then_live_under_load_has_neither_hole_nor_double(
    redis_server: RedisServer, start: Start, writer: Writer, style: str
) -> None:
    await writer.write(*range(1, 2001))
    _, url = start_relay(start, redis_server.url, "--ring-bytes", "1MB")
    enough = asyncio.Event()

    async def write() -> int:
        number = 2000
        while not enough.is_set():
            await writer.write(*range(number + 1, number + 201))
            number += 200
        return number

    writing = asyncio.create_task(write())
    try:
        async with asyncio.timeout(60):
            for begin in ("start", "last:1500", "now"):
                async with RelayClient(url, style) as client:
                    await client.say(op="subscribe", id=1, symbols=["A"], **{"from": begin})
                    elements = await client.data(6_000)
                prices = [
                    int(element[3][1] if style == MSGPACK else element["price"]) for element in elements
                ]
                assert prices == list(range(prices[0], prices[0] + len(prices)))
                if begin == "start":
                    assert prices[0] == 1
    finally:
        enough.set()
        await writing


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"op": "nonsense"}, "not a request"),
        ({"op": "subscribe"}, "id"),
        ({"op": "subscribe", "id": 1, "kind": "foo"}, "kind"),
        ({"op": "subscribe", "id": 1, "symbols": ["a b"]}, "invalid symbol"),
        ({"op": "subscribe", "id": 1, "symbols": ["*A*B*"]}, "at most 2 of *"),
        ({"op": "subscribe", "id": 1, "feeds": ["X!"]}, "invalid name"),
        ({"op": "subscribe", "id": 1, "specs": ["time:1m"]}, "only bars have a spec"),
        ({"op": "subscribe", "id": 1, "rate": 4}, "only the policy conflate"),
        ({"op": "subscribe", "id": 1, "policy": "conflate", "rate": 1000}, "0.1 to 20"),
        ({"op": "subscribe", "id": 1, "from": "last:0"}, "last:1"),
        ({"op": "subscribe", "id": 1, "from": "yesterday"}, "from"),
        ({"op": "subscribe", "id": 1, "from": {"quote:x:A": "1-1"}}, "invalid cursor"),
        ({"op": "subscribe", "id": 1, "from": {STREAM: "x"}}, "invalid cursor"),
        ({"op": "subscribe", "id": 1, "colour": "red"}, "colour"),
        ({"op": "subscribe", "id": 1, "kind": "signal", "policy": "conflate"}, "cannot be conflated"),
        ({"op": "unsubscribe", "id": 99}, "no subscription"),
    ],
)
async def test_bad_requests_are_answered_in_one_line(
    redis_server: RedisServer, start: Start, request_: dict[str, object], says: str
) -> None:
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        answer = await client.ask(**request_)
        assert answer["op"] == "error"
        assert says in answer["reason"]
        assert "\n" not in answer["reason"]
        assert await client.ask(op="ping", id=1) == {"op": "pong", "id": 1}


async def test_sigterm_tells_clients_to_connect_again(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(1)
    relay, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.ask(op="subscribe", id=1, symbols=["A"])
        relay.process.terminate()
        assert (await client.hear())["code"] == 1012
        await client.socket.wait_closed()
        assert client.socket.close_code == 1012
    assert relay.process.wait(10) == 0


async def test_no_stream_is_read_that_nobody_wants(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(1)
    await writer.write(1, symbol="B")
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.ask(op="subscribe", id=1, symbols=["A"])
        await writer.write(2, symbol="B")
        await writer.write(2)
        assert [element["stream"] for element in await client.data(1)] == [STREAM]
        assert Stream.parse(STREAM) == writer.stream()
        assert encode(trade(2))


@pytest.mark.parametrize("begin", ["start", "last:3", "now"])
async def test_entries_of_other_programs_are_skipped(
    redis_server: RedisServer, start: Start, writer: Writer, begin: str
) -> None:
    await writer.write(1, 2)
    redis_server.client.xadd(writer.key(), {"note": "x", "t": "y"})
    redis_server.client.xadd(writer.key(), {"t": "no trade"})
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.ask(op="subscribe", id=1, symbols=["A"], **{"from": begin})
        await writer.write(3, 4)
        assert (
            numbers(await client.data(2 if begin == "now" else 4))
            == [1, 2, 3, 4][-2 if begin == "now" else 0 :]
        )
