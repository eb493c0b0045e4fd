"""The gateway on a real Redis Cluster of six nodes, under load: a killed master, a slot that moves, a leader that stood still."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus import entries_in, gaps_in
from support.cluster import RedisCluster
from support.market import Market, publishes
from support.processes import Part
from support.waiting import until

from tickbus.protocol.names import Keys
from tickbus.redis.slots import key_slot

Start = Callable[..., Part]


class ManySymbols(Market):
    """Enough for every master to hold some."""

    symbols = tuple(f"S{number}-USD" for number in range(24))


@pytest.fixture
def market(start: Start, redis_cluster: RedisCluster, tmp_path: Path) -> Market:
    return ManySymbols(start, redis_cluster, tmp_path, rate=2000)


@pytest.mark.timeout(120)
def test_a_master_is_killed(market: Market, redis_cluster: RedisCluster) -> None:
    gateway = market.gateway().ready()
    publishes(gateway, 2000)
    redis_cluster.master(Keys().bell(Keys().shard("S1-USD"))).kill()
    publishes(gateway, 8000)  # the other two thirds go on at once, the last when its replica was promoted
    until(lambda: gateway.metric("tickbus_backlog_ticks") < 500, 30, "what was held is written")
    assert gateway.stop() == 0
    redis_cluster.heal()
    assert market.check() == 0


@pytest.mark.timeout(120)
def test_a_slot_moves(market: Market, redis_cluster: RedisCluster) -> None:
    gateway = market.gateway().ready()
    publishes(gateway, 2000)
    bell = Keys().bell(Keys().shard("S1-USD"))
    source = redis_cluster.master(bell)
    target = next(node for node in redis_cluster.masters() if node is not source)
    # while its keys lie on two nodes the shard is held; the others go on
    redis_cluster.move(key_slot(bell), target, lambda: publishes(gateway, 4000))
    publishes(gateway, 4000)
    until(lambda: gateway.metric("tickbus_backlog_ticks") < 500, 30, "what was held is written")
    assert gateway.stop() == 0
    assert market.check() == 0
    assert redis_cluster.master(bell) is target


@pytest.mark.timeout(120)
def test_a_leader_that_stood_still_writes_nothing_more(market: Market, redis_cluster: RedisCluster) -> None:
    first = market.gateway().ready()
    publishes(first, 2000)
    second = market.gateway()
    second.wait_for("standing by")
    first.signal(signal.SIGSTOP)
    until(lambda: second.get("/readyz")[0] == 200, 20, "took over")
    publishes(second, 1000)
    first.signal(signal.SIGCONT)
    assert first.wait(20) == 5
    publishes(second, 1000)
    assert second.stop() == 0
    assert market.check() > 0
    for symbol in market.symbols:
        (_, old), (_, new) = market.epochs(symbol)
        assert old == 1 < new
        (gap,) = gaps_in(redis_cluster, "trade", "binance", symbol)
        assert entries_in(redis_cluster, "trade", "binance", symbol)[new - 1][1] == gap
