from hypothesis import given
from hypothesis import strategies as st

from services.bars.interval_set import Ranges

pairs = st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(pairs, max_size=15), pairs, st.integers(0, 45))
def test_ranges_are_the_set_of_instants_they_cover(added, asked, until):
    ranges, covered = Ranges(), set()
    for start, end in added:
        ranges.add(start, end)
        covered |= set(range(start, end))
    assert {instant for low, high in ranges.ranges for instant in range(low, high)} == covered
    assert all(one[1] < two[0] for one, two in zip(ranges.ranges, ranges.ranges[1:], strict=False))
    assert ranges.touch(*asked) == bool(covered & set(range(*asked)))
    before = list(ranges.ranges)
    ranges.forget(until)
    assert ranges.ranges == [(low, high) for low, high in before if high > until]
