"""Each signal against its definition, on markets that Hypothesis makes up, restarted anywhere."""

import random
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signals.reference import rows_of, spread_rows

from services.signals.parameters import ParameterSet, parse
from services.signals.quotes import QuoteSignals
from services.signals.trades import TradeSignals
from tickbus.protocol.messages import Flag, Gap, GapKind, Quote, Side, Signal, SignalState, StreamKind, Trade
from tickbus.protocol.names import StreamId

START = 1_700_000_003
SMALL = """
[signals]
sigma.price = { n = 20 }
sigma.return = { n = 20 }
large_trade = { n = 20 }
gap_watch = { enabled = false }
"""
N = 20


def small(number: int = 1, more: str = "") -> ParameterSet:
    return parse(SMALL + more, number)


def market(seed: int, count: int, quiet: float = 0.002) -> list[Trade]:
    """Return trades with calm and wild phases, jumps in price and size, pauses, and all kinds of oddities."""
    rng = random.Random(seed)
    price, ms, trades = 10_000, START * 1000, []
    wild = False
    for number in range(count):
        wild ^= rng.random() < 0.01
        price = max(1, price + rng.choice((-3, -1, 0, 0, 1, 3)) * (20 if rng.random() < 0.01 else 1))
        ms += int(rng.expovariate(1 / (30 if wild else 400)))
        if rng.random() < quiet:
            ms += rng.choice((20_000, 90_000, 400_000))
        size = rng.randint(1, 30) * (40 if rng.random() < 0.02 else 1)
        places = rng.choice((2, 2, 2, 3)) if number > count // 2 else 2
        text = f"{Decimal(price).scaleb(-2):f}" + ("1" if places == 3 else "")
        flags = rng.choice((Flag.LATE, Flag.OFF_BOOK, Flag.CANCELLED)) if rng.random() < 0.02 else 0
        quoted = rng.random() < 0.5
        trades.append(
            Trade(
                "A-B", text, f"{Decimal(size).scaleb(-1):f}",
                rng.choice((Side.BUY, Side.BUY, Side.SELL, Side.UNKNOWN)) if wild else Side.UNKNOWN,
                None, (ms - rng.choice((0, 0, 0, 700))) * 10**6, ms * 10**6,
                f"{Decimal(price - 1).scaleb(-2):f}" if quoted else None,
                f"{Decimal(price + 2).scaleb(-2):f}" if quoted else None,
                int(flags),
            )
        )  # fmt: skip
    return trades


def entries(messages: Sequence[Trade | Quote | Gap]) -> list[tuple[StreamId, Trade | Quote | Gap]]:
    found, ms = [], 0
    for number, message in enumerate(messages, 1):
        ms = max(ms, (message.ts_event if not isinstance(message, Gap) else message.to_ts) // 10**6)
        found.append((StreamId(ms, number), message))
    return found


def signals_of(
    made: TradeSignals | QuoteSignals, rows: Sequence[tuple[StreamId, Trade | Quote | Gap]]
) -> list[Signal]:
    return [signal for id, message in rows for _, signal in made.apply(id, message)]  # type: ignore[arg-type]


def looked_at(signals: Sequence[Signal]) -> list[tuple[str, int, str, int]]:
    return [(one.name, one.ts_event, one.state.name.lower(), one.direction) for one in signals]


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_signals_are_those_of_the_definitions(seed: int) -> None:
    trades = market(seed, 1000)
    found = looked_at(signals_of(TradeSignals("x", "A-B", small()), entries(trades)))
    expected = rows_of(trades, N)
    assert sorted(found) == sorted(expected)
    assert [row[1] for row in found if row[0] != "large_trade"] == sorted(
        row[1] for row in found if row[0] != "large_trade"
    )


def test_the_market_of_these_tests_has_all_signals() -> None:
    names = {row[0] for seed in range(3) for row in rows_of(market(seed, 1500), N)}
    assert names == {"sigma.price", "sigma.return", "volume_surge", "trade_rate", "large_trade", "aggressor"}


ALL_ON = """
[signals.volume_profile]
indicator = true
every = "10s"
[signals.trade_rate]
indicator = true
[signals.aggressor]
indicator = true
every = "5s"
"""


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 1200), max_size=6))
def test_restart_anywhere_equals_no_restart(seed: int, stops: list[int]) -> None:
    parameters = parse(SMALL.replace("enabled = false", "always_open = true") + ALL_ON, 3)
    rows = entries(with_gaps(market(seed, 1200), seed))
    whole = signals_of(TradeSignals("x", "A-B", parameters), rows)
    stored: dict[str, bytes] = {}
    made, found, begin = TradeSignals("x", "A-B", parameters), [], 0
    for stop in [*sorted(stops), len(rows)]:
        found += signals_of(made, rows[begin:stop])
        stored |= made.state()
        made, begin = TradeSignals("x", "A-B", parameters, stored), stop
    assert found == whole


