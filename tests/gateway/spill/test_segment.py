"""The bytes of a segment: they round-trip; others yield a prefix of whole records or the documented error."""

from contextlib import suppress

import pytest
from gateway.spill.spilled import OWNER, STREAMS, A, entries, stream_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.gateway.spill import segment
from services.gateway.spill.segment import (
    Header,
    Owner,
    SpillError,
    decode_entries,
    encode_entries,
    encode_header,
    read_header,
    record_at,
    survey,
)
from tickbus.writer.entry import Entry

HEADER = encode_header(Header(OWNER, 100))
ALL = entries(1, 30)
BATCHES = [ALL[:5], ALL[5:6], ALL[6:]]
RECORDS = [encode_entries(batch) for batch in BATCHES]
SEGMENT = HEADER + b"".join(RECORDS)
ENDS = [len(HEADER) + sum(map(len, RECORDS[:at])) for at in range(len(RECORDS) + 1)]
COUNTS = [0, 5, 6, 30]

INT = st.integers(-(1 << 63), (1 << 64) - 1)
ENTRY = st.builds(
    Entry,
    st.sampled_from(list(STREAMS.values())),
    INT.filter(lambda ms: ms >= 0),
    INT,
    st.sampled_from([b"t", b"q", b"g", b"", b"other"]),
    st.binary(max_size=50),
    INT,
    INT,
)


def read(data: bytes) -> list[Entry]:
    """Return all entries that `survey` counts."""
    found = survey(data)
    at, read = found.start, []
    while at < found.end:
        record = record_at(data, at)
        assert record is not None
        read += decode_entries(data[at : record.end], stream_of)
        at = record.end
    assert len(read) == found.entries
    return read


@given(st.lists(ENTRY, max_size=30))
def test_entries_round_trip(batch: list[Entry]) -> None:
    assert read(HEADER + encode_entries(batch)) == batch


TEXT = st.text(st.sampled_from("aZ0:-/é€\n"), max_size=50)


@given(TEXT, st.integers(0, 1 << 40), TEXT, TEXT, st.integers(0, 1 << 60))
def test_header_round_trips(feed: str, epoch: int, holder: str, lane: str, first: int) -> None:
    header = Header(Owner(feed, epoch, holder, lane), first)
    encoded = encode_header(header)
    assert read_header(encoded + b"more") == (header, len(encoded))


def test_records_are_limited_in_entries_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "_RECORD_ENTRIES", 8)
    monkeypatch.setattr(segment, "_RECORD_BYTES", 100)
    batch = [*entries(1, 20), Entry(A, 1, 21, b"t", b"x" * 1000), *entries(22, 30)]
    data = encode_entries(batch)
    at, sizes = 0, []
    while at < len(data):
        record = record_at(data, at)
        assert record is not None
        some = decode_entries(data[at : record.end], stream_of)
        sizes.append((record.entries, sum(len(entry.payload) for entry in some)))
        at = record.end
    assert all(count <= 8 and (size <= 100 or count == 1) for count, size in sizes)
    assert read(HEADER + data) == batch


@given(st.integers(0, len(SEGMENT)))
def test_segment_cut_anywhere_keeps_the_whole_records_before(length: int) -> None:
    found = survey(SEGMENT[:length])
    whole = max((at for at, end in enumerate(ENDS) if end <= length), default=None)
    assert not found.damaged
    if whole is None:
        assert (found.header, found.entries, found.end) == (None, 0, 0)
    else:
        assert (found.header, found.entries, found.end) == (Header(OWNER, 100), COUNTS[whole], ENDS[whole])
        assert read(SEGMENT[:length]) == ALL[: COUNTS[whole]]


@settings(max_examples=300)
@given(st.integers(0, len(SEGMENT) * 8 - 1), st.integers(0, len(SEGMENT)))
@example(0, 0)
def test_flipped_bit_ends_segment_before_its_record(bit: int, cut: int) -> None:
    """It is recognized as damage if a whole record follows."""
    data = bytearray(SEGMENT)
    data[bit // 8] ^= 1 << bit % 8
    found = survey(bytes(data))
    whole = sum(end <= bit // 8 for end in ENDS)  # the header counts as one
    if whole == 0:
        assert (found.header, found.entries, found.damaged) == (None, 0, True)
    else:
        assert (found.entries, found.end) == (COUNTS[whole - 1], ENDS[whole - 1])
        assert read(bytes(data)) == ALL[: COUNTS[whole - 1]]
        assert found.damaged is (whole < len(RECORDS))
    assert read(bytes(data[:cut])) == read(bytes(data))[: survey(bytes(data[:cut])).entries]


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_arbitrary_bytes_yield_no_entries(junk: bytes, with_header: bool, with_mark: bool) -> None:
    data = (HEADER if with_header else b"") + (b"\xc1tbs" if with_mark else b"") + junk
    assert read(data) == []
    with pytest.raises(SpillError):
        decode_entries(data, stream_of)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_intact_record_with_foreign_body_is_rejected_or_decoded(body: bytes, count: int) -> None:
    """No writer of ours makes one: either SpillError, or it really is a body."""
    data = segment._record(count, body)
    with suppress(SpillError):
        assert len(decode_entries(data, stream_of)) == count


@pytest.mark.parametrize(
    "body", [b"\x92\x90\x90", b"\x92\x91\xaetrade:vendor:A\x91\x97\x01\x01\x01\xc4\x01t\xc4\x00\x01\x01"]
)
def test_inconsistent_numbers_are_rejected(body: bytes) -> None:
    with pytest.raises(SpillError, match="do not agree"):
        decode_entries(segment._record(1, body), stream_of)


def test_leftovers_of_failed_write_do_not_count() -> None:
    """The next segment says how many entries there were."""
    assert survey(SEGMENT, 106) == (Header(OWNER, 100), ENDS[0], 6, ENDS[2], False)
    assert survey(SEGMENT, 130) == (Header(OWNER, 100), ENDS[0], 30, ENDS[3], False)
    assert survey(SEGMENT, 107).damaged
    assert survey(SEGMENT, 131).damaged
    assert survey(SEGMENT, 99).damaged


def test_later_version_is_left_alone() -> None:
    found = survey(SEGMENT.replace(b"SPILL-1", b"SPILL-2"))
    assert (found.header, found.damaged) == (None, True)
    with pytest.raises(SpillError, match="of this version"):
        read_header(SEGMENT.replace(b"SPILL-1", b"SPILL-2"))
