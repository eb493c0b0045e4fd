"""`tickbus status` against the truth: what Redis holds, counted here."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from support.bus import entries_in
from support.processes import Part, tickbus
from support.redis_server import RedisServer
from support.waiting import until
from tools.venue import Start

from tickbus.protocol.messages import Gap
from tickbus.protocol.names import Keys, StreamId


def status(redis: RedisServer) -> dict[str, Any]:
    done = tickbus("status", "--json", "--redis", redis.url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [row for row in rows if row["name"] == name]
    return found


def test_a_bus_that_nobody_has_written_to(redis_server: RedisServer) -> None:
    done = tickbus("status", "--redis", redis_server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nobody has written to the bus 'tickbus'" in done.stdout
    empty = status(redis_server)
    assert (empty["shards"], empty["feeds"], empty["services"], empty["streams"]) == (None, [], [], [])


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--redis", "redis://127.0.0.1:1/0"), 3), (("--redis", "http://x"), 2)]
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], code: int) -> None:
    done = tickbus("status", *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)


SYMBOLS = ("AAPL.US", "GOLD")


def venue(start: Start, redis: RedisServer) -> tuple[Part, Part]:
    """A vendor without ids, so that every outage is told; one symbol is wanted that it does not know."""
    simulator = start("simulate", "--rate", "400", "--symbols", ",".join(SYMBOLS))
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", "json", "--url", url, "--symbols", ",".join([*SYMBOLS, "NEVER"]), "--kinds", "trade,quote",
        "--silence", "700ms", "--redis", redis.url,
    )  # fmt: skip
    return simulator, gateway


def test_a_paused_recorder_a_mute_and_the_end(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    simulator, gateway = venue(start, redis_server)
    bars = start("bars", "--redis", redis_server.url, "--specs", "time:1s", "--grace", "200ms")
    recorder = start(
        "recorder",
        "--redis",
        redis_server.url,
        "--data-dir",
        str(tmp_path / "data"),
        "--flush-interval",
        "200ms",
    )
    positions = Keys()
    shards = {positions.shard(symbol) for symbol in SYMBOLS}
    until(
        lambda: all(redis_server.client.hlen(positions.position(shard, "recorder")) >= 3 for shard in shards),
        what="all is being recorded",
    )

    # a recorder that stands still: lag grows, and is exactly head less position
    recorder.signal(signal.SIGSTOP)
    first = named(status(redis_server)["services"], "recorder")
    published = gateway.metric("tickbus_ticks_published_total")
    until(lambda: gateway.metric("tickbus_ticks_published_total") > published + 300)

    # a vendor that is connected and says nothing: a Gap in every stream that is subscribed
    simulator.say("mute=1500ms")
    until(lambda: gateway.metric("tickbus_gaps_total") >= 4, what="the mute is told")
    simulator.stop()
    gateway.stop()
    until(lambda: bars.metric("tickbus_consumer_lag_ticks") == 0)
    bars.stop()
    until(
        lambda: not named(status(redis_server)["services"], "recorder")["members"][0]["alive"],
        what="its heartbeat ends",
    )

    now = status(redis_server)
    assert_true(now, redis_server)
    service = named(now["services"], "recorder")
    # it does not say that it is alive; that it is behind is told by its positions all the same
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
    until(lambda: named(status(redis_server)["services"], "recorder")["lag_ticks"] == 0, what="it catches up")


def assert_true(now: dict[str, Any], redis: RedisServer) -> None:
    """Every figure of the feed, its streams and the recorder, counted from the streams themselves."""
    feed = named(now["feeds"], "json")
    assert (feed["state"], feed["holder"], feed["streams"], feed["silent"]) == ("gone", None, 6, 2)
    assert feed["silent_streams"] == ["quote:json:NEVER", "trade:json:NEVER"]
    ticks, gaps, behind = 0, {}, 0
    for row in now["streams"]:
        kind, *spec, name, symbol = row["stream"].split(":")
        entries = entries_in(redis, kind, name, symbol, ":".join(spec))
        told = [message for _, message in entries if isinstance(message, Gap)]
        assert row["id"] == (entries[-1][0] if entries else "0-0")
        assert row["ticks"] == len(entries) - len(told)
        for gap in told:
            gaps[gap.kind.name.lower()] = gaps.get(gap.kind.name.lower(), 0) + 1
        assert sum(row["gaps"].values()) == len(told)
        ticks += row["ticks"] if kind != "bar" else 0
        stored = redis.client.hget(Keys().position(Keys().shard(symbol), "recorder"), row["stream"])
        position = StreamId.parse(stored) if stored else StreamId(0, 0)
        behind += sum(StreamId.parse(id) > position for id, _ in entries)
    assert (feed["ticks"], feed["gaps"]) == (ticks, gaps)
    assert "stale" in gaps
    assert named(now["services"], "recorder")["lag_ticks"] == behind
