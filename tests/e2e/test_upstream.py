"""The upstream connection replaced, mute, cut, refused and slow; compared with the simulator's ledger."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.bus import gaps_in, messages_in
from support.processes import Process, read_ledger
from support.redis_server import RedisServer
from support.waiting import until

Start = Callable[..., Process]


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
        ).wait_ready()  # fmt: skip
        return self

    def fault(self, line: str) -> None:
        """Inject a fault into the simulator."""
        answers = self.simulator.output.count("ok ")
        self.simulator.send_line(line)
        until(lambda: self.simulator.output.count("ok ") > answers, 5, line)

    def published(self) -> float:
        return self.gateway.metric("tickbus_ticks_published_total")

    def wait_published(self, ticks: int = 200) -> None:
        before = self.published()
        until(lambda: self.published() > before + ticks, 30, "more ticks are published")

    def reconnects(self, reason: str) -> float:
        return self.gateway.metric("tickbus_feed_reconnects_total", reason=reason)

    def wait_reconnected(self, reason: str, before: float) -> None:
        until(lambda: self.reconnects(reason) > before, 20, f"reconnected, reason {reason}")

    def finish(self) -> list[dict[str, Any]]:
        """Stop the market, then the gateway, and return the ledger's ticks."""
        assert self.simulator.stop() == 0
        until(lambda: self.gateway.metric("tickbus_backlog_ticks") == 0, 10)
        assert self.gateway.stop() == 0
        return [line for line in read_ledger(self._ledger) if "n" in line]


@pytest.fixture
def feed(start: Start, redis_server: RedisServer, tmp_path: Path) -> Feed:
    return Feed(start, redis_server, tmp_path)


def ids(lines: list[dict[str, Any]], symbol: str, kind: str = "trade") -> list[str]:
    return [
        str(line["id"])
        for line in lines
        if line["kind"] == kind and line["symbol"] == symbol.replace("-", "")
    ]


@pytest.mark.parametrize("reason", ["age", "shutdown"])
def test_connection_is_replaced_without_gap_or_duplicate(
    reason: str, feed: Feed, redis_server: RedisServer
) -> None:
    feed.open("binance", *(["--max-connection-age", "2s"] if reason == "age" else []))
    feed.wait_published()
    if reason == "shutdown":
        feed.fault("shutdown=10s")
    until(lambda: feed.reconnects("rotate") >= 2 if reason == "age" else feed.reconnects("rotate") == 1, 20)
    feed.wait_published(500)
    lines = feed.finish()
    for symbol in ("BTC-USDT", "ETH-USDT"):
        stored = [trade.trade_id for trade in messages_in(redis_server, "trade", "binance", symbol)]
        sent = ids(lines, symbol)
        assert stored == sent[: len(stored)]
        assert len(stored) > 100
        quotes = [
            (quote.bid_text, quote.bid_size_text, quote.ask_text, quote.ask_size_text)
            for quote in messages_in(redis_server, "quote", "binance", symbol)
        ]
        expected = [
            (line["bid"], line["bid_size"], line["ask"], line["ask_size"])
            for line in lines
            if line["kind"] == "quote" and line["symbol"] == symbol.replace("-", "")
        ]
        assert quotes == expected[: len(quotes)]
        assert (
            gaps_in(redis_server, "trade", "binance", symbol)
            == gaps_in(redis_server, "quote", "binance", symbol)
            == []
        )


def test_mute_connection_is_replaced_and_the_gap_is_reported(feed: Feed, redis_server: RedisServer) -> None:
    feed.open("alltick", "--silence", "1s", "--token", "t")
    feed.wait_published()
    feed.fault("mute-connection=60s")
    until(lambda: feed.reconnects("silence") == 1, 20)
    until(
        lambda: feed.gateway.metric("tickbus_gaps_total", kind="stale") == 4,
        20,
        "trades and quotes are subscribed again",
    )
    feed.wait_published()
    feed.finish()
    for kind in ("trade", "quote"):
        for symbol in ("BTC-USDT", "ETH-USDT"):
            (gap,) = gaps_in(redis_server, kind, "alltick", symbol)
            assert (gap.kind.name, gap.count, gap.source, gap.repaired) == ("STALE", None, "gateway", False)
            assert 1_000_000_000 <= gap.to_ts - gap.from_ts < 20_000_000_000