@pytest.mark.parametrize("every", [3, 100])
def test_state_taken_often_or_seldom_restores_the_same(every: int) -> None:
    parameters, rows = parse(ALL_ON, 1), entries(market(5, 2500))
    whole = signals_of(TradeSignals("x", "A-B", parameters), rows)
    stored: dict[str, bytes] = {}
    made, found = TradeSignals("x", "A-B", parameters), []
    for begin in range(0, len(rows), every):
        found += signals_of(made, rows[begin : begin + every])
        stored |= made.state()
        if begin % (every * 13) == 0:
            made = TradeSignals("x", "A-B", parameters, stored)
    assert found == whole


def test_state_is_small_and_bounded() -> None:
    parameters = parse("", 1)
    made, stored, written, hot = TradeSignals("x", "A-B", parameters), dict[str, bytes](), 0, []
    rows = entries(market(2, 8_000, quiet=0.0))
    for begin in range(0, len(rows), 5):
        signals_of(made, rows[begin : begin + 5])
        fields = made.state()
        stored |= fields
        hot.append(len(fields[""]))
        written += sum(map(len, fields.values()))
    assert max(hot) <= 700
    assert sum(hot) / len(hot) <= 512
    assert written / len(rows) <= 300
    assert sum(map(len, stored.values())) < 40_000


def with_gaps(trades: Sequence[Trade], seed: int) -> list[Trade | Gap]:
    rng, mixed = random.Random(seed), list[Trade | Gap]()
    for trade in trades:
        if rng.random() < 0.003:
            span = rng.choice((0, 5 * 10**9))
            mixed.append(
                Gap(
                    StreamKind.TRADE, "g", GapKind.SEQUENCE, trade.ts_event - span, trade.ts_event,
                    None, None, 3, rng.random() < 0.2, symbol="A-B",
                )
            )  # fmt: skip
        mixed.append(trade)
    return mixed


@given(st.integers(0, 10**6))
@settings(max_examples=6)
def test_gap_is_marked_as_long_as_a_window_reaches_it_and_changes_nothing_else(seed: int) -> None:
    trades = market(seed, 800, quiet=0.0)
    at = 500
    gap = Gap(StreamKind.TRADE, "g", GapKind.SEQUENCE, trades[at].ts_event, trades[at].ts_event, symbol="A-B")
    rows = entries([*trades[:at], gap, *trades[at:]])
    without = signals_of(TradeSignals("x", "A-B", small()), entries(trades))
    beside = signals_of(TradeSignals("x", "A-B", small()), rows)
    assert looked_at(beside) == looked_at(without)
    kept = [str(id) for id, trade in rows[at + 1 :] if isinstance(trade, Trade) and not trade.flags]
    reach = {"sigma.price": N, "large_trade": N, "sigma.return": N + 1}
    for signal in beside:
        if signal.cause not in kept:
            expected = False
        elif signal.name in reach:
            expected = kept.index(signal.cause) < reach[signal.name]
        elif signal.name == "aggressor":
            expected = signal.ts_event <= gap.to_ts + 60 * 10**9
        else:
            expected = True  # 800 trades last less than the history
        assert ("has_gap" in signal.quality) == expected, signal


def one_by_one(prices: Sequence[str], size: str = "1") -> Iterator[Trade]:
    for number, price in enumerate(prices):
        ts = (START * 1000 + number * 100) * 10**6
        yield Trade("A-B", price, size, Side.BUY, None, ts, ts)


def test_nothing_before_the_warm_up_and_nothing_of_nothing() -> None:
    assert signals_of(TradeSignals("x", "A-B", ParameterSet()), []) == []
    lone = entries(list(one_by_one(["1"])))
    assert signals_of(TradeSignals("x", "A-B", ParameterSet()), lone) == []
    jump = entries(list(one_by_one(["1"] * 10 + ["2"] * 9 + ["1000"])))
    assert "sigma.price" not in {one.name for one in signals_of(TradeSignals("x", "A-B", small()), jump)}


def test_constant_price_decides_nothing_and_is_counted() -> None:
    made = TradeSignals("x", "A-B", small())
    assert signals_of(made, entries(list(one_by_one(["5"] * 100)))) == []
    assert made.flat > 0


