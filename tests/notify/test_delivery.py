"""Alerts reach a receiver in order, at least once, under one key, whatever happens to it or to us."""

import threading
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from notify.alerts import (
    FEED,
    KEY,
    KEYS,
    SECRET,
    Alerts,
    Start,
    dead_letters,
    expected_key,
    is_signed,
    position,
    receiver_file,
    signal,
    start_notify,
)
from support.cluster import RedisCluster
from support.processes import tickbus
from support.redis_server import RedisServer
from support.waiting import until
from support.webhook import Answer, Request, Webhook

from tickbus.protocol.messages import SignalState
from tickbus.protocol.names import Stream, StreamId

HOUR_MS = 3_600_000


@pytest.fixture
def hook() -> Iterator[Webhook]:
    hook = Webhook()
    yield hook
    hook.stop()


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def bodies(requests: list[Request], symbol: str = "BTC-USDT") -> list[str]:
    """Return the messages of the alerts of a symbol, in order, a repeat of the same key left out."""
    seen: dict[str, str] = {}
    for request in requests:
        if request.body["symbol"] == symbol:
            seen.setdefault(request.key, request.body["message"])
    return list(seen.values())


def alerts(numbers: range) -> list[str]:
    return [f"alert {number}" for number in numbers]


async def test_alerts_are_posted_signed_and_indicators_are_not(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    writer = await Alerts(redis_server.url).open()
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url))
    ids = await writer.add(signal(1), signal(2, state=SignalState.INDICATOR), signal(2))
    until(lambda: position(redis_server) == StreamId.parse(ids[-1]))
    first, last = hook.accepted
    assert len(hook.requests) == 2
    assert first.path == "/hooks/secret-path-0123456789"
    assert first.headers["content-type"] == "application/json"
    assert first.body == {
        "key": expected_key(redis_server, ids[0]), "type": "signal", "stream": f"signal:{FEED}:BTC-USDT",
        "feed": FEED, "id": ids[0], "name": "spread", "value": "1.5", "threshold": "2", "window": "1m",
        "message": "alert 1", "symbol": "BTC-USDT", "ts_event": 1795845600000000001, "state": "start",
        "direction": 1, "unit": "bp", "quality": [], "episode": 1, "cause": "1795845600000-7", "params": 3,
        "details": [["z", "4.1"]],
    }  # fmt: skip
    assert (last.body["state"], last.body["episode"], last.body["id"]) == ("end", 1, ids[2])
    for request in hook.requests:
        assert request.key == request.body["key"]
        assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
        assert is_signed(request)
        assert not is_signed(request, KEY[::-1])
    until(lambda: notify.metric("tickbus_notify_sent_total", kind="alert") == 2)
    assert notify.metric("tickbus_notify_skipped_total", reason="indicator") == 1
    notify.wait_ready()
    assert notify.stop() == 0
    writer.close()


async def test_receiver_that_is_away_for_a_while_gets_everything_in_order(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    writer = await Alerts(redis_server.url).open()
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url)).wait_ready()
    await writer.add_numbers(range(1, 3))
    until(lambda: len(hook.accepted) == 2)
    hook.stop()
    await writer.add_numbers(range(3, 700))
    await writer.add_numbers(range(1, 400), "ETH-USDT")
    until(lambda: notify.metric("tickbus_notify_retries_total", reason="connect") >= 6)
    until(lambda: notify.get("/readyz")[0] == 503, what="not ready: it is looked at five times a second")
    _, text = notify.get("/readyz")
    assert "receiver ops: no connection" in text
    assert notify.metric("tickbus_notify_failing") == 1
    assert notify.metric("tickbus_notify_oldest_seconds") > 0
    assert notify.metric("tickbus_notify_waiting") <= 512, "memory is bounded: the others wait on the bus"
    until(
        lambda: "receiver ops: no connection" in tickbus("status", "--redis", redis_server.url).stdout,
        what="it is in the status: an attempt that is under way is not yet a failure",
    )
    hook.start()
    until(lambda: bodies(hook.accepted) == alerts(range(1, 700)), 40)
    until(lambda: bodies(hook.accepted, "ETH-USDT") == alerts(range(1, 400)), 40)
    assert len(hook.accepted) == len({request.key for request in hook.accepted}), "nothing twice"
    notify.wait_ready()
    assert notify.output.count("WARNING") == 1, "one for the outage, not one for each attempt"
    assert notify.metric("tickbus_notify_failing") == 0
    assert dead_letters(redis_server) == []
    writer.close()


