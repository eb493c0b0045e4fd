"""Wants on a real Redis: how long they live, what ends them, and that they cost a reader no tick."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Collection

import pytest
from support.bus import Server
from support.cluster import RedisCluster
from support.redis_server import RedisServer
from support.waiting import until, until_async
from support.writing import KEYS, Writer

import tickbus
from tickbus.errors import ConfigError, RedisMisconfigured
from tickbus.protocol.messages import Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.protocol.wants import SubscriptionState, Topic
from tickbus.wants import Want

PREFIX = "own"
OWN = Keys(PREFIX)
FEED = "venue"


def wants_of(server: Server, holder: str, keys: Keys = OWN) -> dict[str, int]:
    stored = server.client.hgetall(keys.wants(FEED, holder))
    return {field.decode(): int(since) for field, since in stored.items()}


def holders(server: Server, keys: Keys = OWN) -> dict[str, int]:
    """Return the score of each holder."""
    scores = server.client.zrange(keys.holders(FEED), 0, -1, withscores=True)
    return {name.decode(): int(score) for name, score in scores}


def ttl(server: Server, holder: str, keys: Keys = OWN) -> int:
    return int(server.client.execute_command("PTTL", keys.wants(FEED, holder)))


def want(server: Server, *symbols: str, lease: str = "15s", kind: str | Collection[str] = "trade") -> Want:
    return tickbus.connect(server.url, prefix=PREFIX).want(
        kind, symbols=symbols, feed=FEED, name="app", lease=lease
    )


class Flushed:
    """Ways in which Redis loses what it had."""

    @staticmethod
    def flush(server: RedisServer) -> None:
        server.client.flushall()

    @staticmethod
    def restart_empty(server: RedisServer) -> None:
        server.kill()
        server.truncate_log(0)
        server.start()


def test_a_want_stands_in_redis_while_it_is_open(redis_server: RedisServer) -> None:
    before = time.time_ns() // 1_000_000
    with want(redis_server, "A-B", "C.US", kind=["trade", "quote"]) as wanted:
        stored = wants_of(redis_server, wanted.holder)
        assert set(stored) == {"trade A-B", "trade C.US", "quote A-B", "quote C.US"}
        assert all(before <= since <= time.time_ns() // 1_000_000 for since in stored.values())
        assert 0 < ttl(redis_server, wanted.holder) <= 15_000
        assert wanted.holder.startswith("app-")
        score = holders(redis_server)[wanted.holder]

        wanted.add(["D-E"])
        until(lambda: "trade D-E" in wants_of(redis_server, wanted.holder))
        until(lambda: holders(redis_server)[wanted.holder] > score)
        assert stored.items() <= wants_of(redis_server, wanted.holder).items(), "since when does not change"

        score = holders(redis_server)[wanted.holder]
        wanted.drop(["A-B", "C.US"], kind=["quote"])
        until(lambda: set(wants_of(redis_server, wanted.holder)) == {"trade A-B", "trade C.US", "trade D-E"})
        until(lambda: holders(redis_server)[wanted.holder] > score)
    assert wants_of(redis_server, wanted.holder) == {}
    assert holders(redis_server) == {}


def test_what_is_dropped_and_wanted_again_at_once_stands(redis_server: RedisServer) -> None:
    with want(redis_server, "A-B") as wanted:
        for _ in range(50):
            wanted.drop(["A-B"])
            wanted.add(["A-B", "C-D"])
            wanted.drop(["C-D"])
        wanted.add(["E-F"])
        until(lambda: set(wants_of(redis_server, wanted.holder)) == {"trade A-B", "trade E-F"})
        # the hash is gone when its last field is: the next add makes it anew, with an end
        wanted.drop(["A-B", "E-F"])
        until(lambda: wants_of(redis_server, wanted.holder) == {})
        wanted.add(["A-B"])
        until(lambda: set(wants_of(redis_server, wanted.holder)) == {"trade A-B"})
        until(lambda: ttl(redis_server, wanted.holder) > 0)


def test_a_busy_event_loop_does_not_end_a_want(redis_server: RedisServer) -> None:
    async def main() -> None:
        async with want(redis_server, "A-B", lease="1s") as wanted:
            end = time.monotonic() + 2.5
            lived = 0
            while time.monotonic() < end:  # nothing else runs on this loop
                assert wants_of(redis_server, wanted.holder), "the want ended"
                lived += 1
            assert lived > 10

    asyncio.run(main())


_HOLDER = """
import sys, time, tickbus
with tickbus.connect(sys.argv[1], prefix="own").want(
    "trade", symbols=["A-B"], feed="venue", name="app", lease="1s"
) as wanted:
    print(wanted.holder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holding(redis_server: RedisServer) -> Callable[[], tuple["subprocess.Popen[str]", str]]:
    def begin() -> tuple["subprocess.Popen[str]", str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, redis_server.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    return begin


def test_the_wants_of_a_killed_process_end_by_themselves(
    holding: Callable[[], tuple["subprocess.Popen[str]", str]], redis_server: RedisServer
) -> None:
    process, holder = holding()
    assert set(wants_of(redis_server, holder)) == {"trade A-B"}
    process.kill()
    process.communicate()
    assert ttl(redis_server, holder) <= 1_000
    until(lambda: wants_of(redis_server, holder) == {}, 5)


def test_the_wants_of_a_process_that_ends_end_at_once(
    holding: Callable[[], tuple["subprocess.Popen[str]", str]], redis_server: RedisServer
) -> None:
    process, holder = holding()
    process.communicate("\n", timeout=20)
    assert process.returncode == 0
    assert (wants_of(redis_server, holder), holders(redis_server)) == ({}, {})


@pytest.mark.parametrize("lose", [Flushed.flush, Flushed.restart_empty])
def test_wants_that_redis_lost_come_back(
    lose: Callable[[RedisServer], None], redis_server: RedisServer
) -> None:
    with want(redis_server, "A-B", lease="1s") as wanted:
        wanted.add(["C-D"])
        until(lambda: len(wants_of(redis_server, wanted.holder)) == 2)
        before = wants_of(redis_server, wanted.holder)
        score = holders(redis_server)[wanted.holder]
        lose(redis_server)
        until(lambda: wants_of(redis_server, wanted.holder) == before)
        until(lambda: holders(redis_server).get(wanted.holder, 0) > score)


def test_a_want_that_begins_while_redis_is_away_is_told_later(redis_server: RedisServer) -> None:
    redis_server.stop()
    with want(redis_server, "A-B") as wanted:
        redis_server.start()
        until(lambda: set(wants_of(redis_server, wanted.holder)) == {"trade A-B"})
    assert holders(redis_server) == {}


def test_a_want_that_is_lost_without_being_left_ends(redis_server: RedisServer) -> None:
    wanted = want(redis_server, "A-B")
    wanted.open()
    holder = wanted.holder
    assert wants_of(redis_server, holder)
    del wanted
    until(lambda: wants_of(redis_server, holder) == {})


def test_a_want_that_has_ended_does_not_begin_again_in_silence(redis_server: RedisServer) -> None:
    with want(redis_server, "A-B") as wanted:
        pass
    for again in (wanted.open, lambda: wanted.add(["C-D"])):
        with pytest.raises(ConfigError, match="this want has ended: make a new one"):
            again()


def test_wants_on_a_cluster(redis_cluster: RedisCluster) -> None:
    with want(redis_cluster, "A-B", "C-D", lease="1s") as wanted:
        assert set(wants_of(redis_cluster, wanted.holder)) == {"trade A-B", "trade C-D"}
        redis_cluster.flush()
        until(lambda: set(wants_of(redis_cluster, wanted.holder)) == {"trade A-B", "trade C-D"})
        redis_cluster.fail_over(OWN.holders(FEED))
        wanted.add(["E-F"])
        until(lambda: set(wants_of(redis_cluster, wanted.holder)) >= {"trade E-F"})
    until(lambda: wants_of(redis_cluster, wanted.holder) == {}, 5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"kind": "bar"}, "invalid kind 'bar': expected trade or quote"),
        ({"symbols": "A-B"}, "invalid symbols 'A-B': expected a list"),
        ({"symbols": []}, r"invalid symbols \[\]: expected a list"),
        ({"symbols": ["a b"]}, "invalid symbol 'a b'"),
        ({"symbols": ["*"]}, r"invalid symbol '\*'"),
        ({"feed": "a b"}, "invalid name 'a b'"),
        ({"name": "a:b"}, "invalid holder 'a:b-"),
        ({"name": "#read"}, "invalid holder '#read-"),
        ({"lease": "5x"}, "lease: invalid duration '5x'"),
        ({"lease": "500ms"}, "invalid lease of 500 ms: expected 1s to 30s"),
        ({"lease": "1m"}, "invalid lease of 60000 ms: expected 1s to 30s"),
    ],
)
def test_invalid_arguments_are_one_clear_line(arguments: dict[str, object], error: str) -> None:
    valid: dict[str, object] = {"kind": "trade", "symbols": ["A-B"], "feed": FEED}
    with pytest.raises(ConfigError, match=f"^{error}.*") as raised:
        tickbus.connect("redis://127.0.0.1:1").want(**(valid | arguments))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_user_who_may_not_want_is_told_so(redis_server: RedisServer) -> None:
    redis_server.client.execute_command(
        "ACL", "SETUSER", "app1", "on", ">secret", "~own:{wants:venue}", "~own:{wants:venue}:app1*", "+@all"
    )
    url = redis_server.url.replace("127.0.0.1", "app1:secret@127.0.0.1")
    bus = tickbus.connect(url, prefix=PREFIX)
    with bus.want("trade", symbols=["A-B"], feed=FEED, name="app1") as wanted:
        assert wants_of(redis_server, wanted.holder)
    with (
        pytest.raises(RedisMisconfigured, match="ermission"),
        bus.want("trade", symbols=["A-B"], feed=FEED, name="app2"),
    ):
        pass
    until(lambda: not any(name.startswith("app2") for name in holders(redis_server)))


