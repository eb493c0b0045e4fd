"""Redis answers and refuses writes: log, readiness and metric say so in its own words."""

from collections.abc import Callable

import pytest
from support.bus import messages_in
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until

from tickbus.protocol.messages import Trade


@pytest.mark.parametrize(
    ("refuse", "accept", "error", "words"),
    [
        (("maxmemory", "1"), ("maxmemory", "0"), "OOM", "OOM command not allowed when used memory"),
        (
            ("min-replicas-to-write", "1"),
            ("min-replicas-to-write", "0"),
            "NOREPLICAS",
            "NOREPLICAS Not enough",
        ),
    ],
)
def test_refusal_is_shown_in_the_words_of_the_server(
    refuse: tuple[str, str],
    accept: tuple[str, str],
    error: str,
    words: str,
    start: Callable[..., Process],
    redis_server: RedisServer,
) -> None:
    simulator = start("simulate", "--rate", "200")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", "binance", "--url", url, "--symbols", "BTC-USDT", "--redis", redis_server.url
    ).wait_ready()
    until(lambda: gateway.metric("tickbus_ticks_published_total") > 100)
    redis_server.client.config_set(*refuse)
    until(lambda: gateway.get("/readyz")[1].startswith(f"Redis refuses writes: {words}"))
    assert gateway.get("/readyz")[0] == 503
    assert gateway.metric("tickbus_redis_refuses_writes", error=error) == 1
    assert gateway.metric("tickbus_redis_refuses_writes") == 1
    redis_server.client.config_set(*accept)
    gateway.wait_for("Redis accepts writes again")
    gateway.wait_ready()
    assert gateway.metric("tickbus_redis_refuses_writes") == 0
    assert gateway.stop() == 0
    assert gateway.output.count(words) == 1
    stored = [
        int(message.trade_id or "")
        for message in messages_in(redis_server, "trade", "binance", "BTC-USDT")
        if isinstance(message, Trade)
    ]
    assert stored == list(range(stored[0], stored[-1] + 1))
