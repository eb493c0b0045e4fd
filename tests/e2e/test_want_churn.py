"""Symbols wanted and dropped at random: the vendor ends with the union, and steady ones lose nothing.

The whole of it: TICKBUS_CHURN_SYMBOLS=500 TICKBUS_CHURN_SECONDS=60. `make soak` has it among its faults.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.churning import Churn
from support.processes import Process
from support.redis_server import RedisServer
from support.subscribing import Venue
from support.waiting import until

STEADY = ("AA-USDT", "BB-USDT", "CC-USDT")
COUNT = int(os.environ.get("TICKBUS_CHURN_SYMBOLS", "100"))
SECONDS = int(os.environ.get("TICKBUS_CHURN_SECONDS", "5"))


@pytest.fixture
def churning(tmp_path: Path, redis_server: RedisServer) -> Callable[[int], Churn]:
    def begin(seed: int) -> Churn:
        path = Path(__file__).parent.parent
        return Churn(
            tmp_path / f"churn-{seed}.log", "--redis", redis_server.url, "--count", str(COUNT), "--seed",
            str(seed), PYTHONPATH=str(path),
        )  # fmt: skip

    return begin


def subscribed_at(one: Venue) -> set[str]:
    """Return the streams that the vendor sends to its newest connection."""
    streams: set[str] = set()
    events = one.events("subscribe", "unsubscribe")
    for row in events:
        if row["connection"] == events[-1]["connection"]:
            names = set(row["streams"])
            streams = streams | names if row["event"] == "subscribe" else streams - names
    return streams


@pytest.mark.timeout(180 + 4 * SECONDS)
def test_churn_ends_in_the_union_and_costs_steady_symbols_nothing(
    start: Callable[..., Process],
    redis_server: RedisServer,
    tmp_path: Path,
    churning: Callable[[int], Churn],
) -> None:
    one = Venue(start, redis_server, tmp_path, "binance")
    one.simulate(rate=1000)
    # by its options one, by wants two
    gateway = one.gateway("--symbols", STEADY[0], "--max-connection-age", "4s").wait_ready()
    steady = one.want(*STEADY[1:])
    one.wait_for({f"trade {symbol}": "active" for symbol in STEADY})
    churns = [churning(1), churning(2)]
    try:
        for churn in churns:
            churn.wait_for("churning")
        before = len(one.events("subscribe", "unsubscribe"))
        until(
            lambda: len(one.events("subscribe", "unsubscribe")) >= before + 2 * SECONDS,
            60 + SECONDS,
            "subscriptions change",
        )
        churns[0].kill()
        wanted = churns[1].settle()
        one.wait_for({f"trade {symbol}": "active" for symbol in (*STEADY, *wanted)}, 90)
        union = {symbol.replace("-", "").lower() + "@trade" for symbol in (*STEADY, *wanted)}
        until(lambda: subscribed_at(one) == union, 30, "the vendor's subscriptions are the union")
        page = gateway.get("/metrics")[1]
        reasons = re.findall(r'(?m)^tickbus_feed_reconnects_total\{.*reason="(\w+)".* [1-9]', page)
        assert reasons == ["rotate"], "no change of subscriptions cost a connection"
        assert gateway.metric("tickbus_missing_ticks_total") == 0
    finally:
        for churn in churns:
            churn.close()
    one.finish(gateway)
    steady.close()
    for symbol in STEADY:
        stored = one.stored(symbol)
        ids = [int(id) for id, _, _ in stored]
        assert ids == list(range(ids[0], ids[-1] + 1)), "all of them, once, in order"
        assert set(stored) == set(one.sent(symbol)) or stored == one.sent(symbol)[: len(stored)]
        assert one.gaps(symbol) == []
