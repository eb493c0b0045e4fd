"""The gateway on a real cluster of six nodes, under load: a killed master, a moved slot, a stalled leader."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus import entries_in, gaps_in
from support.cluster import RedisCluster
from support.market import Market, wait_published
from support.processes import Process
from support.waiting import until

from tickbus.protocol.names import Keys
from tickbus.redis.slots import key_slot

Start = Callable[..., Process]


class ManySymbols(Market):
    """Enough symbols for every master to own some."""

    symbols = tuple(f"S{number}-USD" for number in range(24))


@pytest.fixture
def market(start: Start, redis_cluster: RedisCluster, tmp_path: Path) -> Market:
    return ManySymbols(start, redis_cluster, tmp_path, rate=2000)


@pytest.mark.timeout(120)
def test_killed_master_loses_nothing(market: Market, redis_cluster: RedisCluster) -> None:
    gateway = market.gateway().wait_ready()
    wait_published(gateway, 2000)
    redis_cluster.master(Keys().bell(Keys().shard("S1-USD"))).kill()
    # the other two thirds continue at once, the last one when its replica has been promoted
    wait_published(gateway, 8000)
    until(lambda: gateway.metric("tickbus_backlog_ticks") < 500, 30, "buffered ticks are written")
    assert gateway.stop() == 0
    redis_cluster.heal()
    assert market.check() == 0


@pytest.mark.timeout(120)
def test_moved_slot_loses_nothing(market: Market, redis_cluster: RedisCluster) -> None:
    gateway = market.gateway().wait_ready()
    wait_published(gateway, 2000)
    bell = Keys().bell(Keys().shard("S1-USD"))
    source = redis_cluster.master(bell)
    target = next(node for node in redis_cluster.masters() if node is not source)
    # while its keys are on two nodes the shard is paused; the others continue
    redis_cluster.move(key_slot(bell), target, lambda: wait_published(gateway, 4000))
    wait_published(gateway, 4000)
    until(lambda: gateway.metric("tickbus_backlog_ticks") < 500, 30, "buffered ticks are written")
    assert gateway.stop() == 0
    assert market.check() == 0
    assert redis_cluster.master(bell) is target


@pytest.mark.timeout(120)
def test_stalled_leader_writes_nothing_after_waking(market: Market, redis_cluster: RedisCluster) -> None:
    first = market.gateway().wait_ready()
    wait_published(first, 2000)
    second = market.gateway()
    second.wait_for("standing by")
    first.signal(signal.SIGSTOP)
    until(lambda: second.get("/readyz")[0] == 200, 20, "took over")
    wait_published(second, 1000)
    first.signal(signal.SIGCONT)
    assert first.wait(20) == 5
    wait_published(second, 1000)
    assert second.stop() == 0
    assert market.check() > 0
    for symbol in market.symbols:
        (_, old), (_, new) = market.epochs(symbol)
        assert old == 1 < new
        (gap,) = gaps_in(redis_cluster, "trade", "binance", symbol)
        assert entries_in(redis_cluster, "trade", "binance", symbol)[new - 1][1] == gap
