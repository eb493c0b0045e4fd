"""What must not end a subscription: a takeover, a Redis that is away, a paused holder. Real processes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cluster import RedisCluster
from support.processes import Process
from support.redis_server import RedisServer
from support.subscribing import TTL_SECONDS, Venue
from support.waiting import until

from tickbus.protocol.messages import GapKind
from tickbus.protocol.names import Keys

Start = Callable[..., Process]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def venue(start: Start, redis_server: RedisServer, tmp_path: Path) -> Callable[[str], Venue]:
    return lambda feed: Venue(start, redis_server, tmp_path, feed)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_gateway_that_takes_over_goes_on(end: str, venue: Callable[[str], Venue]) -> None:
    """With --linger 0s: what is wanted, and not known to be unwanted, stays."""
    one = venue("binance")
    one.simulate()
    first = one.gateway("--symbols", "AA-USDT,FF-USDT", linger="0s").wait_ready()
    wanted = one.want("BB-USDT", "FF-USDT")
    one.wait_state("trade BB-USDT", "active")
    one.wait_trades("BB-USDT")
    first.kill() if end == "kill" else first.stop()
    second = one.gateway("--symbols", "AA-USDT", linger="0s").wait_ready()
    one.wait_trades("BB-USDT", 20)
    one.wait_trades("FF-USDT", 20)
    one.wait_for({"trade AA-USDT": "active", "trade BB-USDT": "active", "trade FF-USDT": "active"})
    # wanted no more: only that ends it
    wanted.drop(["BB-USDT"])
    one.wait_state("trade BB-USDT", "absent")
    one.finish(second)
    wanted.close()
    for symbol in ("AA-USDT", "BB-USDT", "FF-USDT"):
        trades, gaps = one.trades(symbol), one.gaps(symbol)
        named = [
            id
            for gap in gaps
            if gap.kind is not GapKind.UNSUBSCRIBED
            for id in range(int(gap.from_id or 0), int(gap.to_id or 0) + 1)
        ]
        ids = [int(trade.trade_id or 0) for trade in trades]
        assert sorted(ids + named) == list(range(ids[0], ids[-1] + 1)), symbol
        assert [gap.kind for gap in gaps if gap.kind is GapKind.UNSUBSCRIBED] == (
            [GapKind.UNSUBSCRIBED] if symbol == "BB-USDT" else []
        ), symbol


def test_what_is_wanted_stays_subscribed_while_redis_or_its_holder_is_away(
    venue: Callable[[str], Venue], start: Start, redis_server: RedisServer
) -> None:
    one = venue("binance")
    one.simulate()
    gateway = one.gateway("--symbols", "AA-USDT", linger="0s").wait_ready()
    holder = start("want", "BB-USDT", "--feed", "binance", "--redis", redis_server.url)
    one.wait_state("trade BB-USDT", "active")
    one.wait_trades("BB-USDT")

    def is_kept(way: str) -> None:
        one.wait_trades("BB-USDT", 20)
        one.wait_for({"trade AA-USDT": "active", "trade BB-USDT": "active"})
        assert one.events("unsubscribe") == [], way

    time.sleep(TTL_SECONDS + 1)  # until then the gateway ends nothing in any case
    holder.signal(signal.SIGSTOP)
    time.sleep(TTL_SECONDS - 8)
    holder.signal(signal.SIGCONT)
    is_kept("the holder was paused")
    redis_server.pause()
    time.sleep(TTL_SECONDS + 2)  # longer than a want lives
    redis_server.resume()
    is_kept("Redis was paused")
    redis_server.stop()
    time.sleep(TTL_SECONDS + 2)
    redis_server.start()
    is_kept("Redis was restarted")
    before_flush = one.gaps("AA-USDT"), one.trades("AA-USDT")
    redis_server.client.flushall()
    is_kept("Redis was emptied")
    assert holder.stop() == 0
    one.wait_state("trade BB-USDT", "absent")
    until(lambda: one.events("unsubscribe"), 10, "the vendor was told")
    one.finish(gateway)
    gaps = [gap.kind for gap in one.gaps("BB-USDT")]
    assert gaps.count(GapKind.UNSUBSCRIBED) == 1, gaps
    steady_gaps, trades = before_flush
    assert steady_gaps == []
    sent = [int(id) for id, *_ in one.sent("AA-USDT")]
    assert [int(trade.trade_id or 0) for trade in trades] == sent[: len(trades)]


def test_wants_on_a_cluster(start: Start, redis_cluster: RedisCluster, tmp_path: Path) -> None:
    one = Venue(start, redis_cluster, tmp_path, "binance")
    one.simulate()
    gateway = one.gateway("--symbols", "AA-USDT", linger="0s").wait_ready()
    wanted = one.want("BB-USDT", "CC-USDT", "DD-USDT")
    active = {f"trade {symbol}-USDT": "active" for symbol in ("AA", "BB", "CC", "DD")}
    one.wait_for(active)
    redis_cluster.fail_over(Keys().holders("binance"))
    for symbol in ("BB-USDT", "CC-USDT", "DD-USDT"):
        one.wait_trades(symbol)
    wanted.drop(["CC-USDT"])
    del active["trade CC-USDT"]
    one.wait_for(active)
    assert [gap.kind for gap in one.gaps("CC-USDT")] == [GapKind.UNSUBSCRIBED]
    one.finish(gateway)
    wanted.close()
    for symbol in ("AA-USDT", "BB-USDT", "DD-USDT"):
        one.check_steady(symbol)
