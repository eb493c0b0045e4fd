"""What the demo shows: a live table of prices on a terminal, a line every few seconds elsewhere."""

import asyncio
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from services.demo.market import Market, Row
from services.demo.totals import on_bus
from tickbus.errors import RedisError
from tickbus.monitoring.status import BusStatus, read_status
from tickbus.redis.link import Link
from tickbus.sanitize import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

_LIVE_SECONDS = 0.5
_LINE_SECONDS = 2.0
_MAX_LINE = 500
_COLUMNS = (
    "last", "change", "bid", "ask", "trades/s", "1 s bar: open", "high", "low", "close", "volume", "gaps",
)  # fmt: skip


class Dashboard:
    def __init__(self, url: str, prefix: str, market: Market, footer: Sequence[str]) -> None:
        self._url = url
        self._prefix = prefix
        self._market = market
        self._footer = footer
        """Lines that do not change: where everything is."""
        self._started = time.monotonic()

    async def run(self) -> None:
        """Run forever."""
        if sys.stdout.isatty() and find_spec("rich") is not None:
            await self._live()
        print("\n".join(self._footer), flush=True)
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            if (status := await self._refresh()) is not None:
                print(clean(self._line(status), _MAX_LINE), flush=True)

    async def _live(self) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as live:
            while True:
                if (status := await self._refresh()) is not None:
                    totals = Text(clean(f"{_feeds(status)}   {self._summary(status)}", _MAX_LINE))
                    live.update(
                        Group(_prices(self._market.rows), totals, Text("\n".join(self._footer), "dim")),
                        refresh=True,
                    )
                await asyncio.sleep(_LIVE_SECONDS)

    async def _refresh(self) -> BusStatus | None:
        link: Link | None = None
        try:
            link = await Link.open(self._url)
            status = await read_status(link, self._prefix)
        except RedisError:
            return None  # if the server is gone for good, `Child.watch` reports it
        finally:
            if link is not None:
                link.close()
        if status is not None:
            self._market.update(status, time.monotonic())
        return status

    def _line(self, status: BusStatus) -> str:
        prices = "  ".join(
            f"{row.symbol} {row.trade.price_text}" for row in self._market.rows[:3] if row.trade is not None
        )
        return f"{time.monotonic() - self._started:6.1f} s  {self._summary(status)}  {prices}"

    def _summary(self, status: BusStatus) -> str:
        lags = ", ".join(f"{service.name} {service.ticks:,}" for service in status.services)
        return f"{self._market.ticks_per_second:,} ticks/s   {on_bus(status.totals)}   lag {lags}"


def _feeds(status: BusStatus) -> str:
    return ", ".join(f"feed {feed.name} {feed.state}" for feed in status.feeds)


def _prices(rows: Sequence[Row]) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def _shown(text: str) -> Text:
        return Text(clean(text))

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("symbol")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        rising = row.change is not None and row.change >= 0
        bar = row.bar
        bars = (
            ("",) * 5
            if bar is None
            else (bar.open_text, bar.high_text, bar.low_text, bar.close_text, bar.volume_text)
        )
        table.add_row(
            Text(row.symbol),
            _shown(row.trade.price_text if row.trade else ""),
            Text(f"{row.change:+}%" if row.change is not None else "", "green" if rising else "red"),
            _shown((row.quote.bid_text if row.quote else "") or ""),
            _shown((row.quote.ask_text if row.quote else "") or ""),
            f"{row.trades_per_second:.0f}",
            *map(_shown, bars),
            Text(str(row.gaps), "yellow" if row.gaps else ""),
        )
    return table
