"""Messages to columns and back: exact, or rejected."""

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recorder.recorded import plain_rows

from services.archive.schema import (
    BAR,
    DECIMAL,
    GAP,
    KINDS,
    QUOTE,
    SIGNAL,
    TRADE,
    Kind,
    Unrepresentable,
    decimal_array,
    decimal_texts,
    parse_decimal,
    representation_error,
    to_messages,
)
from services.recorder.parquet_writer import ParquetBuilder
from services.recorder.row_ids import RowIds
from tickbus.protocol.messages import (
    Bar,
    Gap,
    GapKind,
    Message,
    Quote,
    Side,
    Signal,
    SignalState,
    StreamKind,
    Trade,
)
from tickbus.protocol.names import Stream, StreamId

FITTING = st.builds(
    lambda sign, whole, places: f"{sign}{whole}.{places}" if places else f"{sign}{whole}",
    st.sampled_from(["", "", "", "-"]),
    st.integers(0, 10**20 - 1),
    st.text("0123456789", max_size=18),
)
ANY_NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,44})(\.[0-9]{1,44})?", fullmatch=True)


def fits(text: str) -> bool:
    """Computed without the code under test: whole multiples of 10^-18 below 10^20."""
    whole, _, places = text.lstrip("-").partition(".")
    units = int(whole + places.ljust(60, "0"))
    step: int = 10 ** (60 - 18)
    limit: int = 10 ** (20 + 60)
    return units % step == 0 and units < limit


@settings(deadline=None)  # pyarrow loads half of itself on the first value
@given(st.lists(st.one_of(st.none(), FITTING), max_size=20))
def test_fitting_decimals_round_trip(texts: list[str | None]) -> None:
    column = decimal_array(texts)
    assert column.type == DECIMAL
    assert column.to_pylist() == [None if text is None else Decimal(text) for text in texts]


@settings(deadline=None)
@given(ANY_NUMBER)
@example("340282366920938463463374607431768211456")
@example("31191993190391099099039013.003339")
@example("1" * 21)
@example("9" * 20 + "." + "9" * 18)
@example("0." + "0" * 18 + "1")
@example("1." + "5" * 18 + "000000000000000000000000000")
def test_number_is_exact_or_rejected(text: str) -> None:
    """Arrow's own cast silently turns the first two examples into other numbers."""
    if fits(text):
        assert decimal_array([text, None]).to_pylist() == [Decimal(text), None]
        assert parse_decimal(text) == Decimal(text)
    else:
        with pytest.raises((Unrepresentable, pa.ArrowInvalid)):
            decimal_array([text, None])
        with pytest.raises(Unrepresentable):
            parse_decimal(text)


@pytest.mark.parametrize(
    "text", ["", "abc", "1e5", "1e25", "NaN", "inf", "+1", "1_0", " 1", "1.", ".5", "--1", "٣"]
)
def test_non_plain_number_is_rejected(text: str) -> None:
    with pytest.raises(Unrepresentable):
        parse_decimal(text)
    if text not in ("1.", ".5"):  # Arrow accepts these two, and rightly: they are what they look like
        with pytest.raises((Unrepresentable, pa.ArrowInvalid)):
            decimal_array([text, "1"])


@given(FITTING)
def test_decimal_text_has_no_padding(text: str) -> None:
    back, none = decimal_texts(decimal_array([text, None]))
    assert back is not None and none is None
    assert Decimal(back) == Decimal(text)
    assert back == "0" or "." not in back or back[-1] not in "0."


def test_small_decimals_have_no_exponent() -> None:
    texts = ["0.000000000000000001", "0", "0.0000001", "100", "-0.00000012", "0.000001"]
    assert decimal_texts(decimal_array(texts)) == texts


NS = st.integers(-(1 << 63), (1 << 63) - 1)
WORDS = st.text(max_size=8)
TEXT = st.none() | WORDS
PRICE = FITTING.map(lambda text: str(decimal_texts(decimal_array([text]))[0]))
MAYBE = st.none() | PRICE
MESSAGES: dict[str, st.SearchStrategy[Any]] = {
    "trade": st.builds(
        Trade, st.just("A"), PRICE, PRICE, st.sampled_from(Side), TEXT, NS, NS, MAYBE, MAYBE,
        st.integers(0, 127),
    ),
    "quote": st.builds(Quote, st.just("A"), MAYBE, MAYBE, MAYBE, MAYBE, NS, NS, st.integers(0, 127)),
    "gap": st.builds(
        Gap, st.just(StreamKind.BAR), st.sampled_from(["gateway", "bars"]), st.sampled_from(GapKind),
        NS, NS, TEXT, TEXT, st.none() | NS, st.booleans(), st.booleans(), st.just("A"),
    ),
    "bar": st.builds(
        Bar, st.just("time:1m"), NS, NS, PRICE, PRICE, PRICE, PRICE, PRICE, PRICE, MAYBE,
        st.integers(0, 1 << 40), PRICE, PRICE, st.integers(0, 1 << 20),
        st.lists(st.sampled_from(["partial", "has_gap", "repaired"]), max_size=3).map(tuple), st.just("A"),
    ),
    "signal": st.builds(
        Signal, WORDS, PRICE, PRICE, WORDS, WORDS, st.just("A"), NS, st.sampled_from(SignalState),
        st.integers(-1, 1), WORDS, st.lists(st.sampled_from(["partial", "has_gap"]), max_size=3).map(tuple),
        NS, WORDS, NS, st.lists(st.tuples(WORDS, PRICE), max_size=4).map(tuple),
    ),
}  # fmt: skip


