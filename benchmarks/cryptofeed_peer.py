"""cryptofeed's Binance feed with its TradeStream backend, on our upstream. Runs in cryptofeed's venv.

    python cryptofeed_peer.py WS_URL REDIS_HOST REDIS_PORT SYMBOL,SYMBOL,...

Only these are changed: the address, the symbol table (otherwise fetched over REST), two timeouts that would
make it lose ticks here, and the names `trade` and `t` in place of `aggTrade` and `a`, so that it reads the
very same frames; the work per tick is cryptofeed's own, line for line.
uvloop is on, as is cryptofeed's default.
"""

# pyright: reportMissingImports=false

import asyncio
import sys
from decimal import Decimal
from typing import Any

from cryptofeed import FeedHandler
from cryptofeed.backends.redis import TradeStream
from cryptofeed.connection import WebsocketEndpoint
from cryptofeed.defines import BUY, SELL, TRADES
from cryptofeed.exchanges import Binance
from cryptofeed.symbols import Symbols
from cryptofeed.types import Trade
from yapic import json  # type: ignore[import-not-found]


class LocalBinance(Binance):  # type: ignore[misc]
    websocket_channels = {**Binance.websocket_channels, TRADES: "trade"}

    def connect(self) -> Any:
        connections = super().connect()
        for connection, *_ in connections:
            # the class itself refuses any other scheme
            connection.address = connection.address.replace("wss://", "ws://")
        return connections

    async def _trade(self, msg: Any, timestamp: float) -> None:
        t = Trade(
            self.id,
            self.exchange_symbol_to_std_symbol(msg["s"]),
            SELL if msg["m"] else BUY,
            Decimal(msg["q"]),
            Decimal(msg["p"]),
            self.timestamp_normalize(msg["T"]),
            id=str(msg["t"]),
            raw=msg,
        )
        await self.callback(TRADES, t, timestamp)

    async def message_handler(self, msg: Any, conn: Any, timestamp: float) -> None:
        msg = json.loads(msg, parse_float=Decimal)
        pair, _ = msg["stream"].split("@", 1)
        msg = msg["data"]
        pair = pair.upper()
        if "e" in msg:
            if msg["e"] == "depthUpdate":
                await self._book(msg, pair, timestamp)
            elif msg["e"] == "trade":
                await self._trade(msg, timestamp)


def main() -> None:
    url, host, port, names = sys.argv[1:]
    symbols = names.split(",")
    Symbols.set(Binance.id, {name: name.replace("-", "") for name in symbols}, {})
    LocalBinance.websocket_endpoints = [WebsocketEndpoint(url.replace("ws://", "wss://"))]
    handler = FeedHandler(
        config={"log": {"disabled": False, "filename": "/dev/stderr", "level": "WARNING"}, "uvloop": True}
    )
    # uvloop >= 0.22 no longer creates a loop by itself, and cryptofeed relies on it
    asyncio.set_event_loop(asyncio.new_event_loop())
    # flooded, it sends pipelines of 100,000 commands and more: with redis-py's default timeout of 5 s a write
    # times out, which ends its writer for good and silently. Its own timeout, 120 s without a frame, would
    # reconnect while it is still writing
    backend = TradeStream(host=host, port=f"{port}/0?socket_timeout=600")
    handler.add_feed(
        LocalBinance(channels=[TRADES], symbols=symbols, callbacks={TRADES: backend}, timeout=-1)
    )
    handler.run()


if __name__ == "__main__":
    main()
