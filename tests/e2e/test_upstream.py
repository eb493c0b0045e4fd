"""The upstream connection under the vendor's faults: replaced, mute, cut, refused, slow; compared with the simulator's ledger."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.bus import gaps_in, messages_in
from support.processes import Part, read_ledger
from support.redis_server import RedisServer
from support.waiting import until

Start = Callable[..., Part]


class Feed:
    """A simulator with a ledger, and a gateway on it."""

    def __init__(self, start: Start, redis: RedisServer, folder: Path) -> None:
        self._start = start
        self._redis = redis
        self._ledger = folder / "ledger.jsonl"

    def open(
        self,
        feed: str,
        *gateway: str,
        kinds: str = "trade,quote",
        rate: int = 500,
        simulate: tuple[str, ...] = (),
    ) -> "Feed":
        self.simulator = self._start(
            "simulate", "--rate", str(rate), "--ledger", str(self._ledger), *simulate
        )
        self.url = self.simulator.wait_for(r"listening on (ws://\S+)")[1]
        self.gateway = self._start(
            "gateway", "--feed", feed, "--url", self.url, "--symbols", "BTC-USDT,ETH-USDT", "--kinds", kinds,
            "--redis", self._redis.url, "--lease-ttl", "500ms", *gateway,
        ).ready()  # fmt: skip
        return self

    def fault(self, line: str) -> None:
        said = self.simulator.output.count("ok ")
        self.simulator.say(line)
        until(lambda: self.simulator.output.count("ok ") > said, 5, line)

    def published(self) -> float:
        return self.gateway.metric("tickbus_ticks_published_total")

    def more(self, ticks: int = 200) -> None:
        before = self.published()
        until(lambda: self.published() > before + ticks, 30, "ticks go on")

    def reconnects(self, reason: str) -> float:
        return self.gateway.metric("tickbus_feed_reconnects_total", reason=reason)

    def finish(self) -> list[dict[str, object]]:
        """Stop the market, then the gateway; -> the ledger's ticks."""
        assert self.simulator.stop() == 0
        until(lambda: self.gateway.metric("tickbus_backlog_ticks") == 0, 10)
        assert self.gateway.stop() == 0
        return [line for line in read_ledger(self._ledger) if "n" in line]


@pytest.fixture
def feed(start: Start, redis_server: RedisServer, tmp_path: Path) -> Feed:
    return Feed(start, redis_server, tmp_path)


def ids(lines: list[dict[str, object]], symbol: str, kind: str = "trade") -> list[str]:
    return [
        str(line["id"])
        for line in lines
        if line["kind"] == kind and line["symbol"] == symbol.replace("-", "")
    ]


@pytest.mark.parametrize("why", ["age", "shutdown"])
def test_a_connection_is_replaced_without_a_hole_and_without_a_repeat(
    why: str, feed: Feed, redis_server: RedisServer
) -> None:
    feed.open("binance", *(["--max-connection-age", "2s"] if why == "age" else []))
    feed.more()
    if why == "shutdown":
        feed.fault("shutdown=10s")
    until(lambda: feed.reconnects("rotate") >= 2 if why == "age" else feed.reconnects("rotate") == 1, 20)
    feed.more(500)
    lines = feed.finish()
    for symbol in ("BTC-USDT", "ETH-USDT"):
        stored = [trade.trade_id for trade in messages_in(redis_server, "trade", "binance", symbol)]
        sent = ids(lines, symbol)
        assert stored == sent[: len(stored)]
        assert len(stored) > 100
        quotes = [
            (q.bid_text, q.bid_size_text, q.ask_text, q.ask_size_text)
            for q in messages_in(redis_server, "quote", "binance", symbol)
        ]
        told = [
            (line["bid"], line["bid_size"], line["ask"], line["ask_size"])
            for line in lines
            if line["kind"] == "quote" and line["symbol"] == symbol.replace("-", "")
        ]
        assert quotes == told[: len(quotes)]
        assert (
            gaps_in(redis_server, "trade", "binance", symbol)
            == gaps_in(redis_server, "quote", "binance", symbol)
            == []
        )


def test_a_mute_connection_is_left_and_the_hole_is_told(feed: Feed, redis_server: RedisServer) -> None:
    feed.open("alltick", "--silence", "1s", "--token", "t")
    feed.more()
    feed.fault("mute-connection=60s")
    until(lambda: feed.reconnects("silence") == 1, 20)
    until(
        lambda: feed.gateway.metric("tickbus_gaps_total", kind="stale") == 4,
        20,
        "trades and quotes are subscribed again",
    )
    feed.more()
    feed.finish()
    for kind in ("trade", "quote"):
        for symbol in ("BTC-USDT", "ETH-USDT"):
            (gap,) = gaps_in(redis_server, kind, "alltick", symbol)
            assert (gap.kind.name, gap.count, gap.source, gap.repaired) == ("STALE", None, "gateway", False)
            assert 1_000_000_000 <= gap.to_ts - gap.from_ts < 20_000_000_000


