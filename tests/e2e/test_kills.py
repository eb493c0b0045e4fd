"""kill -9 of every service, an outage of Redis: no duplicates, and every missing tick is named by a Gap."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import captures
from support.processes import Process
from support.recording import Recording, reference_bars
from support.redis_server import RedisServer
from support.waiting import until

Start = Callable[..., Process]
SECOND = 1_000_000_000


class Chain:
    """Simulator, gateway, bars and recorder on one capture of 800 s, played faster."""

    def __init__(self, start: Start, redis: RedisServer, data: Path, folder: Path, speed: int) -> None:
        files = ",".join(map(str, captures.binance_files(data)))
        self.simulator = start("simulate", "--source", f"capture:{files}", "--speed", str(speed))
        url = self.simulator.wait_for(r"listening on (ws://\S+)")[1]
        self.gateway = start(
            "gateway", "--feed", "binance", "--url", url, "--symbols", "BTC-USDT", "--kinds", "trade,quote",
            "--redis", redis.url, "--lease-ttl", "500ms",
        )  # fmt: skip
        self.bars = start(
            "bars", "--specs", "time:1s,tick:100", "--grace", "1s", "--redis", redis.url,
            "--lease-ttl", "500ms",
        )  # fmt: skip
        self.recorder = start(
            "recorder", "--data-dir", str(folder), "--flush-interval", "300ms", "--redis", redis.url,
            "--lease-ttl", "500ms",
        )  # fmt: skip
        self.recording = Recording(folder)

    def finish(self) -> None:
        """Play to the end, wait until all services have caught up, stop them."""
        self.simulator.wait_for("market ended", 60)
        # the simulator keeps the connection open: a connected gateway has received everything left for it
        until(lambda: self.gateway.get("/readyz")[0] == 200, 20)
        until(lambda: self.gateway.metric("tickbus_backlog_ticks") == 0, 20)
        until(self.bars.caught_up, 30)
        until(self.recorder.caught_up, 30)
        until(lambda: self.bars.metric("tickbus_bars_open") <= 1, 30, "all time bars closed by the clock")
        until(lambda: self.recorder.metric("tickbus_consumer_lag_ticks") == 0, 20)
        processes = (self.simulator, self.gateway, self.bars, self.recorder)
        assert [process.stop() for process in processes] == [0, 0, 0, 0]

    def missing(self) -> set[int]:
        """Return the captured ids missing in the files; the rest must be right, ordered and unique."""
        expected = {int(row[0]): row for row in captures.binance_trades(self._data)}
        recorded = self.recording.trades("BTC-USDT")
        ids = [int(row[0]) for row in recorded]
        assert ids == sorted(set(ids))
        assert recorded == [expected[id] for id in ids]
        return expected.keys() - set(ids)

    def named_by_gaps(self) -> set[int]:
        """Return the ids that the Gaps name; each is named once."""
        named: list[int] = []
        for _, first, last, count, repaired in self.recording.gaps("trade"):
            assert not repaired and first is not None and last is not None
            assert count == int(last) - int(first) + 1
            named += range(int(first), int(last) + 1)
        assert len(named) == len(set(named))
        return set(named)

    _data: Path


@pytest.fixture
def chain(
    start: Start, redis_server: RedisServer, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Chain:
    # nine kills take a while; an outage of Redis takes less
    chain = Chain(
        start, redis_server, data, tmp_path / "data", speed=20 if "kill_9" in request.node.name else 80
    )
    chain._data = data
    return chain


@pytest.mark.data
@pytest.mark.timeout(180)
def test_kill_9_of_each_service_three_times_loses_nothing(chain: Chain) -> None:
    until(lambda: chain.recorder.metric("tickbus_recorder_rows_total", kind="trade") > 100, 30)
    for _ in range(3):
        for service, working in (
            (chain.gateway, lambda: chain.gateway.metric("tickbus_ticks_published_total", kind="trade") > 50),
            (chain.bars, lambda: chain.bars.metric("tickbus_bars_emitted_total") > 3),
            (chain.recorder, lambda: chain.recorder.metric("tickbus_recorder_rows_total", kind="trade") > 20),
        ):
            service.kill()
            service.start()
            service.wait_ready()
            until(working, 20, "it works again")
    chain.finish()
    missing = chain.missing()
    assert missing, "the gateway was down for a while: the test proves nothing otherwise"
    assert chain.named_by_gaps() == missing
    for kind in ("trade", "quote", "bar", "gap"):
        assert chain.recording.duplicates(kind) == []
    assert chain.recording.bars("time:1s") == reference_bars(chain.recording.trades("BTC-USDT"), SECOND)
    assert chain.recording.query("select count(distinct epoch) from FILES") == [(4,)]
    # one Gap per outage in the quotes, which have no ids
    assert [gap[0] for gap in chain.recording.gaps("quote")] == ["disconnect"] * 3


@pytest.mark.data
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["stopped", "killed", "paused"])
def test_redis_outage_loses_nothing(how: str, chain: Chain, redis_server: RedisServer) -> None:
    until(lambda: chain.recorder.metric("tickbus_recorder_rows_total", kind="trade") > 100, 30)
    received = chain.gateway.metric("tickbus_feed_frames_total")
    {"stopped": redis_server.stop, "killed": redis_server.kill, "paused": redis_server.pause}[how]()
    until(
        lambda: chain.gateway.metric("tickbus_feed_frames_total") > received + 5_000,
        30,
        "the upstream connection keeps delivering",
    )
    assert chain.gateway.get("/healthz")[0] == 200
    if how == "paused":
        redis_server.resume()
    else:
        redis_server.start()
    chain.finish()
    # kill -9 costs up to a second of Redis's append-only file: the replay buffer resends it
    assert chain.missing() == set()
    assert chain.named_by_gaps() == set()
    assert chain.recording.gaps("quote") == []
    assert chain.recording.quotes("BTC-USDT") == captures.binance_quotes(chain._data)
    assert chain.recording.bars("time:1s") == reference_bars(chain.recording.trades("BTC-USDT"), SECOND)
    for kind in ("trade", "quote", "bar", "gap"):
        assert chain.recording.duplicates(kind) == []
