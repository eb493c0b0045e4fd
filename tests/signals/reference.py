"""The definitions of docs/signals.md once more, as plainly as they are written: lists and Fractions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import lcm

from tickbus.protocol.messages import Flag, Gap, Quote, Side, Trade

SECOND = 10**9
ASIDE = (
    Flag.LATE | Flag.BACKFILLED | Flag.OFF_BOOK | Flag.CANCELLED | Flag.CORRECTED
    | Flag.FUTURE_TIME | Flag.BAD_TIME
)  # fmt: skip
Row = tuple[str, int, str, int]
"""Name, ts_event, start or end, direction."""


@dataclass
class Episodes:
    cooldown: int = 30 * SECOND
    turns: bool = False
    start: int | None = None
    direction: int = 0
    ended: int = -(10**30)

    def step(self, ts: int, on: bool, off: bool, direction: int = 0) -> list[tuple[str, int]]:
        rows = []
        turned = False
        if self.start is not None:
            turned = self.turns and direction * self.direction < 0
            if off or turned:
                rows.append(("end", self.direction))
                self.start, self.ended = None, ts
            if not turned:
                return rows
        if on and (turned or ts - self.ended >= self.cooldown):
            self.start, self.direction = ts, direction
            rows.append(("start", direction))
        return rows


def deviation(values: Sequence[Fraction | int]) -> tuple[Fraction, Fraction]:
    """Return mean and sample variance."""
    # of integers: a Fraction for each difference would take minutes
    unit = lcm(*{x.denominator for x in values})
    whole, n = [x.numerator * (unit // x.denominator) for x in values], len(values)
    total = sum(whole)
    squares = sum((n * x - total) ** 2 for x in whole)
    return Fraction(total, n * unit), Fraction(squares, n * n * (n - 1) * unit * unit)


def half_even(x: Fraction) -> int:
    return round(x)


@dataclass
class Reference:
    """All signals of a trade stream with their default thresholds, windows of n trades."""

    n: int
    rows: list[Row] = field(default_factory=list)
    prices: list[Fraction] = field(default_factory=list)
    returns: list[Fraction] = field(default_factory=list)
    sizes: list[Fraction] = field(default_factory=list)
    t: int = 0
    pane: int | None = None
    panes: list[tuple[int, Fraction, int, Fraction, Fraction]] = field(default_factory=list)
    """Of closed ones: number, volume, count, bought, sold."""
    open: list[Fraction] = field(default_factory=lambda: [Fraction(0)] * 4)
    block: list[tuple[int, Fraction, int]] = field(default_factory=list)
    blocks: list[tuple[int, Fraction, int]] = field(default_factory=list)
    fast: list[tuple[Fraction, int]] = field(default_factory=list)
    sixty: list[tuple[Fraction, Fraction, int]] = field(default_factory=list)
    closed: int = 0

    def __post_init__(self) -> None:
        self.episodes = {
            name: Episodes() for name in ("sigma.price", "sigma.return", "volume_surge", "trade_rate")
        } | {"aggressor": Episodes(turns=True)}

    def emit(self, name: str, ts: int, on: bool, off: bool, direction: int = 0) -> None:
        for state, way in self.episodes[name].step(ts, on, off, direction):
            self.rows.append((name, ts, state, way))

    def trade(self, trade: Trade) -> None:
        p, q = Fraction(trade.price_text), Fraction(trade.size_text)
        if trade.flags & ASIDE or p <= 0 or q <= 0:
            return
        self.t = max(self.t, trade.ts_event)
        self.advance(self.t // SECOND)
        self.sigma("sigma.price", p, self.prices[-self.n :], 4, 2)
        if self.prices:
            x = Fraction(half_even(10**9 * (p - self.prices[-1]) / self.prices[-1]))
            self.sigma("sigma.return", x, self.returns[-self.n :], 6, 3)
            self.returns.append(x)
        side = {Side.BUY: 1, Side.SELL: -1}.get(trade.side) or self.side(trade)
        if len(self.sizes) >= self.n:
            window = sorted(self.sizes[-self.n :])
            rank = -(-99 * self.n // 100)
            median = (window[(self.n - 1) // 2] + window[self.n // 2]) / 2
            if q >= window[rank - 1] and q >= 10 * median:
                self.rows.append(
                    ("large_trade", self.t, "start", {1: 1, 2: -1}.get(trade.side, self.side(trade)))
                )
        side = {Side.BUY: 1, Side.SELL: -1}.get(trade.side) or self.side(trade)
        self.prices.append(p)
        self.sizes.append(q)
        self.open[0] += q
        self.open[1] += 1
        self.open[2] += q if side > 0 else 0
        self.open[3] += q if side < 0 else 0

    def side(self, trade: Trade) -> int:
        p = Fraction(trade.price_text)
        if trade.bid_text is not None and trade.ask_text is not None:
            bid, ask = Fraction(trade.bid_text), Fraction(trade.ask_text)
            if bid < ask and 2 * p != bid + ask:
                return 1 if 2 * p > bid + ask else -1
        for before in reversed(self.prices):
            if before != p:
                return 1 if p > before else -1
        return 0

    def sigma(self, name: str, x: Fraction, window: list[Fraction], start: int, end: int) -> None:
        if len(window) < self.n:
            return
        mean, variance = deviation(window)
        if not variance:
            return
        squared = (x - mean) ** 2 / variance
        self.emit(name, self.t, squared >= start**2, squared < end**2, (x > mean) - (x < mean))

    def advance(self, now: int) -> None:
        if self.pane is None:
            self.pane = now
            return
        for number in range(self.pane, min(now, self.pane + 300)):
            self.close(number)
        if now - self.pane > 300:
            self.fast, self.sixty, self.block = [], [], []
        self.pane = max(self.pane, now)

    def close(self, number: int) -> None:
        volume, count, bought, sold = self.open
        self.open = [Fraction(0)] * 4
        self.fast = [*self.fast, (volume, int(count))][-10:]
        self.sixty = [*self.sixty, (bought, sold, int(count))][-60:]
        self.closed += 1
        self.block.append((number, volume, int(count)))
        if number % 10 == 9:
            if len(self.block) == 10:
                self.blocks.append(
                    (
                        number + 1,
                        sum((one[1] for one in self.block), Fraction()),
                        sum(one[2] for one in self.block),
                    )
                )
            self.block = []
        ts = (number + 1) * SECOND
        history = [one for one in self.blocks if one[0] <= number + 1 - 10][-60:]
        ratios: tuple[tuple[str, Fraction, list[Fraction]], ...] = (
            ("volume_surge", sum((one[0] for one in self.fast), Fraction()), [one[1] for one in history]),
            ("trade_rate", Fraction(sum(one[1] for one in self.fast)), [Fraction(one[2]) for one in history]),
        )
        for name, f, values in ratios:
            if len(values) < 30:
                continue
            mean, variance = deviation(values)
            if variance:
                on = f >= 3 * mean and f > mean and (f - mean) ** 2 >= 16 * variance
                self.emit(name, ts, on, not on and f < Fraction(3, 2) * mean)
        if self.closed >= 60:
            bought = sum((one[0] for one in self.sixty), Fraction())
            sold = sum((one[1] for one in self.sixty), Fraction())
            trades = sum(one[2] for one in self.sixty)
            if not trades and self.episodes["aggressor"].start is None:
                return
            index = (bought - sold) / (bought + sold) if bought + sold else Fraction(0)
            on = bool(bought + sold) and abs(index) >= Fraction(3, 5) and trades >= 30
            off = not on and abs(index) <= Fraction(3, 10)
            self.emit("aggressor", ts, on, off, (index > 0) - (index < 0))


def rows_of(trades: Iterable[Trade | Gap], n: int) -> list[Row]:
    """Return what the definitions say of trades, with windows of n."""
    reference = Reference(n)
    for trade in trades:
        if isinstance(trade, Trade):
            reference.trade(trade)
    return reference.rows


def spread_rows(quotes: Iterable[Quote]) -> list[tuple[int, str, Decimal]]:
    """Return ts, state and value of the signal `spread`."""
    rows: list[tuple[int, str, Decimal]] = []
    episodes, t, pane, last, last_ts = Episodes(), 0, None, 0, 0
    samples: list[Fraction | int] = []
    for quote in quotes:
        if quote.flags & ASIDE or quote.bid_text is None or quote.ask_text is None:
            continue
        a, b = Fraction(quote.ask_text), Fraction(quote.bid_text)
        if not 0 < b < a:
            continue
        t = max(t, quote.ts_event)
        now = t // SECOND
        for number in range(now if pane is None else pane, now if pane is None else min(now, pane + 300)):
            ts = (number + 1) * SECOND
            if ts - last_ts > 60 * SECOND:
                continue
            newest = samples[-600:]
            if len(newest) >= 300:
                mean, variance = deviation(newest)
                if variance:
                    f = Fraction(last)
                    on = f >= 2 * mean and f > mean and (f - mean) ** 2 >= 16 * variance
                    rows += [
                        (ts, state, Decimal(last) / 10**6)
                        for state, _ in episodes.step(ts, on, not on and f < Fraction(6, 5) * mean)
                    ]
            samples.append(last)
        pane = now
        last, last_ts = half_even(2 * 10**10 * (a - b) / (a + b)), t
    return rows
