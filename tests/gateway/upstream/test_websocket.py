"""The WebSocket client against real servers: the `websockets` one, and a raw one for what that never does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from socket import SO_SNDBUF, SOL_SOCKET

import pytest
from gateway.upstream.servers import accepted, raw, text
from support.waiting import until_async
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response

from services.gateway.upstream import websocket
from services.gateway.upstream.websocket import HandshakeRefused, WebSocket
from tickbus.errors import ConfigError

MAX_BYTES = 100_000


class Client:
    """Collects what arrives, read by read."""

    def __init__(self) -> None:
        self.reads: list[list[bytes]] = []
        self.skipped = 0
        self.socket: WebSocket

    def __call__(self, payloads: Sequence[bytes]) -> None:
        self.reads.append(list(payloads))
        self.skipped += len(self.socket.splitter.skipped) if hasattr(self, "socket") else 0

    @property
    def messages(self) -> list[bytes]:
        return [message for read in self.reads for message in read]

    async def open(self, port: int) -> WebSocket:
        self.socket = WebSocket(f"ws://127.0.0.1:{port}/ws", self, MAX_BYTES)
        await self.socket.open()
        return self.socket


@asynccontextmanager
async def server(
    talk: Callable[[ServerConnection], Awaitable[None]], **options: object
) -> AsyncIterator[int]:
    async with serve(talk, "127.0.0.1", 0, compression=None, close_timeout=1, **options) as running:  # type: ignore[arg-type]
        yield running.sockets[0].getsockname()[1]


async def ended(client: Client) -> str:
    async with asyncio.timeout(10):
        return await client.socket.closed


async def test_messages_travel_both_ways_until_client_closes() -> None:
    received: list[str | bytes] = []
    codes: list[int | None] = []

    async def talk(connection: ServerConnection) -> None:
        async for message in connection:
            received.append(message)
            await connection.send(message)
        codes.append(connection.close_code)

    async with server(talk) as port:
        client = Client()
        socket = await client.open(port)
        for message in ("a", "ä" * 200, "x" * 70_000):
            await socket.send(message)
        await until_async(lambda: len(client.messages) == 3)
        assert [message.decode() for message in client.messages] == received == ["a", "ä" * 200, "x" * 70_000]
        assert socket.bytes_received > 70_000
        socket.close()
        assert await ended(client) == "closed by us"
        await until_async(lambda: codes == [1000])
        await socket.send("too late")  # nobody receives it, and it does not raise
        socket.ping()


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1000, "bye"), (1008, "Too many requests"), (1011, ""), (1013, "try again later"), (4001, "own code")],
)
async def test_close_code_and_reason_are_reported(code: int, reason: str) -> None:
    async def talk(connection: ServerConnection) -> None:
        await connection.send("last")
        await connection.close(code, reason)

    async with server(talk) as port:
        client = Client()
        await client.open(port)
        assert await ended(client) == f"closed by the server: {code} {reason}".strip()
        assert client.messages == [b"last"]


async def test_pings_are_answered_with_their_payload() -> None:
    answered: list[bool] = []

    async def talk(connection: ServerConnection) -> None:
        for payload in (b"", b"1723210200123", b"x" * 125):
            await asyncio.wait_for(await connection.ping(payload), 5)
            answered.append(True)

    async with server(talk, ping_interval=None) as port:
        client = Client()
        await client.open(port)
        await ended(client)
        assert answered == [True] * 3


async def test_server_answers_our_pings() -> None:
    async def talk(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with server(talk) as port:
        client = Client()
        socket = await client.open(port)
        before = socket.last_received
        socket.ping()
        await until_async(lambda: socket.last_received > before)
        socket.close()


async def test_fragments_with_control_frames_between_are_joined() -> None:
    async def talk(connection: ServerConnection) -> None:
        async def pieces() -> AsyncIterator[str]:
            for piece in ("one ", "two ", "three"):
                yield piece
                await connection.ping()

        await connection.send(pieces())

    async with server(talk) as port:
        client = Client()
        await client.open(port)
        await ended(client)
        assert client.messages == [b"one two three"]


# the handshake


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, '{"msg":"token is required","ret":401}'), (404, "no such path"), (429, "slow down"), (503, "")],
)
async def test_refused_handshake_reports_status_and_body(status: int, body: str) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(HTTPStatus(status), body)

    async def talk(connection: ServerConnection) -> None:
        raise AssertionError("it was refused")

    async with server(talk, process_request=refuse) as port:
        with pytest.raises(HandshakeRefused) as raised:
            await Client().open(port)
        assert (raised.value.status, raised.value.body) == (status, body)


async def test_refusal_reports_redirect_target_and_retry_after() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(
            b"HTTP/1.1 307 Temporary Redirect\r\nLOCATION: wss://elsewhere/ws\r\nRetry-After: 120\r\n"
            b"Content-Length: 12\r\n\r\nnot\r\n here\r\n"
        )
        await reader.read()

    async with raw(talk) as port:
        with pytest.raises(HandshakeRefused) as raised:
            await Client().open(port)
    assert (raised.value.status, raised.value.body, raised.value.retry_after) == (
        307,
        "moved to wss://elsewhere/ws",
        120,
    )


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nnot you, and more that nobody reads",
            403,
            "not",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nnot you\r\n0\r\n\r\n",
            403,
            "not you",
        ),
        (b"HTTP/1.1 401 \r\nContent-Length: junk\r\n\r\n", 401, ""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 0, ""),
    ],
    ids=["keep-alive", "chunked", "bad length", "no body", "not HTTP"],
)
async def test_refusal_is_reported_when_server_keeps_connection_open(
    answer: bytes, status: int, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_OPEN_SECONDS", 0.5)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(answer)
        await reader.read()

    async with raw(talk) as port:
        with pytest.raises(HandshakeRefused) as raised:
            await Client().open(port)
        assert raised.value.status == status
        assert body in raised.value.body


async def test_frames_in_same_segment_as_response_are_not_lost() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(accepted(request) + text(b"first") + text(b"second")[:3])
        await writer.drain()
        writer.write(text(b"second")[3:])
        await reader.read()

    async with raw(talk) as port:
        client = Client()
        await client.open(port)
        await until_async(lambda: client.messages == [b"first", b"second"])
        client.socket.close()


async def test_response_in_pieces_is_accepted() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        answer = accepted(request) + text(b"first")
        for at in range(len(answer)):
            writer.write(answer[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with raw(talk) as port:
        client = Client()
        await client.open(port)
        await until_async(lambda: client.messages == [b"first"])
        client.socket.close()


async def test_server_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_OPEN_SECONDS", 0.2)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        await reader.read()

    async with raw(talk) as port:
        with pytest.raises(TimeoutError):
            await Client().open(port)


async def test_server_closing_before_response_raises_connection_error() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        """Nothing."""

    async with raw(talk) as port:
        with pytest.raises(ConnectionError):
            await Client().open(port)


async def test_wrong_accept_key_is_refused() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(accepted(request.replace(b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: x")))
        await reader.read()

    async with raw(talk) as port:
        with pytest.raises(InvalidHandshake):
            await Client().open(port)


@pytest.mark.parametrize(
    "url", ["ws://" + "a" * 70, "ws://a..b", "ws://x:99999", "http://x", "ws://[::1", "ws://", "nonsense"]
)
async def test_invalid_address_is_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        await WebSocket(url, Client(), MAX_BYTES).open()


async def test_port_without_listener_raises_oserror() -> None:
    async with raw(lambda *_: asyncio.sleep(0)) as port:
        pass
    with pytest.raises(OSError):
        await Client().open(port)


@pytest.mark.parametrize(
    ("first", "piece", "error"),
    [
        (b"HTTP/1.1 101 x\r\n", b"X-A: " + b"y" * 60_000 + b"\r\n", InvalidHandshake),
        (b"HTTP/1.1 404 x\r\n\r\nno such path ", b"y" * 60_000, HandshakeRefused),
        (b"HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n" * 5000, HandshakeRefused),
    ],
    ids=["header", "body", "chunks"],
)
async def test_endless_response_to_handshake_is_cut(
    first: bytes, piece: bytes, error: type[Exception]
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(first)
        while True:
            writer.write(piece)
            await writer.drain()

    async with raw(talk) as port:
        client = Client()
        with pytest.raises(error):
            await client.open(port)
        assert client.socket.bytes_received < 1 << 20


# after the handshake


async def test_newest_of_many_pings_is_answered() -> None:
    """RFC 6455, 5.5.3."""
    answers = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        pings = [Frame(Opcode.PING, b"%d" % number).serialize(mask=False) for number in range(500)]
        writer.write(accepted(request) + b"".join(pings) + text(b"after"))
        while data := await reader.read(1000):
            answers.extend(data)

    async with raw(talk) as port:
        client = Client()
        await client.open(port)
        await until_async(lambda: client.messages == [b"after"] and answers)
        assert len(answers) < 50 * len(b"\x8a\x83maskxxx")
        client.socket.close()


async def test_server_that_reads_nothing_is_owed_little_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_UNREAD_SECONDS", 0.5)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(accepted(request))
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a transport of both directions
        ping = Frame(Opcode.PING, b"p" * 125).serialize(mask=False)
        while True:
            writer.write(ping)
            await writer.drain()
            await asyncio.sleep(0)

    async with raw(talk) as port:
        client = Client()
        socket = await client.open(port)
        transport = socket._transport
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
        largest = 0

        async def request() -> None:
            while not socket.closed.done():
                await socket.send("x" * 1000)
                nonlocal largest
                largest = max(largest, transport.get_write_buffer_size())

        await asyncio.wait_for(request(), 20)
        assert await ended(client) == "the server read nothing for 0 s"
        assert largest <= websocket.MAX_UNSENT_BYTES + 1100


async def test_huge_message_is_skipped_and_connection_survives() -> None:
    async def talk(connection: ServerConnection) -> None:
        await connection.send("before")
        await connection.send("x" * (10 << 20))
        await connection.send("after")
        await connection.wait_closed()

    async with server(talk) as port:
        client = Client()
        await client.open(port)
        await until_async(lambda: client.messages == [b"before", b"after"])
        assert client.skipped == 1
        client.socket.close()


@pytest.mark.parametrize(
    "broken",
    [
        b"\x83\x00",
        b"\x89\x7e\x10\x00",
        b"\x8a\x7f\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x81\x81abcdx",
        b"\xc1\x01x",
        b"\x09\x00",
    ],
    ids=["unknown opcode", "long ping", "endless pong", "masked", "reserved bit", "fragmented ping"],
)
async def test_protocol_violation_ends_connection(broken: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(accepted(request) + text(b"good") + broken)
        await reader.read()

    async with raw(talk) as port:
        client = Client()
        await client.open(port)
        assert (await ended(client)).startswith("protocol error")
        assert client.messages == [b"good"]


async def test_cut_connection_is_reported() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(accepted(request) + text(b"x" * 1000)[:500])
        await writer.drain()

    async with raw(talk) as port:
        client = Client()
        await client.open(port)
        assert await ended(client) == "connection lost (closed by the server)"
        assert client.messages == []


async def test_pause_slows_server_down_and_loses_nothing() -> None:
    sent = 0

    async def talk(connection: ServerConnection) -> None:
        nonlocal sent
        for number in range(2000):
            await connection.send(b"%06d" % number * 1000)
            sent += 1

    async with server(talk) as port:
        client = Client()
        socket = await client.open(port)
        socket.pause()

        looks: list[int] = []

        def stalled() -> bool:
            looks.append(sent)
            return len(looks) > 5 and looks[-6] == sent

        await until_async(stalled)
        assert sent < 2000
        socket.resume()
        await ended(client)
        assert [message[:6] for message in client.messages] == [b"%06d" % number for number in range(2000)]