async def test_slow_receiver_and_a_stream_that_fails_delay_no_other(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    """The slow one never answers; at the other one every alert of one symbol fails."""
    release = threading.Event()

    def never(_: Request) -> Answer:
        release.wait(60)
        return 204

    slow = Webhook(never)
    hook.answer = lambda request: 500 if request.body["symbol"] == "BAD" else 204
    writer = await Alerts(redis_server.url).open()
    start_notify(start, redis_server, receiver_file(tmp_path, slow.url, "slow", timeout="30s"))
    start_notify(start, redis_server, receiver_file(tmp_path, hook.url, concurrency=2))
    await writer.add_numbers(range(1, 600), "BAD")
    await writer.add_numbers(range(1, 300))
    until(lambda: bodies(hook.accepted) == alerts(range(1, 300)), 40)
    bad = [request for request in hook.requests if request.body["symbol"] == "BAD"]
    assert {request.body["message"] for request in bad} == {"alert 1"}, "the next one waits for it"
    assert slow.accepted == []
    hook.answer = lambda _: 204
    until(lambda: bodies(hook.accepted, "BAD") == alerts(range(1, 600)), 40)
    assert position(redis_server, name="slow") is None
    release.set()
    until(lambda: bodies(slow.accepted, "BAD") == alerts(range(1, 600)), 40)
    until(lambda: bodies(slow.accepted) == alerts(range(1, 300)), 40)
    slow.stop()
    writer.close()


async def test_failures_are_repeated_with_the_same_key_and_body(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    statuses = iter([500, 408, 425, 429, 503])
    hook.answer = lambda _: next(statuses, 200)
    writer = await Alerts(redis_server.url).open()
    start_notify(start, redis_server, receiver_file(tmp_path, hook.url))
    await writer.add_numbers(range(1, 3))
    until(lambda: len(hook.accepted) == 2)
    assert [
        (key, len(list(same))) for key, same in groupby(hook.requests, lambda one: (one.key, one.raw))
    ] == [
        ((hook.accepted[0].key, hook.accepted[0].raw), 6),
        ((hook.accepted[1].key, hook.accepted[1].raw), 1),
    ]
    assert all(is_signed(request) for request in hook.requests)
    writer.close()


async def test_retry_after_holds_for_the_whole_receiver(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    refused: list[float] = []

    def answer(request: Request) -> Answer:
        if not refused:
            refused.append(request.at)
            return 429, {"retry-after": "2"}
        return 204

    hook.answer = answer
    writer = await Alerts(redis_server.url).open()
    start_notify(start, redis_server, receiver_file(tmp_path, hook.url))
    await writer.add_numbers(range(1, 2))
    until(lambda: refused)
    await writer.add_numbers(range(1, 3), "ETH-USDT")
    until(lambda: len(hook.accepted) == 3)
    assert min(request.at for request in hook.accepted) - refused[0] >= 2
    writer.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (410, "refused"),
        (400, "refused"),
        ((302, {"location": "/elsewhere"}), "redirect"),
        ((308, {"location": "/elsewhere"}), "redirect"),
    ],
)
async def test_what_is_refused_is_a_dead_letter_at_once(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook, answer: Answer, reason: str
) -> None:
    hook.answer = lambda request: answer if request.body["message"] == "alert 1" else 204
    writer = await Alerts(redis_server.url).open()
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url))
    ids = await writer.add_numbers(range(1, 3))
    until(lambda: position(redis_server) == StreamId.parse(ids[-1]))
    assert [(request.path, request.body["message"]) for request in hook.requests] == [
        ("/hooks/secret-path-0123456789", "alert 1"),
        ("/hooks/secret-path-0123456789", "alert 2"),
    ]
    ((id, letter),) = dead_letters(redis_server)
    assert id == ids[0]
    status = answer if isinstance(answer, int) else answer[0]
    assert (letter["key"], letter["body"]) == (hook.requests[0].key, hook.requests[0].raw.decode())
    assert (letter["reason"], letter["status"], letter["attempts"], letter["kind"]) == (
        reason, str(status), "1", "alert",
    )  # fmt: skip
    assert abs(int(letter["first_attempt"]) - time.time() * 1000) < 60_000
    until(lambda: notify.metric("tickbus_notify_dead_letters_total", reason=reason) == 1)
    assert notify.output.count(" ERROR ") == 1
    writer.close()


