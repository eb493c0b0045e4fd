"""A second gateway of one name: refused, warned about, or a plain standby."""

import json
from collections.abc import Callable

import pytest
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.waiting import until

Start = Callable[..., Process]
BASE = ("--name", "venue", "--url", "ws://127.0.0.1:1", "--lease-ttl", "500ms")


def gateway(start: Start, redis: RedisServer, *args: str) -> Process:
    return start("gateway", *BASE, "--redis", redis.url, *args)


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (("--feed", "json", "--symbols", "A-B"), "with --feed binance, this one has json; use another"),
        (("--feed", "binance", "--symbols", "A-B", "--kinds", "trade,quote"),
         "with --kinds trade, this one has quote,trade"),
    ],
)  # fmt: skip
def test_gateway_of_another_feed_or_kinds_refuses_to_start(
    other: tuple[str, ...], error: str, start: Start, redis_server: RedisServer
) -> None:
    first = gateway(start, redis_server, "--feed", "binance", "--symbols", "A-B")
    first.wait_for("epoch 1")
    second = gateway(start, redis_server, *other)
    assert second.wait() == 2
    assert error in second.output
    assert len([line for line in second.output.splitlines() if "INFO" not in line]) == 1
    assert first.stop() == 0
    # nobody runs: the configuration may change
    gateway(start, redis_server, *other).wait_for("epoch 2")


def test_standby_with_other_symbols_is_shown(start: Start, redis_server: RedisServer) -> None:
    first = gateway(start, redis_server, "--feed", "binance", "--symbols", "A-B,C-D")
    first.wait_for("epoch 1")
    second = gateway(start, redis_server, "--feed", "binance", "--symbols", "A-B")
    second.wait_for(r"with other symbols \(2, this one has 1\)")
    assert second.metric("tickbus_feed_standby_differs", feed="venue") == 1
    assert first.metric("tickbus_feed_standby_differs", feed="venue") == 0
    (feed,) = json.loads(tickbus("status", "--json", "--redis", redis_server.url).stdout)["feeds"]
    assert feed["standby"]["differs"] == "symbols: 1, running 2"
    assert (
        "Standby of venue differs: symbols: 1, running 2"
        in tickbus("status", "--redis", redis_server.url).stdout
    )
    first.kill()
    second.wait_for("epoch 2")
    until(lambda: second.metric("tickbus_feed_standby_differs", feed="venue") == 0)
    assert second.output.count("other symbols") == 1


def test_standby_with_the_same_symbols_says_nothing(start: Start, redis_server: RedisServer) -> None:
    first = gateway(start, redis_server, "--feed", "binance", "--symbols", "A-B,C-D")
    first.wait_for("epoch 1")
    second = gateway(start, redis_server, "--feed", "binance", "--symbols", "C-D,A-B")
    second.wait_for("standing by")

    def standby() -> object:
        return json.loads(tickbus("status", "--json", "--redis", redis_server.url).stdout)["feeds"][0][
            "standby"
        ]

    assert until(standby)["differs"] == ""  # type: ignore[index]
    assert "WARNING" not in second.output
