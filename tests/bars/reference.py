"""The builder's slow reference: bus time advances ms by ms, a bar is a list of trades; Decimal arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from typing import Any

from services.bars.builder import Emitted
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.messages import Bar, Flag, Gap, GapKind, Side, Trade
from tickbus.protocol.names import StreamId

EXACT = Context(prec=400, traps=[Inexact])
NAMES = ("partial", "has_gap", "repaired", "clock_ahead")
LONG_AGO = -(1 << 62)
Entry = tuple[StreamId, Trade | Gap]


@dataclass
class SlowBar:
    """A bar with the list of its trades."""

    spec: Spec
    start: int
    end: int
    quality: set[str]
    trades: list[Trade] = field(default_factory=list)
    revision: int = -1
    took_late: bool = False
    """Since the last Gap that reported a repair of it."""
    missed: bool = False

    def numbers(self) -> dict[str, Any]:
        return numbers(self.trades)

    def emit(self, cause_ms: int) -> tuple[int, dict[str, Any]]:
        self.revision += 1
        quality = tuple(name for name in NAMES if name in self.quality)
        row = {
            "spec": self.spec.text,
            "start": self.start,
            "end": self.end,
            "revision": self.revision,
            "quality": quality,
        }
        return cause_ms, row | self.numbers()


def numbers(trades: Sequence[Trade]) -> dict[str, Any]:
    """Return the fields of a bar from its trades."""
    volume = value = buys = sells = Decimal(0)
    for trade in trades:
        volume = EXACT.add(volume, trade.size)
        value = EXACT.add(value, EXACT.multiply(trade.price, trade.size))
        if trade.side is Side.BUY:
            buys = EXACT.add(buys, trade.size)
        if trade.side is Side.SELL:
            sells = EXACT.add(sells, trade.size)
    prices = [trade.price for trade in trades]
    return {
        "open": prices[0], "high": max(prices), "low": min(prices), "close": prices[-1],
        "volume": volume, "value": rounded(value, Decimal(1)),
        "vwap": rounded(value, volume) if volume else None,
        "trades": len(trades), "buy_volume": buys, "sell_volume": sells,
    }  # fmt: skip


def rounded(number: Decimal, divisor: Decimal) -> Decimal:
    """Return number / divisor at 18 places, half-even, computed with many more places than any tie needs."""
    quotient = Context(prec=300).divide(number, divisor)
    return quotient.quantize(Decimal(1).scaleb(-18), ROUND_HALF_EVEN, Context(prec=400))


def as_rows(emitted: Sequence[Emitted]) -> list[tuple[int, dict[str, Any]]]:
    """Return what the builder emitted, in the reference's form."""
    return [(cause, as_row(bar)) for cause, bar in emitted]


def as_row(bar: Bar) -> dict[str, Any]:
    names = (
        "spec",
        "start",
        "end",
        "revision",
        "quality",
        "open",
        "high",
        "low",
        "close",
        "volume",
        "value",
        "vwap",
        "trades",
        "buy_volume",
        "sell_volume",
    )
    return {name: getattr(bar, name) for name in names}


