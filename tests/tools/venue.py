"""A small market on a real bus: simulator, gateway, and the ticks that were sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.processes import Process, read_ledger
from support.redis_server import RedisServer
from support.waiting import until

Start = Callable[..., Process]
SYMBOLS = {"BTC-USDT": "BTCUSDT", "ETH-USDT": "ETHUSDT"}
"""The vendor's symbols by those of the bus."""


class Venue:
    """`ticks` ticks of two symbols over binance's protocol, at full speed; `faults` as for the simulator."""

    def __init__(
        self, start: Start, redis: RedisServer, folder: Path, ticks: int, faults: str = "", *more: str
    ) -> None:
        self._ledger = folder / "ledger.jsonl"
        self.simulator = start(
            "simulate", "--limit", str(ticks), "--settle", "200ms", "--ledger", str(self._ledger),
            "--faults", faults, *(more or ("--speed", "max")),
        )  # fmt: skip
        url = self.simulator.wait_for(r"listening on (ws://\S+)")[1]
        self.gateway = start(
            "gateway", "--feed", "binance", "--url", url, "--symbols", ",".join(SYMBOLS),
            "--kinds", "trade,quote", "--redis", redis.url,
        )  # fmt: skip
        self._ticks = ticks

    def sent(self, kind: str, symbol: str, sent: bool = True) -> list[dict[str, Any]]:
        """Return the ledger's ticks that were sent, or with `sent` false those that were withheld."""
        lines = [
            line
            for line in read_ledger(self._ledger)
            if line.get("kind") == kind and line.get("symbol") == SYMBOLS[symbol]
        ]
        return [line for line in lines if line["sent"] is sent]

    def wait_published(self) -> "Venue":
        """Wait until everything that the simulator sends is on the bus."""
        until(self._written, what="the ledger has all ticks")
        sent = sum(len(self.sent(kind, symbol)) for kind in ("trade", "quote") for symbol in SYMBOLS)
        until(
            lambda: self.gateway.metric("tickbus_ticks_published_total") == sent,
            what=f"{sent} ticks are published",
        )
        return self

    def _written(self) -> bool:
        """Return whether the ledger is complete; it is written in chunks, which may end inside a line."""
        text = self._ledger.read_bytes()
        return text.count(b'{"n":') == self._ticks and text.endswith(b"\n")
