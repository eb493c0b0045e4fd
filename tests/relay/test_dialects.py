"""Clients of vendors that nobody here wrote, by changing the address only, see what the bus holds."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import websocket
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import JSON, MSGPACK, RelayClient, start_relay
from support.writing import Writer
from websockets.asyncio.client import ClientConnection, connect

import tickbus
from tickbus.protocol.messages import Flag, Quote, Side, Trade
from tickbus.protocol.names import Stream
from tickbus.units import MILLISECOND

Start = Callable[..., Process]
FEED, SYMBOL = "binance", "BTC-USDT"
STREAM = Stream("trade", FEED, SYMBOL)
QUOTES = Stream("quote", FEED, SYMBOL)
FIRST_ID = 3_735_683_000
TIME = 1_770_000_000_000 * MILLISECOND
Row = tuple[str, str, str, int]
"""Price, size, side, time in ms."""


def make(number: int) -> Trade:
    side = Side.BUY if number % 3 else Side.SELL
    time = TIME + number * 7 * MILLISECOND
    return Trade(SYMBOL, f"{60_000 + number % 50}.{number % 100:02}", f"0.{number + 1:05}", side,
                 str(FIRST_ID + number), time, time + 3)  # fmt: skip


def row(trade: Trade) -> Row:
    return trade.price_text, trade.size_text, trade.side.name.lower(), trade.ts_event // MILLISECOND


class Bus(Writer):
    """A writer of one symbol, with the vendor's ids in the heads."""

    async def send(self, numbers: range) -> None:
        for first in range(numbers.start, numbers.stop, 50):
            part = range(first, min(first + 50, numbers.stop))
            await self.publisher.commit(
                self.transaction([self.entry(STREAM, make(number)) for number in part])
            )

    async def send_quote(self, bid: str, ask: str) -> None:
        quote = Quote(SYMBOL, bid, "1.5", ask, "2", TIME, TIME)
        await self.publisher.commit(self.transaction([self.entry(QUOTES, quote)]))

    def transaction(self, entries: Any, ring_all: bool = False) -> Any:
        transaction = super().transaction(entries, ring_all)
        for entry in entries:
            if entry.field == b"t":
                import msgspec

                from tickbus.protocol.codec import Head, encode

                head = Head(
                    str(entry.id), FIRST_ID, 0, msgspec.Raw(entry.payload), epochs=[(self.publisher.epoch, 1)]
                )
                transaction.heads[entry.stream] = encode(head)
        return transaction


@pytest.fixture
async def bus(redis_server: RedisServer) -> AsyncIterator[Bus]:
    opened = Bus(redis_server.url, owner=FEED)
    await opened.open()
    await opened.send(range(1))
    await opened.send_quote("1", "2")
    yield opened
    opened.close()


