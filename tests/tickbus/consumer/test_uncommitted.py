"""What the commit of a batch covers."""

from tickbus.consumer.uncommitted import UncommittedPositions
from tickbus.protocol.names import Stream, StreamId

A, B = Stream("trade", "x", "A"), Stream("trade", "x", "B")


def at(seq: int) -> StreamId:
    return StreamId(7, seq)


def test_commit_covers_its_batch_and_all_before_it() -> None:
    uncommitted = UncommittedPositions()
    uncommitted.add(1, {A: at(1), B: at(1)})
    uncommitted.add(2, {})
    uncommitted.add(3, {A: at(2)})
    uncommitted.add(4, {B: at(2)})
    assert uncommitted.up_to(2) == {A: at(1), B: at(1)}
    assert uncommitted.up_to(3) == {A: at(2), B: at(1)}
    uncommitted.committed(3)
    assert uncommitted.up_to(3) == {}
    assert uncommitted.up_to(9) == {B: at(2)}


def test_commit_does_not_cover_lost_streams() -> None:
    uncommitted = UncommittedPositions()
    uncommitted.add(1, {A: at(1), B: at(1)})
    uncommitted.add(2, {A: at(2)})
    uncommitted.forget(lambda stream: stream == A)
    assert uncommitted.up_to(2) == {B: at(1)}


def test_service_that_never_commits_uses_bounded_memory() -> None:
    uncommitted = UncommittedPositions()
    for number in range(1, 5001):
        uncommitted.add(number, {A: at(number), Stream("trade", "x", str(number % 7)): at(number)})
    assert len(uncommitted._batches) <= 1000
    assert uncommitted.up_to(4999)[A] == at(4999)
    assert len(uncommitted.up_to(5000)) == 8