def test_heartbeats_and_answers_are_not_data(feed: Feed) -> None:
    closed = "mon 00:00-00:01 UTC" if datetime.now(UTC).weekday() else "tue 00:00-00:01 UTC"
    feed.open("alltick", "--silence", "1s", "--token", "t", "--session", closed)
    feed.more()
    feed.fault("mute-connection=60s")
    frames = feed.gateway.metric("tickbus_feed_frames_total")
    until(lambda: feed.gateway.metric("tickbus_feed_frames_total") > frames, 20, "a heartbeat is answered")
    assert feed.reconnects("silence") == 0, "outside the session silence is no fault"


def test_a_cut_connection_leaves_exact_gaps_where_there_are_ids(
    feed: Feed, redis_server: RedisServer
) -> None:
    feed.open("binance", rate=2000)
    for fault in ("cut", "close=1011", "cut"):
        feed.more()
        ended = feed.reconnects("closed")
        feed.fault(fault)
        until(lambda ended=ended: feed.reconnects("closed") > ended, 20)
        until(lambda: feed.gateway.get("/readyz")[0] == 200, 20)
    feed.more()
    counted = feed.gateway.metric("tickbus_gaps_total", kind="disconnect")
    missing = feed.gateway.metric("tickbus_missing_ticks_total")
    lines = feed.finish()
    told = 0
    gap_ids: set[str] = set()
    for symbol in ("BTC-USDT", "ETH-USDT"):
        stored = [trade.trade_id for trade in messages_in(redis_server, "trade", "binance", symbol)]
        assert len(stored) == len(set(stored))
        sent = ids(lines, symbol)
        gaps = gaps_in(redis_server, "trade", "binance", symbol)
        named = {str(id) for gap in gaps for id in range(int(gap.from_id or 0), int(gap.to_id or 0) + 1)}
        until_last = sent[: sent.index(stored[-1]) + 1]
        assert set(until_last) - set(stored) == named
        assert [id for id in until_last if id not in named] == stored
        told += len(gaps) + len(gaps_in(redis_server, "quote", "binance", symbol))
        gap_ids |= named
        assert len(gaps_in(redis_server, "quote", "binance", symbol)) == 3
    assert counted == told
    assert missing >= len(gap_ids)


def test_duplicates_late_ticks_jumps_and_resets(feed: Feed, redis_server: RedisServer) -> None:
    feed.open("binance", kinds="trade")
    for fault in (
        "kind=trade duplicate=20",
        "kind=trade reorder=5",
        "jump=1000",
        "kind=trade drop=7",
        "reset=1",
    ):
        feed.more()
        feed.fault(fault)
    feed.more()
    lines = feed.finish()
    kinds: Counter[str] = Counter()
    for symbol in ("BTC-USDT", "ETH-USDT"):
        messages = messages_in(redis_server, "trade", "binance", symbol)
        # every line of the ledger that was sent is in the stream once, repeats once in all; compared by order of arrival
        sent = [
            str(line["id"])
            for line in lines
            if line["sent"] and line["fault"] != "duplicate" and line["symbol"] == symbol.replace("-", "")
        ]
        stored = [trade.trade_id for trade in messages]
        assert stored == sent[: len(stored)]
        kinds.update(
            ("repaired " if gap.repaired else "") + gap.kind.name
            for gap in gaps_in(redis_server, "trade", "binance", symbol)
        )
    assert kinds["RESET"] == 2
    assert kinds["repaired SEQUENCE"] == kinds["SEQUENCE"] - 2 - _dropped_runs(lines) == 5
    assert feed_total(lines, "duplicate") == 20


def _dropped_runs(lines: list[dict[str, object]]) -> int:
    """Holes that the dropped ticks made: runs in each symbol's own sequence."""
    runs = 0
    for symbol in ("BTCUSDT", "ETHUSDT"):
        before = False
        for line in lines:
            if line["symbol"] == symbol and line["kind"] == "trade":
                dropped = line["fault"] == "drop"
                runs += dropped and not before
                before = dropped
    return runs


def feed_total(lines: list[dict[str, object]], fault: str) -> int:
    return sum(line["fault"] == fault for line in lines)


def test_a_server_that_accepts_and_closes_is_not_stormed(feed: Feed) -> None:
    feed.open("binance")
    feed.more()
    feed.fault("refuse=3s")
    feed.fault("cut")
    until(lambda: feed.gateway.metric("tickbus_feed_reconnects_total") >= 3, 20)
    attempts = feed.gateway.metric("tickbus_feed_reconnects_total")
    until(lambda: feed.gateway.get("/readyz")[0] == 200, 30)
    feed.more()
    assert attempts < 10