async def test_six_clients_see_the_same_trades(redis_server: RedisServer, start: Start, bus: Bus) -> None:
    _, url = start_relay(start, redis_server.url)
    expected = [row(make(number)) for number in range(1, 2001)]
    async with (
        connect(f"{url}/ws") as binance,
        connect(f"{url}/quote-b-ws-api?token=any") as alltick,
        connect(f"{url}/") as tutorial,
        RelayClient(url, JSON) as plain,
        RelayClient(url, MSGPACK) as packed,
        tickbus.connect(redis_server.url) as direct,
    ):
        await binance.send('{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}')
        assert json.loads(await binance.recv()) == {"result": None, "id": 1}
        codes = [{"code": SYMBOL}]
        await alltick.send(
            json.dumps({"cmd_id": 22004, "seq_id": 1, "trace": "t", "data": {"symbol_list": codes}})
        )
        assert json.loads(await alltick.recv())["ret"] == 200
        await tutorial.send(json.dumps({"action": "subscribe", "symbols": [SYMBOL]}))
        for client in (plain, packed):
            await client.ask(op="subscribe", id=1, symbols=[SYMBOL])
        reading = direct.read("trade", symbols=[SYMBOL], gaps=False, start="start")
        found = asyncio.create_task(read_rows(reading))
        behind = await settle(binance, alltick, tutorial, bus)
        await bus.send(range(1, 2001))
        async with asyncio.timeout(90):
            assert await binance_rows(binance) == expected
            assert await alltick_rows(alltick) == expected
            assert await tutorial_rows(tutorial) == expected
            elements = [each for each in await plain.data(2000 + behind) if each["ts_event"] > TIME]
            assert [
                (each["price"], each["size"], each["side"], each["ts_event"] // MILLISECOND)
                for each in elements
            ] == expected
            names = {side.value: side.name.lower() for side in Side}
            assert [
                (each[3][1], each[3][2], names[each[3][3]], each[3][5] // MILLISECOND)
                for each in await packed.data(2000 + behind)
                if each[3][5] > TIME
            ] == expected
            assert await found == expected


async def settle(
    binance: ClientConnection, alltick: ClientConnection, tutorial: ClientConnection, bus: Bus
) -> int:
    """Wait until all three get data: they have no way to say so. Return how many older trades that took."""
    pending = [binance, alltick, tutorial]
    number = 0
    while pending:
        number -= 1
        await bus.send(range(number, number + 1))
        pending = [client for client in pending if not await hears_something(client)]
    return -number


async def hears_something(client: ClientConnection) -> bool:
    try:
        async with asyncio.timeout(0.1):
            await client.recv()
    except TimeoutError:
        return False
    return True


def is_ours(time: int) -> bool:
    return time > TIME // MILLISECOND


async def binance_rows(client: ClientConnection) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < 2000:
        event = json.loads(await client.recv())
        assert event["e"] == "trade"
        assert event["s"] == "BTCUSDT"
        if is_ours(event["T"]):
            assert event["t"] == FIRST_ID + len(rows) + 1
            rows.append((event["p"], event["q"], "sell" if event["m"] else "buy", event["T"]))
    return rows


async def alltick_rows(client: ClientConnection) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < 2000:
        data = json.loads(await client.recv())["data"]
        assert data["code"] == SYMBOL
        if is_ours(int(data["tick_time"])):
            side = {1: "buy", 2: "sell"}[data["trade_direction"]]
            rows.append((data["price"], data["volume"], side, int(data["tick_time"])))
    return rows


async def tutorial_rows(client: ClientConnection) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < 2000:
        for trade in json.loads(await client.recv()).get("trades", []):
            assert trade["symbol"] == SYMBOL
            if is_ours(trade["time"]):
                rows.append((trade["price"], trade["volume"], trade["side"], trade["time"]))
    return rows


async def read_rows(reading: "tickbus.Subscription[Trade]") -> list[Row]:
    rows: list[Row] = []
    async for trade in reading:
        if is_ours(trade.ts_event // MILLISECOND):
            rows.append(row(trade))
            if len(rows) == 2000:
                break
    reading.close()
    return rows


CONNECTOR = """
import sys
from binance.websocket.spot.websocket_stream import SpotWebsocketStreamClient

client = SpotWebsocketStreamClient(
    stream_url=sys.argv[1], on_message=lambda _, text: print(text, flush=True), is_combined=True
)
client.trade(symbol="btcusdt")
client.book_ticker(symbol="btcusdt")
"""
"""A program of the vendor's own package; only its address is ours."""


async def run_program(text: str, url: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", text, url, stdout=asyncio.subprocess.PIPE
    )


async def test_binance_connector_by_its_address_only(
    redis_server: RedisServer, start: Start, bus: Bus
) -> None:
    _, url = start_relay(start, redis_server.url)
    program = await run_program(CONNECTOR, url)
    assert program.stdout is not None
    reading = asyncio.create_task(program.stdout.readline())
    events: dict[str, Any] = {}
    number = 0
    while len(events) < 2:
        number += 1
        await bus.send(range(number, number + 1))
        await bus.send_quote("60000.10", "60000.20")
        if (await asyncio.wait((reading,), timeout=0.1))[0]:
            message = json.loads(reading.result())
            if "stream" in message:
                events[message["stream"]] = message["data"]
            reading = asyncio.create_task(program.stdout.readline())
    reading.cancel()
    program.kill()
    await program.wait()
    trade = events["btcusdt@trade"]
    sent = make(trade["t"] - FIRST_ID)
    assert (trade["p"], trade["q"], trade["T"]) == (
        sent.price_text,
        sent.size_text,
        sent.ts_event // MILLISECOND,
    )
    quote = events["btcusdt@bookTicker"]
    assert (quote["b"], quote["B"], quote["a"], quote["A"]) == ("60000.10", "1.5", "60000.20", "2")


LISTENER = """
import json
import sys
import websocket

def on_message(ws, message):
    data = json.loads(message)
    for trade in data.get("trades", []):
        print(trade["symbol"], trade["price"], flush=True)

def on_open(ws):
    ws.send(json.dumps({"action": "subscribe", "symbols": ["AAPL", "MSFT", "BTC-USDT"]}))

websocket.WebSocketApp(sys.argv[1], on_message=on_message, on_open=on_open).run_forever()
"""
"""The tutorial's program; only its address is ours."""


async def test_listener_of_the_tutorial_prints_the_trades(
    redis_server: RedisServer, start: Start, bus: Bus
) -> None:
    _, url = start_relay(start, redis_server.url)
    listener = await run_program(LISTENER, f"{url}/stock/ws")
    assert listener.stdout is not None
    printing = asyncio.create_task(listener.stdout.readline())
    number = 0
    while not printing.done():
        number += 1
        await bus.send(range(number, number + 1))
        await asyncio.wait((printing,), timeout=0.05)
    symbol, price = printing.result().decode().split()
    assert symbol == SYMBOL
    assert price in {make(each).price_text for each in range(1, number + 1)}
    listener.kill()
    await listener.communicate()


async def test_late_ticks_and_gaps_are_left_out_and_counted(
    redis_server: RedisServer, start: Start, bus: Bus
) -> None:
    from msgspec.structs import replace

    from tickbus.protocol.messages import Gap, GapKind, StreamKind

    relay, url = start_relay(start, redis_server.url)
    async with connect(f"{url}/stream?streams=btcusdt@trade") as client:
        number = 0
        while not await hears_something(client):
            number += 1
            await bus.send(range(number, number + 1))
        late = replace(make(0), flags=Flag.LATE)
        gap = Gap(StreamKind.TRADE, "gateway", GapKind.SEQUENCE, 1, 2, "5", "6", 2, symbol=SYMBOL)
        await bus.publisher.commit(
            bus.transaction([bus.entry(STREAM, gap), bus.entry(STREAM, late), bus.entry(STREAM, make(5000))])
        )
        while (event := json.loads(await client.recv()))["data"]["t"] != FIRST_ID + 5000:
            assert event["data"]["t"] != FIRST_ID
    assert relay.metric("tickbus_relay_unsaid_total", reason="gap") == 1
    assert relay.metric("tickbus_relay_unsaid_total", reason="late") == 1


async def test_alltick_answers_as_the_vendor(redis_server: RedisServer, start: Start, bus: Bus) -> None:
    _, url = start_relay(start, redis_server.url)
    async with connect(f"{url}/quote-stock-b-ws-api?token=t") as client:

        async def ask(seq: int, codes: list[str]) -> int:
            request = {
                "cmd_id": 22004,
                "seq_id": seq,
                "trace": "t",
                "data": {"symbol_list": [{"code": c} for c in codes]},
            }
            await client.send(json.dumps(request))
            while "ret" not in (answer := json.loads(await client.recv())):
                pass
            return int(answer["ret"])

        assert await ask(1, ["NOBODY.US"]) == 600
        assert await ask(2, [SYMBOL]) == 605


def test_unknown_path_is_not_found(redis_server: RedisServer, start: Start) -> None:
    _, url = start_relay(start, redis_server.url)
    with pytest.raises(websocket.WebSocketBadStatusException, match="404"):
        websocket.create_connection(f"{url}/elsewhere")
