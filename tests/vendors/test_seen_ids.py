"""Repeats by unique ids: known by their values too, within bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vendors import seen_ids
from services.vendors.seen_ids import Seen, SeenIds
from tickbus.protocol.messages import Flag, Side, Trade

AT = 1_723_210_200_123_456_789


def trade(
    id: str, price: str = "1", size: str = "2", at: int = AT, flags: int = 0, symbol: str = "A"
) -> Trade:
    return Trade(symbol, price, size, Side.BUY, id, at, AT + 1, flags=flags)


@pytest.mark.parametrize(
    ("again", "seen"),
    [
        (trade("x"), Seen.REPEAT),
        (trade("y"), Seen.NEW),
        (trade("x", symbol="B"), Seen.NEW),
        (trade("x", price="1.000", size="2.0"), Seen.REPEAT),
        (trade("x", price="1.1"), Seen.OTHER),
        (trade("x", size="3"), Seen.OTHER),
        (trade("x", at=AT // 1_000_000 * 1_000_000), Seen.REPEAT),  # the same time in ms
        (trade("x", at=AT // 10**9 * 10**9), Seen.REPEAT),  # in seconds
        (trade("x", at=AT + 1), Seen.OTHER),
        (trade("x", at=AT // 1_000_000 * 1_000_000 + 1_000_000), Seen.OTHER),
        (trade("x", at=AT + 10**12, flags=Flag.BAD_TIME), Seen.REPEAT),  # no time to compare
        (trade("x", price="9", flags=Flag.BAD_TIME), Seen.OTHER),
    ],
)
def test_repeat_has_a_known_id_and_agrees_with_what_is_known(again: Trade, seen: Seen) -> None:
    ids = SeenIds()
    assert ids.note(trade("x")) is Seen.NEW
    assert ids.note(again) is seen


def test_first_values_of_an_id_remain_the_known_ones() -> None:
    ids = SeenIds()
    ids.note(trade("x"))
    assert [ids.note(trade("x", price=price)) for price in ("5", "5", "1")] == [
        Seen.OTHER, Seen.OTHER, Seen.REPEAT,
    ]  # fmt: skip


@given(st.lists(st.integers(0, 40), max_size=200))
def test_the_newest_ids_are_remembered_and_memory_is_bounded(numbers: list[int]) -> None:
    ids = SeenIds()
    ids._generation = 10
    newest: list[int] = []
    for number in numbers:
        seen = ids.note(trade(str(number)))
        if number in newest[-10:]:
            assert seen is Seen.REPEAT
        if number not in newest:
            assert seen is Seen.NEW
        if seen is Seen.NEW:
            newest.append(number)
        assert sum(map(len, ids._by_symbol["A"])) <= 20


def test_bounds_per_symbol_and_over_all() -> None:
    ids = SeenIds()
    ids.expect(1)
    assert 2 * ids._generation == seen_ids.MAX_IDS
    ids.expect(1000)
    assert 2 * ids._generation * 1000 <= seen_ids.MAX_IDS_IN_ALL
    ids.expect(10**9)
    assert ids.note(trade("x")) is Seen.NEW


def test_long_ids_are_told_apart_in_bounded_memory() -> None:
    ids = SeenIds()
    long = ["x" * 100_000 + end for end in "ab"]
    assert [ids.note(trade(id)) for id in (*long, *long)] == [Seen.NEW] * 2 + [Seen.REPEAT] * 2
    assert all(len(key) <= 64 for key in ids._by_symbol["A"][0])
