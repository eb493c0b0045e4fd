"""What is kept of what a process wrote itself, and of what it took over."""

import gc

from support.writing import KEYS

from tickbus.protocol.names import Stream
from tickbus.units import Duration, Size
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.replay_buffer import OVERHEAD, ReplayRing, Window
from tickbus.writer.transaction import Transaction

A, B = (StreamWriter(KEYS, Stream("trade", "test", symbol)) for symbol in "AB")


def entries(stream: StreamWriter, *seqs: int) -> list[Entry]:
    return [Entry(stream, 1_700_000_000_000 + seq, seq, b"t", b"x") for seq in seqs]


def of(*lists: list[Entry]) -> Transaction:
    transaction = Transaction(0)
    transaction.entries = [entry for one in lists for entry in one]
    transaction.heads = {entry.stream: b"head" for entry in transaction.entries}
    return transaction


def ring(room: int) -> ReplayRing:
    """For so many entries."""
    return ReplayRing(Window(Duration(1000), Size(room * (OVERHEAD + 1))))


def test_what_was_taken_over_stands_before_our_own_in_the_order_of_each_stream() -> None:
    kept = ring(2000)
    kept.keep(of(entries(A, 451, 452)), 2, 0)
    kept.inherit(of(entries(B, *range(1, 301)), entries(A, *range(1, 451))), 0)
    assert [entry.seq for entry in kept.entries if entry.stream is A] == list(range(1, 453))
    assert [entry.seq for entry in kept.entries if entry.stream is B] == list(range(1, 301))
    assert kept.heads.keys() == {A, B}


def test_what_finds_no_room_is_the_oldest_of_what_was_taken_over() -> None:
    kept = ring(350)
    kept.keep(of(entries(A, 901, 902)), 2, 0)
    kept.inherit(of(entries(B, *range(1, 901))), 0)
    assert [entry.seq for entry in kept.entries if entry.stream is A] == [901, 902]
    assert [entry.seq for entry in kept.entries if entry.stream is B] == list(range(601, 901))
    for number in range(903, 953):
        kept.keep(of(entries(A, number)), 1, 0)
    assert [entry.seq for entry in kept.entries if entry.stream is A] == list(range(901, 953))
    assert [entry.seq for entry in kept.entries if entry.stream is B] == list(range(701, 901))


def test_they_age_like_our_own() -> None:
    kept = ring(100)
    kept.inherit(of(entries(B, 1)), 0)
    kept.keep(of(entries(A, 1)), 1, 900)
    kept.keep(of(entries(A, 2)), 1, 1001)
    assert kept.entries == entries(A, 1, 2)


def test_what_is_kept_is_no_work_for_the_garbage_collector() -> None:
    kept = ring(2000)
    kept.keep(of(entries(A, 1, 2), entries(B, 1)), 1, 0)
    assert len(kept) == 3
    assert not any(map(gc.is_tracked, kept.entries))
