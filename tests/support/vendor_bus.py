"""A bus with what a gateway of a sequenced feed writes: trades with the vendor's ids, and quotes."""

from collections.abc import Sequence
from typing import Any

import msgspec

from support.writing import Writer
from tickbus.protocol.codec import Head, encode
from tickbus.protocol.messages import Message, Quote, Side, Trade
from tickbus.protocol.names import Stream
from tickbus.units import MILLISECOND

FEED, SYMBOL = "binance", "BTC-USDT"
STREAM = Stream("trade", FEED, SYMBOL)
FIRST_ID = 3_735_683_000
TIME = 1_770_000_000_000 * MILLISECOND
Row = tuple[str, str, str, int]
"""Price, size, side, time in ms."""


def make(number: int, symbol: str = SYMBOL) -> Trade:
    """Return the trade of this number: its values follow from it."""
    side = Side.BUY if number % 3 else Side.SELL
    time = TIME + number * 7 * MILLISECOND
    return Trade(symbol, f"{60_000 + number % 50}.{number % 100:02}", f"0.{number + 1:05}", side,
                 str(FIRST_ID + number), time, time + 3)  # fmt: skip


def make_quote(number: int, symbol: str = SYMBOL) -> Quote:
    """Return the quote of this number."""
    time = TIME + number * 7 * MILLISECOND
    bid = 60_000 + number % 50
    return Quote(
        symbol, f"{bid}.{number % 100:02}", f"1.{number + 1:05}", f"{bid + 1}.5", "2", time, time + 3
    )


def row(trade: Trade) -> Row:
    return trade.price_text, trade.size_text, trade.side.name.lower(), trade.ts_event // MILLISECOND


class Bus(Writer):
    """Heads say that the streams have the vendor's ids."""

    async def send(self, numbers: range, symbol: str = SYMBOL) -> None:
        await self.send_ticks([make(number, symbol) for number in numbers])

    async def send_quotes(self, numbers: range, symbol: str = SYMBOL) -> None:
        await self.send_ticks([make_quote(number, symbol) for number in numbers])

    async def send_ticks(self, ticks: Sequence[Message]) -> None:
        entries = [
            self.entry(Stream("trade" if isinstance(tick, Trade) else "quote", FEED, tick.symbol), tick)
            for tick in ticks
        ]
        for first in range(0, len(entries), 50):
            await self.publisher.commit(self.transaction(entries[first : first + 50]))

    def transaction(self, entries: Any, ring_all: bool = False) -> Any:
        transaction = super().transaction(entries, ring_all)
        for entry in entries:
            if entry.field == b"t":
                tick = msgspec.Raw(entry.payload)
                head = Head(str(entry.id), FIRST_ID, 0, tick, epochs=[(self.publisher.epoch, 1)])
                transaction.heads[entry.stream] = encode(head)
        return transaction
