"""The synthetic market behaves like a market: the stylised facts of Cont (2001), at fixed seeds."""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise, takewhile
from math import log
from statistics import correlation, fmean, median, pstdev, pvariance

import pytest

from services.demo.main import SYMBOLS, Options
from services.demo.stack import SEED
from services.simulator.instruments import instrument
from services.simulator.synthetic import Synthetic
from services.simulator.tick import Tick
from tickbus.protocol.messages import Quote, Side, Trade
from tickbus.units import SECOND

RATE = Options().rate
LENGTH = 480
"""Seconds."""


def ticks_of(seconds: int, seed: int) -> Iterator[Tick]:
    market = Synthetic(seed=seed, rate=RATE, symbols=SYMBOLS)
    return takewhile(lambda tick: tick.at < seconds * SECOND, market)


@dataclass
class History:
    """What happened to one symbol. Times in ns."""

    quotes: list[tuple[int, float, float]] = field(default_factory=list)
    trades: list[tuple[int, float, int]] = field(default_factory=list)
    """Time, size, 1 for a buy and -1 for a sell."""
    flow: list[tuple[int, float]] = field(default_factory=list)
    """Side of a trade, and how the middle moved from the quote before it to the quote behind it."""

    def add(self, at: int, message: Trade | Quote) -> None:
        if isinstance(message, Trade):
            self.trades.append((at, float(message.size_text), 1 if message.side is Side.BUY else -1))
            return
        assert message.bid_text is not None and message.ask_text is not None
        self.quotes.append((at, float(message.bid_text), float(message.ask_text)))
        if len(self.quotes) > 1 and len(self.trades) > len(self.flow):
            (_, *before), (_, *after) = self.quotes[-2:]
            self.flow.append((self.trades[-1][2], sum(after) - sum(before)))

    def prices(self, seconds: int) -> list[float]:
        """Return the middle of the last quote in each interval, without the first ten seconds."""
        last = {at // (seconds * SECOND): (bid + ask) / 2 for at, bid, ask in self.quotes}
        prices = [self.quotes[0][1]]
        for interval in range(LENGTH // seconds):
            prices.append(last.get(interval) or prices[-1])
        return prices[10 // seconds + 1 :]

    def returns(self) -> list[float]:
        """Return the returns of each second."""
        return [log(after / before) for before, after in pairwise(self.prices(1))]


def autocorrelation(values: Sequence[float], lag: int) -> float:
    return correlation(values[:-lag], values[lag:])


@dataclass
class Observed:
    times: list[int] = field(default_factory=list)
    symbols: dict[str, History] = field(default_factory=lambda: {symbol: History() for symbol in SYMBOLS})


@pytest.fixture(scope="module", params=[SEED, 1])
def market(request: pytest.FixtureRequest) -> Observed:
    observed = Observed()
    for tick in ticks_of(LENGTH, request.param):
        assert tick.message is not None
        observed.times.append(tick.at)
        observed.symbols[tick.symbol].add(tick.at, tick.message)
    return observed


def test_returns_have_fat_tails_and_no_memory_but_volatility_has(market: Observed) -> None:
    memories = []
    for symbol, history in market.symbols.items():
        moves = history.returns()
        mean, variance = fmean(moves), pvariance(moves)
        assert fmean((move - mean) ** 4 for move in moves) / variance**2 > 4, symbol
        assert abs(autocorrelation(moves, 5)) < 0.15, symbol
        sizes = [abs(move) for move in moves]
        assert autocorrelation(sizes, 1) > 0, symbol
        memories.append(fmean(autocorrelation(sizes, lag) for lag in range(1, 11)))
    assert fmean(memories) > 0.03


def test_symbols_move_together_but_not_as_one(market: Observed) -> None:
    moves = {symbol: history.returns() for symbol, history in market.symbols.items()}
    for one, other in combinations(SYMBOLS, 2):
        assert 0.02 < correlation(moves[one], moves[other]) < 0.8, (one, other)


def test_prices_move_within_half_a_minute_and_stay_realistic(market: Observed) -> None:
    for symbol, history in market.symbols.items():
        seen = history.prices(30)
        moves = [abs(after / before - 1) for before, after in pairwise(seen)]
        assert 1e-4 < median(moves) < 1e-2, symbol
        traits = instrument(symbol)
        level = traits.price / 10**traits.decimals
        assert all(0.8 < price / level < 1.25 for price in seen), symbol


def test_spreads_are_in_line_with_prices(market: Observed) -> None:
    for symbol, history in market.symbols.items():
        step = 10 ** -instrument(symbol).decimals
        spreads = [ask - bid for _, bid, ask in history.quotes]
        assert min(spreads) > 0.99 * step, symbol
        level = history.quotes[0][1]
        assert max(spreads) < 1e-3 * level, symbol
        assert 5e-6 * level < median(spreads) < 2e-4 * level, symbol


def test_ticks_come_in_bursts_and_in_different_numbers(market: Observed) -> None:
    intervals = [after - before for before, after in pairwise(market.times)]
    assert pstdev(intervals) > 1.3 * fmean(intervals)  # 1 if they came independently
    for symbol, history in market.symbols.items():
        counts = Counter(at // SECOND for at, _, _ in history.trades)
        numbers = [counts[second] for second in range(LENGTH)]
        assert pvariance(numbers) > 1.5 * fmean(numbers), symbol  # 1 likewise
    assert len(market.symbols["BTC-USDT"].trades) > 2 * len(market.symbols["ETH-USDT"].trades)


def test_volume_surges(market: Observed) -> None:
    volumes: dict[int, float] = defaultdict(float)
    for at, size, _ in market.symbols["BTC-USDT"].trades:
        volumes[at // (10 * SECOND)] += size
    assert max(volumes.values()) > 1.7 * median(volumes.values())


def test_a_few_trades_are_large(market: Observed) -> None:
    for symbol, history in market.symbols.items():
        sizes = [size for _, size, _ in history.trades]
        usual = median(sizes)
        blocks = sum(size >= 10 * usual for size in sizes)
        assert 0 < blocks < len(sizes) / 100, symbol


def test_aggressors_come_in_runs_and_move_the_price(market: Observed) -> None:
    for symbol in ("BTC-USDT", "ETH-USDT"):
        sides = [side for side, _ in market.symbols[symbol].flow]
        assert autocorrelation(sides, 1) > 0.1
        assert autocorrelation(sides, 50) > 0.03
        assert correlation(sides, [move for _, move in market.symbols[symbol].flow]) > 0.01


def test_named_symbols_have_their_level_however_they_are_spelled() -> None:
    assert instrument("BTC-USDT").price == instrument("btcusdt").price == instrument("BTC-USD").price
    for symbol, low, high in (("BTCUSDT", 20_000, 200_000), ("AAPL.US", 150, 350), ("MSFT", 300, 600),
                              ("GOOGL", 100, 300), ("EUR-USD", 0.9, 1.3), ("GOLD", 1500, 4000)):  # fmt: skip
        traits = instrument(symbol)
        assert low < traits.price / 10**traits.decimals < high, symbol


def test_any_other_name_has_a_plausible_level_and_round_lots() -> None:
    levels = set()
    for number in range(1, 2000):
        traits = instrument(f"S{number:05d}")
        price = traits.price / 10**traits.decimals
        levels.add(price)
        assert 5 <= price <= 500
        assert 1 / traits.price < 2.1e-4  # a price step, as a share of the price
        assert all(re.fullmatch(r"[1-9][0-9]*00", size) for size in set(traits.sizes))
    assert len(levels) > 1000


class Moments:
    """The last `count` values, their sum and the sum of their squares."""

    def __init__(self, count: int) -> None:
        self.values: deque[int] = deque()
        self._count, self._sum, self._squares = count, 0, 0

    def beyond(self, value: int, deviations: int) -> bool:
        """Return whether it is so many sample deviations from the mean; False until there are `count`."""
        n = len(self.values)
        variance = n * self._squares - self._sum**2
        return (
            n == self._count
            and variance > 0
            and (n * value - self._sum) ** 2 * (n - 1) >= deviations**2 * n * variance
        )

    @property
    def mean(self) -> float:
        return self._sum / max(1, len(self.values))

    def add(self, value: int) -> None:
        self.values.append(value)
        self._sum, self._squares = self._sum + value, self._squares + value**2
        if len(self.values) > self._count:
            old = self.values.popleft()
            self._sum, self._squares = self._sum - old, self._squares - old**2


def test_signals_of_a_default_demo_fire_within_half_a_minute() -> None:
    """The definitions of sigma.price, sigma.return, large_trade and aggressor, over the demo's own market."""
    windows = {symbol: (Moments(1000), Moments(1000), Moments(1000)) for symbol in SYMBOLS}
    flows: dict[str, list[float]] = {symbol: [0, 0, 0] for symbol in SYMBOLS}
    fired = set()
    for tick in ticks_of(27, SEED):  # a demo needs about three seconds to start
        if not isinstance(trade := tick.message, Trade):
            continue
        price, size = (int(text.replace(".", "")) for text in (trade.price_text, trade.size_text))
        of_prices, of_returns, of_sizes = windows[tick.symbol]
        if of_prices.values:
            before = of_prices.values[-1]
            change = (price - before) * 10**9 // before
            if of_returns.beyond(change, 6):
                fired.add("sigma.return")
            of_returns.add(change)
        if of_prices.beyond(price, 4):
            fired.add("sigma.price")
        # the 99th percentile by nearest rank; sorted only for sizes that may be as large
        if (
            size >= 6 * of_sizes.mean
            and len(sizes := sorted(of_sizes.values)) == 1000
            and size >= max(sizes[989], 10 * median(sizes))
        ):
            fired.add("large_trade")
        of_prices.add(price)
        of_sizes.add(size)
        flow = flows[tick.symbol]
        flow[trade.side is Side.SELL] += size
        flow[2] += 1
        if flow[2] >= 30 and abs(flow[0] - flow[1]) >= 0.6 * (flow[0] + flow[1]):
            fired.add("aggressor")
    assert fired == {"sigma.return", "sigma.price", "large_trade", "aggressor"}
