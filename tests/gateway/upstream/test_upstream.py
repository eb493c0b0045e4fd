"""A delivering connection is kept until another one can replace it; real WebSockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest
from support.waiting import until_async
from vendors.examples import TOLERANCE, feed
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from services.gateway.delivery.backlog import Backlog
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import StreamState
from services.gateway.upstream import session, verdict
from services.gateway.upstream import upstream as module
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.errors import VendorRefused
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Message, Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.units import SECOND, Duration

MAX_FRAME = 1 << 20


class Vendor:
    """Binance, with a chosen answer to each handshake; trades go to all connections."""

    def __init__(self, *answers: HTTPStatus | None) -> None:
        self._answers = list(answers)
        self.attempts = 0
        self.connected: list[ServerConnection] = []
        self.sent = 0

    def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.attempts += 1
        status = self._answers.pop(0) if self._answers else None
        return None if status is None else connection.respond(status, "no\n")

    async def talk(self, connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"result":null,"id":1}')
        self.connected.append(connection)
        await connection.wait_closed()
        self.connected.remove(connection)

    async def trade(self) -> None:
        self.sent += 1
        event = {
            "e": "trade",
            "s": "BNBBTC",
            "t": self.sent,
            "p": "1",
            "q": "1",
            "T": 1_672_515_782_136,
            "m": True,
        }
        for connection in self.connected:
            await connection.send(json.dumps({"stream": "bnbbtc@trade", "data": event}))

    async def shut_down(self) -> None:
        await self.connected[0].send('{"e":"serverShutdown","E":1770123456789}')


class Gateway:
    """The upstream side of a gateway."""

    def __init__(self, url: str, vendor: str = "binance") -> None:
        self.backlog, clock = Backlog(MAX_FRAME), BusClock()
        intake = Intake(
            clock,
            Sequencer([StreamState(Keys(), Stream("trade", "binance", "BNB-BTC"), True)], self.backlog.put),
            self.backlog,
        )
        self.upstream = Upstream(
            lambda: feed(vendor, ("trade",), url=url), intake, clock, tolerance=TOLERANCE,
            max_frame=MAX_FRAME, silence=Duration(60 * SECOND), session=None, max_age=None,
        )  # fmt: skip

    @property
    def messages(self) -> list[Message]:
        return [decode(entry.field, entry.payload) for entry in self.backlog.oldest(1000)]


@asynccontextmanager
async def running(vendor: Vendor) -> AsyncIterator[Gateway]:
    async with serve(vendor.talk, "127.0.0.1", 0, process_request=vendor.process_request) as server:
        gateway = Gateway(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        task = asyncio.create_task(gateway.upstream.run())
        try:
            await until_async(lambda: len(vendor.connected) == 1 and gateway.upstream.up)
            yield gateway
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "status", [HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE]
)
async def test_refused_replacement_keeps_current_connection(
    status: HTTPStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLOSING_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(module, "_ROTATE_RETRY_SECONDS", 0.1)
    vendor = Vendor(None, status, status)
    async with running(vendor) as gateway:
        await vendor.trade()
        await vendor.shut_down()
        await until_async(lambda: vendor.attempts >= 3)
        await vendor.trade()
        await until_async(lambda: gateway.upstream.reconnects["rotate"] == 1)
        await until_async(lambda: len(vendor.connected) == 1)
        await vendor.trade()
        await until_async(lambda: len(gateway.messages) == 3)
    assert [message.trade_id for message in gateway.messages if isinstance(message, Trade)] == ["1", "2", "3"]
    assert vendor.attempts == 4


async def test_rate_limited_replacement_is_not_retried_at_once() -> None:
    """Binance bans clients that connect more than 300 times in 5 minutes."""
    vendor = Vendor(None, HTTPStatus.TOO_MANY_REQUESTS)
    async with running(vendor) as gateway:
        current = gateway.upstream.current
        await vendor.shut_down()
        await until_async(lambda: vendor.attempts == 2)
        loop = asyncio.get_running_loop()
        await until_async(lambda: current is not None and 25 < current.rotate_at - loop.time() <= 30)
        await vendor.trade()
        await until_async(lambda: len(gateway.messages) == 1)
        assert gateway.upstream.current is current


async def test_delivering_connection_resets_backoff_however_short() -> None:
    vendor = Vendor()
    async with running(vendor) as gateway:
        gateway.upstream._backoff.next()
        grown = gateway.upstream._backoff._delay
        await vendor.trade()
        await vendor.connected[0].close(1011)
        await until_async(lambda: gateway.upstream.reconnects["closed"] == 1)
        assert gateway.upstream._backoff._delay <= grown


async def test_replacement_that_buffers_too_much_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MAX_BUFFERED_BYTES", 10_000)
    vendor = Vendor()
    async with running(vendor) as gateway:
        current = gateway.upstream.current
        await vendor.shut_down()
        await until_async(lambda: len(vendor.connected) == 2)
        for _ in range(200):
            await vendor.trade()
        await until_async(lambda: len(vendor.connected) == 1)
        await until_async(lambda: len(gateway.messages) == 200)
        assert gateway.upstream.current is current


# a refusal after it worked


@pytest.mark.parametrize("status", [HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST])
async def test_refusal_after_delivery_is_retried(
    status: HTTPStatus, caplog: pytest.LogCaptureFixture
) -> None:
    """What the CDN in front of the vendor answers for a moment is not the vendor's verdict."""
    vendor = Vendor(None, status, status)
    async with running(vendor) as gateway:
        await vendor.trade()
        await vendor.connected[0].close(1011)
        await until_async(lambda: vendor.attempts == 4 and gateway.upstream.up)
        await vendor.trade()
        await until_async(lambda: len(gateway.messages) == 2)
        assert gateway.upstream.reconnects["refused"] == 2
    warnings = [record.getMessage() for record in caplog.records if "it worked before" in record.getMessage()]
    assert len(warnings) == 2
    assert f"HTTP {status.value} no" in warnings[0]


