"""What a vendor requires before the connection, with a real HTTP server: a token by REST."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gateway.upstream.servers import accepted, raw
from support.waiting import until_async
from vendors.examples import TOLERANCE, setup

from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.upstream import http
from services.gateway.upstream.http import fetch
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.session import Connection, PreparationRefused
from services.vendors.feed import Fetch, HttpRequest, Refused
from services.vendors.json.client import Json
from tickbus.clock import BusClock
from tickbus.protocol.names import Keys, Stream
from tickbus.units import SECOND, Duration

MAX_FRAME = 1 << 20


class WithToken(Json):
    """A feed whose vendor hands out a token for each connection by REST, as KuCoin does."""

    token_url: str
    received = ""

    async def prepare(self, fetch: Fetch) -> Refused | None:
        response = await fetch(HttpRequest("POST", self.token_url, {"X-Key": "k"}, b"{}"))
        if response.status == 429:
            return Refused(
                "too many requests", False, Duration(int(response.headers["retry-after"]) * SECOND)
            )
        if response.status != 200:
            return Refused(f"HTTP {response.status}: {response.body.decode()}", True)
        self.received = response.body.decode()
        return None

    def query(self) -> str:
        return f"token={self.received}"


@asynccontextmanager
async def rest(status: str, body: str, *headers: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A REST server with one answer. Yields its URL and what was asked of it."""
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        asked.append(request + await reader.readexactly(2))
        head = "".join(
            f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers)
        )
        writer.write(f"{head}\r\n{body}".encode())
        await writer.drain()

    async with raw(talk) as port:
        yield f"http://127.0.0.1:{port}/token", asked


def connection(url: str, token_url: str) -> Connection:
    backlog, clock = Backlog(MAX_FRAME), BusClock()
    sequencer = Sequencer([StreamState(Keys(), Stream("trade", "json", "AAPL"), False)], backlog.put)
    feed = WithToken(setup("json", ("trade",), url=url))
    feed.token_url = token_url
    return Connection(feed, Intake(clock, sequencer, backlog), TOLERANCE, MAX_FRAME, buffering=False)


async def test_token_of_the_rest_call_is_part_of_the_address() -> None:
    handshakes: list[bytes] = []

    async def vendor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        handshakes.append(request)
        writer.write(accepted(request))
        await reader.read()

    async with rest("200 OK", "t0ken") as (token_url, asked), raw(vendor) as port:
        opened = connection(f"ws://127.0.0.1:{port}", token_url)
        await opened.open()
        await until_async(lambda: handshakes)
        assert handshakes[0].startswith(b"GET /?token=t0ken HTTP/1.1\r\n")
        assert asked[0].startswith(b"POST /token HTTP/1.1\r\n")
        assert b"\r\nX-Key: k\r\n" in asked[0]
        assert asked[0].endswith(b"\r\n\r\n{}")
        await opened.close("done")


@pytest.mark.parametrize(
    ("status", "headers", "refused"),
    [
        ("401 Unauthorized", (), Refused("HTTP 401: no", True)),
        (
            "429 Too Many Requests",
            ("Retry-After: 7",),
            Refused("too many requests", False, Duration(7 * SECOND)),
        ),
    ],
)
async def test_refusal_of_the_rest_call_is_one_of_the_vendor(
    status: str, headers: tuple[str, ...], refused: Refused
) -> None:
    async with rest(status, "no", *headers) as (token_url, _):
        with pytest.raises(PreparationRefused) as raised:
            await connection("ws://127.0.0.1:1", token_url).open()
        assert raised.value.refused == refused


async def test_rest_server_that_is_away_is_an_error_of_the_connection() -> None:
    async with raw(lambda *_: asyncio.sleep(0)) as port:
        pass
    with pytest.raises(OSError, match="refused"):
        await fetch(HttpRequest("GET", f"http://127.0.0.1:{port}/"))


async def test_rest_answer_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SECONDS", 0.2)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)  # a trickle: more often than any timeout of a single read

    async with raw(talk) as port:
        with pytest.raises(TimeoutError):
            await fetch(HttpRequest("GET", f"http://127.0.0.1:{port}/"))


async def test_rest_server_that_speaks_no_http_is_an_error_of_the_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async with raw(talk) as port:
        with pytest.raises(OSError, match="not an HTTP server"):
            await fetch(HttpRequest("GET", f"http://127.0.0.1:{port}/"))
