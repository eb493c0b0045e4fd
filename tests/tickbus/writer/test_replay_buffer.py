"""What is retained of the entries that a process wrote itself, and of those it inherited."""

import gc

from support.writing import KEYS

from tickbus.protocol.names import Stream
from tickbus.units import Duration, Size
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.replay_buffer import OVERHEAD, ReplayBuffer, Window
from tickbus.writer.transaction import Transaction

A, B = (StreamWriter(KEYS, Stream("trade", "test", symbol)) for symbol in "AB")


def entries(stream: StreamWriter, *seqs: int) -> list[Entry]:
    return [Entry(stream, 1_700_000_000_000 + seq, seq, b"t", b"x") for seq in seqs]


def transaction_of(*lists: list[Entry]) -> Transaction:
    transaction = Transaction(0)
    transaction.entries = [entry for one in lists for entry in one]
    transaction.heads = {entry.stream: b"head" for entry in transaction.entries}
    return transaction


def buffer_for(count: int) -> ReplayBuffer:
    """Return a buffer with room for `count` entries."""
    return ReplayBuffer(Window(Duration(1000), Size(count * (OVERHEAD + 1))))


def test_inherited_entries_precede_own_entries_in_stream_order() -> None:
    buffer = buffer_for(2000)
    buffer.add(transaction_of(entries(A, 451, 452)), 2, 0)
    buffer.inherit(transaction_of(entries(B, *range(1, 301)), entries(A, *range(1, 451))), 0)
    assert [entry.seq for entry in buffer.entries if entry.stream is A] == list(range(1, 453))
    assert [entry.seq for entry in buffer.entries if entry.stream is B] == list(range(1, 301))
    assert buffer.heads.keys() == {A, B}


def test_oldest_inherited_entries_are_dropped_when_out_of_room() -> None:
    buffer = buffer_for(350)
    buffer.add(transaction_of(entries(A, 901, 902)), 2, 0)
    buffer.inherit(transaction_of(entries(B, *range(1, 901))), 0)
    assert [entry.seq for entry in buffer.entries if entry.stream is A] == [901, 902]
    assert [entry.seq for entry in buffer.entries if entry.stream is B] == list(range(601, 901))
    for number in range(903, 953):
        buffer.add(transaction_of(entries(A, number)), 1, 0)
    assert [entry.seq for entry in buffer.entries if entry.stream is A] == list(range(901, 953))
    assert [entry.seq for entry in buffer.entries if entry.stream is B] == list(range(701, 901))


def test_inherited_entries_expire_like_own_entries() -> None:
    buffer = buffer_for(100)
    buffer.inherit(transaction_of(entries(B, 1)), 0)
    buffer.add(transaction_of(entries(A, 1)), 1, 900)
    buffer.add(transaction_of(entries(A, 2)), 1, 1001)
    assert buffer.entries == entries(A, 1, 2)


def test_retained_entries_are_not_tracked_by_the_garbage_collector() -> None:
    buffer = buffer_for(2000)
    buffer.add(transaction_of(entries(A, 1, 2), entries(B, 1)), 1, 0)
    assert len(buffer) == 3
    assert not any(map(gc.is_tracked, buffer.entries))
