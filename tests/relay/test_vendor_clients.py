"""Programs of packages that nobody here wrote print, by changing their address only, what the bus holds.

A program has no way to say that it gets data: ticks are sent until it prints the first, then those that are
compared. The vendors' hosts cannot be had here; these are their own clients against our relay.
"""

import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import start_relay
from support.vendor_bus import FIRST_ID, SYMBOL, Bus, make, make_quote, row
from support.waiting import until_async

from services.vendors import VENDORS, open_dialect
from services.vendors.dialect import Dialect, VendorLimits
from tickbus.protocol.messages import Quote, Trade
from tickbus.units import MILLISECOND, SECOND

Start = Callable[..., Process]
Run = Callable[..., "Program"]
FIRST, COUNT = 10_000, 300
"""Number of the first tick that is compared, and how many."""


class Program(Process):
    """A text of Python, run by this interpreter; it prints a JSON document a line."""

    def __init__(self, log: Path, text: str, *args: str) -> None:
        self.command = [sys.executable, "-c", text]
        super().__init__(log, *args)

    @property
    def printed(self) -> list[Any]:
        assert self.process.poll() is None, self.output
        whole = self.output[: self.output.rfind("\n") + 1]
        assert "Traceback" not in whole, whole
        return [json.loads(line) for line in whole.splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A function that starts a program; the test's end kills it."""
    programs: list[Program] = []

    def begin(text: str, *args: str) -> Program:
        programs.append(Program(tmp_path / f"program-{len(programs)}.log", text, *args))
        return programs[-1]

    yield begin
    for program in programs:
        program.close()


@pytest.fixture
async def bus(redis_server: RedisServer) -> AsyncIterator[Bus]:
    opened = Bus(redis_server.url, owner="binance")
    await opened.open()
    yield opened
    opened.close()


async def compared(
    bus: Bus, program: Program, symbols: tuple[str, ...], is_ours: Callable[[Any], bool], quotes: bool = True
) -> list[Any]:
    """Send until the program prints each symbol's trades (and quotes), then those that are compared.

    Return what it printed of the latter: `is_ours` tells by a document whether its tick is one of them.
    """
    streams = len(symbols) * (1 + quotes)
    number = 0

    async def send(numbers: range) -> None:
        for symbol in symbols:
            await bus.send(numbers, symbol)
            if quotes:
                await bus.send_quotes(numbers, symbol)

    async def hears_all() -> bool:
        nonlocal number
        number += 1
        await send(range(number, number + 1))
        return len({_stream_of(document) for document in program.printed}) == streams

    await until_async(hears_all, 40, "the program gets data")
    await send(range(FIRST, FIRST + COUNT))
    await until_async(
        lambda: sum(map(is_ours, program.printed)) >= streams * COUNT, 30, "the program prints all ticks"
    )
    return [document for document in program.printed if is_ours(document)]


def _stream_of(document: Any) -> tuple[str, bool]:
    """Return the symbol of a printed tick, and whether it is a trade."""
    document = document.get("data", document)
    return document.get("s") or document.get("code") or document.get("symbol"), not {
        "b", "bids"
    } & document.keys()  # fmt: skip


# Binance


CONNECTOR = """
import sys
from binance.websocket.spot.websocket_stream import SpotWebsocketStreamClient

def show(_, text):
    if '"stream"' in text:
        print(text, flush=True)

client = SpotWebsocketStreamClient(stream_url=sys.argv[1], on_message=show, is_combined=True)
client.trade(symbol="btcusdt")
client.book_ticker(symbol="btcusdt")
"""
"""A program of the vendor's own package, `binance-connector`."""

PYTHON_BINANCE = """
import asyncio
import json
import sys
from binance.async_client import AsyncClient
from binance.ws.streams import BinanceSocketManager

async def show(socket):
    async with socket:
        while True:
            print(json.dumps(await socket.recv()), flush=True)

async def main():
    AsyncClient.API_URL = sys.argv[1].replace("ws:", "http:") + "/api"
    BinanceSocketManager.STREAM_URL = sys.argv[1] + "/"
    client = await AsyncClient.create()
    assert [row["symbol"] for row in (await client.get_exchange_info())["symbols"]] == ["BTCUSDT"]
    manager = BinanceSocketManager(client)
    if sys.argv[2] == "single":
        sockets = [manager.trade_socket("BTCUSDT"), manager.symbol_book_ticker_socket("BTCUSDT")]
    else:
        sockets = [manager.multiplex_socket(["btcusdt@trade", "btcusdt@bookTicker"])]
    await asyncio.gather(*map(show, sockets))

asyncio.run(main())
"""
"""The most used package for Binance; its two address constants are set."""


def _is_ours(document: Any) -> bool:
    event = document.get("data", document)
    if "t" in event:
        return bool(event["t"] >= FIRST_ID + FIRST)
    return any(event["B"] == make_quote(FIRST + number).bid_size_text for number in range(COUNT))


def _check_binance(printed: list[Any]) -> None:
    """The trades and book tickers are those of the bus, value by value and in order."""
    events = [document.get("data", document) for document in printed]
    expected = [make(FIRST + number) for number in range(COUNT)]
    assert [
        (event["t"], (event["p"], event["q"], "sell" if event["m"] else "buy", event["T"]))
        for event in events
        if "t" in event
    ] == [(int(trade.trade_id or 0), row(trade)) for trade in expected]
    books = [make_quote(FIRST + number) for number in range(COUNT)]
    shown = [event for event in events if "t" not in event]
    assert [(event["b"], event["B"], event["a"], event["A"]) for event in shown] == [
        (quote.bid_text, quote.bid_size_text, quote.ask_text, quote.ask_size_text) for quote in books
    ]
    counters = [event["u"] for event in shown]
    assert counters == list(range(counters[0], counters[0] + COUNT))


async def test_binance_connector_by_its_address_only(
    redis_server: RedisServer, start: Start, run: Run, bus: Bus
) -> None:
    await bus.send(range(1))
    await bus.send_quotes(range(1))
    _, url = start_relay(start, redis_server.url)
    program = run(CONNECTOR, url)
    _check_binance(await compared(bus, program, (SYMBOL,), _is_ours))


@pytest.mark.parametrize("way", ["single", "combined"])
async def test_python_binance_with_its_two_addresses_set(
    redis_server: RedisServer, start: Start, run: Run, bus: Bus, way: str
) -> None:
    if not any(distributions(name="python-binance")):
        pytest.skip("python-binance is not installed")
    await bus.send(range(1))
    await bus.send_quotes(range(1))
    _, url = start_relay(start, redis_server.url)
    _check_binance(await compared(bus, run(PYTHON_BINANCE, url, way), (SYMBOL,), _is_ours))


# AllTick


ALLTICK = """
import json
import sys
import websocket

class Feed:
    def __init__(self, url, command):
        self.command = command
        self.socket = websocket.WebSocketApp(
            url, on_open=self.on_open, on_message=self.on_message, on_error=self.on_error
        )

    def start(self):
        self.socket.run_forever()

    def on_open(self, socket):
        code = {"code": "BTC-USDT"} if self.command == 22004 else {"code": "BTC-USDT", "depth_level": 5}
        request = {
            "cmd_id": self.command, "seq_id": 123, "trace": "3baaa938-f92c-1678419657806",
            "data": {"symbol_list": [code]},
        }
        socket.send(json.dumps(request))

    def on_message(self, socket, message):
        message = eval(message)  # so does the sample
        if "ret" in message:
            assert message["ret"] == 200, message
        else:
            print(json.dumps(message["data"]), flush=True)

    def on_error(self, socket, error):
        raise error

Feed(sys.argv[1], int(sys.argv[2])).start()
"""
"""Makes the calls of AllTick's published Python sample: one subscription when it opens, `eval` of what
arrives, no heartbeat. Only the structure of the sample is known here, not its text."""


@pytest.mark.parametrize("path", ["/quote-b-ws-api", "/quote-stock-b-ws-api"])
@pytest.mark.parametrize("command", [22004, 22002])
async def test_sample_of_alltick_with_its_host_changed(
    redis_server: RedisServer, start: Start, run: Run, bus: Bus, path: str, command: int
) -> None:
    await bus.send(range(1))
    await bus.send_quotes(range(1))
    _, url = start_relay(start, redis_server.url)
    program = run(ALLTICK, f"{url}{path}?token=any", str(command))
    ticks = [make(FIRST + n) if command == 22004 else make_quote(FIRST + n) for n in range(COUNT)]
    times = {str(tick.ts_event // MILLISECOND) for tick in ticks}

    async def send(numbers: range) -> None:
        await (bus.send(numbers) if command == 22004 else bus.send_quotes(numbers))

    number = 0

    async def hears() -> bool:
        nonlocal number
        number += 1
        await send(range(number, number + 1))
        return bool(program.printed)

    def ours() -> list[Any]:
        return [data for data in program.printed if str(data["tick_time"]) in times]

    await until_async(hears, 30, "the sample prints a tick")
    await send(range(FIRST, FIRST + COUNT))
    await until_async(lambda: len(ours()) >= COUNT, 30, "the sample prints all ticks")
    assert list(map(_alltick_row, ours())) == list(map(_expected_alltick, ticks))


def _alltick_row(data: Any) -> Any:
    time = int(data["tick_time"])
    if "price" in data:
        return data["code"], data["price"], data["volume"], data["trade_direction"], time
    sides = [[(level["price"], level["volume"]) for level in data[side]] for side in ("bids", "asks")]
    return data["code"], *sides, time


def _expected_alltick(tick: Trade | Quote) -> Any:
    time = tick.ts_event // MILLISECOND
    if isinstance(tick, Trade):
        direction = {"buy": 1, "sell": 2}[tick.side.name.lower()]
        return SYMBOL, tick.price_text, tick.size_text, direction, time
    bids, asks = [(tick.bid_text, tick.bid_size_text)], [(tick.ask_text, tick.ask_size_text)]
    return SYMBOL, bids, asks, time


def test_alltick_client_without_heartbeats_is_served_for_its_first_25_seconds() -> None:
    """By the clock that the conversation is given, with the options that the relay gives it."""
    began = time.monotonic_ns()
    options = {name: vendor.relay_options for name, vendor in VENDORS.items() if vendor.relay_options}
    dialect = open_dialect("/quote-b-ws-api?token=any", VendorLimits(), options, began)
    assert isinstance(dialect, Dialect)
    assert dialect.on_timer(began + 25 * SECOND).close is None
    assert dialect.on_timer(began + 31 * SECOND).close is not None


# the tutorial's listener


LISTENER = """
import json
import sys
import websocket

def on_message(ws, message):
    data = json.loads(message)
    for trade in data.get("trades", []):
        print(json.dumps(trade), flush=True)

def on_open(ws):
    ws.send(json.dumps({"action":"subscribe","symbols":["AAPL","MSFT","GOOGL"]}))

ws = websocket.WebSocketApp(sys.argv[1], on_message=on_message, on_open=on_open)
ws.run_forever()
"""
"""The listener of the market-data tutorials."""


@pytest.mark.parametrize("path", ["/", "/stock/ws"])
async def test_listener_of_the_tutorial_by_its_address_only(
    redis_server: RedisServer, start: Start, run: Run, bus: Bus, path: str
) -> None:
    symbols = ("AAPL", "MSFT", "GOOGL")
    for symbol in symbols:
        await bus.send(range(1), symbol)
    _, url = start_relay(start, redis_server.url)
    times = {make(FIRST + number).ts_event // MILLISECOND for number in range(COUNT)}
    printed = await compared(
        bus, run(LISTENER, url + path), symbols, lambda trade: trade["time"] in times, quotes=False
    )
    for symbol in symbols:
        expected = [make(FIRST + number, symbol) for number in range(COUNT)]
        assert [
            (one["id"], (one["price"], one["volume"], one["side"], one["time"]))
            for one in printed
            if one["symbol"] == symbol
        ] == [(trade.trade_id, row(trade)) for trade in expected]
