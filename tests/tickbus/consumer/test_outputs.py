"""What a service may write to the bus: nothing that a reader could not read."""

import pytest
from msgspec.structs import replace

from tickbus.consumer.outputs import Output, OutputStreams
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap, GapKind, Message, Side, Signal, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.writer.entry import StreamWriter
from tickbus.writer.heads import HeadBuilder

NOON = 1_700_000_000_000
SIGNAL = Signal("sum", "1", "0", "", "", "A")
GAP = Gap(StreamKind.BAR, "app", GapKind.TRIMMED, 1, 2, symbol="A")
OWN = Stream("signal", "app", "A")


@pytest.mark.parametrize(
    ("stream", "message"), [(OWN, SIGNAL), (OWN, GAP), (Stream("bar", "app", "A", "time:1m"), GAP)]
)
def test_output_accepts_what_belongs_to_its_stream(stream: Stream, message: Message) -> None:
    assert Output(stream, NOON, message).message == message


@pytest.mark.parametrize(
    ("stream", "message", "error"),
    [
        (Stream("signal", "my:app", "A"), SIGNAL, "its feed is 'my:app'"),
        (Stream("signal", "App One", "A"), SIGNAL, "its feed is 'App One'"),
        (Stream("signal", "app", "a"), SIGNAL, "its symbol is 'a'"),
        (Stream("signal", "app", "A", "time:1m"), SIGNAL, "invalid stream name"),
        (Stream("bar", "app", "A"), GAP, "its spec is ''"),
        (Stream("foo", "app", "A"), SIGNAL, "invalid stream name"),
        (
            Stream("trade", "app", "A"),
            Trade("A", "1", "1", Side.BUY, None, 1, 1),
            "expected a bar or signal",
        ),
        (OWN, Trade("A", "1", "1", Side.BUY, None, 1, 1), "invalid output, a Trade of 'A': expected"),
        (OWN, Signal("sum", "1", "0", "", "", "B"), "invalid output, a Signal of 'B': expected"),
        (OWN, Signal("sum", 1.5, "0", "", "", "A"), "invalid Signal"),  # type: ignore[arg-type]
        (Stream("bar", "app", "A", "time:1m"), SIGNAL, "invalid output, a Signal of 'A': expected"),
    ],
)
def test_output_refuses_what_no_reader_could_read(stream: Stream, message: Message, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Output(stream, NOON, message)


def test_head_counts_gaps_repairs_and_missing_entries() -> None:
    keys, stream = Keys(), Stream("bar", "app", "A", "time:1m")
    streams = OutputStreams(keys)
    draft: dict[StreamWriter, HeadBuilder] = {}
    for index, gap in enumerate([GAP, replace(GAP, count=3), replace(GAP, count=2, repaired=True)]):
        draft = {}
        entry = streams.entry(Output(stream, NOON + index, gap), 7, draft)
        assert (entry.id, decode(entry.field, entry.payload)) == (StreamId(NOON + index, index + 1), gap)
        streams.stored(draft)
    (builder,) = draft.values()
    head = builder.build()
    assert (head.gaps, head.repaired, head.missing, head.epochs) == ({"trimmed": 2}, 1, 1, [(7, 1)])
