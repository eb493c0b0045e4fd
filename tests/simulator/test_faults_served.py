"""Every fault, as a client meets it."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

TRADES = "/stream?streams=btcusdt@trade"
ONLY = {"symbols": ("BTCUSDT",), "quotes_per_trade": 0}
PACED = ONLY | {"speed": "1", "rate": 500}


async def ids(venue: Any, client: Any, faults: str, count: int) -> list[int]:
    """The trade ids of a client, less the first undisturbed one."""
    async with venue(**ONLY, speed="max", limit=20, faults=faults) as it, it.connect(TRADES) as socket:
        seen = [frame["data"]["t"] for frame in await client(socket).take(count)]
        told = [int(tick["id"]) for tick in it.ticks() if tick["sent"]]
        assert told == seen  # the ledger has the same, in the same order
        assert {tick["fault"] for tick in it.ticks()} == {None} | {
            word.split("=")[0] for word in faults.split() if not word.startswith(("after", "every", "kind"))
        }
        return [number - seen[0] for number in seen]


async def test_drop(venue: Any, client: Any) -> None:
    assert await ids(venue, client, "after=3 drop=2", 18) == [0, 1, 2, *range(5, 20)]


async def test_drop_again_and_again(venue: Any, client: Any) -> None:
    assert await ids(venue, client, "every=5 drop=1", 17) == [
        0,
        1,
        2,
        3,
        4,
        6,
        7,
        8,
        9,
        11,
        12,
        13,
        14,
        16,
        17,
        18,
        19,
    ]


async def test_duplicate(venue: Any, client: Any) -> None:
    assert await ids(venue, client, "after=2 duplicate=2", 22) == [0, 1, 2, 2, 3, 3, *range(4, 20)]


async def test_reorder(venue: Any, client: Any) -> None:
    assert await ids(venue, client, "after=1 reorder=2", 20) == [0, 2, 1, 4, 3, *range(5, 20)]


@pytest.mark.parametrize(("fault", "last"), [("jump=1000", 1019), ("reset=7", 7 + 9)])
async def test_sequence(venue: Any, client: Any, fault: str, last: int) -> None:
    async with (
        venue(**ONLY, speed="max", limit=20, faults=f"after=10 {fault}") as it,
        it.connect(TRADES) as socket,
    ):
        seen = [frame["data"]["t"] for frame in await client(socket).take(20)]
        start = seen[0] if fault.startswith("jump") else 0
        assert seen[:10] == list(range(seen[0], seen[0] + 10))
        assert seen[10:] == list(range(start + last - 9, start + last + 1))
        assert [int(tick["id"]) for tick in it.ticks()] == seen


async def test_corrupt_and_seconds(venue: Any, client: Any) -> None:
    async with (
        venue(**ONLY, speed="max", limit=4, faults="after=1 corrupt=1; after=2 seconds=1") as it,
        it.connect(TRADES) as socket,
    ):
        whole, broken, seconds, after = [frame["data"] for frame in await client(socket).take(4)]
        assert broken["p"] == "abc"
        assert [tick["fault"] for tick in it.ticks()] == [None, "corrupt", "seconds", None]
        assert it.ticks()[1]["price"] != "abc"
        assert len(str(seconds["T"])) == 10
        assert len(str(whole["T"])) == len(str(after["T"])) == 13


async def test_junk_frames(venue: Any, client: Any) -> None:
    async with venue(**ONLY, speed="max", limit=1) as it, it.connect(TRADES) as socket:
        me = client(socket)
        await me.take(1)
        assert it.tell("garbage=3; binary=2; huge=3MB") == "ok garbage=3; binary=2; huge=3MB"
        for _ in range(3):
            text = await me.raw()
            assert isinstance(text, str)
            with pytest.raises(json.JSONDecodeError):
                json.loads(text + "]x")
        assert [type(await me.raw()) for _ in range(2)] == [bytes, bytes]
        assert len(await me.raw()) == 3 << 20
        assert [event["fault"] for event in it.events("fault")] == ["garbage=3", "binary=2", "huge=3MB"]


async def test_mute_answers_but_sends_nothing(venue: Any, client: Any) -> None:
    async with venue(**PACED) as it, it.connect(TRADES) as socket:
        me = client(socket)
        await me.take(5)
        it.tell("mute=400ms")
        await me.say({"method": "LIST_SUBSCRIPTIONS", "id": 9})
        frames = [await me.next()]
        while "result" not in frames[-1]:
            frames.append(await me.next())
        after = await me.next()  # when the mute is over
        muted = [tick for tick in it.ticks() if tick["fault"] == "mute"]
        assert len(muted) > 50
        assert {tick["sent"] for tick in muted} == {False}
        assert str(after["data"]["t"]) == str(int(muted[-1]["id"]) + 1)


async def test_a_market_at_max_stands_still_in_a_mute(venue: Any, client: Any) -> None:
    async with (
        venue(**ONLY, speed="max", limit=20, faults="after=5 mute=200ms") as it,
        it.connect(TRADES) as socket,
    ):
        seen = [frame["data"]["t"] for frame in await client(socket).take(20)]
        assert seen == list(range(seen[0], seen[0] + 20))
        assert it.ticks()[5]["at"] - it.ticks()[4]["at"] >= 0.2e9


async def test_a_new_connection_heals_a_mute_of_connections(venue: Any, client: Any) -> None:
    async with venue(**PACED) as it, it.connect(TRADES) as socket:
        await client(socket).take(1)
        it.tell("mute-connection=1h")
        async with it.connect(TRADES) as second:
            await client(second).take(5)
        assert it.ticks()[-1]["fault"] in (None, "mute")
        assert [tick["to"] for tick in it.ticks() if tick["sent"]][-1] == [2]


async def test_close_with_a_code_and_a_reason(venue: Any, client: Any) -> None:
    async with (
        venue(**PACED, faults="after=10 close=4001 reason=going down") as it,
        it.connect(TRADES) as socket,
    ):
        with pytest.raises(ConnectionClosed) as closed:
            await client(socket).take(1000)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "going down")
        await it.until(lambda: it.events("close"))
        assert [event["sent_code"] for event in it.events("close")] == [4001]


async def test_cut_is_a_reset_without_a_close_frame(venue: Any, client: Any) -> None:
    async with venue(**PACED) as it, it.connect(TRADES) as socket:
        await client(socket).take(1)
        it.tell("cut")
        with pytest.raises(ConnectionClosed) as closed:
            await client(socket).take(1000)
        assert closed.value.rcvd is None


async def test_nothing_is_sent_to_a_connection_that_was_cut(venue: Any, client: Any) -> None:
    async with (
        venue(**ONLY, speed="max", limit=400, faults="after=100 cut") as it,
        it.connect(TRADES) as socket,
    ):
        with pytest.raises(ConnectionClosed):
            await client(socket).take(400)
        async with it.connect(TRADES) as second:
            await client(second).take(300)  # the market stood still meanwhile
        assert [tick["to"] for tick in it.ticks()] == [[1]] * 100 + [[2]] * 300


async def test_half_open_says_nothing_any_more(venue: Any, client: Any) -> None:
    async with venue(**PACED) as it, it.connect(TRADES, close_timeout=0.2) as socket:
        me = client(socket)
        await me.take(1)
        it.tell("half-open")
        await it.until(lambda: it.ticks()[-1]["fault"] == "half-open")
        sent = sum(tick["sent"] for tick in it.ticks())
        await me.take(sent - 1)
        pong = await socket.ping()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.wait(
                    (pong, asyncio.ensure_future(socket.recv())), return_when=asyncio.FIRST_COMPLETED
                )


async def test_refuse_for_a_time(venue: Any) -> None:
    async with venue() as it:
        it.tell("refuse=300ms")
        with pytest.raises(InvalidStatus) as caught:
            async with it.connect("/ws"):
                pass
        assert caught.value.response.status_code == 503
        async with asyncio.timeout(5):
            while True:
                try:
                    async with it.connect("/ws"):
                        break
                except InvalidStatus:
                    await asyncio.sleep(0.01)
        assert it.events("refuse")[0]["status"] == 503


async def test_caps_at_run_time(venue: Any, client: Any) -> None:
    async with venue() as it, it.connect("/stream") as socket:
        it.tell("max-connections=1; symbol-cap=2")
        with pytest.raises(InvalidStatus):
            async with it.connect("/stream"):
                pass
        answer = await client(socket).ask(
            {"method": "SUBSCRIBE", "params": ["a@trade", "b@trade", "c@trade"], "id": 1}
        )
        assert answer["error"]["code"] == 4


async def test_slow_down(venue: Any, client: Any) -> None:
    async with venue() as it, it.connect("/quote-b-ws-api?token=t") as alltick, it.connect("/ws") as binance:
        await it.until(lambda: it.tell("status").split()[2] == "connections=2")
        it.tell("slow-down")
        assert (await client(alltick).next())["ret"] == 606
        assert (await client(binance).next())["error"]["code"] == -1003
        for socket in (alltick, binance):
            with pytest.raises(ConnectionClosed):
                await client(socket).raw()


async def test_server_shutdown(venue: Any, client: Any) -> None:
    async with venue() as it, it.connect("/stream") as socket:
        await it.until(lambda: it.tell("status").split()[2] == "connections=1")
        it.tell("shutdown=100ms")
        assert (await client(socket).next())["stream"] == "!serverShutdown"
        with pytest.raises(ConnectionClosed) as closed:
            await client(socket).raw()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


async def test_faults_by_the_clock(venue: Any, client: Any) -> None:
    async with venue(**PACED, faults="at=200ms jump=5000") as it, it.connect(TRADES) as socket:
        me, seen = client(socket), []
        while len(seen) < 2 or seen[-1] - seen[-2] == 1:
            seen.append((await me.next())["data"]["t"])
        assert seen[-1] - seen[-2] == 5001
        (start,), (fault,) = it.events("start"), it.events("fault")
        assert 0.2e9 <= fault["at"] - start["at"] < 2e9


async def test_commands_are_answered_in_one_line(venue: Any) -> None:
    async with venue() as it:
        assert it.tell("status") == "ok ticks=0 connections=0 slow=0 ended=false"
        assert it.tell("after=5 drop=1") == "ok after=5 drop=1"
        for wrong in ("", "nonsense=1", "drop", "close=1", "\x00"):
            answer = it.tell(wrong)
            assert answer.startswith("error: ")
            assert "\n" not in answer


async def test_ids_go_on_over_a_reconnect(venue: Any, client: Any) -> None:
    """What a clock-driven market sends meanwhile is a hole; it is in the ledger as sent to nobody."""
    async with venue(**PACED) as it:
        seen = []
        for _ in range(2):
            async with it.connect(TRADES) as socket:
                seen += [frame["data"]["t"] for frame in await client(socket).take(5)]
            await it.until(lambda: it.ticks() and not it.ticks()[-1]["sent"])
        every = [int(tick["id"]) for tick in it.ticks()]
        assert all(after - before == 1 for before, after in pairwise(every))
        assert set(seen) <= {int(tick["id"]) for tick in it.ticks() if tick["sent"]}
