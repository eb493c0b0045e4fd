"""Whatever a client asks, it gets an answer of the documented kind, and costs no more than it may."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay.test_server import TOKEN, get, token_row, tuple_of
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import RelayClient, start_relay
from support.waiting import until
from support.writing import Writer
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from services.relay.api import Api
from services.relay.bus_access import BusAccess
from services.relay.requests import (
    BadRequest,
    Subscribe,
    parse_begin,
    parse_json,
    parse_msgpack,
    parse_rate,
    parse_symbols,
)
from services.relay.sockets import Gate
from services.relay.tokens import ANONYMOUS, Account
from tickbus.protocol.names import Keys
from tickbus.redis.topology import locate

Start = Callable[..., Process]


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    await opened.write(1, 2, 3)
    yield opened
    opened.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
near_requests = st.fixed_dictionaries(
    {"op": st.sampled_from(["subscribe", "unsubscribe", "auth", "ping", "x"])},
    optional={
        "id": json_values,
        "kind": st.sampled_from(["trade", "bar", "x"]),
        "symbols": st.lists(st.text("AB*-.x\u0660", max_size=70), max_size=3) | json_values,
        "feeds": st.lists(st.text("ab:_", max_size=40), max_size=2),
        "specs": st.lists(st.sampled_from(["time:1m", "time:0s", "volume:1e9", "x"]), max_size=2),
        "policy": st.sampled_from(["lossless", "conflate", "drop"]),
        "rate": st.floats() | st.integers(),
        "from": st.text("0123456789lastnow:-@. ", max_size=40)
        | st.integers()
        | st.dictionaries(st.sampled_from(["trade:test:A", "x"]), st.text("0123456789-@\u0661", max_size=50)),
    },
)  # fmt: skip


def understand(parse: Callable[[bytes], Any], message: bytes) -> None:
    """Read a request as a session does. BadRequest is the only error."""
    try:
        request = parse(message)
        if isinstance(request, Subscribe):
            parse_symbols(request)
            parse_rate(request)
            parse_begin(request.from_, request.kind)
    except BadRequest as error:
        assert len(str(error)) < 600


@given(near_requests | json_values)
def test_no_request_raises_anything_else(request: Any) -> None:
    understand(parse_json, json.dumps(request).encode())


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(message: bytes) -> None:
    understand(parse_json, message)
    understand(parse_msgpack, message)


names = st.sampled_from(
    ["kind", "symbols", "feeds", "specs", "stream", "from", "after", "limit", "symbol", "spec", "feed", "to"]
)
values = st.text(max_size=30) | st.sampled_from(
    [
        "trade", "bar", "trade:test:A", "start", "0-0", "1-18446744073709551616", "-1-5", "1960-01-01",
        "time:1m", "0000000001000000", "1e9", "\u0663", "A", "*",
    ]
)  # fmt: skip


async def no_status(account: Account) -> dict[str, object]:
    return {}


@settings(deadline=None)
@given(
    st.sampled_from(["symbols", "snapshot", "history", "bars", "status"]),
    st.dictionaries(names, st.lists(values, min_size=1, max_size=2), max_size=4),
)
def test_every_query_has_an_answer(path: str, query: dict[str, list[str]]) -> None:
    async def ask() -> int:
        access = BusAccess(locate("redis://127.0.0.1:1"), Keys())  # nobody listens there
        return (await Api(access, no_status).get(f"/api/{path}", query, ANONYMOUS))[0]

    assert asyncio.run(ask()) in (200, 400, 503)


async def test_no_page_is_larger_than_allowed(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    await writer.write(*range(4, 1_200))
    _, url = start_relay(start, redis_server.url)
    for limit in ("0000000001000000", "1001", "00000000000"):
        assert get(url, f"/api/history?stream=trade:test:A&limit={limit}")[0] == 400
    assert len(json.loads(get(url, "/api/history?stream=trade:test:A&from=1960-01-01")[1])["data"]) == 1_000
    async with RelayClient(url) as client:
        answer = await client.ask(op="subscribe", id=1, **{"from": "last:0000000001000000"})
        assert "last:1 to last:10000" in answer["reason"]
        assert (await client.ask(op="subscribe", id=1, **{"from": "1960-01-01"}))["op"] == "subscribed"


async def test_connection_keeps_its_token(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        token_row("desk", TOKEN, "max_connections = 2") + token_row("kiosk", "k", 'symbols = ["B*"]')
    )
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    async with RelayClient(url) as client:
        assert (await client.ask(op="auth", token="k"))["name"] == "kiosk"
        assert (await client.ask(op="auth", token="k"))["name"] == "kiosk"
        assert "another token" in (await client.ask(op="auth", token=TOKEN))["reason"]
        assert (await client.ask(op="subscribe", id=1))["streams"] == []
    # however the token comes, and however many come at once
    path = f"{url}/v1?token={TOKEN}"
    clients = await asyncio.gather(*(connect(path) for _ in range(4)), return_exceptions=True)
    opened = [one for one in clients if not isinstance(one, BaseException)]

    async def lives(client: Any) -> bool:
        try:
            await client.send('{"op":"ping"}')
            await client.recv()
        except ConnectionClosed:
            return False
        return True

    assert sum([await lives(one) for one in opened]) == 2
    for one in opened:
        await one.close()


async def test_sockets_that_say_nothing_are_capped(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    relay, url = start_relay(start, redis_server.url, "--max-clients-per-address", "3")
    silent = [socket.create_connection(tuple_of(url)) for _ in range(80)]
    try:
        expected = 80 - 3 - 64
        until(lambda: relay.metric("tickbus_relay_refused_total", reason="address") == expected)
    finally:
        for sock in silent:
            sock.close()

    def answers() -> bool:
        try:
            return get(url, "/api/status")[0] == 200
        except OSError:
            return False

    until(answers, what="the address has room again")


def test_gate_counts_by_address_and_in_total() -> None:
    gate = Gate(total=3, per_address=2)
    assert [gate.enter("a"), gate.enter("a"), gate.enter("a")] == [True, True, False]
    gate.leave("a", said_nothing=False)
    assert [gate.enter("b"), gate.enter("b")] == [True, False]
    assert +gate.refused == {"address": 1, "total": 1}
    for address in ("a", "a", "b", "b"):
        gate.leave(address, said_nothing=address == "b")
    assert gate.refused["handshake"] == 2
    assert gate.enter("b")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: localhost\r\nHost: evil", b"400"),
        ("Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil", b"400"),
        ("Host: localhost\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b", b"400"),
        ("Host: localhost\r\nSec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b", b"200"),
    ],
)
async def test_header_that_is_there_twice_is_refused(
    redis_server: RedisServer, start: Start, writer: Writer, headers: str, status: bytes
) -> None:
    relay, url = start_relay(start, redis_server.url)
    with socket.create_connection(tuple_of(url)) as raw:
        raw.sendall(f"GET /api/status HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        assert raw.recv(4096).split()[1] == status
    assert "Traceback" not in relay.output


async def test_symbols_of_a_vendor_are_those_of_the_bus_and_the_token(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path
) -> None:
    await writer.write(1, symbol="BTC-USDT")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("desk", TOKEN) + token_row("kiosk", "k", 'symbols = ["B*"]'))
    _, url = start_relay(start, redis_server.url, "--tokens", str(tokens))

    def symbols(token: str) -> list[str]:
        rows = json.loads(get(url, f"/api/v3/exchangeInfo?token={token}")[1])["symbols"]
        return [row["symbol"] for row in rows]

    assert symbols(TOKEN) == ["A", "BTCUSDT"]
    assert symbols("k") == ["BTCUSDT"]


async def test_api_does_not_wait_for_redis(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    _, url = start_relay(start, redis_server.url)
    redis_server.kill()
    for path in ("/api/history?stream=trade:test:A", "/api/snapshot", "/api/v3/exchangeInfo"):
        assert get(url, path)[0] == 503
    redis_server.start()
    until(lambda: get(url, "/api/history?stream=trade:test:A")[0] == 200)
