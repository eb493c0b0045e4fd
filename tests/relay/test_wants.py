"""What clients of a relay want reaches the vendor, and leaves it after them."""

import asyncio
import hashlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.processes import Process
from support.redis_server import RedisServer
from support.relay import RelayClient, start_relay
from support.subscribing import Venue
from support.waiting import until, until_async
from websockets.asyncio.client import connect

import tickbus
import tickbus.remote
from tickbus.errors import RelayRefused
from tickbus.protocol.messages import Trade
from tickbus.protocol.names import Keys

Start = Callable[..., Process]
pytestmark = pytest.mark.timeout(150)

LISTENER = """
import json, sys, websocket

def on_message(ws, message):
    data = json.loads(message)
    for trade in data.get("trades", []):
        print(trade["symbol"], trade["price"], flush=True)

def on_open(ws):
    ws.send(json.dumps({"action": "subscribe", "symbols": ["AAPL", "MSFT", "GOOGL"]}))

ws = websocket.WebSocketApp(sys.argv[1], on_open=on_open, on_message=on_message)
ws.run_forever()
"""
"""The tutorial's program; only its address is ours."""


@pytest.fixture
def venue(start: Start, redis_server: RedisServer, tmp_path: Path) -> Callable[..., Venue]:
    def make(feed: str, *gateway: str, simulate: tuple[str, ...] = ()) -> Venue:
        one = Venue(start, redis_server, tmp_path, feed)
        one.simulate(*simulate)
        one.gateway_process = one.gateway(*gateway).wait_ready()
        return one

    return make


def relay(start: Start, redis: RedisServer, *more: str) -> tuple[Process, str]:
    return start_relay(start, redis.url, *more, shards=64)


def read_json(url: str) -> Any:
    with urllib.request.urlopen(url.replace("ws://", "http://"), timeout=10) as answer:
        return json.load(answer)


async def hear(client: RelayClient, **expected: object) -> dict[str, Any]:
    """Return the next message that has these fields."""
    async with asyncio.timeout(60):
        while True:
            message = await client.hear()
            if expected.items() <= message.items():
                return dict(message)


