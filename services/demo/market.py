"""Newest prices, bars and rates per symbol, from the heads on the bus. Pure; the time is an argument."""

from dataclasses import dataclass
from decimal import Decimal

from tickbus.monitoring.status import BusStatus, Totals
from tickbus.protocol.codec import head_tick
from tickbus.protocol.messages import Bar, Message, Quote, Trade
from tickbus.protocol.names import Stream

_HUNDREDTH = Decimal("0.01")


@dataclass(frozen=True)
class Row:
    """One symbol."""

    symbol: str
    trade: Trade | None
    quote: Quote | None
    bar: Bar | None
    """The newest closed bar of the shortest spec."""
    change: Decimal | None
    """Change since the first price seen, in percent."""
    trades_per_second: float
    gaps: int


class Market:
    """Computes the rows from successive statuses of the bus."""

    def __init__(self, feed: str, symbols: tuple[str, ...], spec: str) -> None:
        self._feed = feed
        self._symbols = symbols
        self._spec = spec
        self._first: dict[str, Decimal] = {}
        self._trades: dict[str, int] = {}
        self._totals: Totals | None = None
        self._updated = 0.0
        self.ticks_per_second = 0
        self.rows: list[Row] = []

    def update(self, status: BusStatus, now: float) -> None:
        """Take a new status; `now` is monotonic, in seconds."""
        seconds = max(1e-3, now - self._updated)
        if self._totals is not None:
            added = status.totals - self._totals
            self.ticks_per_second = round((added.trades + added.quotes) / seconds)
        self.rows = [self._row(status, symbol, seconds) for symbol in self._symbols]
        self._totals, self._updated = status.totals, now

    def _row(self, status: BusStatus, symbol: str, seconds: float) -> Row:
        trades, quotes = Stream("trade", self._feed, symbol), Stream("quote", self._feed, symbol)
        trade, quote, bar = (
            _newest(status, stream)
            for stream in (trades, quotes, Stream("bar", self._feed, symbol, self._spec))
        )
        assert trade is None or isinstance(trade, Trade)
        assert quote is None or isinstance(quote, Quote)
        assert bar is None or isinstance(bar, Bar)
        change = None
        if trade is not None:
            first = self._first.setdefault(symbol, trade.price)
            # + 0: no minus sign before a zero
            change = (100 * (trade.price - first) / first).quantize(_HUNDREDTH) + 0 if first else None
        streams = [row for row in status.streams if row.stream in (trades, quotes)]
        count = sum(row.ticks for row in streams if row.stream == trades)
        before, self._trades[symbol] = self._trades.get(symbol, count), count
        return Row(
            symbol,
            trade,
            quote,
            bar,
            change,
            (count - before) / seconds,
            sum(sum(row.gaps.values()) for row in streams),
        )


def _newest(status: BusStatus, stream: Stream) -> Message | None:
    head = status.heads.get(stream.name)
    return None if head is None else head_tick(head, stream.kind)
