"""Clients of vendors that nobody here wrote, by changing the address only, see what the bus holds."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable

import pytest
import websocket
from msgspec.structs import replace
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import JSON, MSGPACK, RelayClient, start_relay
from support.vendor_bus import FEED, FIRST_ID, STREAM, SYMBOL, TIME, Bus, Row, make, row
from websockets.asyncio.client import ClientConnection, connect

import tickbus
from services.vendors import VENDORS, open_dialect
from services.vendors.dialect import Dialect, VendorLimits
from tickbus.protocol.messages import Flag, Side, Trade
from tickbus.units import MILLISECOND

Start = Callable[..., Process]


@pytest.fixture
async def bus(redis_server: RedisServer) -> AsyncIterator[Bus]:
    opened = Bus(redis_server.url, owner=FEED)
    await opened.open()
    await opened.send(range(1))
    await opened.send_quotes(range(1))
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


async def test_what_a_protocol_cannot_carry_is_left_out_as_project_says(
    redis_server: RedisServer, start: Start, bus: Bus
) -> None:
    """Unknown sides, times in ns, the book beside a trade: the bus has them, not every vendor does."""
    sent = [
        replace(
            make(number),
            side=Side(number % 3),
            ts_event=TIME + number * 1_234_567,
            bid_text="59999.5",
            ask_text="60001.5",
            flags=Flag.OFF_BOOK if number % 7 == 0 else 0,
        )
        for number in range(1, 2001)
    ]
    _, url = start_relay(start, redis_server.url)
    async with (
        connect(f"{url}/ws/btcusdt@trade") as binance,
        connect(f"{url}/quote-stock-b-ws-api?token=any") as alltick,
        connect(f"{url}/stock/ws") as tutorial,
    ):
        request = {"cmd_id": 22004, "seq_id": 1, "trace": "t", "data": {"symbol_list": [{"code": SYMBOL}]}}
        await alltick.send(json.dumps(request))
        assert json.loads(await alltick.recv())["ret"] == 200
        await tutorial.send(json.dumps({"action": "subscribe", "symbols": [SYMBOL]}))
        await settle(binance, alltick, tutorial, bus)
        await bus.send_ticks(sent)
        async with asyncio.timeout(90):
            assert await binance_rows(binance) == projected("/ws", sent)
            assert await alltick_rows(alltick) == projected("/quote-stock-b-ws-api?token=any", sent)
            assert await tutorial_rows(tutorial) == projected("/stock/ws", sent)
        async with tickbus.connect(redis_server.url) as direct:
            reading = direct.read("trade", symbols=[SYMBOL], gaps=False, start="start")
            whole = [trade async for trade in first_of(reading)]
    assert whole == sent


def projected(target: str, trades: list[Trade]) -> list[Row]:
    """Return what the protocol that serves a path can carry."""
    options = {name: vendor.relay_options for name, vendor in VENDORS.items() if vendor.relay_options}
    dialect = open_dialect(target, VendorLimits(), options, 0)
    assert isinstance(dialect, Dialect)
    return [row(dialect.project(trade, int(trade.trade_id or 0))) for trade in trades]


async def first_of(reading: "tickbus.Subscription[Trade]") -> AsyncIterator[Trade]:
    """Yield the two thousand trades that are compared."""
    found = 0
    async for trade in reading:
        if trade.ts_event > TIME:
            yield trade
            found += 1
            if found == 2000:
                return


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
            side = {0: "unknown", 1: "buy", 2: "sell"}[data["trade_direction"]]
            rows.append((data["price"], data["volume"], side, int(data["tick_time"])))
    return rows


async def tutorial_rows(client: ClientConnection) -> list[Row]:
    rows: list[Row] = []
    while len(rows) < 2000:
        for trade in json.loads(await client.recv()).get("trades", []):
            assert trade["symbol"] == SYMBOL
            if is_ours(trade["time"]):
                rows.append((trade["price"], trade["volume"], trade.get("side", "unknown"), trade["time"]))
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


async def test_late_ticks_and_gaps_are_left_out_and_counted(
    redis_server: RedisServer, start: Start, bus: Bus
) -> None:
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


def test_symbols_are_told_to_a_client_that_asks_before_anybody_has_connected(
    redis_server: RedisServer, start: Start, bus: Bus
) -> None:
    _, url = start_relay(start, redis_server.url)
    address = url.replace("ws:", "http:", 1)
    with urllib.request.urlopen(f"{address}/api/v3/exchangeInfo", timeout=10) as answer:
        assert [row["symbol"] for row in json.load(answer)["symbols"]] == ["BTCUSDT"]
