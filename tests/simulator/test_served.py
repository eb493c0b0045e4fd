"""Each protocol over a real socket: clients get what they subscribe to, and the ledger says the same."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

SYNTHETIC = {"speed": "max", "symbols": ("BTCUSDT", "ETHUSDT"), "limit": 300}
BTC = "/stream?streams=btcusdt@trade/btcusdt@bookTicker"


async def test_binance_client_receives_what_the_ledger_says(venue: Any, client: Any) -> None:
    async with venue(**SYNTHETIC) as sim, sim.connect("/stream") as socket:
        me = client(socket)
        names = ["btcusdt@trade", "btcusdt@bookTicker", "ethusdt@trade"]
        assert await me.request({"method": "SUBSCRIBE", "params": names, "id": 1}) == {
            "result": None,
            "id": 1,
        }
        await sim.until(lambda: sim.events("end"))
        sent = [tick for tick in sim.ticks() if tick["sent"]]
        frames = await me.take(len(sent))
        for tick, frame in zip(sent, frames, strict=True):
            data = frame["data"]
            assert frame["stream"].startswith(tick["symbol"].lower())
            if tick["kind"] == "trade":
                got = (
                    data["s"],
                    str(data["t"]),
                    data["p"],
                    data["q"],
                    "sell" if data["m"] else "buy",
                    data["T"],
                )
                assert got == (
                    tick["symbol"],
                    tick["id"],
                    tick["price"],
                    tick["size"],
                    tick["side"],
                    tick["ts_event"] // 10**6,
                )
            else:
                got = (data["s"], str(data["u"]), data["b"], data["B"], data["a"], data["A"])
                assert got == (
                    tick["symbol"],
                    tick["id"],
                    tick["bid"],
                    tick["bid_size"],
                    tick["ask"],
                    tick["ask_size"],
                )
        assert [tick["n"] for tick in sim.ticks()] == list(range(1, 301))
        assert {tick["kind"] for tick in sim.ticks() if not tick["sent"]} == {
            "quote"
        }  # ETHUSDT's quotes: nobody subscribed


async def test_alltick_client_receives_what_the_ledger_says(venue: Any, client: Any) -> None:
    async with venue(**SYNTHETIC) as sim, sim.connect("/quote-b-ws-api?token=t") as socket:
        me = client(socket)
        request = {"cmd_id": 22004, "seq_id": 5, "trace": "x", "data": {"symbol_list": [{"code": "BTCUSDT"}]}}
        assert await me.request(request) == {
            "ret": 200,
            "msg": "ok",
            "cmd_id": 22005,
            "seq_id": 5,
            "trace": "x",
            "data": {},
        }
        await sim.until(lambda: sim.events("end"))
        sent = [tick for tick in sim.ticks() if tick["sent"]]
        assert {(tick["kind"], tick["symbol"]) for tick in sent} == {("trade", "BTCUSDT")}
        for tick in sent:
            data = (await me.next())["data"]
            assert (data["code"], data["seq"], data["price"], data["volume"]) == (
                tick["symbol"],
                tick["id"],
                tick["price"],
                tick["size"],
            )
            assert Decimal(data["turnover"]) == Decimal(tick["price"]) * Decimal(tick["size"])


async def test_json_client_receives_what_the_ledger_says(venue: Any, client: Any) -> None:
    async with venue(**SYNTHETIC, json_time="ns") as sim, sim.connect("/") as socket:
        me = client(socket)
        await me.send({"action": "subscribe", "symbols": ["ETHUSDT"], "quotes": True})
        await sim.until(lambda: sim.events("end"))
        for tick in sim.ticks():
            if tick["sent"]:
                ((key, (row,)),) = (await me.next()).items()
                fields = (
                    ("price", "size", "id", "side")
                    if tick["kind"] == "trade"
                    else ("bid", "bid_size", "ask", "ask_size")
                )
                assert key == tick["kind"] + "s"
                assert row == {"symbol": tick["symbol"]} | {
                    name.replace("size", "volume") if name == "size" else name: tick[name] for name in fields
                } | {"time": tick["ts_event"]}


async def test_same_seed_gives_the_same_ticks(venue: Any, client: Any) -> None:
    runs = []
    for _ in range(2):
        async with venue(**SYNTHETIC) as sim, sim.connect(BTC) as socket:
            await client(socket).take(50)
            runs.append(
                [
                    [tick.get(name) for name in ("kind", "symbol", "id", "price", "size", "bid", "ask")]
                    for tick in sim.ticks()
                ]
            )
    assert runs[0] == runs[1]


async def test_new_client_joins_the_running_market(venue: Any, client: Any) -> None:
    async with venue(speed="1", rate=2000, symbols=("BTCUSDT",)) as sim, sim.connect(BTC) as first:
        await client(first).take(20)
        async with sim.connect(BTC) as second:
            (frame,) = await client(second).take(1)
            await sim.until(lambda: any(tick["to"] == [1, 2] for tick in sim.ticks()))
        both = [tick for tick in sim.ticks() if tick["to"] == [1, 2]]
        first_number = frame["data"].get("t") or frame["data"]["u"]
        assert both[0]["id"] == str(first_number)
        assert sim.ticks()[0]["to"] == [1]


async def test_ticks_are_lost_while_nobody_is_connected(venue: Any, client: Any) -> None:
    async with venue(speed="1", rate=1000, symbols=("BTCUSDT",), start="now") as sim:
        await sim.until(lambda: len(sim.ticks()) > 5)
        async with sim.connect(BTC) as socket:
            await client(socket).take(1)
        assert [(tick["sent"], tick["to"]) for tick in sim.ticks()][:5] == [(False, [])] * 5


async def test_market_at_max_waits_for_a_subscription(venue: Any, client: Any) -> None:
    async with venue(speed="max", symbols=("BTCUSDT",), limit=10) as sim:
        async with sim.connect("/ws") as socket:
            await client(socket).request({"method": "LIST_SUBSCRIPTIONS", "id": 1})
            assert sim.ticks() == []
        async with sim.connect(BTC) as socket:
            frames = await client(socket).take(10)
        assert len(frames) == len(sim.ticks()) == 10


async def test_slow_client_pauses_the_market_at_max(venue: Any, client: Any) -> None:
    async with venue(speed="max", symbols=("BTCUSDT",)) as sim, sim.connect(BTC, max_queue=1) as socket:
        await sim.until(lambda: " slow=1 " in sim.command("status"))
        ticks = sim.command("status").split()[1]
        async with sim.connect("/ws"):  # the event loop has run, the market has not
            pass
        assert sim.command("status").split()[1] == ticks
        while sim.command("status").split()[1] == ticks:
            await client(socket).take(500)


async def test_settle_waits_for_the_last_subscription(venue: Any, client: Any) -> None:
    async with venue(**SYNTHETIC, settle=300_000_000) as sim, sim.connect("/stream") as socket:
        me = client(socket)
        await me.request({"method": "SUBSCRIBE", "params": ["btcusdt@trade"], "id": 1})
        # answered before any tick: the market still waits
        assert await me.request({"method": "SUBSCRIBE", "params": ["ethusdt@trade"], "id": 2}) == {
            "result": None,
            "id": 2,
        }
        await sim.until(lambda: sim.events("end"))
        assert all(tick["sent"] for tick in sim.ticks() if tick["kind"] == "trade")


async def test_alltick_refuses_a_wrong_token_before_the_handshake(venue: Any) -> None:
    async with venue(token="right") as sim:
        for target, body in (("", "token is required"), ("?token=wrong", "token invalid")):
            with pytest.raises(InvalidStatus) as caught:
                async with sim.connect("/quote-stock-b-ws-api" + target):
                    pass
            assert caught.value.response.status_code == 401
            assert json.loads(caught.value.response.body or b"") == {"msg": body, "ret": 401}
        async with sim.connect("/quote-stock-b-ws-api?token=right"):
            pass
        assert "right" not in sim.path.read_text()


async def test_connection_over_the_cap_is_refused(venue: Any) -> None:
    async with venue(max_connections=1) as sim:
        async with (
            sim.connect("/quote-b-ws-api?token=t"),
            sim.connect("/quote-stock-b-ws-api?token=t"),
            sim.connect("/ws"),
        ):
            with pytest.raises(ConnectionClosed) as closed:
                async with sim.connect("/quote-b-ws-api?token=t") as second:
                    await second.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
            with pytest.raises(InvalidStatus) as caught:
                async with sim.connect("/ws"):
                    pass
            assert caught.value.response.status_code == 429
        await sim.until(lambda: sim.command("status").split()[2] == "connections=0")
        async with sim.connect("/ws"):
            pass


async def test_binance_closes_a_client_with_too_many_requests(venue: Any, client: Any) -> None:
    async with venue() as sim, sim.connect("/ws") as socket:
        for number in range(6):
            await client(socket).send({"method": "LIST_SUBSCRIPTIONS", "id": number})
        with pytest.raises(ConnectionClosed) as closed:
            await client(socket).take(6)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "Too many requests")


async def test_connections_time_out(venue: Any, client: Any) -> None:
    """AllTick without a heartbeat; Binance, whose pings are answered, at the end of its lifetime."""
    async with venue(heartbeat_timeout=300_000_000, ping_interval=100_000_000, lifetime=600_000_000) as sim:
        async with sim.connect("/quote-b-ws-api?token=t") as socket:
            with pytest.raises(ConnectionClosed):
                await client(socket).raw()
        async with sim.connect("/ws") as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await client(socket).raw()
            assert closed.value.rcvd is not None
            # not a pong timeout: the client has answered
            assert closed.value.rcvd.reason == "24 hours are over"


async def test_fragmented_message_is_reassembled(venue: Any, client: Any) -> None:
    async with venue() as sim, sim.connect("/ws") as socket:
        await socket.send(['{"method":"LIST_', 'SUBSCRIPTIONS","id":4}'])
        assert await client(socket).next() == {"result": [], "id": 4}


@pytest.mark.data
async def test_capture_is_sent_verbatim(venue: Any, client: Any, data: Path) -> None:
    import gzip

    source = data / "spot_btcusdt_20240808.gz"
    with gzip.open(source, "rt") as lines:
        frames = [line.split(" ", 1)[1].rstrip("\n") for line in lines][:3000]
    wanted = [frame for frame in frames if '@trade"' in frame or '@bookTicker"' in frame]
    async with venue(source=f"capture:{source}", speed="max", limit=2999) as sim, sim.connect(BTC) as socket:
        assert [await client(socket).raw() for _ in wanted] == wanted
    async with (
        venue(source=f"capture:{source}", speed="max", limit=2999) as sim,
        sim.connect("/ws/btcusdt@trade") as socket,
    ):
        bare = [json.loads(frame)["data"] for frame in wanted if '@trade"' in frame]
        assert await client(socket).take(len(bare)) == bare


@pytest.mark.data
@pytest.mark.parametrize("protocol", ["alltick", "json"])
async def test_tape_over_two_protocols(venue: Any, client: Any, data: Path, protocol: str) -> None:
    """The first rows arrive with exact prices and with their runs of equal trades."""
    import zipfile

    source = data / "bac_20131009_trade.zip"
    with zipfile.ZipFile(source) as archive:
        rows = [line.split(b",") for line in archive.read(archive.namelist()[0]).splitlines()[:3000]]
    expected = [(Decimal(int(row[1])) / 10000, Decimal(int(row[2]))) for row in rows]
    async with venue(
        source=f"ticks:{source}", symbol="BAC.US", speed="max", limit=3000, json_batch=50, alltick_join=50
    ) as sim:
        target = "/quote-stock-b-ws-api?token=t" if protocol == "alltick" else "/"
        async with sim.connect(target) as socket:
            got: list[tuple[Decimal, Decimal]] = []
            if protocol == "alltick":
                await client(socket).request(
                    {"cmd_id": 22004, "seq_id": 1, "trace": "", "data": {"symbol_list": [{"code": "BAC.US"}]}}
                )
            else:
                await client(socket).send({"action": "subscribe", "symbols": ["BAC.US"]})
            while len(got) < len(expected):
                frame = await client(socket).raw()
                pushed = (
                    [json.loads(part)["data"] for part in frame.split("\n")]
                    if protocol == "alltick"
                    else json.loads(frame)["trades"]
                )
                got += [(Decimal(row["price"]), Decimal(row["volume"])) for row in pushed]
    assert got == expected
