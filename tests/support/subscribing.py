"""A simulated vendor, a gateway without fixed symbols, and what both say of subscriptions."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tickbus
from support.bus import Server, entries_in, gaps_in, messages_in
from support.processes import Process, read_ledger
from support.waiting import until
from tickbus.protocol.codec import Head, decode_head
from tickbus.protocol.messages import Gap, Message, Trade
from tickbus.protocol.names import Keys, Stream
from tickbus.protocol.wants import SubscriptionState
from tickbus.wants import Want

TTL_SECONDS = 15
"""So long a gateway must have read the wants before it believes that a symbol is not wanted."""


class Venue:
    """One vendor: `simulate`, then `gateway`."""

    def __init__(self, start: Callable[..., Process], redis: Server, folder: Path, feed: str) -> None:
        self._start = start
        self._redis = redis
        self._folder = folder
        self.feed = feed
        self.bus = tickbus.connect(redis.url)
        self.ledger = folder / "ledger.jsonl"
        self.simulator: Process
        self.gateway_process: Process
        self.url = ""

    def simulate(self, *more: str, rate: int = 200) -> None:
        self.simulator = self._start(
            "simulate", "--rate", str(rate), "--ledger", str(self.ledger), "--start", "now", *more
        )
        self.url = self.simulator.wait_for(r"listening on (ws://\S+)")[1]

    def gateway(self, *more: str, linger: str = "1s") -> Process:
        own = {"alltick": ("--token", "t"), "json": ("--json-ids", "unique")}.get(self.feed, ())
        return self._start(
            "gateway", "--feed", self.feed, "--url", self.url, "--redis", self._redis.url, "--linger", linger,
            "--lease-ttl", "1s", "--takeover-delay", "0s", "--spill-dir", str(self._folder / "spill"),
            *own, *more,
        )  # fmt: skip

    # wants

    def want(self, *symbols: str, kind: tuple[str, ...] = ("trade",), name: str = "") -> Want:
        """Want symbols until it is closed."""
        wanted = self.bus.want(kind, symbols=symbols, feed=self.feed, name=name)
        wanted.open()
        return wanted

    def states(self) -> dict[str, SubscriptionState]:
        """Return what the gateway says, by `kind symbol`."""
        found = asyncio.run(self.bus.subscriptions(self.feed))
        return {f"{stream.kind} {stream.symbol}": state for stream, state in found.items()}

    def wait_states(self, seconds: float = 40, **expected: str) -> None:
        """Wait until the trades of these symbols, and no others, are in these states."""
        self.wait_for({f"trade {symbol.replace('_', '-')}": state for symbol, state in expected.items()})

    def wait_for(self, expected: dict[str, str], seconds: float = 40) -> None:
        seen: dict[str, str] = {}

        def same() -> bool:
            seen.clear()
            seen.update({topic: state.state for topic, state in self.states().items()})
            return seen == expected

        until(same, seconds, f"states become {expected}; they are {seen}")

    def state(self, topic: str) -> str:
        """Return the state of a topic; `absent` if there is none."""
        found = self.states().get(topic)
        return "absent" if found is None else found.state

    def wait_state(self, topic: str, state: str, seconds: float = 40) -> SubscriptionState | None:
        until(lambda: self.state(topic) == state, seconds, f"{topic} becomes {state}: {self.states()}")
        return self.states().get(topic)

    # the bus

    def entries(self, symbol: str, kind: str = "trade") -> list[tuple[str, Message]]:
        return entries_in(self._redis, kind, self.feed, symbol)

    def trades(self, symbol: str) -> list[Trade]:
        return messages_in(self._redis, "trade", self.feed, symbol)

    def gaps(self, symbol: str, kind: str = "trade") -> list[Gap]:
        return gaps_in(self._redis, kind, self.feed, symbol)

    def head(self, symbol: str, kind: str = "trade") -> Head | None:
        keys = Keys()
        head = self._redis.client.hget(keys.last(keys.shard(symbol)), Stream(kind, self.feed, symbol).name)
        return None if head is None else decode_head(head)

    def wait_trades(self, symbol: str, more: int = 5, seconds: float = 40) -> None:
        before = len(self.entries(symbol))
        until(lambda: len(self.entries(symbol)) >= before + more, seconds, f"{symbol} ticks")

    # the vendor

    def spelling(self, symbol: str) -> str:
        return symbol.replace("-", "") if self.feed == "binance" else symbol

    def rows(self) -> list[dict[str, Any]]:
        """Return the ledger so far."""
        return read_ledger_so_far(self.ledger)

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [row for row in self.rows() if row.get("event") in names]

    def connects(self) -> int:
        return len(self.events("connect"))

    def sent(self, symbol: str, kind: str = "trade") -> list[tuple[str, ...]]:
        """Return the values of the ticks that a client was sent."""
        fields = ("id", "price", "size") if kind == "trade" else ("bid", "bid_size", "ask", "ask_size")
        return [
            tuple(str(row[field]) for field in fields)
            for row in self.rows()
            if row.get("kind") == kind and row.get("symbol") == self.spelling(symbol) and row.get("sent")
        ]

    def stored(self, symbol: str, kind: str = "trade") -> list[tuple[str, ...]]:
        if kind == "trade":
            return [(str(one.trade_id), one.price_text, one.size_text) for one in self.trades(symbol)]
        return [
            (str(one.bid_text), str(one.bid_size_text), str(one.ask_text), str(one.ask_size_text))
            for one in messages_in(self._redis, "quote", self.feed, symbol)
        ]

    def finish(self, gateway: Process) -> None:
        """Stop the market, then the gateway, so that everything sent is stored."""
        assert self.simulator.stop() == 0
        until(lambda: gateway.metric("tickbus_backlog_ticks") == 0)
        assert gateway.stop() == 0

    def check_steady(self, symbol: str, kind: str = "trade") -> int:
        """Check that all that was sent of a symbol is stored, once, in order, without a Gap."""
        sent, stored = self.sent(symbol, kind), self.stored(symbol, kind)
        assert stored == sent, (symbol, kind, len(stored), len(sent))
        assert self.gaps(symbol, kind) == []
        return len(sent)


def read_ledger_so_far(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a ledger that is being written."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    temporary = path.with_suffix(".part")
    temporary.write_text(whole)
    return read_ledger(temporary)
