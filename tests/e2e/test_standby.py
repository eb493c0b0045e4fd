"""A second gateway of one name: refused, warned about, or a plain standby."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus import entries_in, gaps_in, messages_in
from support.processes import Process, tickbus
from support.redis_server import RedisServer
from support.waiting import until

from tickbus.protocol.messages import GapKind

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


def test_symbols_taken_out_of_service_end_with_a_gap(
    start: Start, redis_server: RedisServer, tmp_path: Path
) -> None:
    """At the next start, and only once."""
    simulator = start("simulate", "--rate", "200")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]

    def run(symbols: str) -> Process:
        return start(
            "gateway", "--feed", "binance", "--url", url, "--symbols", symbols, "--redis", redis_server.url,
            "--spill-dir", str(tmp_path / "spill"),
        ).wait_ready()  # fmt: skip

    both = run("BTC-USDT,ETH-USDT")
    until(lambda: len(messages_in(redis_server, "trade", "binance", "ETH-USDT")) > 10)
    assert both.stop() == 0
    for _ in range(2):
        one = run("BTC-USDT")
        assert one.stop() == 0
    (*_, (id, message)) = entries_in(redis_server, "trade", "binance", "ETH-USDT")
    trades = messages_in(redis_server, "trade", "binance", "ETH-USDT")
    (gap,) = gaps_in(redis_server, "trade", "binance", "ETH-USDT")
    assert gap == message
    assert (gap.kind, gap.from_id, gap.to_id, gap.count, gap.repairable, gap.repaired) == (
        GapKind.UNSUBSCRIBED, None, None, None, False, False,
    )  # fmt: skip
    assert gap.from_ts == gap.to_ts > trades[-1].ts_recv
    assert id.endswith(f"-{len(trades) + 1}")
    streams = json.loads(tickbus("status", "--json", "--redis", redis_server.url).stdout)["streams"]
    (ended,) = (one for one in streams if one["stream"] == "trade:binance:ETH-USDT")
    assert (ended["gaps"], ended["missing"], ended["ticks"]) == ({"unsubscribed": 1}, 0, len(trades))

    # subscribed again: the pause is one Gap of that kind, whose ids are not missing
    again = run("ETH-USDT,BTC-USDT")
    until(lambda: len(messages_in(redis_server, "trade", "binance", "ETH-USDT")) > len(trades) + 10)
    assert again.stop() == 0
    (_, pause) = gaps_in(redis_server, "trade", "binance", "ETH-USDT")
    first = messages_in(redis_server, "trade", "binance", "ETH-USDT")[len(trades)]
    between = (str(int(trades[-1].trade_id or "") + 1), str(int(first.trade_id or "") - 1))
    assert (pause.kind, pause.from_id, pause.to_id) == (GapKind.UNSUBSCRIBED, *between)
    assert (pause.count, pause.repairable) == (None, False)
    streams = json.loads(tickbus("status", "--json", "--redis", redis_server.url).stdout)["streams"]
    (back,) = (one for one in streams if one["stream"] == "trade:binance:ETH-USDT")
    assert (back["gaps"], back["missing"]) == ({"unsubscribed": 2}, 0)
