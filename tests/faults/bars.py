"""Bars against two references, an undisturbed builder and plain sums over the same streams. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from faults.ledgers import Entry
from services.bars.builder import StreamBars
from tickbus.protocol.bar_specs import Spec, parse
from tickbus.protocol.messages import Bar, Gap, Side, Trade
from tickbus.protocol.names import Stream
from tickbus.units import DAY, MILLISECOND


def check_bars(
    published: Mapping[str, list[Entry]], specs: Sequence[str], grace: int, horizon: int, exactly: bool = True
) -> Iterator[tuple[str, str]]:
    """Return (stream, what is wrong). Every time bar must be closed by now.

    exactly: compare every revision too, and the Gaps that it reports.
    """
    for name, entries in published.items():
        stream = Stream.parse(name)
        if stream.kind == "trade":
            for spec in specs:
                bar_name = Stream("bar", stream.feed, stream.symbol, spec).name
                found = [
                    (entry.id.ms, entry.message)
                    for entry in published.get(bar_name, [])
                    if isinstance(entry.message, Bar)
                ]
                if exactly:
                    yield from _compare(
                        bar_name, found, undisturbed(stream.symbol, entries, spec, grace, horizon)
                    )
                if spec.startswith("time:"):
                    yield from _sums(bar_name, newest_revisions(found), plain_sums(entries, parse(spec)))


def undisturbed(
    symbol: str, entries: Sequence[Entry], spec: str, grace: int, horizon: int
) -> list[tuple[int, Bar]]:
    """Return (bus ms of the cause, bar) from a builder that reads the stream at once, then a clock a day
    later."""
    bars = StreamBars(symbol, [parse(spec)], grace, horizon)
    emitted: list[tuple[int, Bar]] = []
    for entry in entries:
        assert isinstance(entry.message, Trade | Gap)
        emitted += bars.apply(entry.id, entry.message)
    if entries:
        emitted += bars.clock(entries[-1].id.ms + DAY // MILLISECOND)
    return emitted


def _compare(
    name: str, found: list[tuple[int, Any]], wanted: list[tuple[int, Bar]]
) -> Iterator[tuple[str, str]]:
    if len(found) != len(wanted) or not all(map(_same, found, wanted)):
        at = next(
            (n for n, pair in enumerate(zip(found, wanted, strict=False)) if not _same(*pair)),
            min(len(found), len(wanted)),
        )
        yield (
            name,
            f"{len(found)} bars, expected {len(wanted)}; first difference: {found[at : at + 1]}, "
            f"expected {wanted[at : at + 1]}",
        )


def _same(one: tuple[int, Bar], other: tuple[int, Bar]) -> bool:
    """Compare numbers by value: those from the files have no trailing zeros."""
    return one == other or (one[0] == other[0] and _by_value(one[1]) == _by_value(other[1]))


def _by_value(bar: Bar) -> tuple[Any, ...]:
    """Without `partial`: whether the first bars of a stream are depends on its head when they were built."""
    names = [name for name in bar.__struct_fields__ if not name.endswith("_text") and name != "quality"]
    fields = (getattr(bar, name) for name in names)
    return (
        *(name for name in bar.quality if name != "partial"),
        *fields,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.value,
        bar.vwap,
        bar.buy_volume,
        bar.sell_volume,
    )


def newest_revisions(found: Sequence[tuple[int, Any]]) -> dict[int, Bar]:
    newest: dict[int, Bar] = {}
    for _, bar in found:
        if bar.start not in newest or bar.revision > newest[bar.start].revision:
            newest[bar.start] = bar
    return newest


def plain_sums(entries: Sequence[Entry], spec: Spec) -> dict[int, list[Trade]]:
    """Return the trades of each interval by its start, in stream order."""
    trades: dict[int, list[Trade]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry.message, Trade):
            trades[entry.message.ts_event // int(spec.size) * int(spec.size)].append(entry.message)
    return trades


def _sums(name: str, bars: Mapping[int, Bar], trades: Mapping[int, list[Trade]]) -> Iterator[tuple[str, str]]:
    for start in sorted(bars.keys() | trades.keys()):
        wanted = _numbers(trades.get(start, []))
        bar = bars.get(start)
        found = bar and (
            bar.open,
            bar.high,
            bar.low,
            bar.close,
            bar.volume,
            bar.trades,
            bar.buy_volume,
            bar.sell_volume,
        )
        if found != wanted:
            yield name, f"bar of {start} is {found}, expected {wanted} from its trades"
            return


def _numbers(trades: Sequence[Trade]) -> tuple[Any, ...] | None:
    if not trades:
        return None
    prices = [trade.price for trade in trades]
    sizes = [
        sum((trade.size for trade in trades if side in (None, trade.side)), Decimal(0))
        for side in (None, Side.BUY, Side.SELL)
    ]
    return prices[0], max(prices), min(prices), prices[-1], sizes[0], len(trades), sizes[1], sizes[2]