@pytest.mark.parametrize("scale", ["0.00000001", "1", "1000000000000000000000"])
def test_huge_and_tiny_numbers_give_the_same_decisions(scale: str) -> None:
    def scaled(trade: Trade) -> Trade:
        def times(text: str | None) -> str | None:
            return None if text is None else f"{(Decimal(text) * Decimal(scale)).normalize():f}"

        return Trade(
            trade.symbol, times(trade.price_text) or "", times(trade.size_text) or "", trade.side, None,
            trade.ts_event, trade.ts_recv, times(trade.bid_text), times(trade.ask_text), trade.flags,
        )  # fmt: skip

    trades = market(11, 1500)
    plain = signals_of(TradeSignals("x", "A-B", small()), entries(trades))
    other = signals_of(TradeSignals("x", "A-B", small()), entries([scaled(trade) for trade in trades]))
    assert looked_at(other) == looked_at(plain)
    assert [one.value_text for one in other] == [one.value_text for one in plain]


def test_late_and_off_book_trades_touch_nothing() -> None:
    trades = market(3, 1500)
    kept = [trade for trade in trades if not trade.flags]
    made = TradeSignals("x", "A-B", small())
    assert looked_at(signals_of(made, entries(trades))) == looked_at(
        signals_of(TradeSignals("x", "A-B", small()), entries(kept))
    )
    assert sum(made.ignored.values()) == len(trades) - len(kept) > 0


def test_fields_of_an_episode() -> None:
    prices = ["100", "101"] * 10 + ["120", "100", "101"]
    rows = entries(list(one_by_one(prices)))
    start, end = (
        one for one in signals_of(TradeSignals("x", "A-B", small(7)), rows) if one.name == "sigma.price"
    )
    assert (start.state, end.state) == (SignalState.START, SignalState.END)
    assert start.episode == end.episode == start.ts_event == rows[20][1].ts_event  # type: ignore[union-attr]
    assert (start.cause, end.cause) == (str(rows[20][0]), str(rows[21][0]))
    assert (start.direction, end.direction, start.unit, start.params) == (1, 1, "sd", 7)
    assert (start.threshold_text, end.threshold_text, start.window) == ("4", "2", "20 trades")
    # D = 20 * 120 - 2010 = 390, V = 20 * 202010 - 2010^2 = 100: z = 390 * sqrt(19 / 2000)
    assert start.value_text == "38.012498"


def test_side_is_the_vendor_s_else_by_quotes_else_by_ticks() -> None:
    def trade(number: int, price: str, side: Side, bid: str | None, ask: str | None) -> Trade:
        ts = (START + number) * 10**9
        return Trade("A-B", price, "1", side, None, ts, ts, bid, ask)

    trades = [trade(number, "10", Side.BUY, None, None) for number in range(30)]
    trades += [trade(number, "10.4", Side.UNKNOWN, "10.2", "10.4") for number in range(30, 50)]
    trades += [trade(number, "10.5", Side.UNKNOWN, "10.6", "10.4") for number in range(50, 59)]
    trades += [trade(62, "10.5", Side.UNKNOWN, None, None)]
    (signal,) = (
        one
        for one in signals_of(TradeSignals("x", "A-B", small()), entries(trades))
        if one.name == "aggressor"
    )
    shares = {name: Decimal(value) * 59 for name, value in signal.details}
    assert {name: round(value) for name, value in shares.items()} == {
        "vendor": 30, "quote": 20, "tick": 9, "unknown": 0,
    }  # fmt: skip
    assert signal.value_text == "1.000000"


def quotes(seed: int, count: int) -> list[Quote]:
    rng, ms, found = random.Random(seed), START * 1000, []
    wide = 2
    for _ in range(count):
        ms += int(rng.expovariate(1 / 400))
        if rng.random() < 0.003:
            ms += rng.choice((30_000, 70_000))
        if rng.random() < 0.01:
            wide = rng.choice((2, 2, 2, 40))
        bid, ask = 1000, 1000 + rng.choice((1, 2, wide))
        odd = rng.random()
        found.append(
            Quote(
                "A-B", None if odd < 0.02 else f"{Decimal(bid).scaleb(-1):f}", "1",
                f"{Decimal(bid if 0.02 < odd < 0.04 else ask).scaleb(-1):f}", "1", ms * 10**6, ms * 10**6,
                int(Flag.LATE) if odd > 0.98 else 0,
            )
        )  # fmt: skip
    return found


@given(st.integers(0, 10**6), st.lists(st.integers(0, 1800), max_size=4))
@settings(max_examples=4)
def test_spread_is_that_of_the_definition_restarted_anywhere(seed: int, stops: list[int]) -> None:
    made_up = quotes(seed, 1800)
    rows = entries(made_up)
    made, stored, found, begin = QuoteSignals("x", "A-B", ParameterSet()), dict[str, bytes](), [], 0
    for stop in [*sorted(stops), len(rows)]:
        found += signals_of(made, rows[begin:stop])
        stored |= made.state()
        made, begin = QuoteSignals("x", "A-B", ParameterSet(), stored), stop
    assert [(one.ts_event, one.state.name.lower(), one.value) for one in found] == spread_rows(made_up)


