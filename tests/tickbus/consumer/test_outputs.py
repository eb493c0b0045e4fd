"""What a service may put onto the bus: nothing that a reader could not read."""

import pytest
from msgspec.structs import replace

from tickbus.consumer.outputs import Output, OutputStreams
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Bar, Gap, GapKind, Message, Side, Signal, StreamKind, Trade
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
def test_outputs(stream: Stream, message: Message) -> None:
    assert Output(stream, NOON, message).message == message


@pytest.mark.parametrize(
    ("stream", "message", "told"),
    [
        (Stream("signal", "my:app", "A"), SIGNAL, "its feed is 'my:app'"),
        (Stream("signal", "App One", "A"), SIGNAL, "its feed is 'App One'"),
        (Stream("signal", "app", "a"), SIGNAL, "its symbol is 'a'"),
        (Stream("signal", "app", "A", "time:1m"), SIGNAL, "is no stream name"),
        (Stream("bar", "app", "A"), GAP, "its spec is ''"),
        (Stream("foo", "app", "A"), SIGNAL, "is no stream name"),
        (
            Stream("trade", "app", "A"),
            Trade("A", "1", "1", Side.BUY, None, 1, 1),
            "outputs are bars and signals",
        ),
        (OWN, Trade("A", "1", "1", Side.BUY, None, 1, 1), "a Trade of 'A' does not belong there"),
        (OWN, Signal("sum", "1", "0", "", "", "B"), "a Signal of 'B' does not belong there"),
        (OWN, Signal("sum", 1.5, "0", "", "", "A"), "is no Signal"),  # type: ignore[arg-type]
        (Stream("bar", "app", "A", "time:1m"), SIGNAL, "a Signal of 'A' does not belong there"),
    ],
)
def test_what_no_reader_could_read(stream: Stream, message: "Message | Bar", told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Output(stream, NOON, message)


def test_the_head_counts_its_gaps_and_what_became_of_them() -> None:
    keys, stream = Keys(), Stream("bar", "app", "A", "time:1m")
    streams = OutputStreams(keys)
    for at, gap in enumerate([GAP, replace(GAP, count=3), replace(GAP, count=2, repaired=True)]):
        draft: dict[StreamWriter, HeadBuilder] = {}
        entry = streams.entry(Output(stream, NOON + at, gap), 7, draft)
        assert (entry.id, decode(entry.field, entry.payload)) == (StreamId(NOON + at, at + 1), gap)
        streams.stored(draft)
    (builder,) = draft.values()
    head = builder.build()
    assert (head.gaps, head.repaired, head.missing, head.epochs) == ({"trimmed": 2}, 1, 1, [(7, 1)])