def test_listener_of_the_tutorial_gets_symbols_that_nobody_had(
    venue: Callable[..., Venue], start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    pytest.importorskip("websocket")
    one = venue("json", "--json-unsubscribe", "unsubscribe")
    _, url = relay(start, redis_server)
    until(lambda: one.gateway_process.metric("tickbus_feed_idle") == 1)
    output = tmp_path / "listener.txt"
    with output.open("wb") as file:
        listener = subprocess.Popen([sys.executable, "-c", LISTENER, f"{url}/"], stdout=file)
    try:
        symbols = ("AAPL", "MSFT", "GOOGL")
        until(lambda: set(symbols) <= {line.split()[0] for line in output.read_text().splitlines()}, 60)
        assert {topic: state.state for topic, state in one.states().items()} == {
            f"trade {symbol}": "active" for symbol in symbols
        }
    finally:
        listener.kill()
        listener.wait()
    one.wait_for({})
    until(lambda: one.gateway_process.metric("tickbus_feed_idle") == 1)
    printed = [line.split() for line in output.read_text().splitlines() if len(line.split()) == 2]
    for symbol in symbols:
        sent = [price for _, price, _ in one.sent(symbol)]
        ours = [price for name, price in printed if name == symbol]
        assert ours[:-1] == sent[: len(ours) - 1], "the vendor's trades from the first on"


async def test_native_clients_are_told_what_becomes_of_their_wants(
    venue: Callable[..., Venue], start: Start, redis_server: RedisServer
) -> None:
    one = venue("binance", "--max-symbols", "2")
    served, url = relay(start, redis_server)
    async with RelayClient(url) as client:
        answer = await client.ask(op="subscribe", id=1, symbols=["AA-USDT"], want=True, policy="lossless")
        assert answer["op"] == "subscribed"
        heard: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while not (heard and heard[-1].get("state") == "active"):
                heard.append(await client.hear())
            while not any("data" in message for message in heard):
                heard.append(await client.hear())
        state = next(message for message in heard if message.get("state") == "active")
        assert (state["op"], state["id"], state["stream"]) == ("want", 1, "trade:binance:AA-USDT")
        first = next(message for message in heard if "data" in message)["data"][0]
        assert first["cursor"].endswith("-1"), "from the first entry of a new stream on"
        await until_async(lambda: one.sent("AA-USDT"))
        assert (first["trade_id"], first["price"]) == one.sent("AA-USDT")[0][:2]

        await client.say(op="want", id=2, symbols=["BB-USDT", "CC-USDT"], kind="trade")
        assert (await hear(client, op="wanted"))["feed"] == "binance"
        said: dict[str, dict[str, Any]] = {}
        while sorted(one["state"] for one in said.values()) != ["active", "refused"]:
            message = await hear(client, op="want", id=2)
            said[message["stream"]] = message
        (refused,) = (message for message in said.values() if message["state"] == "refused")
        assert refused["reason"] == "cap of 2 symbols reached"
        assert refused["stream"] in ("trade:binance:BB-USDT", "trade:binance:CC-USDT")
        rows = await asyncio.to_thread(read_json, f"{url}/api/subscriptions?feed=binance")
        assert {row["stream"]: row["state"] for row in rows["subscriptions"]} == {
            f"trade:{one.feed}:{topic.split()[1]}": state.state
            for topic, state in (await asyncio.to_thread(one.states)).items()
        }

        for request, reason in [
            ({"op": "want", "id": 3, "symbols": ["A*"]}, "patterns cannot be wanted"),
            ({"op": "subscribe", "id": 3, "symbols": ["A*"], "want": True}, "patterns cannot be wanted"),
            ({"op": "want", "id": 3, "symbols": []}, "name each symbol"),
            ({"op": "want", "id": 3, "symbols": ["A"], "kind": "bar"}, "Invalid enum value 'bar'"),
            ({"op": "want", "id": 2, "symbols": ["A"]}, "this id has a subscription"),
        ]:  # fmt: skip
            await client.say(**request)
            error = await hear(client, op="error")
            assert reason in error["reason"], request

        assert (await _asked(client, op="unsubscribe", id=2))["op"] == "unsubscribed"
        await until_async(lambda: _holder_fields(redis_server) == {"trade AA-USDT"})
        assert (await _asked(client, op="unsubscribe", id=1))["op"] == "unsubscribed"
        await until_async(lambda: _holder_fields(redis_server) == set())
    assert served.stop() == 0


async def _asked(client: RelayClient, **request: Any) -> dict[str, Any]:
    await client.say(**request)
    return await hear(client, id=request["id"], op="unsubscribed")


def _holder_fields(redis: RedisServer) -> set[str]:
    """Return what relays want."""
    names = redis.client.scan_iter(match=f"{Keys().holders('binance')}:relay*".replace("[", "\\["))
    return {field.decode() for name in names for field in redis.client.hgetall(name)}


async def test_wants_of_a_killed_relay_end_with_its_lease(
    venue: Callable[..., Venue], start: Start, redis_server: RedisServer
) -> None:
    one = venue("binance", "--symbols", "ZZ-USDT")
    served, url = relay(start, redis_server)
    async with RelayClient(url) as client:
        await client.say(op="want", id=1, symbols=["AA-USDT"])
        await hear(client, op="want", state="active")
        served.signal(signal.SIGKILL)
        with suppress(Exception):
            await client.hear()
    await asyncio.to_thread(one.wait_for, {"trade ZZ-USDT": "active"})
    assert _holder_fields(redis_server) == set()
    assert one.connects() == 1


TOKENS = {
    "may": "want = true\nmax_wants = 2\nsymbols = ['A*']",
    "not": "",
}


async def test_rights_of_tokens(
    venue: Callable[..., Venue], start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    venue("binance")
    file = tmp_path / "tokens.toml"
    file.write_text(
        "".join(
            f"[[token]]\nname = '{name}'\nsha256 = '{hashlib.sha256(name.encode()).hexdigest()}'\n{more}\n"
            for name, more in TOKENS.items()
        )
    )
    _, url = relay(start, redis_server, "--tokens", str(file))

    async def refusal(client: RelayClient, **request: Any) -> str:
        await client.say(**request)
        return str((await hear(client, op="error"))["reason"])

    async with RelayClient(url, additional_headers={"Authorization": "Bearer not"}) as client:
        reason = await refusal(client, op="want", id=1, symbols=["AA"])
        assert reason == "this token may not want symbols: leave out want"
    async with RelayClient(url, additional_headers={"Authorization": "Bearer may"}) as client:
        reason = await refusal(client, op="want", id=1, symbols=["BB"])
        assert reason == "this token may not read trade BB of binance"
        reason = await refusal(client, op="want", id=1, symbols=["A1", "A2", "A3"])
        assert reason == "too many wants: this token may want 2 at a time"
        # an invalid request takes nothing of what the token may want
        for _ in range(3):
            await refusal(client, op="subscribe", id=1, symbols=["A1"], want=True, policy="conflate", hz=-1)
        await client.say(op="want", id=1, symbols=["A1", "A2"])
        await hear(client, op="wanted")
        reason = await refusal(client, op="want", id=2, symbols=["A3"])
        assert reason == "too many wants: this token may want 2 at a time"
        await _asked(client, op="unsubscribe", id=1)
        await client.say(op="want", id=3, symbols=["A3", "A4"])
        await hear(client, op="wanted")

    async with tickbus.remote.connect(url, token="not") as bus:
        with pytest.raises(RelayRefused, match="may not want"):
            async with bus.want("trade", symbols=["AA"], feed="binance"):
                pass
        with pytest.raises(RelayRefused, match="may not want"):
            await anext(aiter(bus.read("trade", symbols=["AA"], feeds=["binance"], want=True)))


async def test_client_of_alltick_gets_a_symbol_that_nobody_had(
    venue: Callable[..., Venue], start: Start, redis_server: RedisServer
) -> None:
    venue("alltick")
    _, url = relay(start, redis_server)
    async with asyncio.timeout(90), connect(f"{url}/quote-b-ws-api?token=any") as client:
        codes = [{"code": "AAPL.US"}]
        for _ in range(60):  # until the relay knows that the gateway lives
            await client.send(
                json.dumps({"cmd_id": 22004, "seq_id": 1, "trace": "t", "data": {"symbol_list": codes}})
            )
            answer = json.loads(await client.recv())
            if answer["ret"] == 200:
                break
            assert answer["ret"] == 600
            await asyncio.sleep(1)
        pushed = json.loads(await client.recv())
        assert (pushed["cmd_id"], pushed["data"]["code"]) == (22998, "AAPL.US")


async def test_remote_wants(venue: Callable[..., Venue], start: Start, redis_server: RedisServer) -> None:
    one = venue("binance")
    served, url = relay(start, redis_server)
    async with tickbus.remote.connect(url) as bus:
        async with bus.want("trade", symbols=["AA-USDT"], feed="binance") as wanted:
            await asyncio.to_thread(one.wait_state, "trade AA-USDT", "active")
            wanted.add(["BB-USDT"])
            await asyncio.to_thread(one.wait_state, "trade BB-USDT", "active")
            # its wants come back after the relay
            served.kill()
            served = await asyncio.to_thread(_again, start, redis_server, url)
            await until_async(lambda: _holder_fields(redis_server) >= {"trade AA-USDT", "trade BB-USDT"}, 60)
        found: list[Trade] = []
        async with asyncio.timeout(60):
            async for trade in bus.read(
                "trade", symbols=["CC-USDT"], feeds=["binance"], want=True, gaps=False
            ):
                found.append(trade)
                if len(found) == 5:
                    break
        await until_async(lambda: len(one.sent("CC-USDT")) >= 5)
        rows = [(str(trade.trade_id), trade.price_text, trade.size_text) for trade in found]
        assert rows == one.sent("CC-USDT")[:5]


def _again(start: Start, redis: RedisServer, url: str) -> Process:
    """Start a relay at the same address."""
    served = start("relay", "--redis", redis.url, "--shards", "64", "--port", url.rpartition(":")[2])
    served.wait_for("serving")
    return served