def test_spread_fires_on_the_market_of_these_tests() -> None:
    assert any(spread_rows(quotes(seed, 2000)) for seed in range(5))


def test_changed_window_warms_up_again_and_nothing_else_does() -> None:
    rows = entries(market(8, 1500))
    made = TradeSignals("x", "A-B", small(1))
    signals_of(made, rows[:700])
    made.configure(parse(SMALL.replace("sigma.price = { n = 20 }", "sigma.price = { n = 300 }"), 2))
    after = signals_of(made, rows[700:])
    assert {one.params for one in after} == {2}
    kept = [id for id, message in rows[700:] if isinstance(message, Trade) and not message.flags]
    first = [StreamId.parse(one.cause) for one in after if one.name == "sigma.price"][:1]
    assert not first or first[0] >= kept[300]
    unchanged = [
        one for one in signals_of(TradeSignals("x", "A-B", small(2)), rows) if one.name != "sigma.price"
    ]
    begun = rows[700][0]
    assert [one for one in after if one.name != "sigma.price"] == [
        one for one in unchanged if StreamId.parse(one.cause) >= begun
    ]


def test_silence_begins_at_its_instant_whenever_it_is_noticed() -> None:
    steady = list(one_by_one(["1"] * 300))
    last = entries(steady)[-1][0]
    gone = Trade("A-B", "1", "1", Side.BUY, None, steady[-1].ts_event + 60 * 10**9, 0)
    late = entries([*steady, gone])
    for looks in ([], [5_000, 9_000, 11_000, 30_000], [10_001], [10_002]):
        made = TradeSignals("x", "A-B", ParameterSet())
        found = [(last.ms, one) for one in signals_of(made, late[:-1])]
        for look in looks:
            found += made.clock(last.ms + look)
        found += made.apply(*late[-1])  # type: ignore[arg-type]
        start, end = (row for row in found if row[1].name == "gap_watch")
        assert (start[0], start[1].name, start[1].state) == (last.ms + 10_001, "gap_watch", SignalState.START)
        assert start[1].ts_event == steady[-1].ts_event + 10_001 * 10**6
        assert (end[1].state, end[1].value) == (SignalState.END, Decimal("49.999"))


def test_listed_symbols_are_not_watched_for_silence_and_holes_are() -> None:
    steady = [
        Trade("A.US", "1", "1", Side.BUY, None, one.ts_event, one.ts_recv) for one in one_by_one(["1"] * 300)
    ]
    made = TradeSignals("x", "A.US", ParameterSet())
    rows = entries(steady)
    assert signals_of(made, rows) == []
    assert made.due_ms is None
    gap = Gap(StreamKind.TRADE, "g", GapKind.DISCONNECT, 5 * 10**9, 9 * 10**9, None, None, 4, symbol="A.US")
    ((_, start),) = made.apply(StreamId(rows[-1][0].ms, 301), gap)
    assert (start.name, start.value, start.window, start.quality) == (
        "gap_watch", Decimal(4), "disconnect", ("has_gap",),
    )  # fmt: skip
    assert made.apply(StreamId(rows[-1][0].ms, 302), gap) == []
    ((_, end),) = made.apply(StreamId(rows[-1][0].ms, 303), steady[-1])
    assert end.state is SignalState.END


def test_profile_says_where_the_volume_is() -> None:
    prices = ["100.01"] * 5 + ["100.05"] * 10 + ["100.1"] * 3 + ["103"] * 2
    ticks = list(accumulate([0, *([1] * (len(prices) - 1))]))
    trades = [
        Trade("A-B", price, "1", Side.BUY, None, (START + at) * 10**9, 0)
        for at, price in zip(ticks, prices, strict=True)
    ]
    trades.append(Trade("A-B", "100", "1", Side.BUY, None, (START + 60) * 10**9, 0))
    (signal,) = signals_of(
        TradeSignals("x", "A-B", small(more="[signals.volume_profile]\nindicator = true\n")), entries(trades)
    )[:1]
    # w: 0.05, the largest 1, 2 or 5 below 100 / 2000; 70 % of 20 are 14
    assert (signal.name, signal.value_text) == ("volume_profile", "100.05")
    assert dict(signal.details) == {"val": "100", "vah": "100.1", "volume": "20"}
    assert signal.quality == ("partial",)
