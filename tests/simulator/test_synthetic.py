from decimal import Decimal
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator.synthetic import Synthetic
from services.simulator.tick import Tick
from tickbus.protocol.messages import Quote, Side, Trade
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


def test_ids_and_level_of_a_symbol_do_not_depend_on_other_symbols() -> None:
    alone = first_ticks(200, symbols=("ETHUSDT",))
    among = [tick for tick in first_ticks(4000, symbols=("A", "ETHUSDT", "B")) if tick.symbol == "ETHUSDT"]
    assert [tick.id for tick in alone] == [tick.id for tick in among[:200]]
    assert alone[0].message == among[0].message


@pytest.mark.parametrize("rate", [1, 1_000, 1_000_000])
def test_mean_rate_is_kept(rate: int) -> None:
    ticks = first_ticks(20_000, rate=rate)
    assert all(before.at <= after.at for before, after in pairwise(ticks))
    assert 0.95 < ticks[-1].at * rate / (20_000 * SECOND) < 1.05


@settings(max_examples=20)
@given(st.integers(), st.integers(0, 3))
def test_prices_ids_and_quotes_are_consistent(seed: int, quotes: int) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT"):
        ticks = [tick for tick in first_ticks(1500, seed, quotes=quotes) if tick.symbol == symbol]
        trades = [tick for tick in ticks if tick.kind == "trade"]
        first = trades[0].id
        quoted: dict[Side, str] = {}
        assert [tick.id for tick in trades] == list(range(first, first + len(trades)))
        for tick in ticks:
            match tick.message:
                case Quote(bid_text=bid_text, ask_text=ask_text, bid_size=bid_size, ask_size=ask_size):
                    assert bid_text is not None and ask_text is not None
                    assert (canonical(bid_text), canonical(ask_text)) == (bid_text, ask_text)
                    assert 0 < Decimal(bid_text) < Decimal(ask_text)
                    assert bid_size is not None and ask_size is not None and min(bid_size, ask_size) > 0
                    quoted = {Side.BUY: ask_text, Side.SELL: bid_text}
                case Trade(price_text=price, size=size, side=side):
                    assert canonical(price) == price
                    assert Decimal(price) > 0 < size
                    assert not quotes or quoted[side] == price
        assert abs(len(ticks) - len(trades) * (1 + quotes)) <= quotes + 1


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
