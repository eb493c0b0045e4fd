"""`tickbus status` against the truth: the contents of Redis, counted here."""

import json
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import ResponseError
from support.bus import entries_in
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.waiting import until
from support.writing import KEYS, Writer
from tools.venue import Start

from tickbus.protocol.codec import Head, encode, read_head
from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Keys, Stream, StreamId


def status(redis: RedisServer) -> dict[str, Any]:
    result = tickbus("status", "--json", "--redis", redis.url)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [row for row in rows if row["name"] == name]
    return found


def test_unused_bus_is_reported_as_empty(redis_server: RedisServer) -> None:
    result = tickbus("status", "--redis", redis_server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert "nothing has been written to bus 'tickbus'" in result.stdout
    empty = status(redis_server)
    assert (empty["shards"], empty["feeds"], empty["services"], empty["streams"]) == (None, [], [], [])


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--redis", "redis://127.0.0.1:1/0"), 3), (("--redis", "http://x"), 2)]
)
def test_bad_url_is_one_line(arguments: tuple[str, ...], code: int) -> None:
    result = tickbus("status", *arguments)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)


SYMBOLS = ("AAPL.US", "GOLD")


def venue(start: Start, redis: RedisServer) -> tuple[Process, Process]:
    """A vendor without ids, so that every outage is reported; it does not know one of the symbols."""
    simulator = start("simulate", "--rate", "400", "--symbols", ",".join(SYMBOLS))
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", "json", "--url", url, "--symbols", ",".join([*SYMBOLS, "NEVER"]),
        "--kinds", "trade,quote", "--silence", "700ms", "--redis", redis.url,
    )  # fmt: skip
    return simulator, gateway