async def test_what_fails_for_too_long_is_a_dead_letter_and_the_next_one_follows(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    hook.answer = lambda request: 503 if request.body["message"] == "alert 1" else 204
    writer = await Alerts(redis_server.url).open()
    start_notify(start, redis_server, receiver_file(tmp_path, hook.url, retry_for="1s"))
    ids = await writer.add_numbers(range(1, 4))
    until(lambda: position(redis_server) == StreamId.parse(ids[-1]))
    assert bodies(hook.accepted) == ["alert 2", "alert 3"]
    ((id, letter),) = dead_letters(redis_server)
    tries = [request for request in hook.requests if request.body["message"] == "alert 1"]
    assert (id, letter["reason"], letter["status"]) == (ids[0], "expired", "503")
    assert int(letter["attempts"]) == len(tries) >= 3
    writer.close()


async def test_kill_between_the_answer_and_the_commit_repeats_the_same_key(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    """The receiver has taken the alert, and its answer finds nobody any more."""

    def answer(request: Request) -> Answer:
        if len(hook.requests) == 2:
            notify.process.kill()
        return 204

    hook.answer = answer
    writer = await Alerts(redis_server.url).open()
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url)).wait_ready()
    ids = await writer.add_numbers(range(1, 4))
    until(lambda: len(hook.accepted) == 2)
    notify.wait()
    assert position(redis_server) == StreamId.parse(ids[0])
    notify.start()
    until(lambda: position(redis_server) == StreamId.parse(ids[-1]))
    assert [request.body["message"] for request in hook.accepted] == [
        "alert 1",
        "alert 2",
        "alert 2",
        "alert 3",
    ]
    assert hook.accepted[1].key == hook.accepted[2].key
    assert hook.accepted[1].raw == hook.accepted[2].raw
    writer.close()


async def test_alerts_older_than_max_age_are_one_summary(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    """More of them than wait in memory, and than one read brings. A kill does not make two of one."""
    writer = await Alerts(redis_server.url).open()
    old = await writer.add_numbers(range(1, 12_002), age_ms=2 * HOUR_MS)
    fresh = await writer.add_numbers(range(12_002, 12_004))
    hook.answer = lambda _: 503
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url))
    until(lambda: len(hook.requests) >= 2)
    assert position(redis_server) is None, "it moves after the summary"
    notify.kill()
    hook.answer = lambda _: 204
    notify.start()
    until(lambda: position(redis_server) == StreamId.parse(fresh[-1]))
    assert [request.body["type"] for request in hook.accepted] == ["summary", "signal", "signal"]
    assert len({request.raw for request in hook.requests}) == 3, "the same one before and after the kill"
    summary = hook.accepted[0]
    assert summary.key == expected_key(redis_server, old[-1]) + ":summary"
    message = summary.body.pop("message")
    assert "11001" not in message and message.startswith("12001 alerts of BTC-USDT from 2026-11-")
    assert summary.body == {
        "key": summary.key, "type": "summary", "stream": f"signal:{FEED}:BTC-USDT", "feed": FEED,
        "id": old[-1], "symbol": "BTC-USDT", "count": 12001, "names": {"spread": 12001}, "from_id": old[0],
        "to_id": old[-1], "from_ts": 1795845600000000001, "to_ts": 1795845600000012001,
    } | ({"message": message} if "message" in summary.body else {})  # fmt: skip
    assert not redis_server.client.hexists(
        KEYS.state(KEYS.shard("BTC-USDT"), "notify-ops"), f"signal:{FEED}:BTC-USDT"
    )
    writer.close()


async def test_trimmed_entries_are_an_alert_that_says_how_many(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    writer = await Alerts(redis_server.url).open()
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url))
    first = await writer.add_numbers(range(1, 3))
    until(lambda: position(redis_server) == StreamId.parse(first[-1]))
    notify.stop()
    await writer.add_numbers(range(3, 10))
    last = await writer.add_numbers(range(10, 12))
    redis_server.client.xtrim(
        KEYS.stream(Stream("signal", FEED, "BTC-USDT")), minid=last[0], approximate=False
    )
    notify.start()
    until(lambda: position(redis_server) == StreamId.parse(last[-1]))
    trimmed = hook.accepted[2]
    assert (trimmed.body["type"], trimmed.body["kind"], trimmed.body["count"]) == ("gap", "trimmed", 7)
    assert trimmed.key.endswith("-9:trimmed") and is_signed(trimmed)
    assert "7 entries were removed" in trimmed.body["message"]
    assert [request.body["message"] for request in hook.accepted[3:]] == ["alert 10", "alert 11"]
    until(lambda: notify.metric("tickbus_notify_sent_total", kind="trimmed") == 1)
    writer.close()


