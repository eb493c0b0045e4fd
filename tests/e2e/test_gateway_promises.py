"""The gateway under the faults that matter: Redis down for long, gateways killed, stalled and replaced.

The check is always the same: each tick that the simulator sent is on the bus once and in order, or named by
a Gap.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus import entries_in, gaps_in
from support.market import SYMBOLS, Market, published_total, wait_published
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until

from tickbus.protocol.codec import decode_bell
from tickbus.protocol.messages import Gap, Message, Quote
from tickbus.protocol.names import Keys
from tickbus.units import SECOND

Start = Callable[..., Process]


def entries(redis: RedisServer, symbol: str) -> list[tuple[str, Message]]:
    return entries_in(redis, "trade", "binance", symbol)


@pytest.fixture
def feed(start: Start, redis_server: RedisServer, tmp_path: Path) -> Market:
    return Market(start, redis_server, tmp_path)


@pytest.mark.timeout(90)
def test_redis_outage_longer_than_memory_lasts_loses_nothing(
    feed: Market, redis_server: RedisServer, tmp_path: Path
) -> None:
    gateway = feed.gateway("--backlog-bytes", "4MB").wait_ready()
    # so that the first batches from the disk are copies of acknowledged ticks
    until(lambda: published_total(gateway) > 7_000)
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
        # even while ticks acknowledged long ago are skipped on the disk
        times = [
            bell.bus_ms
            for _, fields in redis_server.client.xrange(Keys().bell(shard))
            if (bell := decode_bell(fields[b"d"])).feed_up is not None
        ]
        assert times == sorted(times), "the bus clock went backwards"


@pytest.mark.timeout(90)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_spilled_ticks_are_written_by_the_next_start(
    how: str, feed: Market, redis_server: RedisServer, tmp_path: Path
) -> None:
    gateway = feed.gateway("--backlog-bytes", "4MB", "--stop-deadline", "500ms").wait_ready()
    until(lambda: published_total(gateway) > 1000)
    before = {symbol: feed.stored(symbol) for symbol in SYMBOLS}
    redis_server.kill()
    redis_server.client.close()
    until(lambda: gateway.metric("tickbus_spilled_ticks_total") > 5_000, 40, "spilled")
    # the replay buffer was spilled too: its ticks are on the bus already, unless Redis lost them
    spilled = int(gateway.metric("tickbus_spill_ticks") - published_total(gateway))
    if how == "killed":
        gateway.kill()
    else:
        assert gateway.stop() == 0
        assert "the next start writes them" in gateway.output
        assert "no room on disk" not in gateway.output, (
            "what was in flight when spilling began is on the disk"
        )
    assert list((tmp_path / "spill").rglob("*.segment"))
    redis_server.start()
    again = feed.gateway().wait_ready()
    assert "entries spilled by an earlier gateway" in again.output
    until(lambda: published_total(again) > 1000)
    assert again.stop() == 0
    assert feed.check() > 0, "the gateway was down for a while"
    for symbol in SYMBOLS:
        assert feed.stored(symbol)[: len(before[symbol])] == before[symbol]
    first_missing = {
        symbol: int(gaps_in(redis_server, "trade", "binance", symbol)[0].from_id or 0) for symbol in SYMBOLS
    }
    recovered = sum(id < first_missing[symbol] for symbol in SYMBOLS for id in feed.stored(symbol))
    assert recovered >= spilled + sum(map(len, before.values()))
    assert not list((tmp_path / "spill").rglob("*.segment"))


@pytest.mark.timeout(90)
def test_spill_of_a_replaced_gateway_is_not_merged(
    feed: Market, redis_server: RedisServer, tmp_path: Path
) -> None:
    gateway = feed.gateway("--backlog-bytes", "4MB").wait_ready()
    until(lambda: published_total(gateway) > 1000)
    redis_server.pause()
    until(lambda: gateway.metric("tickbus_spilled_ticks_total") > 5_000, 40, "spilled")
    gateway.kill()
    redis_server.resume()
    other = feed.gateway("--spill-dir", str(tmp_path / "elsewhere")).wait_ready()
    until(lambda: published_total(other) > 1000)
    other.kill()
    again = feed.gateway().wait_ready()
    assert "another gateway wrote after this spill" in again.output
    until(lambda: published_total(again) > 1000)
    assert again.stop() == 0
    assert feed.check() > 0
    assert list((tmp_path / "spill").rglob("*.segment"))


@pytest.mark.timeout(90)
def test_stalled_gateway_is_replaced_and_writes_nothing_after_waking(
    feed: Market, redis_server: RedisServer
) -> None:
    first = feed.gateway().wait_ready()
    until(lambda: published_total(first) > 1000)
    second = feed.gateway()
    second.wait_for("standing by")
    assert second.metric("tickbus_feed_connected") == 0
    first.signal(signal.SIGSTOP)
    until(lambda: second.get("/readyz")[0] == 200, 20, "took over")
    until(lambda: published_total(second) > 1000)
    first.signal(signal.SIGCONT)
    assert first.wait(20) == 5
    assert "replaced by another gateway" in first.output
    wait_published(second, 1000)
    assert second.stop() == 0
    assert feed.check() > 0
    for symbol in SYMBOLS:
        (_, old), (_, new) = feed.epochs(symbol)
        assert old == 1 < new
        rows = entries(redis_server, symbol)
        # the new one begins with the Gap for the takeover; nothing from the old one comes after it
        (gap,) = gaps_in(redis_server, "trade", "binance", symbol)
        assert rows[new - 1][1] == gap


@pytest.mark.timeout(90)
def test_entries_lost_by_redis_after_acknowledgement_are_resent(
    feed: Market, redis_server: RedisServer
) -> None:
    gateway = feed.gateway().wait_ready()
    until(lambda: published_total(gateway) > 2000)
    redis_server.pause()
    saved = {path: path.read_bytes() for path in (redis_server._folder / "appendonlydir").iterdir()}
    redis_server.resume()
    wait_published(gateway, 3000)
    redis_server.kill()
    redis_server.client.close()
    # as after a failover to a lagging replica: acknowledged entries are gone
    for path, data in saved.items():
        path.write_bytes(data)
    redis_server.start()
    until(lambda: gateway.metric("tickbus_resent_ticks_total") > 2000, 20)
    wait_published(gateway, 1000)
    assert gateway.stop() == 0
    assert feed.check() == 0
    assert all(gaps_in(redis_server, "trade", "binance", symbol) == [] for symbol in SYMBOLS)


@pytest.mark.timeout(90)
def test_redis_flushed_under_load_is_refilled(feed: Market, redis_server: RedisServer) -> None:
    gateway = feed.gateway().wait_ready()
    wait_published(gateway, 1500)
    before = {symbol: feed.stored(symbol) for symbol in SYMBOLS}
    redis_server.client.flushall()
    wait_published(gateway, 1500)
    meta = Keys().meta
    until(
        lambda: redis_server.client.hget(meta, "shards") == b"64", 10, "the number of shards is stored again"
    )
    until(
        lambda: (
            redis_server.client.hexists(meta, "retention:binance")
            and redis_server.client.hexists(meta, "delay:binance")
        )
    )
    assert gateway.stop() == 0
    assert feed.check() == 0
    # all of it was recent enough for the replay buffer
    assert all(feed.stored(symbol)[: len(before[symbol])] == before[symbol] for symbol in SYMBOLS)


@pytest.mark.timeout(90)
def test_gateway_stalled_while_disconnected_reports_the_whole_gap(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    market = Market(start, redis_server, tmp_path, rate=400, quotes=1)
    gateway = market.gateway("--kinds", "trade,quote").wait_ready()
    wait_published(gateway, 200)
    gateway.signal(signal.SIGSTOP)
    stalled = time.monotonic()
    market.simulator.send_line("close=1001")
    until(lambda: time.monotonic() > stalled + 3, what="the vendor continues without it")
    gateway.signal(signal.SIGCONT)
    wait_published(gateway, 200)
    assert gateway.stop() == 0
    assert market.check() > 0
    for symbol in SYMBOLS:
        rows = [message for _, message in entries_in(redis_server, "quote", "binance", symbol)]
        (at,) = [number for number, row in enumerate(rows) if isinstance(row, Gap)]
        before, gap, after = rows[at - 1 : at + 2]
        assert isinstance(before, Quote) and isinstance(gap, Gap) and isinstance(after, Quote)
        # quotes have no ids and no times of their own: the range must cover everything between the two, even
        # where old frames were read late
        assert gap.from_ts <= before.ts_recv + SECOND // 2 and gap.to_ts >= after.ts_recv - SECOND // 2
        assert gap.to_ts - gap.from_ts >= 2 * SECOND


@pytest.mark.timeout(90)
def test_gateway_killed_as_it_wakes_leaves_its_delay_to_its_successor(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It finds ticks in its socket as old as its stall was long, and dies before a fresh one arrives."""
    market = Market(start, redis_server, tmp_path, rate=400, quotes=1)
    gateway = market.gateway("--kinds", "trade,quote").wait_ready()
    wait_published(gateway, 200)
    until(lambda: redis_server.client.hexists(Keys().meta, "delay:binance"))
    gateway.signal(signal.SIGSTOP)
    stalled = time.monotonic()
    until(lambda: time.monotonic() > stalled + 1, what="old ticks wait in its socket")
    market.simulator.send_line("close=1001")
    until(lambda: time.monotonic() > stalled + 4, what="the vendor continues without it")
    stored = sum(map(len, map(market.stored, SYMBOLS)))
    gateway.signal(signal.SIGCONT)
    until(lambda: sum(map(len, map(market.stored, SYMBOLS))) > stored, what="the old ticks are on the bus")
    gateway.kill()
    other = market.gateway("--kinds", "trade,quote").wait_ready()
    wait_published(other, 200)
    assert other.stop() == 0
    assert market.check() > 0
    for symbol in SYMBOLS:
        rows = [message for _, message in entries_in(redis_server, "quote", "binance", symbol)]
        gaps = [number for number, row in enumerate(rows) if isinstance(row, Gap)]
        before, first, last, after = rows[gaps[0] - 1], rows[gaps[0]], rows[gaps[-1]], rows[gaps[-1] + 1]
        assert isinstance(before, Quote) and isinstance(first, Gap)
        assert isinstance(last, Gap) and isinstance(after, Quote)
        assert first.from_ts <= before.ts_recv and last.to_ts >= after.ts_recv - SECOND // 2
