"""The market as the bus's heads show it: newest prices, bars and rates per symbol. Pure, but for the time it is given."""

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
    """Percent since the first price seen."""
    trades_per_second: float
    gaps: int


class Market:
    """Keeps what two looks at the bus need from one to the next."""

    def __init__(self, feed: str, symbols: tuple[str, ...], spec: str) -> None:
        self._feed = feed
        self._symbols = symbols
        self._spec = spec
        self._first: dict[str, Decimal] = {}
        self._trades: dict[str, int] = {}
        self._counted: Totals | None = None
        self._at = 0.0
        self.ticks_per_second = 0
        self.rows: list[Row] = []

    def look(self, status: BusStatus, now: float) -> None:
        """`now`: monotonic seconds."""
        seconds = max(1e-3, now - self._at)
        if self._counted is not None:
            more = status.totals - self._counted
            self.ticks_per_second = round((more.trades + more.quotes) / seconds)
        self.rows = [self._row(status, symbol, seconds) for symbol in self._symbols]
        self._counted, self._at = status.totals, now

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
            change = (
                (100 * (trade.price - first) / first).quantize(_HUNDREDTH) + 0 if first else None
            )  # + 0: no minus before zero
        own = [found for found in status.streams if found.stream in (trades, quotes)]
        count = sum(found.ticks for found in own if found.stream == trades)
        before, self._trades[symbol] = self._trades.get(symbol, count), count
        return Row(
            symbol,
            trade,
            quote,
            bar,
            change,
            (count - before) / seconds,
            sum(sum(found.gaps.values()) for found in own),
        )


def _newest(status: BusStatus, stream: Stream) -> Message | None:
    head = status.heads.get(stream.name)
    return None if head is None else head_tick(head, stream.kind)