def test_status_of_a_stalled_recorder_a_mute_feed_and_stopped_services(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    simulator, gateway = venue(start, redis_server)
    bars = start("bars", "--redis", redis_server.url, "--specs", "time:1s", "--grace", "200ms")
    recorder = start(
        "recorder", "--redis", redis_server.url, "--data-dir", str(tmp_path / "data"),
        "--flush-interval", "200ms",
    )  # fmt: skip
    keys = Keys()
    shards = {keys.shard(symbol) for symbol in SYMBOLS}
    until(
        lambda: all(redis_server.client.hlen(keys.position(shard, "recorder")) >= 3 for shard in shards),
        what="everything is being recorded",
    )

    # a stalled recorder: lag grows, and is exactly head minus position
    recorder.signal(signal.SIGSTOP)
    first = named(status(redis_server)["services"], "recorder")
    published = gateway.metric("tickbus_ticks_published_total")
    until(lambda: gateway.metric("tickbus_ticks_published_total") > published + 300)

    # a vendor that is connected and silent: a Gap in every subscribed stream
    simulator.send_line("mute=1500ms")
    until(lambda: gateway.metric("tickbus_gaps_total") >= 4, what="the silence is reported")
    simulator.stop()
    gateway.stop()
    # not by its metric, which may be a second old
    until(lambda: named(status(redis_server)["services"], "bars")["lag_ticks"] == 0)
    bars.stop()
    until(
        lambda: not named(status(redis_server)["services"], "recorder")["members"][0]["alive"],
        what="its heartbeat has expired",
    )

    now = status(redis_server)
    check_figures(now, redis_server)
    service = named(now["services"], "recorder")
    # it sends no heartbeat, yet its positions show that it is behind
    (member,) = service["members"]
    assert (member["alive"], member["shards"], member["lag_ticks"], service["free_shards"]) == (
        False,
        64,
        service["lag_ticks"],
        0,
    )
    assert service["lag_ticks"] > first["lag_ticks"] + 300
    assert service["lag_seconds"] > 1
    assert now["lags"][0]["service"] == "recorder"
    stopped = named(now["services"], "bars")
    assert (stopped["lag_ticks"], stopped["members"], stopped["free_shards"]) == (0, [], 64)
    human = tickbus("status", "--redis", redis_server.url).stdout
    assert f"{service['lag_ticks']:,}" in human
    assert "Never ticked: quote:json:NEVER, trade:json:NEVER" in human

    recorder.signal(signal.SIGCONT)
    until(
        lambda: (
            recorder.metric("tickbus_consumer_lag_ticks") == 0
            and recorder.metric("tickbus_recorder_rows_total") > 0
        )
    )
    until(
        lambda: named(status(redis_server)["services"], "recorder")["lag_ticks"] == 0, what="it has caught up"
    )


def check_figures(now: dict[str, Any], redis: RedisServer) -> None:
    """Check every figure of the feed, its streams and the recorder against the streams themselves."""
    feed = named(now["feeds"], "json")
    assert (feed["state"], feed["holder"], feed["streams"], feed["silent"]) == ("gone", None, 6, 2)
    assert feed["silent_streams"] == ["quote:json:NEVER", "trade:json:NEVER"]
    ticks, behind = 0, 0
    gaps: dict[str, int] = {}
    for row in now["streams"]:
        kind, *spec, name, symbol = row["stream"].split(":")
        entries = entries_in(redis, kind, name, symbol, ":".join(spec))
        found = [message for _, message in entries if isinstance(message, Gap)]
        assert row["id"] == (entries[-1][0] if entries else "0-0")
        assert row["ticks"] == len(entries) - len(found)
        for gap in found:
            gaps[gap.kind.name.lower()] = gaps.get(gap.kind.name.lower(), 0) + 1
        assert sum(row["gaps"].values()) == len(found)
        ticks += row["ticks"] if kind != "bar" else 0
        stored = redis.client.hget(Keys().position(Keys().shard(symbol), "recorder"), row["stream"])
        position = StreamId.parse(stored) if stored else StreamId(0, 0)
        behind += sum(StreamId.parse(id) > position for id, _ in entries)
    assert (feed["ticks"], feed["gaps"]) == (ticks, gaps)
    assert "stale" in gaps
    assert named(now["services"], "recorder")["lag_ticks"] == behind


async def test_refusals_of_redis_and_forgotten_holes_are_shown(redis_server: RedisServer) -> None:
    writer = await Writer(redis_server.url).open()
    await writer.write(1)
    plain = tickbus("status", "--redis", redis_server.url).stdout
    assert "refuses writes" not in plain and "Forgotten holes" not in plain
    head = read_head("A", redis_server.client.hget(KEYS.last(KEYS.shard("A")), "trade:test:A") or b"")
    head.forgotten = 3
    redis_server.client.hset(KEYS.last(KEYS.shard("A")), "trade:test:A", encode(head))
    redis_server.client.config_set("maxmemory", "1mb")
    shown = tickbus("status", "--redis", redis_server.url).stdout
    assert re.search(r"Redis refuses writes\n.*\n +OOM: \d\.\d MB used, maxmemory is 1\.0 MB; fix: ", shown)
    assert "Forgotten holes: trade:test:A 3: there were too many" in shown
    found = status(redis_server)
    assert [line.partition(":")[0] for line in found["refusals"]] == ["OOM"]
    assert [row["forgotten_holes"] for row in found["streams"]] == [3]
    redis_server.client.config_set("maxmemory", "0")
    assert status(redis_server)["refusals"] == []
    writer.close()


def test_failed_snapshot_is_a_refusal_only_where_it_stops_writes(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    client = redis_server.client
    client.hset(Keys().meta, mapping={"shards": 64, "schema": 1})
    client.config_set("save", "3600 1")
    client.config_set("rdbcompression", "no")
    shutil.rmtree(redis_server._folder)  # the server can make no file there any more
    with suppress(ResponseError):
        client.execute_command("BGSAVE")
    until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="the snapshot failed")
    with pytest.raises(ResponseError, match="MISCONF"):
        client.set("x", "y")
    (line,) = status(redis_server)["refusals"]
    assert line.startswith("MISCONF: its last snapshot failed; fix: ")
    client.config_set("stop-writes-on-bgsave-error", "no")
    client.set("x", "y")
    assert status(redis_server)["refusals"] == []


def test_replica_and_missing_replicas_are_refusals(redis_server: RedisServer) -> None:
    client = redis_server.client
    client.hset(Keys().meta, mapping={"shards": 64, "schema": 1})
    client.config_set("min-replicas-to-write", 1)
    with pytest.raises(ResponseError, match="NOREPLICAS"):
        client.set("x", "y")
    assert [line.partition(":")[0] for line in status(redis_server)["refusals"]] == ["NOREPLICAS"]
    client.config_set("min-replicas-to-write", 0)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    client.config_set("replica-serve-stale-data", "yes")
    assert [line.partition(":")[0] for line in status(redis_server)["refusals"]] == ["READONLY"]


def test_user_who_may_not_ask_for_the_configuration_sees_what_is_left(redis_server: RedisServer) -> None:
    client = redis_server.client
    client.hset(Keys().meta, mapping={"shards": 64, "schema": 1})
    client.config_set("maxmemory", "1mb")
    client.config_set("min-replicas-to-write", 1)
    client.execute_command(
        "ACL", "SETUSER", "viewer", "on", "nopass", "~*", "+@read", "+info", "+time", "+hello"
    )
    url = redis_server.url.replace("://", "://viewer:x@")
    result = tickbus("status", "--json", "--redis", url)
    assert result.returncode == 0, result.stderr
    assert [line.partition(":")[0] for line in json.loads(result.stdout)["refusals"]] == ["OOM"]


def test_command_that_mends_a_stream_is_shown_whole(redis_server: RedisServer) -> None:
    client = redis_server.client
    client.hset(Keys().meta, mapping={"shards": 64, "schema": 1})
    stream = Stream("trade", "x", "A")
    client.xadd(Keys().stream(stream), {"t": b"junk"}, id="9999999999999-1")
    head = Head("1723210200125-1", None, 0, msgspec.Raw(b"\xc0"))
    client.hset(Keys().last(Keys().shard("A")), stream.name, encode(head))
    (fault,) = status(redis_server)["faults"]
    assert fault.endswith("1723210200125-1")
    assert fault in tickbus("status", "--redis", redis_server.url).stdout
