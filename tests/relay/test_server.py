"""Who may connect, and what hostile clients get: a documented answer, while the others go on."""

import asyncio
import hashlib
import json
import os
import socket
import urllib.error
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.relay import RelayClient, start_relay
from support.waiting import until
from support.writing import Writer
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

Start = Callable[..., Process]
TOKEN = "s3cret-t0ken"


def token_row(name: str, token: str, more: str = "") -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\n{more}\n'


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


def get(url: str, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url.replace("ws", "http", 1) + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    await opened.write(1, 2, 3)
    yield opened
    opened.close()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(token_row("desk", TOKEN) + token_row("kiosk", "k", 'symbols = ["B*"]\nhistory = false'))
    return path


def test_without_tokens_only_loopback_is_served(redis_server: RedisServer) -> None:
    done = tickbus("relay", "--redis", redis_server.url, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "without --tokens" in done.stderr


@pytest.mark.parametrize("way", ["header", "query", "subprotocol", "message"])
async def test_token_is_taken_in_every_way(
    redis_server: RedisServer, start: Start, writer: Writer, tokens: Path, way: str
) -> None:
    relay, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    if way == "header":
        opening = connect(f"{url}/v1", additional_headers={"Authorization": f"Bearer {TOKEN}"})
    elif way == "query":
        opening = connect(f"{url}/v1?token={TOKEN}")
    elif way == "subprotocol":
        offered = "tickbus.token." + urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
        opening = connect(f"{url}/v1", subprotocols=[Subprotocol("tickbus.json"), Subprotocol(offered)])
    else:
        opening = connect(f"{url}/v1")
    async with opening as client:
        if way == "message":
            await client.send(json.dumps({"op": "auth", "token": TOKEN}))
            assert json.loads(await client.recv()) == {"op": "authorized", "name": "desk"}
        await client.send(json.dumps({"op": "subscribe", "id": 1, "symbols": ["A"]}))
        assert json.loads(await client.recv())["op"] == "subscribed"
    assert TOKEN not in relay.output


@pytest.mark.parametrize(
    ("path", "say", "code"),
    [
        ("/v1?token=wrong", None, 4401),
        ("/v1", {"op": "auth", "token": "wrong"}, 4401),
        ("/v1", {"op": "subscribe", "id": 1}, 4401),
        ("/v1", None, 4408),
    ],
)
async def test_without_a_valid_token_the_documented_code_follows(
    redis_server: RedisServer, start: Start, tokens: Path, path: str, say: object, code: int
) -> None:
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens), "--auth-deadline", "300ms")
    async with connect(url + path) as client:
        if say is not None:
            await client.send(json.dumps(say))
        await asyncio.wait_for(client.wait_closed(), 10)
        assert client.close_code == code
    assert get(url, "/api/symbols")[0] == 401
    assert get(url, "/api/symbols", Authorization="Bearer wrong")[0] == 401
    assert get(url, "/api/symbols", Authorization=f"Bearer {TOKEN}")[0] == 200


async def test_token_bounds_what_is_read(
    redis_server: RedisServer, start: Start, writer: Writer, tokens: Path
) -> None:
    await writer.write(1, symbol="B1")
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    async with connect(f"{url}/v1?token=k") as client:
        await client.send(json.dumps({"op": "subscribe", "id": 1, "from": "start"}))
        assert "history" in json.loads(await client.recv())["reason"]
        await client.send(json.dumps({"op": "subscribe", "id": 1}))
        (stream,) = json.loads(await client.recv())["streams"]
        assert stream["stream"] == "trade:test:B1"
        await writer.write(4)
        await writer.write(7, symbol="B2")  # a stream that joins later is checked too
        await writer.write(8, symbol="C2")
        await writer.write(2, symbol="B1")
        heard = [json.loads(await client.recv()) for _ in range(3)]
        assert heard[0]["stream"] == "trade:test:B2"
        assert [message["data"][0]["stream"] for message in heard[1:]] == ["trade:test:B2", "trade:test:B1"]
    assert get(url, "/api/history?stream=trade:test:A&token=k")[0] == 403
    assert json.loads(get(url, "/api/symbols?token=k")[1])["data"][0]["symbol"].startswith("B")


async def test_removed_token_ends_its_connections(
    redis_server: RedisServer, start: Start, writer: Writer, tokens: Path
) -> None:
    relay, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    async with connect(f"{url}/v1?token=k") as removed, connect(f"{url}/v1?token={TOKEN}") as kept:
        rewrite(tokens, "broken [")
        relay.wait_for("stay in force")
        rewrite(tokens, token_row("desk", TOKEN))
        await asyncio.wait_for(removed.wait_closed(), 5)
        assert removed.close_code == 4403
        await kept.send('{"op":"ping","id":1}')
        assert json.loads(await kept.recv())["op"] == "pong"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://desk.example"}, 101),
        ({"Host": "evil.example"}, 421),
        ({"Host": "ticks.example"}, 101),
    ],
)
async def test_origin_and_host_are_checked(
    redis_server: RedisServer, start: Start, headers: dict[str, str], status: int
) -> None:
    _, url = start_relay(
        start, redis_server.url, "--origins", "https://desk.example", "--public-host", "ticks.example"
    )
    host = headers.pop("Host", url.removeprefix("ws://"))
    with socket.create_connection(tuple_of(url)) as raw:
        raw.sendall(handshake("/v1", Host=host, **headers))
        assert raw.recv(4096).split()[1] == str(status).encode()


