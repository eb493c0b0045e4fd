"""What a commit of a batch covers."""

from tickbus.consumer.uncommitted import UncommittedPositions
from tickbus.protocol.names import Stream, StreamId

A, B = Stream("trade", "x", "A"), Stream("trade", "x", "B")


def at(seq: int) -> StreamId:
    return StreamId(7, seq)


def test_a_commit_covers_the_batch_and_all_before_it() -> None:
    delivered = UncommittedPositions()
    delivered.add(1, {A: at(1), B: at(1)})
    delivered.add(2, {})
    delivered.add(3, {A: at(2)})
    delivered.add(4, {B: at(2)})
    assert delivered.up_to(2) == {A: at(1), B: at(1)}
    assert delivered.up_to(3) == {A: at(2), B: at(1)}
    delivered.committed(3)
    assert delivered.up_to(3) == {}
    assert delivered.up_to(9) == {B: at(2)}


def test_lost_streams_are_covered_no_more() -> None:
    delivered = UncommittedPositions()
    delivered.add(1, {A: at(1), B: at(1)})
    delivered.add(2, {A: at(2)})
    delivered.forget(lambda stream: stream == A)
    assert delivered.up_to(2) == {B: at(1)}


def test_a_service_that_never_commits_costs_no_memory() -> None:
    delivered = UncommittedPositions()
    for number in range(1, 5001):
        delivered.add(number, {A: at(number), Stream("trade", "x", str(number % 7)): at(number)})
    assert len(delivered._batches) <= 1000
    assert delivered.up_to(4999)[A] == at(4999)
    assert len(delivered.up_to(5000)) == 8