@pytest.mark.parametrize("status", [HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST])
async def test_refusal_of_the_first_connection_is_for_good(status: HTTPStatus) -> None:
    vendor = Vendor(HTTPStatus.SERVICE_UNAVAILABLE, status)
    async with serve(vendor.talk, "127.0.0.1", 0, process_request=vendor.process_request) as server:
        gateway = Gateway(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        with pytest.raises(VendorRefused, match=f"HTTP {status.value} no"):
            await asyncio.wait_for(gateway.upstream.run(), 20)
    assert vendor.attempts == 2


async def test_refusal_that_stays_is_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "MIN_REFUSALS", 3)
    monkeypatch.setattr(verdict, "MIN_SECONDS", 0.1)
    vendor = Vendor(None, *[HTTPStatus.FORBIDDEN] * 10)
    async with serve(vendor.talk, "127.0.0.1", 0, process_request=vendor.process_request) as server:
        gateway = Gateway(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        task = asyncio.create_task(gateway.upstream.run())
        await until_async(lambda: len(vendor.connected) == 1 and gateway.upstream.up)
        await vendor.connected[0].close(1011)
        with pytest.raises(VendorRefused, match="HTTP 403 no"):
            await asyncio.wait_for(task, 20)
    assert vendor.attempts == 4


async def test_fatal_error_frame_is_for_good_only_before_it_worked() -> None:
    """AllTick's 603 (too many symbols) after hours of delivery: its plan database is away for a moment."""
    sent = 0

    async def talk(connection: ServerConnection) -> None:
        nonlocal sent
        sent += 1
        await connection.recv()
        if sent > 1:
            await connection.send('{"ret":603,"msg":"no permission","cmd_id":22005}')
        else:
            await connection.send('{"ret":200,"msg":"ok","cmd_id":22005}')
            await connection.close(1011)

    async with serve(talk, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        gateway = Gateway(url, "alltick")
        task = asyncio.create_task(gateway.upstream.run())
        await until_async(lambda: gateway.upstream.reconnects["slow_down"] == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(VendorRefused, match="no permission"):
            await asyncio.wait_for(Gateway(url, "alltick").upstream.run(), 20)