def tuple_of(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("ws://").split(":")
    return host, int(port)


def handshake(path: str, **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    return "\r\n".join([*lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]).encode()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /v1 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"HEAD /api/symbols HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
        (b"OPTIONS /api/symbols HTTP/1.1\r\nHost: localhost\r\n\r\n", b"204"),
        (b"GET /api/history?stream=" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414"),
    ],
)
def test_plain_http_gets_its_status(
    redis_server: RedisServer, start: Start, request_: bytes, status: bytes
) -> None:
    _, url = start_relay(start, redis_server.url)
    with socket.create_connection(tuple_of(url)) as raw:
        raw.sendall(request_)
        assert raw.recv(4096).split()[1] == status


async def test_connections_are_capped_by_address(redis_server: RedisServer, start: Start) -> None:
    _, url = start_relay(start, redis_server.url, "--max-clients-per-address", "3")
    clients = [await connect(f"{url}/v1") for _ in range(3)]
    with pytest.raises(InvalidStatus, match="429"):
        await connect(f"{url}/v1")
    await clients.pop().close()

    async def admitted() -> bool:
        try:
            clients.append(await connect(f"{url}/v1"))
        except InvalidStatus:
            return False
        return True

    while not await admitted():
        pass
    for client in clients:
        await client.close()


async def test_hostile_clients_disturb_nobody(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    relay, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as steady:
        await steady.ask(op="subscribe", id=1, symbols=["A"])
        for payload in (
            os.urandom(3000),
            b"\x81\xfe" + b"\xff" * 200,
            b"\x01\x80" * 500,
            b"GET / HTTP/1.1\r\n",
        ):
            with socket.create_connection(tuple_of(url)) as raw:
                raw.sendall(handshake("/v1", Host="localhost") + payload)
            with socket.create_connection(tuple_of(url)) as raw:
                raw.sendall(payload)
        for message in ("x" * 20_000, b"\xff" * 17_000):
            async with connect(f"{url}/v1") as client:
                await client.send(message)
                await client.wait_closed()
                assert client.close_code == 4413
        async with connect(f"{url}/v1") as client:
            await client.send("x" * 1_000_000)
            await client.wait_closed()
            assert client.close_code == 1009
        async with connect(f"{url}/v1") as client:
            for id in range(150):
                await client.send(json.dumps({"op": "subscribe", "id": id, "symbols": ["A"]}))
            answers = [json.loads(await client.recv())["op"] for _ in range(150)]
            assert answers.count("subscribed") == 150 or "error" in answers
        # max_queue: a client that has many answers unread stops reading, and would not see the close
        async with connect(f"{url}/v1", max_queue=None) as client:
            for _ in range(400):
                await client.send("nonsense")
            await client.wait_closed()
            assert client.close_code == 4420
        await writer.write(4)
        assert [element["price"] for element in await steady.data(1)] == ["4"]
    assert "Traceback" not in relay.output
    assert relay.process.poll() is None


async def test_api_serves_what_the_bus_holds(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    await writer.write(*range(4, 2504))
    _, url = start_relay(start, redis_server.url)

    def ask(path: str) -> dict[str, list[dict[str, str]]]:
        status, body = get(url, path)
        assert status == 200, body
        return json.loads(body)  # type: ignore[no-any-return]

    assert [row["stream"] for row in ask("/api/symbols")["data"]] == ["trade:test:A"]
    assert [row["price"] for row in ask("/api/snapshot?symbols=A")["data"]] == ["2503"]
    prices: list[int] = []
    path = "/api/history?stream=trade:test:A&limit=900"
    while True:
        page = ask(path)
        prices += [int(row["price"]) for row in page["data"]]
        if page["next"] is None:
            break
        path = f"/api/history?stream=trade:test:A&limit=900&after={page['next']}"
    assert prices == list(range(1, 2504))
    assert "clients" in ask("/api/status")
    for path, says in [
        ("/api/history", "stream="),
        ("/api/history?stream=trade:test:A&limit=0", "limit"),
        ("/api/history?stream=trade:test:A&after=x", "cursor"),
        ("/api/snapshot?kind=x", "kind"),
        ("/api/snapshot?colour=red", "unknown parameter"),
        ("/api/bars?spec=time:1m", "symbol is missing"),
        ("/api/bars?symbol=A&spec=bad", "spec"),
    ]:
        status, body = get(url, path)
        assert status == 400, path
        assert says in body


async def test_relay_goes_on_after_an_outage_of_redis(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    _, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as client:
        await client.ask(op="subscribe", id=1, symbols=["A"])
        redis_server.kill()
        assert get(url, "/api/symbols")[0] == 503
        redis_server.start()
        until(lambda: get(url, "/api/symbols")[0] == 200, what="the relay reads again")
        again = await Writer(redis_server.url).open()
        again.seqs = dict(writer.seqs)
        await again.write(4)
        assert [element["price"] for element in await client.data(1)] == ["4"]
        again.close()
