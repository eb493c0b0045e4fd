"""The gateway under the faults that matter to it: Redis away for longer than memory lasts, killed meanwhile, replaced while it stood still.

The check is always the same: what the simulator says it sent is on the bus, each tick once, in order, or named by a Gap.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus import entries_in, gaps_in
from support.market import SYMBOLS, Market, published, publishes
from support.processes import Part
from support.redis_server import RedisServer
from support.waiting import until

from tickbus.protocol.codec import decode_bell
from tickbus.protocol.messages import Gap, Message, Quote
from tickbus.protocol.names import Keys
from tickbus.units import SECOND

Start = Callable[..., Part]


def entries(redis: RedisServer, symbol: str) -> list[tuple[str, Message]]:
    return entries_in(redis, "trade", "binance", symbol)


@pytest.fixture
def feed(start: Start, redis_server: RedisServer, tmp_path: Path) -> Market:
    return Market(start, redis_server, tmp_path)


@pytest.mark.timeout(90)
def test_redis_away_for_longer_than_memory_lasts(
    feed: Market, redis_server: RedisServer, tmp_path: Path
) -> None:
    gateway = feed.gateway("--backlog-bytes", "4MB").ready()
    until(
        lambda: published(gateway) > 7_000
    )  # so that the first batches from the disk will be copies of what is acknowledged
    redis_server.stop()
    redis_server.client.close()
    until(lambda: gateway.metric("tickbus_spilled_ticks_total") > 15_000, 40, "spilled")
    assert gateway.metric("tickbus_backlog_bytes") <= 4 << 20
    redis_server.start()
    until(
        lambda: gateway.metric("tickbus_spill_ticks") == 0 and gateway.metric("tickbus_backlog_ticks") < 500,
        40,
        "drained",
    )
    assert gateway.stop() == 0
    assert feed.check() == 0
    assert all(gaps_in(redis_server, "trade", "binance", symbol) == [] for symbol in SYMBOLS)
    assert not list((tmp_path / "spill").rglob("*.segment"))
    for shard in range(Keys().shards):
        # also while what was acknowledged long ago is skipped on the disk
        said = [
            bell.bus_ms
            for _, fields in redis_server.client.xrange(Keys().bell(shard))
            if (bell := decode_bell(fields[b"d"])).feed_up is not None
        ]
        assert said == sorted(said), "the bus clock never goes back"


@pytest.mark.timeout(90)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_what_was_spilled_is_written_by_the_next_start(
    how: str, feed: Market, redis_server: RedisServer, tmp_path: Path
) -> None:
    gateway = feed.gateway("--backlog-bytes", "4MB", "--stop-deadline", "500ms").ready()
    until(lambda: published(gateway) > 1000)
    before = {symbol: feed.stored(symbol) for symbol in SYMBOLS}
    redis_server.kill()
    redis_server.client.close()
    until(lambda: gateway.metric("tickbus_spilled_ticks_total") > 5_000, 40, "spilled")
    # what lay in the replay ring was spilled too: it is on the bus already, if Redis did not lose it
    spilled = int(gateway.metric("tickbus_spill_ticks") - published(gateway))
    if how == "killed":
        gateway.kill()
    else:
        assert gateway.stop() == 0
        assert "the next start writes them" in gateway.output
        assert "find no room" not in gateway.output, (
            "what was in flight when the spilling began is on the disk"
        )
    assert list((tmp_path / "spill").rglob("*.segment"))
    redis_server.start()
    again = feed.gateway().ready()
    assert "that an earlier gateway had spilled" in again.output
    until(lambda: published(again) > 1000)
    assert again.stop() == 0
    told = feed.check()
    assert told > 0, "the gateway was down for a while"
    for symbol in SYMBOLS:
        assert feed.stored(symbol)[: len(before[symbol])] == before[symbol]
    first_told = {
        symbol: int(gaps_in(redis_server, "trade", "binance", symbol)[0].from_id or 0) for symbol in SYMBOLS
    }
    kept = sum(id < first_told[symbol] for symbol in SYMBOLS for id in feed.stored(symbol))
    assert kept >= spilled + sum(map(len, before.values()))
    assert not list((tmp_path / "spill").rglob("*.segment"))


@pytest.mark.timeout(90)
def test_what_a_replaced_gateway_spilled_is_not_merged(
    feed: Market, redis_server: RedisServer, tmp_path: Path
) -> None:
    gateway = feed.gateway("--backlog-bytes", "4MB").ready()
    until(lambda: published(gateway) > 1000)
    redis_server.pause()
    until(lambda: gateway.metric("tickbus_spilled_ticks_total") > 5_000, 40, "spilled")
    gateway.kill()
    redis_server.go_on()
    other = feed.gateway("--spill-dir", str(tmp_path / "elsewhere")).ready()
    until(lambda: published(other) > 1000)
    other.kill()
    again = feed.gateway().ready()
    assert "another gateway wrote after it" in again.output
    until(lambda: published(again) > 1000)
    assert again.stop() == 0
    assert feed.check() > 0
    assert list((tmp_path / "spill").rglob("*.segment"))


@pytest.mark.timeout(90)
def test_a_gateway_that_stood_still_is_replaced_and_writes_nothing_more(
    feed: Market, redis_server: RedisServer
) -> None:
    first = feed.gateway().ready()
    until(lambda: published(first) > 1000)
    second = feed.gateway()
    second.wait_for("standing by")
    assert second.metric("tickbus_feed_connected") == 0
    first.signal(signal.SIGSTOP)
    until(lambda: second.get("/readyz")[0] == 200, 20, "took over")
    until(lambda: published(second) > 1000)
    first.signal(signal.SIGCONT)
    assert first.wait(20) == 5
    assert "replaced by another gateway" in first.output
    publishes(second, 1000)
    assert second.stop() == 0
    assert feed.check() > 0
    for symbol in SYMBOLS:
        (_, first_of_old), (_, first_of_new) = feed.epochs(symbol)
        assert first_of_old == 1 < first_of_new
        rows = entries(redis_server, symbol)
        # the new one begins with the Gap over the change; nothing of the old one comes after it
        (gap,) = gaps_in(redis_server, "trade", "binance", symbol)
        assert rows[first_of_new - 1][1] == gap


@pytest.mark.timeout(90)
def test_redis_comes_back_without_what_it_acknowledged_last(feed: Market, redis_server: RedisServer) -> None:
    gateway = feed.gateway().ready()
    until(lambda: published(gateway) > 2000)
    redis_server.pause()
    held = {path: path.read_bytes() for path in (redis_server._folder / "appendonlydir").iterdir()}
    redis_server.go_on()
    publishes(gateway, 3000)
    redis_server.kill()
    redis_server.client.close()
    # as after a failover to a replica that was behind: acknowledged entries are gone
    for path, data in held.items():
        path.write_bytes(data)
    redis_server.start()
    until(lambda: gateway.metric("tickbus_resent_ticks_total") > 2000, 20)
    publishes(gateway, 1000)
    assert gateway.stop() == 0
    assert feed.check() == 0
    assert all(gaps_in(redis_server, "trade", "binance", symbol) == [] for symbol in SYMBOLS)


@pytest.mark.timeout(90)
def test_redis_is_flushed_under_load(feed: Market, redis_server: RedisServer) -> None:
    gateway = feed.gateway().ready()
    publishes(gateway, 1500)
    before = {symbol: feed.stored(symbol) for symbol in SYMBOLS}
    redis_server.client.flushall()
    publishes(gateway, 1500)
    meta = Keys().meta
    until(lambda: redis_server.client.hget(meta, "shards") == b"64", 10, "the bus says its shards again")
    until(
        lambda: (
            redis_server.client.hexists(meta, "retention:binance")
            and redis_server.client.hexists(meta, "delay:binance")
        )
    )
    assert gateway.stop() == 0
    assert feed.check() == 0
    # all of it was young enough for the replay ring
    assert all(feed.stored(symbol)[: len(before[symbol])] == before[symbol] for symbol in SYMBOLS)


@pytest.mark.timeout(90)
def test_a_gateway_that_stood_still_while_it_was_cut_off_tells_all_of_it(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    market = Market(start, redis_server, tmp_path, rate=400, quotes=1)
    gateway = market.gateway("--kinds", "trade,quote").ready()
    publishes(gateway, 200)
    gateway.signal(signal.SIGSTOP)
    still = time.monotonic()
    market.simulator.say("close=1001")
    until(lambda: time.monotonic() > still + 3, what="the vendor goes on without it")
    gateway.signal(signal.SIGCONT)
    publishes(gateway, 200)
    assert gateway.stop() == 0
    assert market.check() > 0
    for symbol in SYMBOLS:
        rows = [message for _, message in entries_in(redis_server, "quote", "binance", symbol)]
        (at,) = [number for number, row in enumerate(rows) if isinstance(row, Gap)]
        before, gap, after = rows[at - 1 : at + 2]
        assert isinstance(before, Quote) and isinstance(gap, Gap) and isinstance(after, Quote)
        # quotes have no ids and no times of their own: the range must hold all that lies between the two, also where old frames were read late
        assert gap.from_ts <= before.ts_recv + SECOND // 2 and gap.to_ts >= after.ts_recv - SECOND // 2
        assert gap.to_ts - gap.from_ts >= 2 * SECOND


@pytest.mark.timeout(90)
def test_a_gateway_that_stood_still_and_was_killed_as_it_woke_has_told_its_successor_the_delay(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It finds ticks in its socket that are old by the time it stood still, and ends before a fresh one comes."""
    market = Market(start, redis_server, tmp_path, rate=400, quotes=1)
    gateway = market.gateway("--kinds", "trade,quote").ready()
    publishes(gateway, 200)
    until(lambda: redis_server.client.hexists(Keys().meta, "delay:binance"))
    gateway.signal(signal.SIGSTOP)
    still = time.monotonic()
    until(lambda: time.monotonic() > still + 1, what="what it will find old in its socket")
    market.simulator.say("close=1001")
    until(lambda: time.monotonic() > still + 4, what="the vendor goes on without it")
    stood = sum(map(len, map(market.stored, SYMBOLS)))
    gateway.signal(signal.SIGCONT)
    until(lambda: sum(map(len, map(market.stored, SYMBOLS))) > stood, what="the old ticks on the bus")
    gateway.kill()
    other = market.gateway("--kinds", "trade,quote").ready()
    publishes(other, 200)
    assert other.stop() == 0
    assert market.check() > 0
    for symbol in SYMBOLS:
        rows = [message for _, message in entries_in(redis_server, "quote", "binance", symbol)]
        gaps = [number for number, row in enumerate(rows) if isinstance(row, Gap)]
        before, first, last, after = rows[gaps[0] - 1], rows[gaps[0]], rows[gaps[-1]], rows[gaps[-1] + 1]
        assert (
            isinstance(before, Quote)
            and isinstance(first, Gap)
            and isinstance(last, Gap)
            and isinstance(after, Quote)
        )
        assert first.from_ts <= before.ts_recv and last.to_ts >= after.ts_recv - SECOND // 2
