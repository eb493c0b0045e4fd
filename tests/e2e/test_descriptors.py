"""A gateway that runs out of file descriptors while it has to reconnect waits until there are some again."""

import resource
from collections.abc import Callable

from support.bus import gaps_in, messages_in
from support.processes import Process
from support.redis_server import RedisServer
from support.waiting import until

from tickbus.protocol.messages import Trade


def test_exhausted_descriptors_are_an_outage(
    start: Callable[..., Process], redis_server: RedisServer
) -> None:
    simulator = start("simulate", "--rate", "200")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", "binance", "--url", url, "--symbols", "BTC-USDT", "--redis", redis_server.url
    ).wait_ready()  # fmt: skip
    until(lambda: gateway.metric("tickbus_ticks_published_total") > 100)
    pid = gateway.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, hard))
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    gateway.wait_for(r"Too many open files.*raise the limit of open files .ulimit -n.")
    simulator.send_line("close=1011")
    gateway.wait_for("upstream: cannot connect to .*Too many open files")
    assert gateway.process.poll() is None
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    gateway.wait_for("Redis accepts writes again")
    before = len(messages_in(redis_server, "trade", "binance", "BTC-USDT"))
    until(lambda: len(messages_in(redis_server, "trade", "binance", "BTC-USDT")) > before + 100)
    assert gateway.stop() == 0
    stored = [
        int(message.trade_id or "")
        for message in messages_in(redis_server, "trade", "binance", "BTC-USDT")
        if isinstance(message, Trade)
    ]
    missing = {
        id
        for gap in gaps_in(redis_server, "trade", "binance", "BTC-USDT")
        for id in range(int(gap.from_id or ""), int(gap.to_id or "") + 1)
    }
    assert sorted({*stored, *missing}) == list(range(stored[0], stored[-1] + 1))
    assert len(set(stored)) == len(stored)