@dataclass
class Reference:
    """UTC intervals only. `run` returns every (cause_ms, bar) of a stream before bus time `until_ms`."""

    specs: Sequence[Spec]
    grace: int
    horizon: int
    subscribed: int = 0
    ahead_trades: int = 100
    newest: int | None = None
    newest_at: int = 0
    ahead: int = 0
    """Newest trades that are flagged as future ones."""
    timed: bool = False
    """Whether the vendor ever gave a time that can be used."""
    first: int | None = None
    """ts_event of the trade that decides which bars are partial."""
    future: list[int] = field(default_factory=list)
    """ts_event of the trades before it."""
    complete: bool = True
    too_late: int = 0
    bars: list[SlowBar] = field(default_factory=list)
    """All bars of time specs so far, open (revision -1) and closed."""
    gaps: list[Gap] = field(default_factory=list)
    missed: set[tuple[str, int]] = field(default_factory=set)
    """Spec and start of the intervals for which a trade came too late, while they could still be revised."""
    out: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def run(self, entries: Sequence[Entry], until_ms: int) -> list[tuple[int, dict[str, Any]]]:
        self.complete = not entries or entries[0][0].seq == 1
        self.counts = {
            spec: self.next_count(spec, set() if self.complete else {"partial"})
            for spec in self.specs
            if spec.measure != "time"
        }
        remaining = list(entries)
        for ms in range(entries[0][0].ms if entries else until_ms, until_ms):
            while remaining and remaining[0][0].ms == ms:
                message = remaining.pop(0)[1]
                if isinstance(message, Gap):
                    self.gap(ms, message)
                else:
                    self.trade(ms, message)
            due = [
                bar
                for bar in self.bars
                if bar.revision == -1
                and self.newest is not None
                and bar.end + self.grace <= self.watermark(ms)
            ]
            for bar in sorted(due, key=lambda bar: (bar.end, self.specs.index(bar.spec))):
                self.out.append(bar.emit(ms))
        return self.out

    @property
    def clock_ahead(self) -> bool:
        return self.ahead >= self.ahead_trades

    def clock_of(self, trade: Trade) -> int | None:
        """Count the trade, and return the time by which it may advance the watermark."""
        if trade.flags & Flag.FUTURE_TIME:
            self.ahead += 1
            if not self.clock_ahead:
                return None
            for bar in self.bars:
                if bar.revision == -1:
                    bar.quality.add("clock_ahead")
            return trade.ts_recv
        if trade.flags & Flag.BAD_TIME:
            return None if self.timed else trade.ts_event
        self.ahead, self.timed = 0, True
        return trade.ts_event

    def decide_partial(self, trade: Trade) -> None:
        if self.first is None:
            if not trade.flags & Flag.FUTURE_TIME:
                self.first = trade.ts_event
            else:
                self.future.append(trade.ts_event)
                if not self.clock_ahead:
                    return
                self.first = min(self.future)
            for bar in self.bars:
                if not self.is_partial(bar.start):
                    bar.quality.discard("partial")

    def is_partial(self, start: int) -> bool:
        """Whether a time bar that starts then may lack trades from before the first one read."""
        if self.first is not None and start > self.first:
            return False
        return self.first is None or not (self.complete and self.subscribed and start >= self.subscribed)

    def watermark(self, ms: int) -> int:
        assert self.newest is not None
        return self.newest + (ms - self.newest_at) * 1_000_000

    def trade(self, ms: int, trade: Trade) -> None:
        clock = self.clock_of(trade)
        self.decide_partial(trade)
        if clock is not None and (self.newest is None or clock > self.newest):
            self.newest, self.newest_at = clock, ms
        # lateness is measured at the end of the ms before
        watermark = LONG_AGO if self.newest is None else max(self.newest, self.watermark(ms - 1))
        if trade.flags & (Flag.OFF_BOOK | Flag.CANCELLED) or not trade.price or not trade.size:
            return
        late = False
        for spec in self.specs:
            if spec.measure == "time":
                late |= not self.time_trade(ms, spec, trade, watermark)
        self.too_late += late
        for spec in self.counts:
            self.count_trade(ms, spec, trade)

    def time_trade(self, ms: int, spec: Spec, trade: Trade, watermark: int) -> bool:
        length = int(spec.size)
        start = trade.ts_event // length * length
        end = start + length
        bar = next((bar for bar in self.bars if bar.spec == spec and bar.start == start), None)
        closed = bar.revision >= 0 if bar else end + self.grace <= watermark
        older = self.newest is not None and trade.ts_event < self.newest
        if closed and end + self.grace + self.horizon <= watermark and older:
            assert self.newest is not None
            if end + self.grace + self.horizon > self.newest:
                self.miss(ms, spec, start, bar)
            return False
        if bar is None:
            bar = SlowBar(spec, start, end, self.quality(spec, start, end))
            self.bars.append(bar)
        bar.trades.append(trade)
        bar.took_late |= bool(trade.flags & (Flag.LATE | Flag.BACKFILLED))
        if self.clock_ahead:
            bar.quality.add("clock_ahead")
        if closed:
            self.out.append(bar.emit(ms))
        return True

    def miss(self, ms: int, spec: Spec, start: int, bar: SlowBar | None) -> None:
        """A trade came too late for an interval that can still be revised."""
        self.missed.add((spec.text, start))
        if bar is not None:
            bar.missed = True
            if "has_gap" not in bar.quality:
                bar.quality.add("has_gap")
                self.out.append(bar.emit(ms))

    def quality(self, spec: Spec, start: int, end: int) -> set[str]:
        """Return the quality of a bar that is opened now."""
        over = [gap for gap in self.gaps if gap.from_ts < end and gap.to_ts >= start]
        names = {"partial"} if self.is_partial(start) else set()
        if (spec.text, start) in self.missed or any(not gap.repaired for gap in over):
            names.add("has_gap")
            if any(is_void(gap) for gap in over):
                names.add("repaired")
        return names

    def count_trade(self, ms: int, spec: Spec, trade: Trade) -> None:
        bar = self.counts[spec]
        bar.trades.append(trade)
        bar.start, bar.end = bar.trades[0].ts_event, trade.ts_event
        bar.took_late |= bool(trade.flags & (Flag.LATE | Flag.BACKFILLED))
        row = bar.numbers()
        exact_value = sum((EXACT.multiply(t.price, t.size) for t in bar.trades), Decimal(0))
        if {"tick": row["trades"], "volume": row["volume"], "value": exact_value}[spec.measure] >= spec.size:
            self.out.append(bar.emit(ms))
            self.counts[spec] = self.next_count(spec, set())

    def next_count(self, spec: Spec, quality: set[str]) -> SlowBar:
        return SlowBar(spec, 0, 0, quality)

    def gap(self, ms: int, gap: Gap) -> None:
        self.gaps.append(gap)
        name = "repaired" if gap.repaired else "has_gap"
        for spec in self.specs:
            for bar in sorted(self.bars, key=lambda bar: bar.start):
                touched = bar.spec == spec and gap.from_ts < bar.end and gap.to_ts >= bar.start
                if touched and self.concerns(gap, bar) and name not in bar.quality:
                    if bar.revision == -1:
                        bar.quality.add(name)
                    elif self.newest is None or bar.end + self.grace + self.horizon > self.newest:
                        bar.quality.add(name)
                        self.out.append(bar.emit(ms))
        for bar in self.counts.values():
            first, last = sorted((bar.start, bar.end))
            if not gap.repaired:
                bar.quality.add(name)
            elif not bar.trades or (is_void(gap) and (last < gap.from_ts or gap.to_ts < first)):
                continue
            elif self.concerns(gap, bar) and "has_gap" in bar.quality:
                bar.quality.add(name)

    @staticmethod
    def concerns(gap: Gap, bar: SlowBar) -> bool:
        """Whether a Gap that touches a bar says something of it."""
        if not gap.repaired:
            return True
        if is_void(gap):
            return "has_gap" in bar.quality and not bar.missed
        took_late, bar.took_late = bar.took_late, False
        return took_late


def is_void(gap: Gap) -> bool:
    return gap.repaired and gap.kind is GapKind.VOID
