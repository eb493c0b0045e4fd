"""Every fault, as a client sees it."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from support.waiting import until_async
from websockets.exceptions import ConnectionClosed, InvalidStatus

TRADES = "/stream?streams=btcusdt@trade"
ONLY = {"symbols": ("BTCUSDT",), "quotes_per_trade": 0}
PACED = ONLY | {"speed": "1", "rate": 500}


async def ids_received(venue: Any, client: Any, faults: str, count: int) -> list[int]:
    """Return the trade ids that a client receives, relative to the first one."""
    async with venue(**ONLY, speed="max", limit=20, faults=faults) as sim, sim.connect(TRADES) as socket:
        received = [frame["data"]["t"] for frame in await client(socket).take(count)]
        assert received == [int(tick["id"]) for tick in sim.ticks() if tick["sent"]]
        assert {tick["fault"] for tick in sim.ticks()} == {None} | {
            word.split("=")[0] for word in faults.split() if not word.startswith(("after", "every", "kind"))
        }
        return [number - received[0] for number in received]


async def test_drop_skips_ticks(venue: Any, client: Any) -> None:
    assert await ids_received(venue, client, "after=3 drop=2", 18) == [0, 1, 2, *range(5, 20)]


async def test_drop_every_n_ticks(venue: Any, client: Any) -> None:
    assert await ids_received(venue, client, "every=5 drop=1", 17) == [
        number for number in range(20) if number not in (5, 10, 15)
    ]


async def test_duplicate_sends_ticks_twice(venue: Any, client: Any) -> None:
    assert await ids_received(venue, client, "after=2 duplicate=2", 22) == [0, 1, 2, 2, 3, 3, *range(4, 20)]


async def test_reorder_swaps_adjacent_ticks(venue: Any, client: Any) -> None:
    assert await ids_received(venue, client, "after=1 reorder=2", 20) == [0, 2, 1, 4, 3, *range(5, 20)]


@pytest.mark.parametrize(("fault", "last"), [("jump=1000", 1019), ("reset=7", 7 + 9)])
async def test_jump_and_reset_renumber_ids(venue: Any, client: Any, fault: str, last: int) -> None:
    async with (
        venue(**ONLY, speed="max", limit=20, faults=f"after=10 {fault}") as sim,
        sim.connect(TRADES) as socket,
    ):
        received = [frame["data"]["t"] for frame in await client(socket).take(20)]
        start = received[0] if fault.startswith("jump") else 0
        assert received[:10] == list(range(received[0], received[0] + 10))
        assert received[10:] == list(range(start + last - 9, start + last + 1))
        assert [int(tick["id"]) for tick in sim.ticks()] == received


async def test_corrupt_and_seconds_leave_the_ledger_intact(venue: Any, client: Any) -> None:
    async with (
        venue(**ONLY, speed="max", limit=4, faults="after=1 corrupt=1; after=2 seconds=1") as sim,
        sim.connect(TRADES) as socket,
    ):
        before, corrupt, seconds, after = [frame["data"] for frame in await client(socket).take(4)]
        assert corrupt["p"] == "abc"
        assert [tick["fault"] for tick in sim.ticks()] == [None, "corrupt", "seconds", None]
        assert sim.ticks()[1]["price"] != "abc"
        assert len(str(seconds["T"])) == 10
        assert len(str(before["T"])) == len(str(after["T"])) == 13


async def test_junk_frames_have_the_requested_kind_and_size(venue: Any, client: Any) -> None:
    async with venue(**ONLY, speed="max", limit=1) as sim, sim.connect(TRADES) as socket:
        me = client(socket)
        await me.take(1)
        assert sim.command("garbage=3; binary=2; huge=3MB") == "ok garbage=3; binary=2; huge=3MB"
        for _ in range(3):
            text = await me.raw()
            assert isinstance(text, str)
            with pytest.raises(json.JSONDecodeError):
                json.loads(text + "]x")
        assert [type(await me.raw()) for _ in range(2)] == [bytes, bytes]
        assert len(await me.raw()) == 3 << 20
        assert [event["fault"] for event in sim.events("fault")] == ["garbage=3", "binary=2", "huge=3MB"]


async def test_mute_stops_data_but_not_answers(venue: Any, client: Any) -> None:
    async with venue(**PACED) as sim, sim.connect(TRADES) as socket:
        me = client(socket)
        await me.take(5)
        sim.command("mute=400ms")
        await me.send({"method": "LIST_SUBSCRIPTIONS", "id": 9})
        frames = [await me.next()]
        while "result" not in frames[-1]:
            frames.append(await me.next())
        after = await me.next()  # once the mute is over
        muted = [tick for tick in sim.ticks() if tick["fault"] == "mute"]
        assert len(muted) > 50
        assert {tick["sent"] for tick in muted} == {False}
        assert str(after["data"]["t"]) == str(int(muted[-1]["id"]) + 1)


async def test_market_at_max_pauses_during_a_mute(venue: Any, client: Any) -> None:
    async with (
        venue(**ONLY, speed="max", limit=20, faults="after=5 mute=200ms") as sim,
        sim.connect(TRADES) as socket,
    ):
        received = [frame["data"]["t"] for frame in await client(socket).take(20)]
        assert received == list(range(received[0], received[0] + 20))
        assert sim.ticks()[5]["at"] - sim.ticks()[4]["at"] >= 0.2e9


async def test_new_connection_is_not_affected_by_mute_connection(venue: Any, client: Any) -> None:
    async with venue(**PACED) as sim, sim.connect(TRADES) as socket:
        await client(socket).take(1)
        sim.command("mute-connection=1h")
        async with sim.connect(TRADES) as second:
            await client(second).take(5)
        assert sim.ticks()[-1]["fault"] in (None, "mute")
        assert [tick["to"] for tick in sim.ticks() if tick["sent"]][-1] == [2]


async def test_close_sends_code_and_reason(venue: Any, client: Any) -> None:
    async with (
        venue(**PACED, faults="after=10 close=4001 reason=going down") as sim,
        sim.connect(TRADES) as socket,
    ):
        with pytest.raises(ConnectionClosed) as closed:
            await client(socket).take(1000)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "going down")
        await sim.until(lambda: sim.events("close"))
        assert [event["sent_code"] for event in sim.events("close")] == [4001]


async def test_cut_sends_no_close_frame(venue: Any, client: Any) -> None:
    async with venue(**PACED) as sim, sim.connect(TRADES) as socket:
        await client(socket).take(1)
        sim.command("cut")
        with pytest.raises(ConnectionClosed) as closed:
            await client(socket).take(1000)
        assert closed.value.rcvd is None


async def test_nothing_is_sent_to_a_cut_connection(venue: Any, client: Any) -> None:
    async with (
        venue(**ONLY, speed="max", limit=400, faults="after=100 cut") as sim,
        sim.connect(TRADES) as socket,
    ):
        with pytest.raises(ConnectionClosed):
            await client(socket).take(400)
        async with sim.connect(TRADES) as second:
            await client(second).take(300)  # the market was paused meanwhile
        assert [tick["to"] for tick in sim.ticks()] == [[1]] * 100 + [[2]] * 300


async def test_half_open_connection_sends_nothing(venue: Any, client: Any) -> None:
    async with venue(**PACED) as sim, sim.connect(TRADES, close_timeout=0.2) as socket:
        me = client(socket)
        await me.take(1)
        sim.command("half-open")
        await sim.until(lambda: sim.ticks()[-1]["fault"] == "half-open")
        sent = sum(tick["sent"] for tick in sim.ticks())
        await me.take(sent - 1)
        pong = await socket.ping()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.wait(
                    (pong, asyncio.ensure_future(socket.recv())), return_when=asyncio.FIRST_COMPLETED
                )


async def test_refuse_ends_after_its_duration(venue: Any) -> None:
    async with venue() as sim:
        sim.command("refuse=300ms")
        with pytest.raises(InvalidStatus) as caught:
            async with sim.connect("/ws"):
                pass
        assert caught.value.response.status_code == 503

        async def is_served() -> bool:
            try:
                async with sim.connect("/ws"):
                    return True
            except InvalidStatus:
                return False

        await until_async(is_served, 5)
        assert sim.events("refuse")[0]["status"] == 503


async def test_caps_change_at_run_time(venue: Any, client: Any) -> None:
    async with venue() as sim, sim.connect("/stream") as socket:
        sim.command("max-connections=1; symbol-cap=2")
        with pytest.raises(InvalidStatus):
            async with sim.connect("/stream"):
                pass
        answer = await client(socket).request(
            {"method": "SUBSCRIBE", "params": ["a@trade", "b@trade", "c@trade"], "id": 1}
        )
        assert answer["error"]["code"] == 4


async def test_slow_down_answers_as_the_vendor_and_closes(venue: Any, client: Any) -> None:
    async with (
        venue() as sim,
        sim.connect("/quote-b-ws-api?token=t") as alltick,
        sim.connect("/ws") as binance,
    ):
        await sim.until(lambda: sim.command("status").split()[2] == "connections=2")
        sim.command("slow-down")
        assert (await client(alltick).next())["ret"] == 606
        assert (await client(binance).next())["error"]["code"] == -1003
        for socket in (alltick, binance):
            with pytest.raises(ConnectionClosed):
                await client(socket).raw()


async def test_shutdown_is_announced_before_the_close(venue: Any, client: Any) -> None:
    async with venue() as sim, sim.connect("/stream") as socket:
        await sim.until(lambda: sim.command("status").split()[2] == "connections=1")
        sim.command("shutdown=100ms")
        assert (await client(socket).next())["stream"] == "!serverShutdown"
        with pytest.raises(ConnectionClosed) as closed:
            await client(socket).raw()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


async def test_fault_at_a_time(venue: Any, client: Any) -> None:
    async with venue(**PACED, faults="at=200ms jump=5000") as sim, sim.connect(TRADES) as socket:
        me = client(socket)
        received: list[int] = []
        while len(received) < 2 or received[-1] - received[-2] == 1:
            received.append((await me.next())["data"]["t"])
        assert received[-1] - received[-2] == 5001
        (start,), (fault,) = sim.events("start"), sim.events("fault")
        assert 0.2e9 <= fault["at"] - start["at"] < 2e9


async def test_each_command_is_answered_by_one_line(venue: Any) -> None:
    async with venue() as sim:
        assert sim.command("status") == "ok ticks=0 connections=0 slow=0 ended=false"
        assert sim.command("after=5 drop=1") == "ok after=5 drop=1"
        for invalid in ("", "nonsense=1", "drop", "close=1", "\x00"):
            answer = sim.command(invalid)
            assert answer.startswith("error: ")
            assert "\n" not in answer


async def test_ids_continue_across_a_reconnect(venue: Any, client: Any) -> None:
    """Ticks that a clock-driven market sends meanwhile are missed; the ledger has them as sent to nobody."""
    async with venue(**PACED) as sim:
        received = []
        for _ in range(2):
            async with sim.connect(TRADES) as socket:
                received += [frame["data"]["t"] for frame in await client(socket).take(5)]
            await sim.until(lambda: sim.ticks() and not sim.ticks()[-1]["sent"])
        ids = [int(tick["id"]) for tick in sim.ticks()]
        assert all(after - before == 1 for before, after in pairwise(ids))
        assert set(received) <= {int(tick["id"]) for tick in sim.ticks() if tick["sent"]}
