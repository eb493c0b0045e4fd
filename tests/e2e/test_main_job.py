"""One connection in, exact ticks per symbol, bars and files out: the whole chain as real processes."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from support import captures
from support.processes import Process
from support.recording import Recording, reference_bars
from support.redis_server import RedisServer
from support.waiting import until

Start = Callable[..., Process]
SECOND = 1_000_000_000


def wait_processed(gateway: Process, consumers: list[Process], ticks: int, seconds: float = 60.0) -> None:
    """Wait until all ticks are published, and every consumer has committed all of them."""
    until(lambda: gateway.metric("tickbus_ticks_published_total") >= ticks, seconds, "published")
    for consumer in consumers:
        until(consumer.caught_up, seconds, "lag 0")


@pytest.mark.data
@pytest.mark.timeout(180)
def test_binance_capture_is_recorded_completely_with_correct_bars(
    redis_server: RedisServer, start: Start, data: Path, tmp_path: Path
) -> None:
    files = ",".join(map(str, captures.binance_files(data)))
    simulator = start("simulate", "--source", f"capture:{files}", "--speed", "max")
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", "binance", "--url", url, "--symbols", "BTC-USDT", "--kinds", "trade,quote",
        "--redis", redis_server.url,
    )  # fmt: skip
    bars = start("bars", "--specs", "time:1s,time:1m,tick:100", "--grace", "1s", "--redis", redis_server.url)
    recorder = start(
        "recorder", "--data-dir", str(tmp_path / "data"), "--flush-interval", "500ms",
        "--redis", redis_server.url,
    )  # fmt: skip

    trades, quotes = captures.binance_trades(data), captures.binance_quotes(data)
    wait_processed(gateway, [bars, recorder], len(trades) + len(quotes))
    reference = reference_bars(trades, SECOND)
    until(
        lambda: bars.metric("tickbus_bars_emitted_total", spec="time:1s") == len(reference),
        30,
        "the last bar is closed by the clock",
    )
    until(lambda: recorder.metric("tickbus_consumer_lag_ticks") == 0, 30, "everything is recorded")
    assert gateway.metric("tickbus_gaps_total") == 0
    assert gateway.metric("tickbus_feed_rejected_total") == 0
    assert [process.stop() for process in (simulator, gateway, bars, recorder)] == [0, 0, 0, 0]

    recording = Recording(tmp_path / "data")
    recorded = recording.trades("BTC-USDT")
    assert [int(row[0]) for row in recorded] == list(range(captures.FIRST_ID, captures.LAST_ID + 1))
    assert recorded == trades
    assert recording.quotes("BTC-USDT") == quotes
    assert recording.bars("time:1s") == reference
    assert recording.gaps() == []


@pytest.mark.data
@pytest.mark.timeout(180)
@pytest.mark.parametrize("feed", ["alltick", "json"])
def test_us_tape_keeps_its_runs_of_equal_trades(
    feed: str, redis_server: RedisServer, start: Start, data: Path, tmp_path: Path
) -> None:
    simulator = start(
        "simulate", "--source", f"ticks:{data}/bac_20131009_trade.zip", "--symbol", "BAC.US",
        "--speed", "max", "--token", "t0ken",
    )  # fmt: skip
    url = simulator.wait_for(r"listening on (ws://\S+)")[1]
    gateway = start(
        "gateway", "--feed", feed, "--url", url, "--token", "t0ken", "--symbols", "BAC.US",
        "--redis", redis_server.url, "--retention", "365d",
    )  # fmt: skip
    recorder = start(
        "recorder", "--data-dir", str(tmp_path / "data"), "--flush-interval", "500ms",
        "--redis", redis_server.url,
    )  # fmt: skip
    trades = captures.bac_trades(data)
    wait_processed(gateway, [recorder], len(trades))
    assert [process.stop() for process in (simulator, gateway, recorder)] == [0, 0, 0]
    recorded = [(price, size) for _, price, size, _, _ in Recording(tmp_path / "data").trades("BAC.US")]
    assert recorded == trades
    assert Decimal("0") not in {price for price, _ in recorded}
