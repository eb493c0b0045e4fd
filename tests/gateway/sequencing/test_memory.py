"""What is remembered of a stream's trades, against a plain dict."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.sequencing.memory import REMEMBERED, TradeMemory, agrees
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import Flag, Side, Trade
from tickbus.units import MICROSECOND, MILLISECOND, SECOND

AT = 1_800_000_000 * SECOND


def trade(
    vendor_id: int, price: str = "1", event: int = AT, recv: int = AT + SECOND, flags: int = 0
) -> Trade:
    return Trade("A", price, "1", Side.BUY, str(vendor_id), event, recv, flags=flags)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 200)),
        st.tuples(st.just("skip"), st.integers(1, 9)),
        st.tuples(st.just("late"), st.integers(1, 300)),
        st.tuples(st.just("look"), st.integers(0, 600)),
        st.tuples(st.sampled_from(["trim", "begin_again"]), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_memory_finds_the_newest_trades_and_says_from_where_it_has_them_all(
    steps: list[tuple[str, int]],
) -> None:
    memory, next_id, seen, count = TradeMemory(), 1000, {}, 0
    memory.begin(1000)

    def add(vendor_id: int, flags: int = 0) -> None:
        nonlocal count
        count += 1
        seen[vendor_id] = trade(vendor_id, str(count), flags=flags)
        memory.trades.append(encode(seen[vendor_id]))

    for step, number in steps:
        match step:
            case "add":
                for _ in range(number):
                    add(next_id)
                    next_id += 1
            case "skip":
                next_id += number
            case "late" if (vendor_id := next_id - number) not in seen and vendor_id >= 1000:
                add(vendor_id, Flag.LATE)
            case "look":
                vendor_id = next_id - number
                known = memory.known(vendor_id)
                assert [*known] in ([], [seen.get(vendor_id)])
                if vendor_id in seen:
                    assert known or vendor_id < memory.complete_from
                    assert memory.repeats(seen[vendor_id], vendor_id) == bool(known)
                elif vendor_id >= 1000:
                    assert not known
            case "trim":
                memory.trim()
            case "begin_again":
                newest = seen.get(next_id - 1)
                memory.begin_again(1000)
                next_id, seen = 1000, {}
                assert newest is None or memory.repeats(newest, int(newest.trade_id or 0))
    memory.trim()
    assert len(memory.trades) <= 2 * REMEMBERED


def test_trades_agree_by_number_and_by_the_coarser_unit() -> None:
    exact = trade(1, "1.50", AT + 123_456_789)
    for price, event, same in (
        ("1.5", AT + 123_456_789, True),
        ("1.500", AT + 123_456_000, True),
        ("1.50", AT + 123_000_000, True),
        ("1.50", AT, True),
        ("1.51", AT + 123_456_789, False),
        ("1.50", AT + 123_456_788, False),
        ("1.50", AT + 123 * MILLISECOND + 457 * MICROSECOND, False),
        ("1.50", AT + 124 * MILLISECOND, False),
        ("1.50", AT + SECOND, False),
    ):
        assert (
            agrees(trade(1, price, event, AT + 9 * SECOND), exact)
            == same
            == agrees(exact, trade(1, price, event, AT + 9 * SECOND))
        )
    assert not agrees(Trade("A", "1.50", "2", Side.BUY, "1", exact.ts_event, AT), exact)


def test_absent_times_are_not_compared() -> None:
    exact = trade(1, "1", AT + 1)
    assert agrees(trade(1, "1.0", AT + 7, AT + 7), exact)
    assert agrees(trade(1, "1.0", AT + 7, AT + 9, Flag.BAD_TIME), exact)
    assert not agrees(trade(1, "2", AT + 7, AT + 7), exact)
