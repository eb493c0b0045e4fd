from decimal import Decimal
from functools import reduce

from bars.factories import decimals
from bars.reference import numbers
from hypothesis import given
from hypothesis import strategies as st

from services.bars.ohlcv import Ohlcv
from services.bars.open_bar import OpenBar
from tickbus.fixed_point import ScaleTable
from tickbus.protocol.messages import Side, Trade


def places(text: str) -> int:
    return len(text.partition(".")[2])


def ohlcv(trade: Trade) -> Ohlcv:
    """Return the totals of one trade at the coarsest scales that fit."""
    price_scale, size_scale = places(trade.price_text), places(trade.size_text)
    return Ohlcv.of(
        trade,
        ScaleTable(price_scale)[trade.price_text],
        ScaleTable(size_scale)[trade.size_text],
        price_scale,
        size_scale,
    )


trades_of_x = st.builds(
    Trade,
    st.just("X"),
    decimals | decimals.map("-{}".format),
    decimals,
    st.sampled_from(Side),
    st.none(),
    st.integers(0, 99),
    st.just(0),
)


@given(st.lists(trades_of_x, min_size=1, max_size=12), st.data())
def test_merge_of_split_run_equals_whole_run(trades: list[Trade], data: st.DataObject) -> None:
    totals = list(map(ohlcv, trades))
    whole = reduce(Ohlcv.merge, totals)
    cut = data.draw(st.integers(0, len(trades)))
    parts = [reduce(Ohlcv.merge, part) for part in (totals[:cut], totals[cut:]) if part]
    assert reduce(Ohlcv.merge, parts) == whole


@given(st.lists(trades_of_x, min_size=1, max_size=12))
def test_bar_is_exact(trades: list[Trade]) -> None:
    open_bar = OpenBar(0, 100)
    for one in map(ohlcv, trades):
        open_bar.add(one)
    bar = open_bar.emit("X", "time:1s")
    expected = numbers(trades)
    assert {name: getattr(bar, name) for name in expected} == expected
    assert bar.open_text == trades[0].price_text
    assert bar.close_text == trades[-1].price_text
    assert {bar.high_text, bar.low_text} <= {trade.price_text for trade in trades}
    assert "e" not in "".join(map(str, (bar.volume_text, bar.value_text, bar.vwap_text))).lower()


def test_value_is_rounded_half_even_only_beyond_18_places() -> None:
    exact = ohlcv(Trade("X", "0.000000001", "0.000000003", Side.BUY, None, 0, 0))
    assert exact.value_text() == "0.000000000000000003"
    ties = [
        ohlcv(Trade("X", price, "0.0000000005", Side.BUY, None, 0, 0)).value_text()
        for price in ("0.000000001", "0.000000003")
    ]
    assert ties == ["0", "0.000000000000000002"]


def test_vwap_is_value_over_volume_at_18_places() -> None:
    both = ohlcv(Trade("X", "1", "1", Side.BUY, None, 0, 0)).merge(
        ohlcv(Trade("X", "2", "2", Side.SELL, None, 1, 0))
    )
    assert both.vwap_text() == "1.666666666666666667"
    assert Decimal(both.value_text()) == 5
