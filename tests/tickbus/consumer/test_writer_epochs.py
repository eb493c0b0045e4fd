"""The epochs of entries, by the heads of their streams."""

from hypothesis import given
from hypothesis import strategies as st

from tickbus.consumer.writer_epochs import WriterEpochs


def test_the_newest_writer_that_began_at_or_before_an_entry() -> None:
    authors = WriterEpochs()
    assert authors.epochs("a", [(1, 1), (2, 5), (4, 7)], [1, 4, 5, 6, 7, 9]) == [1, 1, 2, 2, 4, 4]
    assert authors.epochs("b", (), [1, 2]) == [0, 0]


def test_a_head_that_went_back_does_not_unsay_what_was_known() -> None:
    """Redis lost the head of epoch 2 and its entry 3; both are sent again, after the reader has looked."""
    authors = WriterEpochs()
    assert authors.epochs("a", [(1, 1), (2, 3)], [2, 3]) == [1, 2]
    assert authors.epochs("a", [(1, 1)], [4]) == [2]
    assert authors.epochs("a", [(1, 1), (2, 3), (3, 6)], [5, 6]) == [2, 3]
    authors.forget(["a"])
    assert authors.epochs("a", [(1, 1)], [7]) == [1]


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=4), st.integers(1, 5)),
        min_size=1,
        max_size=8,
    )
)
def test_they_never_fall(calls: list[tuple[list[tuple[int, int]], int]]) -> None:
    authors, seq, found = WriterEpochs(), 0, []
    for known, count in calls:
        found += authors.epochs("a", sorted(known), range(seq + 1, seq + 1 + count))
        seq += count
    assert found == sorted(found)
    assert len(found) == seq