async def test_read_with_want_misses_no_tick_of_a_returning_stream(redis_server: RedisServer) -> None:
    """The gateway writes as soon as it sees the want: that must not come before the reader's position."""
    writer = await Writer(redis_server.url, owner=FEED).open()
    await writer.write(1, 2, 3)
    async with tickbus.connect(redis_server.url) as bus:
        subscription = bus.read("trade", symbols=["A", "B"], feeds=[FEED], want=True)
        found: list[tuple[str, str]] = []

        async def read() -> None:
            async for trade in subscription:
                assert isinstance(trade, Trade)
                found.append((trade.symbol, trade.price_text))

        reading = asyncio.create_task(read())
        name = KEYS.holders(FEED)
        await until_async(lambda: redis_server.client.execute_command("ZCARD", name))
        await writer.write(4, 5)
        await writer.write(1, 2, symbol="B")
        await until_async(lambda: len(found) == 4)
        assert sorted(found) == [("A", "4"), ("A", "5"), ("B", "1"), ("B", "2")]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until_async(lambda: not redis_server.client.execute_command("ZCARD", name))
    writer.close()


async def test_read_with_want_names_the_feeds_if_that_is_not_clear(redis_server: RedisServer) -> None:
    (await Writer(redis_server.url).open()).close()
    async with tickbus.connect(redis_server.url) as bus:
        with pytest.raises(ConfigError, match="feeds must be given with want=True: the bus has none yet"):
            await anext(aiter(bus.read("trade", symbols=["A"], want=True)))
        with pytest.raises(ConfigError, match="invalid symbols"):
            bus.read("trade", want=True)  # every symbol there is cannot be wanted


async def test_subscriptions_are_the_states_that_a_gateway_stored(redis_server: RedisServer) -> None:
    states = {
        Topic("trade", "A-B"): SubscriptionState("active", 5, "", True),
        Topic("quote", "A-B"): SubscriptionState("refused", 6, "cap of 1 symbols reached"),
        Topic("trade", "C-D"): SubscriptionState("lingering", 7),
    }
    for topic, state in states.items():
        key = OWN.subscriptions(OWN.shard(topic.symbol), FEED)
        redis_server.client.hset(key, topic.field, state.encode().decode())
        redis_server.client.hset(key, "nonsense", "1")
        redis_server.client.hset(key, "trade X-Y", "not JSON")
    async with tickbus.connect(redis_server.url, prefix=PREFIX) as bus:
        assert await bus.subscriptions(FEED) == {
            Stream(topic.kind, FEED, topic.symbol): state for topic, state in states.items()
        }
        with pytest.raises(ConfigError, match="invalid name"):
            await bus.subscriptions("a b")
