"""The epochs of entries, from the heads of their streams."""

from hypothesis import given
from hypothesis import strategies as st

from tickbus.consumer.writer_epochs import WriterEpochs


def test_epoch_of_an_entry_is_the_newest_that_began_at_or_before_it() -> None:
    epochs = WriterEpochs()
    assert epochs.epochs("a", [(1, 1), (2, 5), (4, 7)], [1, 4, 5, 6, 7, 9]) == [1, 1, 2, 2, 4, 4]
    assert epochs.epochs("b", (), [1, 2]) == [0, 0]


def test_rolled_back_head_does_not_erase_known_epochs() -> None:
    """Redis lost the head of epoch 2 and its entry 3; both are resent after the reader has read the head."""
    epochs = WriterEpochs()
    assert epochs.epochs("a", [(1, 1), (2, 3)], [2, 3]) == [1, 2]
    assert epochs.epochs("a", [(1, 1)], [4]) == [2]
    assert epochs.epochs("a", [(1, 1), (2, 3), (3, 6)], [5, 6]) == [2, 3]
    epochs.forget(["a"])
    assert epochs.epochs("a", [(1, 1)], [7]) == [1]


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=4), st.integers(1, 5)),
        min_size=1,
        max_size=8,
    )
)
def test_epochs_never_decrease(calls: list[tuple[list[tuple[int, int]], int]]) -> None:
    epochs, seq, found = WriterEpochs(), 0, []
    for known, count in calls:
        found += epochs.epochs("a", sorted(known), range(seq + 1, seq + 1 + count))
        seq += count
    assert found == sorted(found)
    assert len(found) == seq