def test_heartbeats_and_replies_do_not_count_as_data(feed: Feed) -> None:
    closed = "mon 00:00-00:01 UTC" if datetime.now(UTC).weekday() else "tue 00:00-00:01 UTC"
    feed.open("alltick", "--silence", "1s", "--token", "t", "--session", closed)
    feed.wait_published()
    feed.fault("mute-connection=60s")
    frames = feed.gateway.metric("tickbus_feed_frames_total")
    until(lambda: feed.gateway.metric("tickbus_feed_frames_total") > frames, 20, "a heartbeat is answered")
    assert feed.reconnects("silence") == 0, "outside the session silence is not a fault"


def test_cut_connection_leaves_exact_gaps_where_there_are_ids(feed: Feed, redis_server: RedisServer) -> None:
    feed.open("binance", rate=2000)
    for fault in ("cut", "close=1011", "cut"):
        feed.wait_published()
        before = feed.reconnects("closed")
        feed.fault(fault)
        feed.wait_reconnected("closed", before)
        until(lambda: feed.gateway.get("/readyz")[0] == 200, 20)
    feed.wait_published()
    counted = feed.gateway.metric("tickbus_gaps_total", kind="disconnect")
    missing = feed.gateway.metric("tickbus_missing_ticks_total")
    lines = feed.finish()
    reported = 0
    gap_ids: set[str] = set()
    for symbol in ("BTC-USDT", "ETH-USDT"):
        stored = [trade.trade_id for trade in messages_in(redis_server, "trade", "binance", symbol)]
        assert len(stored) == len(set(stored))
        sent = ids(lines, symbol)
        gaps = gaps_in(redis_server, "trade", "binance", symbol)
        named = {str(id) for gap in gaps for id in range(int(gap.from_id or 0), int(gap.to_id or 0) + 1)}
        until_last = sent[: sent.index(str(stored[-1])) + 1]
        assert set(until_last) - set(stored) == named
        assert [id for id in until_last if id not in named] == stored
        reported += len(gaps) + len(gaps_in(redis_server, "quote", "binance", symbol))
        gap_ids |= named
        assert len(gaps_in(redis_server, "quote", "binance", symbol)) == 3
    assert counted == reported
    assert missing >= len(gap_ids)


def test_duplicates_late_ticks_jumps_and_resets_are_resolved(feed: Feed, redis_server: RedisServer) -> None:
    feed.open("binance", kinds="trade")
    for fault in (
        "kind=trade duplicate=20",
        "kind=trade reorder=5",
        "jump=1000",
        "kind=trade drop=7",
        "reset=1",
    ):
        feed.wait_published()
        feed.fault(fault)
    feed.wait_published()
    lines = feed.finish()
    kinds: Counter[str] = Counter()
    for symbol in ("BTC-USDT", "ETH-USDT"):
        messages = messages_in(redis_server, "trade", "binance", symbol)
        # every tick sent is in the stream once, even if it was repeated; compared in order of arrival
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


def _dropped_runs(lines: list[dict[str, Any]]) -> int:
    """Return the number of gaps that the dropped ticks caused: runs in the sequence of each symbol."""
    runs = 0
    for symbol in ("BTCUSDT", "ETHUSDT"):
        before = False
        for line in lines:
            if line["symbol"] == symbol and line["kind"] == "trade":
                dropped = line["fault"] == "drop"
                runs += dropped and not before
                before = dropped
    return runs


def feed_total(lines: list[dict[str, Any]], fault: str) -> int:
    return sum(line["fault"] == fault for line in lines)


def test_refusing_server_is_not_stormed(feed: Feed) -> None:
    feed.open("binance")
    feed.wait_published()
    feed.fault("refuse=3s")
    feed.fault("cut")
    until(lambda: feed.gateway.metric("tickbus_feed_reconnects_total") >= 3, 20)
    attempts = feed.gateway.metric("tickbus_feed_reconnects_total")
    until(lambda: feed.gateway.get("/readyz")[0] == 200, 30)
    feed.wait_published()
    assert attempts < 10
