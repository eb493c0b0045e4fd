"""Heads and bells assembled from packed parts equal those encoded as a whole."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tickbus.protocol.codec import (
    Bell,
    Head,
    Hole,
    decode_head,
    encode,
    pack_bell,
    pack_bell_status,
    pack_epochs,
    pack_head,
    pack_holes,
    pack_origin,
)

COUNTS = st.integers(0, (1 << 63) - 1)


@given(
    st.from_regex(r"\d{1,13}-\d{1,19}", fullmatch=True), st.none() | COUNTS, COUNTS,
    st.binary(max_size=300), COUNTS, st.lists(st.builds(Hole, COUNTS, COUNTS), max_size=64),
    st.dictionaries(st.sampled_from(["sequence", "disconnect", "overflow"]), COUNTS), COUNTS,
    st.integers(-(1 << 40), 1 << 40), st.lists(st.tuples(COUNTS, COUNTS), max_size=16),
    st.tuples(COUNTS, COUNTS, COUNTS),
)  # fmt: skip
def test_head_of_packed_parts(
    id: str, vendor_id: int | None, recv: int, text: bytes, event: int, holes: list[Hole],
    gaps: dict[str, int], repaired: int, missing: int, epochs: list[tuple[int, int]],
    origin: tuple[int, int, int],
) -> None:  # fmt: skip
    tick = encode(text)
    packed = pack_head(
        id,
        vendor_id,
        recv,
        tick,
        event,
        pack_holes(holes, gaps, repaired, missing),
        pack_epochs(epochs),
        pack_origin(*origin),
    )
    head = Head(
        id, vendor_id, recv, msgspec.Raw(tick), event, holes, gaps, repaired, missing, epochs, *origin
    )
    assert packed == encode(head)
    assert encode(decode_head(packed)) == packed


@given(
    st.text(max_size=60),
    COUNTS,
    COUNTS,
    st.none() | st.booleans(),
    st.lists(st.text(max_size=40), max_size=40),
)
def test_bell_of_packed_parts(
    writer: str, counter: int, bus_ms: int, feed_up: bool | None, streams: list[str]
) -> None:
    packed = pack_bell(encode(writer), counter, pack_bell_status(bus_ms, feed_up), streams)
    assert packed == encode(Bell(writer, counter, bus_ms, feed_up, streams))
