"""Which entries of a stream its writer wrote."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.writing import trade

from tickbus.protocol.codec import encode
from tickbus.protocol.foreign import flatten, split
from tickbus.protocol.names import StreamId

MS = 1_795_847_345_000


def entry(at: int, seq: int, *fields: bytes) -> list[Any]:
    return [b"%d-%d" % (MS + at, seq), list(fields) or [b"t", encode(trade(seq))]]


def seqs(entries: list[Any]) -> list[int]:
    return [StreamId.parse(id).seq for id, _ in entries]


def test_dense_entries_are_ours_readable_or_not() -> None:
    rows = [
        entry(1, 4),
        entry(2, 5, b"t", b"junk"),
        entry(3, 6, b"z", b"new"),
        entry(4, 7, b"a", b"b", b"c", b"d"),
    ]
    assert split(rows, 3, "trade") == (rows, [])


@pytest.mark.parametrize(
    "foreign",
    [
        entry(2, 0),  # XADD with *
        entry(2, 0, b"t", b"junk"),
        entry(2, 900, b"t", b"junk"),
        entry(2, 900, b"q", b"junk"),
        entry(2, 900, b"a", b"b", b"c", b"d"),
        entry(2, 900),  # one that reads well, between two that follow each other
        entry(2, 2, b"t", b"junk"),
    ],
)
def test_entry_between_two_of_ours_is_foreign(foreign: list[Any]) -> None:
    rows = [entry(1, 4), foreign, entry(3, 5)]
    assert split(rows, 3, "trade") == ([rows[0], rows[2]], [foreign])


def test_junk_of_one_millisecond_counts_up_like_ours_and_is_foreign() -> None:
    junk = [entry(2, seq, b"t", b"junk") for seq in range(9)]
    rows = [entry(1, 2), *junk, entry(3, 3), entry(4, 4)]
    assert split(rows, 1, "trade") == ([rows[0], *rows[-2:]], junk)


def test_trimmed_and_rolled_back_streams_are_ours() -> None:
    trimmed = [entry(1, 40), entry(2, 41)]
    assert split(trimmed, 3, "trade") == (trimmed, [])
    assert split(trimmed, 0, "trade") == (trimmed, [])
    # a new history that reaches the counters of the old one
    new = [entry(at, at) for at in range(1, 8)]
    assert split(new, 3, "trade") == (new, [])
    # of a newer version, after a trim: its messages cannot be read, but they follow each other
    newer = [entry(at, 40 + at, b"z", b"new") for at in range(3)]
    assert seqs(split(newer, 3, "trade")[0]) == [40, 41, 42]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.binary(max_size=9), min_size=2, max_size=6))),
    st.integers(0, 9),
)
def test_every_entry_is_one_or_the_other_and_stays_in_order(
    rows: list[tuple[int, list[bytes]]], seq: int
) -> None:
    entries = [entry(at, seq, *fields[: len(fields) // 2 * 2]) for at, (seq, fields) in enumerate(rows)]
    ours, foreign = split(entries, seq, "trade")
    assert sorted([*ours, *foreign], key=lambda row: StreamId.parse(row[0])) == entries
    assert all(len(fields) == 2 for _, fields in flatten(ours))
    assert 0 not in seqs(ours)
