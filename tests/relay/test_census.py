"""What a relay says of itself and its clients: metrics, `/api/status`, its report for `tickbus status`."""

import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from relay.test_delivery import Bench, FakeSink, trade
from relay.test_server import TOKEN, get, token_row
from support.cluster import RedisCluster
from support.paths import ROOT
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.relay import RelayClient, start_relay
from support.waiting import until
from support.writing import Writer
from websockets.asyncio.client import connect

from services.relay.delivery import DroppingSubscription, Subscription
from tickbus.monitoring.relays import MAX_LISTED, RelayReport, read_relays, write_relay
from tickbus.monitoring.relays import RelayClient as Listed
from tickbus.protocol.names import Keys
from tickbus.redis.topology import locate

Start = Callable[..., Process]


@pytest.fixture
async def writer(redis_server: RedisServer) -> AsyncIterator[Writer]:
    opened = await Writer(redis_server.url).open()
    await opened.write(1, 2, 3)
    yield opened
    opened.close()


def status_of(redis: RedisServer) -> list[Any]:
    done = tickbus("status", "--redis", redis.url, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["relays"]  # type: ignore[no-any-return]


async def test_metrics_say_what_clients_got(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    relay, url = start_relay(start, redis_server.url)
    async with RelayClient(url) as whole, RelayClient(url) as conflated, connect(f"{url}/ws") as vendor:
        await whole.say(op="subscribe", id=1, symbols=["A"], **{"from": "start"})
        await whole.data(3)
        await conflated.ask(op="subscribe", id=1, symbols=["A"], policy="conflate", rate=20)
        await conflated.ask(op="nonsense")
        await writer.write(4, 5)
        await whole.data(2)
        await conflated.data(1)

        def counted() -> bool:
            return relay.metric("tickbus_relay_elements_total", policy="lossless") == 5

        until(counted, what="the next census")
        assert relay.metric("tickbus_relay_elements_total", policy="conflate") >= 1
        assert relay.metric("tickbus_relay_history_entries_total") == 3
        assert relay.metric("tickbus_relay_history_pages_total") == 1
        assert relay.metric("tickbus_relay_request_errors_total") == 1
        assert relay.metric("tickbus_relay_subscriptions", policy="conflate") == 1
        assert relay.metric("tickbus_relay_dialect_clients", vendor="binance") == 1
        for policy in ("lossless", "conflate"):
            assert relay.metric("tickbus_relay_delivery_seconds_count", policy=policy) >= 1
            assert relay.metric("tickbus_relay_delivery_seconds_sum", policy=policy) < 60
        await vendor.close(1001)
    assert get(url, "/nothing")[0] == 404
    until(lambda: relay.metric("tickbus_relay_closed_total", code="1000") == 2, what="both are counted")
    assert relay.metric("tickbus_relay_closed_total", code="1001") == 1
    assert relay.metric("tickbus_relay_http_responses_total", status="404") == 1
    # subscriptions that have ended stay counted
    assert relay.metric("tickbus_relay_elements_total", policy="lossless") == 5


async def test_status_lists_relays_and_their_clients(
    redis_server: RedisServer, start: Start, writer: Writer, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_row("desk", TOKEN))
    relay, url = start_relay(start, redis_server.url, "--tokens", str(tokens))
    other, other_url = start_relay(start, redis_server.url)
    async with connect(f"{url}/v1?token={TOKEN}") as client, RelayClient(other_url):
        for id, policy in enumerate(("lossless", "drop", "drop")):
            await client.send(json.dumps({"op": "subscribe", "id": id, "policy": policy}))
            await client.recv()

        def listed() -> dict[str, Any] | None:
            relays = {each["url"]: each for each in status_of(redis_server)}
            ready = relays.keys() == {url, other_url} and all(each["clients"] for each in relays.values())
            return relays if ready and relays[url]["subscriptions"] else None

        found = until(listed, what="both relays are listed")
        assert found[url]["listed"] == [
            {
                "name": "desk", "address": "127.0.0.1", "protocol": "tickbus.json",
                "subscriptions": {"lossless": 1, "drop": 2}, "in_flight": 0, "oldest": None, "dropped": 0,
            "wants": 0,
            }
        ]  # fmt: skip
        assert found[other_url]["listed"][0]["name"] == "anonymous"
        shown = tickbus("status", "--redis", redis_server.url).stdout
        assert "desk" in shown
        assert "drop 2, lossless 1" in shown
        reports = [
            redis_server.client.get(key)
            for key in redis_server.client.execute_command("KEYS", "tickbus:relay:*")
        ]
        assert len(reports) == 2
        assert TOKEN not in shown + str(reports) + relay.output
        # names of clients only where everybody may read everything
        assert "listed" in json.loads(get(other_url, "/api/status")[1])
        status = json.loads(get(url, "/api/status", Authorization=f"Bearer {TOKEN}")[1])
        assert status["subscriptions"] == {"lossless": 1, "drop": 2}
        assert "listed" not in status
    assert relay.stop() == 0
    assert [each["url"] for each in status_of(redis_server)] == [other_url]
    other.kill()
    until(lambda: not status_of(redis_server), what="the report of a killed relay expires")


async def test_client_that_does_not_read_is_shown_with_its_lag(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    _, url = start_relay(start, redis_server.url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = url.removeprefix("ws://").split(":")
    sock.connect((host, int(port)))
    async with RelayClient(url, sock=sock, max_queue=1, close_timeout=0) as slow, RelayClient(url) as fast:
        for client in (slow, fast):
            await client.ask(op="subscribe", id=1, symbols=["A"])
        await writer.write(*range(4, 3_000))

        def lagging() -> dict[str, Any] | None:
            clients = [one for relay in status_of(redis_server) for one in relay["listed"]]
            return clients[0] if len(clients) == 2 and clients[0]["oldest"] else None

        worst = until(lagging, what="the lag is reported")
        assert worst["in_flight"] > 10_000
        slow.socket.transport.abort()


async def test_readiness_follows_redis(redis_server: RedisServer, start: Start, writer: Writer) -> None:
    relay, url = start_relay(start, redis_server.url)
    relay.wait_ready()
    redis_server.kill()
    until(lambda: relay.get("/readyz") == (503, "Redis is unavailable\n"), what="the outage is reported")
    assert json.loads(get(url, "/api/status")[1])["up"] is False
    redis_server.start()
    relay.wait_ready()
    assert json.loads(get(url, "/api/status")[1])["up"] is True


async def test_reports_are_bounded_and_what_is_none_is_a_fault(redis_server: RedisServer) -> None:
    keys = Keys()
    link = await locate(redis_server.url).connect()
    client = Listed("desk", "127.0.0.1", "binance", {"lossless": 1}, 5, 0.2)
    report = RelayReport("a:1:x", "ws://a:1", 1, 2, {"lossless": 1}, 5, [client])
    await write_relay(link, keys, report, 1_000_000, 5_000)
    faults: list[str] = []
    assert await read_relays(link, keys, 1_000_001, faults) == [report]
    assert await read_relays(link, keys, 1_005_000) == []
    redis = redis_server.client
    redis.hset(keys.relays, mapping={f"b:{number}": 2_000_000 for number in range(MAX_LISTED + 50)})
    redis.set(keys.relay("b:1"), b"\xff")
    redis.execute_command("RPUSH", keys.relay("b:2"), "x")
    redis.hset(keys.relays, "b:bad", "soon")
    assert await read_relays(link, keys, 1_000_001, faults) == [report]
    assert [fault.partition(" ")[0] for fault in faults] == [keys.relay("b:1"), keys.relay("b:2")]
    # a relay takes out of the list what is long gone
    await write_relay(link, keys, report, 2_061_000, 5_000)
    assert redis.execute_command("HKEYS", keys.relays) == [b"a:1:x"]
    redis.delete(keys.relays)
    redis.set(keys.relays, "mine")
    faults.clear()
    assert await read_relays(link, keys, 1_000_001, faults) == []
    assert "is no hash" in faults[0]
    link.close()


async def test_relay_needs_no_more_than_the_documented_rights(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rules = re.search(r"^user relay +on >\.\.\. +(.*)$", page, re.MULTILINE)
    assert rules is not None
    redis_server.client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", *rules[1].split())
    as_relay = redis_server.url.replace("://", "://relay:secret@")
    relay, url = start_relay(start, as_relay)
    async with RelayClient(url) as client, connect(f"{url}/ws/a@trade"):
        await client.say(op="subscribe", id=1, symbols=["A"], **{"from": "last:2"})
        await client.data(2)
        await client.say(op="subscribe", id=2, symbols=["*"], **{"from": "start"})
        await client.data(3)
        for path in (
            "/api/symbols",
            "/api/snapshot",
            "/api/history?stream=trade:test:A",
            "/api/bars?symbol=A",
        ):
            assert get(url, path)[0] == 200
        until(lambda: [each["clients"] for each in status_of(redis_server)] == [2], what="it is listed")
    assert relay.stop() == 0
    assert status_of(redis_server) == []
    assert redis_server.client.execute_command("ACL", "LOG") == []


async def test_relay_that_may_not_write_serves_and_says_so_once(
    redis_server: RedisServer, start: Start, writer: Writer
) -> None:
    rights = ("~*", "+@all", "-set")
    redis_server.client.execute_command("ACL", "SETUSER", "weak", "on", ">secret", *rights)
    relay, url = start_relay(start, redis_server.url.replace("://", "://weak:secret@"))
    relay.wait_for("tickbus status cannot show this relay: .*NOPERM")
    relay.wait_ready()
    async with RelayClient(url) as client:
        await client.say(op="subscribe", id=1, symbols=["A"], **{"from": "start"})
        await client.data(3)


def test_oldest_bytes_in_flight_are_known_to_a_look() -> None:
    bench = Bench()
    client, sink = bench.client()
    bench.join(Subscription(client, 1, bench.group))
    assert client.oldest(1.0) is None
    sink.stalled = True
    sizes = []
    for number in range(3):
        before = sink.buffered
        bench.send(trade(str(number)))
        sizes.append(sink.buffered - before)
        assert client.oldest(2.0 + number) == 2.0
    sink.buffered -= sizes[0]
    assert client.oldest(6.0) == 3.0
    sink.buffered -= sizes[1] - 1
    assert client.oldest(7.0) == 3.0
    sink.buffered -= 1
    assert client.oldest(8.0) == 4.0
    sink.buffered = 0
    assert client.oldest(9.0) is None


def test_what_waits_for_a_dropping_client_is_counted() -> None:
    bench = Bench()
    client, sink = bench.client()
    subscription = DroppingSubscription(client, 1, bench.group, 200)
    bench.join(subscription)
    assert isinstance(sink, FakeSink)
    sink.stalled = True
    for number in range(20):
        bench.send(trade(str(number)))
    assert 0 < subscription.waiting <= 400
    assert subscription.dropped > 0


def test_relay_on_a_cluster_is_listed(redis_cluster: RedisCluster, start: Start) -> None:
    relay, url = start_relay(start, redis_cluster.url)
    reported = ("status", "--redis", redis_cluster.url, "--json")
    until(lambda: [each["url"] for each in json.loads(tickbus(*reported).stdout)["relays"]] == [url])
    assert relay.stop() == 0
    assert json.loads(tickbus(*reported).stdout)["relays"] == []
