from decimal import Decimal
from itertools import islice, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator.synthetic import Synthetic
from services.simulator.tick import Tick
from tickbus.protocol.messages import Quote, Trade
from tickbus.units import SECOND, canonical


def first_ticks(
    count: int,
    seed: int = 1,
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT"),
    quotes: int = 1,
    rate: int = 100,
) -> list[Tick]:
    return list(islice(Synthetic(seed=seed, rate=rate, quotes_per_trade=quotes, symbols=symbols), count))


def test_seed_determines_the_ticks() -> None:
    assert first_ticks(1000) == first_ticks(1000)
    assert first_ticks(1000) != first_ticks(1000, seed=2)


def test_ticks_of_a_symbol_do_not_depend_on_other_symbols() -> None:
    alone = first_ticks(200, symbols=("ETHUSDT",))
    among = [tick for tick in first_ticks(4000, symbols=("A", "ETHUSDT", "B")) if tick.symbol == "ETHUSDT"][
        :200
    ]
    assert [(tick.id, tick.message) for tick in alone] == [(tick.id, tick.message) for tick in among]


@settings(max_examples=20)
@given(st.integers(), st.integers(0, 3))
def test_prices_ids_and_quotes_are_consistent(seed: int, quotes: int) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT"):
        ticks = [tick for tick in first_ticks(1500, seed, quotes=quotes) if tick.symbol == symbol]
        trades = [tick for tick in ticks if tick.kind == "trade"]
        first = trades[0].id
        assert [tick.id for tick in trades] == list(range(first, first + len(trades)))
        for tick in ticks:
            match tick.message:
                case Quote(bid=bid, ask=ask):
                    assert bid is not None and ask is not None and bid < ask
                case Trade(price_text=price, size=size):
                    assert canonical(price) == price
                    assert Decimal(price) > 0 < size
        assert abs(len(ticks) - len(trades) * (1 + quotes)) <= quotes + 1


def test_ticks_come_at_the_mean_rate_and_in_bursts() -> None:
    ticks = first_ticks(20_000, rate=1000)
    assert 0.95 < (ticks[-1].at - ticks[0].at) / (20 * SECOND) < 1.05
    intervals = [after.at - before.at for before, after in pairwise(ticks)]
    assert all(interval >= 0 for interval in intervals)
    assert sum(interval == SECOND // 1000 // 8 for interval in intervals) > 1000


def test_market_without_symbols_opens_any_valid_symbol() -> None:
    source = Synthetic(seed=1, rate=1)
    assert source.idle
    source.open("AAPL.US")
    source.open("AAPL.US")
    source.open('no"symbol')
    assert not source.idle
    assert {tick.symbol for tick in islice(source, 100)} == {"AAPL.US"}
    assert source.knows("MSFT.US")
    assert not source.knows('no"symbol')


def test_market_with_symbols_knows_no_others() -> None:
    source = Synthetic(seed=1, rate=1, symbols=("A",))
    source.open("B")
    assert not source.knows("B")
    assert {tick.symbol for tick in islice(source, 100)} == {"A"}
