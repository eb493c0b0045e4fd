"""A small market on a real bus: simulator, gateway and what it sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.processes import Part, read_ledger
from support.redis_server import RedisServer
from support.waiting import until

Start = Callable[..., Part]
SYMBOLS = {"BTC-USDT": "BTCUSDT", "ETH-USDT": "ETHUSDT"}
"""As the bus and as the vendor spells them."""


class Venue:
    """So many ticks of two symbols over binance's protocol, at once; `faults` as the simulator takes them."""

    def __init__(
        self, start: Start, redis: RedisServer, folder: Path, ticks: int, faults: str = "", *more: str
    ) -> None:
        self._ledger = folder / "ledger.jsonl"
        self.simulator = start(
            "simulate", "--limit", str(ticks), "--settle", "200ms", "--ledger", str(self._ledger), "--faults", faults, *(more or ("--speed", "max")),
        )  # fmt: skip
        url = self.simulator.wait_for(r"listening on (ws://\S+)")[1]
        self.gateway = start(
            "gateway",
            "--feed",
            "binance",
            "--url",
            url,
            "--symbols",
            ",".join(SYMBOLS),
            "--kinds",
            "trade,quote",
            "--redis",
            redis.url,
        )
        self._ticks = ticks

    def sent(self, kind: str, symbol: str, what: bool = True) -> list[dict[str, Any]]:
        """Of the ledger: ticks that were sent, or those that were kept back."""
        lines = [
            line
            for line in read_ledger(self._ledger)
            if line.get("kind") == kind and line.get("symbol") == SYMBOLS[symbol]
        ]
        return [line for line in lines if line["sent"] is what]

    def until_published(self) -> "Venue":
        """Everything that the simulator will send is on the bus."""
        until(self._written, what="the ledger has all ticks")
        sent = sum(len(self.sent(kind, symbol)) for kind in ("trade", "quote") for symbol in SYMBOLS)
        until(
            lambda: self.gateway.metric("tickbus_ticks_published_total") == sent,
            what=f"{sent} ticks are published",
        )
        return self

    def _written(self) -> bool:
        """It is written in pieces, which may end inside a line."""
        text = self._ledger.read_bytes()
        return text.count(b'{"n":') == self._ticks and text.endswith(b"\n")