def through_file(kind: Kind, sent: list[Message]) -> pa.RecordBatch:
    builder = ParquetBuilder(kind, {})
    ids = range(1, len(sent) + 1)
    builder.add(
        Stream("bar" if kind.spec else kind.name, "f", "A", "time:1m" if kind.spec else ""),
        RowIds(ids, ids, ids),
        sent,
    )
    return pq.ParquetFile(pa.BufferReader(builder.finish())).read().to_batches()[0]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_messages_round_trip_through_file(kind: Kind, data: st.DataObject) -> None:
    sent = data.draw(st.lists(MESSAGES[kind.name], min_size=1, max_size=5))
    rows = through_file(kind, sent)
    assert to_messages(kind, rows) == sent
    assert rows.column("seq").to_pylist() == list(range(1, len(sent) + 1))
    assert all(representation_error(kind, message) is None for message in sent)


def test_what_a_signal_leaves_out_is_null() -> None:
    sent: list[Message] = [Signal("app", "1", "0", "", "", "A"), Signal("app", "1", "0", "", "", "A", 7)]
    rows = through_file(SIGNAL, sent)
    assert [(row["ts_event"], row["episode"]) for row in plain_rows(pa.Table.from_batches([rows]))] == [
        (None, None), (7, None),
    ]  # fmt: skip
    assert to_messages(SIGNAL, rows.slice(1)) == sent[1:]


GOOD = Trade("A", "1", "2", Side.BUY, None, 5, 6)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Trade("A", "0.0000000000000000001", "2", Side.BUY, None, 5, 6), "decimal"),
        (Trade("A", "1", "123456789012345678901", Side.BUY, None, 5, 6), "decimal"),
        (Trade("A", "1", "2", Side.BUY, None, 5, 6, bid_text="1e5"), "decimal"),
        (Trade("A", "1", "2", Side.BUY, None, 1 << 63, 6), "integer"),
        (Trade("A", "1", "2", Side.BUY, None, 5, 6, flags=1 << 31), "integer"),
    ],
)
def test_unrepresentable_message_does_not_affect_others(bad: Trade, reason: str) -> None:
    builder = ParquetBuilder(TRADE, {})
    builder.add(Stream("trade", "f", "A"), RowIds([1, 2, 3], [1, 2, 3], [9, 9, 9]), [GOOD, bad, GOOD])
    rows = plain_rows(pq.ParquetFile(pa.BufferReader(builder.finish())).read())
    assert [row["seq"] for row in rows] == [1, 3]
    assert [(entry.id, entry.epoch, entry.message, entry.error.reason) for entry in builder.quarantined] == [
        (StreamId(2, 2), 9, bad, reason)
    ]


def test_columns_match_contract() -> None:
    common = ["feed", "symbol", "id_ms", "seq", "epoch", "flags"]
    times = ["ts_event", "ts_recv"]
    assert TRADE.schema.names == [*common, "price", "size", "bid", "ask", "side", "trade_id", *times]
    assert QUOTE.schema.names == [*common, "bid", "bid_size", "ask", "ask_size", *times]
    # the fields of the messages; symbol is one of the common columns
    assert set(BAR.schema.names) == {*common, *(name.removesuffix("_text") for name in Bar.__struct_fields__)}
    assert SIGNAL.schema.names == [
        *common, "name", "value", "threshold", "window", "message", "ts_event", "state", "direction", "unit",
        "quality", "episode", "cause", "params", "details",
    ]  # fmt: skip
    assert {"symbol", *SIGNAL.schema.names[6:]} == {
        name.removesuffix("_text") for name in Signal.__struct_fields__
    }
    assert set(GAP.schema.names) == {*common, "spec", *Gap.__struct_fields__}
    for kind in KINDS.values():
        types = {
            str(kind.schema.field(name).type)
            for name in kind.schema.names
            if name.startswith("ts_") or name.endswith("_ts")
        }
        assert types <= {"timestamp[ns, tz=UTC]"}
        assert str(kind.schema.field("symbol").type).startswith("dictionary<values=string")
    assert {str(TRADE.schema.field(name).type) for name in ("price", "size", "bid", "ask")} == {
        "decimal128(38, 18)"
    }
