"""A simulated market with contiguous ids, gateways for it, and the one check.

Everything sent is on the bus once and in order, or named by a Gap.
"""

from collections.abc import Callable
from pathlib import Path

from support.bus import Server, gaps_in, messages_in
from support.processes import Process, read_ledger
from support.waiting import until
from tickbus.protocol.codec import decode_head
from tickbus.protocol.names import Keys

SYMBOLS = ("AA-USD", "BB-USD", "CC-USD", "DD-USD")


class Market:
    """A simulated market over the binance protocol, its ledger, and gateways for it."""

    symbols: tuple[str, ...] = SYMBOLS

    def __init__(
        self, start: Callable[..., Process], redis: Server, folder: Path, rate: int = 3000, quotes: int = 0
    ) -> None:
        self._start = start
        self._redis = redis
        self._folder = folder
        self.ledger = folder / "ledger.jsonl"
        self.simulator = start(
            "simulate", "--source", "synthetic", "--symbols", ",".join(self.symbols), "--rate", str(rate),
            "--quotes-per-trade", str(quotes), "--ledger", str(self.ledger), "--start", "first-subscribe",
        )  # fmt: skip
        self.url = self.simulator.wait_for(r"listening on (ws://\S+)")[1]

    def gateway(self, *more: str) -> Process:
        return self._start(
            "gateway", "--feed", "binance", "--url", self.url, "--symbols", ",".join(self.symbols), "--redis",
            self._redis.url, "--lease-ttl", "1s", "--spill-dir", str(self._folder / "spill"), *more,
        )  # fmt: skip

    def sent(self) -> dict[str, list[int]]:
        """Return the ids of the trades sent to any client, by symbol."""
        ids: dict[str, list[int]] = {symbol: [] for symbol in self.symbols}
        for row in read_ledger(self.ledger):
            if row.get("kind") == "trade":
                ids[row["symbol"]].append(int(row["id"]))
        return ids

    def stored(self, symbol: str) -> list[int]:
        trades = messages_in(self._redis, "trade", "binance", symbol)
        return [int(trade.trade_id or -1) for trade in trades]

    def check(self) -> int:
        """Check that stored = sent minus those that Gaps name; return how many Gaps name."""
        missing = 0
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
            assert {id for id in sent if id <= last} <= set(stored) | named, f"{symbol}: silent loss"
            missing += len(named)
        return missing

    def epochs(self, symbol: str) -> list[tuple[int, int]]:
        """Return the epochs in the head of the symbol's trade stream."""
        keys = Keys()
        head = self._redis.client.hget(keys.last(keys.shard(symbol)), f"trade:binance:{symbol}")
        assert head is not None
        return decode_head(head).epochs


def published_total(gateway: Process) -> float:
    return gateway.metric("tickbus_ticks_published_total", kind="trade")


def wait_published(gateway: Process, count: int) -> None:
    """Wait until the gateway has published more than `count` further ticks."""
    before = published_total(gateway)
    until(lambda: published_total(gateway) > before + count, 40, "the gateway publishes")