async def test_replicas_share_the_streams_and_take_over(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    writer = await Alerts(redis_server.url).open()
    file = receiver_file(tmp_path, hook.url)
    one = start_notify(start, redis_server, file).wait_ready()
    two = start_notify(start, redis_server, file)
    until(lambda: one.metric("tickbus_shards_owned") + two.metric("tickbus_shards_owned") == 64)
    until(lambda: two.metric("tickbus_shards_owned") > 16)
    symbols = [f"S{number}" for number in range(20)]
    for symbol in symbols:
        await writer.add_numbers(range(1, 6), symbol)
    until(lambda: all(bodies(hook.accepted, symbol) == alerts(range(1, 6)) for symbol in symbols))
    assert one.metric("tickbus_notify_sent_total") + two.metric("tickbus_notify_sent_total") == 100
    assert two.metric("tickbus_notify_sent_total") > 0
    one.kill()
    for symbol in symbols:
        await writer.add_numbers(range(6, 11), symbol)
    until(lambda: all(bodies(hook.accepted, symbol) == alerts(range(1, 11)) for symbol in symbols), 40)
    writer.close()


async def test_filters_and_secrets_stay_out_of_everything_shown(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    writer = await Alerts(redis_server.url).open()
    file = receiver_file(tmp_path, hook.url + "?token=abcdefghijklmnop", names=["sigma.*"], symbols=["BTC-*"])
    notify = start_notify(start, redis_server, file, "--log-level", "debug")
    hook.answer = lambda request: 410 if request.body["message"] == "alert 1" else 503
    await writer.add(signal(1, "ETH-USDT", name="sigma.price"), signal(1), signal(1, name="sigma.price"))
    await writer.add(signal(2, name="sigma.price"))
    until(lambda: len(hook.requests) >= 3)
    assert {request.body["name"] for request in hook.requests} == {"sigma.price"}
    assert {request.body["symbol"] for request in hook.requests} == {"BTC-USDT"}
    until(lambda: notify.get("/readyz")[0] == 503)
    until(lambda: "receiver ops: status 503" in tickbus("status", "--redis", redis_server.url).stdout)
    shown = notify.output + notify.get("/metrics")[1] + notify.get("/readyz")[1]
    shown += tickbus("status", "--redis", redis_server.url).stdout + str(dead_letters(redis_server))
    shown += command_line(notify.process.pid)
    for key in redis_server.client.scan_iter(_type="hash"):
        shown += str(redis_server.client.hgetall(key))
    for secret in (SECRET, SECRET[6:], KEY.hex(), "secret-path-0123456789", "abcdefghijklmnop"):
        assert secret not in shown
    writer.close()


async def test_the_same_on_a_cluster(
    redis_cluster: RedisCluster, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    hook.answer = lambda request: 410 if request.body["message"] == "alert 2" else 204
    writer = await Alerts(redis_cluster.url).open()
    start_notify(start, redis_cluster, receiver_file(tmp_path, hook.url))
    symbols = [f"S{number}" for number in range(4)]
    ids = {symbol: await writer.add_numbers(range(1, 300), symbol) for symbol in symbols}
    expected = [text for text in alerts(range(1, 300)) if text != "alert 2"]
    until(lambda: all(bodies(hook.accepted, symbol) == expected for symbol in symbols), 50)
    for symbol in symbols:
        until(lambda symbol=symbol: position(redis_cluster, symbol) == StreamId.parse(ids[symbol][-1]))  # type: ignore[misc]
        assert [(id, letter["status"]) for id, letter in dead_letters(redis_cluster, symbol)] == [
            (ids[symbol][1], "410")
        ]
    writer.close()


async def test_stops_at_once_while_the_receiver_hangs_and_repeats_what_was_in_flight(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    release = threading.Event()

    def hang(_: Request) -> Answer:
        release.wait(60)
        return 204

    hook.answer = hang
    writer = await Alerts(redis_server.url).open()
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url, timeout="60s"))
    ids = await writer.add_numbers(range(1, 3))
    until(lambda: hook.requests)
    assert notify.stop() == 0
    assert position(redis_server) is None
    hook.answer = lambda _: 204
    notify.start()
    until(lambda: position(redis_server) == StreamId.parse(ids[-1]))
    assert [request.body["message"] for request in hook.requests] == ["alert 1", "alert 1", "alert 2"]
    assert hook.requests[0].raw == hook.requests[1].raw
    release.set()
    writer.close()


async def test_redis_that_is_away_delays_and_a_history_that_is_lost_is_reported(
    redis_server: RedisServer, start: Start, tmp_path: Path, hook: Webhook
) -> None:
    writer = await Alerts(redis_server.url).open()
    notify = start_notify(start, redis_server, receiver_file(tmp_path, hook.url)).wait_ready()
    await writer.add_numbers(range(1, 4))
    until(lambda: len(hook.accepted) == 3)
    redis_server.stop()
    redis_server.start()
    await writer.add_numbers(range(4, 7))
    until(lambda: bodies(hook.accepted) == alerts(range(1, 7)))
    notify.wait_ready()
    writer.close()
    redis_server.client.flushall()
    other = await Alerts(redis_server.url).open()
    ids = await other.add_numbers(range(7, 9))
    until(lambda: position(redis_server) == StreamId.parse(ids[-1]))
    reset, *others = hook.accepted[6:]
    assert (reset.body["type"], reset.body["kind"], reset.body["count"]) == ("gap", "reset", None)
    assert [request.body["message"] for request in others] == alerts(range(7, 9))
    assert [request.key for request in others] == [expected_key(redis_server, id) for id in ids]
    other.close()
