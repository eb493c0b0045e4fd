"""A simulated market with contiguous ids, gateways for it, and the one check: what was sent is on the bus once, in order, or told."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import redis

from support.bus import gaps_in, messages_in
from support.processes import Part, read_ledger
from support.waiting import until
from tickbus.protocol.codec import decode_head
from tickbus.protocol.messages import Trade
from tickbus.protocol.names import Keys

SYMBOLS = ("AA-USD", "BB-USD", "CC-USD", "DD-USD")


class Server(Protocol):
    """A RedisServer or a RedisCluster."""

    url: str
    client: "redis.Redis[bytes]"


class Market:
    """A simulated market over the binance protocol, its ledger, and gateways for it."""

    symbols = SYMBOLS

    def __init__(
        self, start: Callable[..., Part], redis: Server, folder: Path, rate: int = 3000, quotes: int = 0
    ) -> None:
        self._start = start
        self._redis = redis
        self._folder = folder
        self.ledger = folder / "ledger.jsonl"
        self.simulator = start(
            "simulate", "--source", "synthetic", "--symbols", ",".join(self.symbols), "--rate", str(rate), "--quotes-per-trade", str(quotes),
            "--ledger", str(self.ledger), "--start", "first-subscribe",
        )  # fmt: skip
        self.url = self.simulator.wait_for(r"listening on (ws://\S+)")[1]

    def gateway(self, *more: str) -> Part:
        return self._start(
            "gateway", "--feed", "binance", "--url", self.url, "--symbols", ",".join(self.symbols), "--redis", self._redis.url,
            "--lease-ttl", "1s", "--spill-dir", str(self._folder / "spill"), *more,
        )  # fmt: skip

    def sent(self) -> dict[str, list[int]]:
        """Ids of the trades that were sent to anybody, by symbol."""
        ids: dict[str, list[int]] = {symbol: [] for symbol in self.symbols}
        for row in read_ledger(self.ledger):
            if row.get("kind") == "trade":
                ids[str(row["symbol"])].append(int(str(row["id"])))
        return ids

    def stored(self, symbol: str) -> list[int]:
        return [
            int(trade.trade_id or -1)
            for trade in messages_in(self._redis, "trade", "binance", symbol)
            if isinstance(trade, Trade)
        ]

    def check(self) -> int:
        """Stored = sent less what Gaps name; -> the number of trades that Gaps name."""
        told = 0
        for symbol, sent in self.sent().items():
            stored = self.stored(symbol)
            assert stored == sorted(set(stored)), symbol
            named = {
                id
                for gap in gaps_in(self._redis, "trade", "binance", symbol)
                for id in range(int(gap.from_id or 0), int(gap.to_id or -1) + 1)
            }
            assert not named & set(stored), symbol
            last = stored[-1]
            assert {id for id in sent if id <= last} <= set(stored) | named, f"{symbol}: lost in silence"
            told += len(named)
        return told

    def epochs(self, symbol: str) -> list[tuple[int, int]]:
        keys = Keys()
        head = self._redis.client.hget(keys.last(keys.shard(symbol)), f"trade:binance:{symbol}")
        assert head is not None
        return decode_head(head).epochs


def published(gateway: Part) -> float:
    return gateway.metric("tickbus_ticks_published_total", kind="trade")


def publishes(gateway: Part, more: int) -> None:
    """It goes on: so many more are acknowledged."""
    before = published(gateway)
    until(lambda: published(gateway) > before + more, 40, "goes on")
