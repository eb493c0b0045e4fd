"""Filters of streams, and whether they overlap."""

from hypothesis import given
from hypothesis import strategies as st

from tickbus.protocol.names import Stream
from tickbus.protocol.stream_filter import StreamFilter


def some(*names: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), max_size=2)


FILTERS = st.builds(
    StreamFilter.of, some("trade", "bar"), some("a", "b"), some("X", "Y"), some("time:1s", "time:1m")
)
STREAMS = [
    Stream(kind, feed, symbol, spec)
    for kind, specs in (("trade", ("",)), ("bar", ("time:1s", "time:1m")))
    for feed in "ab" for symbol in "XY" for spec in specs
]  # fmt: skip


@given(FILTERS, FILTERS)
def test_filters_that_do_not_overlap_share_no_stream(one: StreamFilter, other: StreamFilter) -> None:
    shared = [stream for stream in STREAMS if one(stream) and other(stream)]
    assert one.overlaps(other) == other.overlaps(one)
    assert not shared or one.overlaps(other)


@given(FILTERS)
def test_filters_with_different_specs_do_not_overlap(one: StreamFilter) -> None:
    hourly = StreamFilter.of(("bar",), specs=["time:1h"])
    assert one.overlaps(hourly) == (not one.specs and (not one.kinds or "bar" in one.kinds))
