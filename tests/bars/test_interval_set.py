from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.bars.interval_set import IntervalSet

pairs = st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(pairs, max_size=15), pairs, st.integers(0, 45))
def test_set_covers_added_instants_with_disjoint_ranges(
    added: list[tuple[int, int]], queried: tuple[int, int], until: int
) -> None:
    intervals = IntervalSet()
    covered: set[int] = set()
    for start, end in added:
        intervals.add(start, end)
        covered |= set(range(start, end))
    assert {instant for low, high in intervals.ranges for instant in range(low, high)} == covered
    assert all(one[1] < two[0] for one, two in pairwise(intervals.ranges))
    assert intervals.overlaps(*queried) == bool(covered & set(range(*queried)))
    before = list(intervals.ranges)
    intervals.forget(until)
    assert intervals.ranges == [(low, high) for low, high in before if high > until]
