"""What hostile clients get is documented and counted, and a good client beside them loses nothing."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import RelayClient, start_relay
from support.waiting import until_async
from support.writing import Writer
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

Start = Callable[..., Process]


class Beside:
    """A good client: it reads a stream that is written to meanwhile, without a hole and to the end."""

    def __init__(self, url: str, writer: Writer) -> None:
        self.url = url
        self._writer = writer
        self._number = 0
        self._read: list[int] = []
        self._enough = asyncio.Event()

    async def __aenter__(self) -> "Beside":
        await self._write()
        self._client = RelayClient(self.url)
        await self._client.__aenter__()
        await self._client.say(op="subscribe", id=1, symbols=["A"], **{"from": "start"})
        self._tasks = [asyncio.create_task(self._write_on()), asyncio.create_task(self._read_on())]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._enough.set()
        await self._tasks[0]
        if error[0] is None:
            await until_async(lambda: len(self._read) >= self._number, 20, "the good client has everything")
        self._tasks[1].cancel()
        await self._client.__aexit__(None, None, None)
        if error[0] is None:
            assert self._read == list(range(1, self._number + 1))

    async def _write(self) -> None:
        first = self._number + 1
        self._number += 10
        await self._writer.write(*range(first, first + 10))

    async def _write_on(self) -> None:
        while not self._enough.is_set():
            await self._write()
            await asyncio.sleep(0.01)  # the pace of the market

    async def _read_on(self) -> None:
        while True:
            message = await self._client.hear()
            self._read += [int(element["price"]) for element in message.get("data", [])]


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    yield opened
    opened.close()


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("ws://").split(":")
    return host, int(port)


def open_raw(url: str, path: str = "/v1") -> socket.socket:
    """Return a socket after its handshake; what follows is in the hands of the test."""
    raw = socket.create_connection(address(url), 10)
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {url.removeprefix('ws://')}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += raw.recv(1)
    assert b" 101 " in answer
    return raw


def frame(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def close_code(raw: socket.socket) -> int | None:
    """Read up to the close frame and return its code; None if the connection ends without one."""
    with suppress(OSError), raw.makefile("rb") as stream:
        while len(head := stream.read(2)) == 2:
            length = head[1]
            if length > 125:
                length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
            data = stream.read(length)
            if head[0] == 0x88:
                return int.from_bytes(data[:2], "big")
    return None


PAYLOADS = {
    "a frame of 1 MB": (frame(Opcode.TEXT, b"x" * 1_000_000), 1009),
    "a message of 1 MB in frames of 1 kB": (
        frame(Opcode.TEXT, b"x" * 1000, False) + frame(Opcode.CONT, b"x" * 1000, False) * 1000,
        1009,
    ),
    "a message of ten thousand empty fragments": (
        frame(Opcode.TEXT, b"", False) + frame(Opcode.CONT, b"", False) * 10_000,
        1009,
    ),
    "a request of 20 kB": (frame(Opcode.TEXT, b"x" * 20_000), 4413),
    "a frame that is not masked": (b"\x81\x02{}", 1002),
    "a reserved opcode": (b"\x83\x80\0\0\0\0", 1002),
    "text that is no UTF-8": (frame(Opcode.TEXT, b"\xff\xfe"), 1007),
    "a thousand requests": (frame(Opcode.TEXT, b'{"op":"ping"}') * 1000, 4420),
    "a thousand requests that are none": (frame(Opcode.TEXT, b"[" * 500) * 1000, 4420),
    "ten thousand pings": (frame(Opcode.PING, b"x" * 100) * 10_000, 4420),
}


@pytest.mark.parametrize("what", PAYLOADS)
async def test_hostile_frames_get_the_documented_code(
    redis_server: RedisServer, start: Start, writer: Writer, what: str
) -> None:
    payload, code = PAYLOADS[what]
    relay, url = start_relay(start, redis_server.url)

    def attack() -> int | None:
        with open_raw(url) as raw:
            with suppress(OSError):  # closed in the middle of it
                raw.sendall(payload)
            raw.settimeout(10)
            return close_code(raw)

    async with Beside(url, writer):
        found = [await asyncio.to_thread(attack) for _ in range(3)]
        # the kernel drops a close frame that is behind data that nobody took: then there is none
        assert set(found) <= {code, None}, found
        await until_async(
            lambda: relay.metric("tickbus_relay_closed_total", code=str(code)) == 3, 20, "all are counted"
        )
    assert "Traceback" not in relay.output


@pytest.mark.parametrize("path", ["/ws", "/stream", "/", "/stock/ws", "/quote-b-ws-api?token=x"])
async def test_vendor_client_that_floods_is_closed_as_by_the_vendor(
    redis_server: RedisServer, start: Start, writer: Writer, path: str
) -> None:
    relay, url = start_relay(start, redis_server.url)

    def attack(payload: bytes) -> int | None:
        with open_raw(url, path) as raw:
            with suppress(OSError):
                raw.sendall(payload)
            raw.settimeout(10)
            return close_code(raw)

    async with Beside(url, writer):
        for payload in (frame(Opcode.TEXT, b"{}") * 3000, frame(Opcode.PING, b"x") * 3000):
            assert await asyncio.to_thread(attack, payload) in (1008, None)
        await until_async(
            lambda: relay.metric("tickbus_relay_closed_total", code="1008") == 2, 20, "both are counted"
        )
    assert "Traceback" not in relay.output


async def test_ten_thousand_subscriptions_and_glob_bombs_are_refused(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    relay, url = start_relay(start, redis_server.url)
    async with Beside(url, writer):
        async with RelayClient(url) as client:
            for bomb, says in (
                (["*A" * 32], "at most 2 of *"),
                (["A" * 63 + "**"], "invalid symbol"),
                (["*" * 64], "invalid symbol"),
                ([f"*{a}{b}*" for a in "ABCDEFGHIJ" for b in "0123456789"], "at most 32"),
            ):
                answer = await client.ask(op="subscribe", id=1, symbols=bomb)
                assert (answer["op"], says in answer["reason"]) == ("error", True), answer
        async with connect(f"{url}/v1", max_queue=None) as socket_:
            with suppress(ConnectionClosed):
                for id in range(10_000):
                    await socket_.send(json.dumps({"op": "subscribe", "id": id, "symbols": [f"X{id}"]}))
            counts: dict[str, int] = {}
            with suppress(ConnectionClosed):
                async for message in socket_:
                    answer = json.loads(message)
                    key = answer["op"] if answer["op"] != "error" else answer["reason"].partition(":")[0]
                    counts[key] = counts.get(key, 0) + 1
            assert socket_.close_code == 4420
        assert counts.get("subscribed", 0) <= 100
        assert counts["too many subscriptions"] >= 100
        await until_async(
            lambda: relay.metric("tickbus_relay_subscriptions") == 1, 20, "nothing of it is left"
        )


@pytest.mark.timeout(180)
async def test_two_thousand_sockets_of_one_address_are_bounded(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    """Those that say nothing count as well: a slow handshake holds a place, and not for long."""
    relay, url = start_relay(start, redis_server.url, "--max-clients-per-address", "50")
    held: list[socket.socket] = []

    def open_all() -> None:
        for number in range(2000):
            raw = socket.create_connection(address(url), 10)
            with suppress(OSError):  # it was closed already
                raw.sendall(b"GET /v1 HTTP/1.1\r\n" if number % 2 else b"")
            held.append(raw)

    try:
        async with Beside(url, writer):
            await asyncio.to_thread(open_all)
            await until_async(
                lambda: relay.metric("tickbus_relay_refused_total", reason="address") >= 1800, 60, "refused"
            )
            assert not await _can_connect(url)
            # the relay ends what says nothing within its ten seconds: then there is room again
            await until_async(lambda: _can_connect(url), 60, "a good client gets in again")
            assert relay.metric("tickbus_relay_refused_total", reason="handshake") >= 100
    finally:
        for raw in held:
            raw.close()
    assert "Traceback" not in relay.output


async def _can_connect(url: str) -> bool:
    try:
        await (await connect(f"{url}/v1")).close()
    except Exception:  # noqa: BLE001  # refused, in whatever way
        return False
    return True


async def test_requests_whose_answers_nobody_reads_are_bounded(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    """Each answer names a thousand streams: within a few requests they are more than may wait."""
    for number in range(1_000):
        await writer.write(1, symbol=f"S{number}")
    relay, url = start_relay(start, redis_server.url, "--client-bytes", "1MB")
    async with Beside(url, writer):
        with open_raw(url) as raw:
            subscribe = b'{"op":"subscribe","id":%d,"symbols":["S*"]}'
            raw.sendall(b"".join(frame(Opcode.TEXT, subscribe % id) for id in range(90)))
            await until_async(
                lambda: relay.metric("tickbus_relay_closed_total", code="4429") == 1, 30, "it is closed"
            )
            await until_async(lambda: relay.metric("tickbus_relay_clients") == 1, 30, "it has gone")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1?token=%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/symbols HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
        b"GET /api/symbols HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /api/symbols HTTP/1.1\r\nHost: localhost\r\nOrigin: x\r\nOrigin: x\r\n\r\n",
        b"GET /v1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /ws/%5B HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
        b"GET /api/history?stream=%00&stream=x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_hostile_request_line_is_an_error_of_the_client(
    redis_server: RedisServer, start: Start, request_: bytes
) -> None:
    relay, url = start_relay(start, redis_server.url)
    with socket.create_connection(address(url), 10) as raw:
        raw.sendall(request_)
        status = int(raw.recv(4096).split()[1])
    assert 400 <= status < 500, status
    assert "Traceback" not in relay.output
