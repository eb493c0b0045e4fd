"""Recorded messages become entries of a replayed feed."""

from hypothesis import given
from hypothesis import strategies as st

from services.tools.rewriting import Rewriter, steps
from tickbus.protocol.codec import Head, decode, decode_head
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, Quote, Side, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream, StreamId
from tickbus.writer.entry import Entry

KEYS = Keys()


def recorded_message(
    kind: str, symbol: str, gap: bool, repaired: bool, number: int
) -> tuple[Stream, StreamId, Message]:
    stream = Stream(kind, "binance", symbol)
    message: Message
    if gap:
        of = StreamKind.TRADE if kind == "trade" else StreamKind.QUOTE
        message = Gap(
            of, "gateway", GapKind.SEQUENCE, number, number, count=2, repaired=repaired, symbol=symbol
        )
    elif kind == "trade":
        message = Trade(
            symbol, "1.5", "2", Side.BUY, str(number), number, number + 5, flags=Flag.LATE if repaired else 0
        )
    else:
        message = Quote(symbol, "1", "2", None, None, number, number + 5)
    return stream, StreamId(number, number), message


RECORDED = st.lists(
    st.tuples(st.sampled_from(["trade", "quote"]), st.sampled_from(["A", "B"]), st.booleans(), st.booleans()),
    max_size=40,
).map(lambda rows: [recorded_message(*row, number) for number, row in enumerate(rows, 1)])


@given(RECORDED)
def test_steps_have_every_message_once_in_order_and_gaps_with_the_next_tick(
    recorded: list[tuple[Stream, StreamId, Message]],
) -> None:
    found = list(steps(recorded, ("trade", "quote")))
    assert [pair for _, step in found for pair in step] == [
        (stream, message) for stream, _, message in recorded
    ]
    for due, step in found[:-1]:
        *gaps, (_, tick) = step
        assert all(isinstance(gap, Gap) for _, gap in gaps)
        assert isinstance(tick, Trade | Quote)
        assert due == tick.ts_recv


@given(RECORDED, st.integers(1, 40))
def test_any_batching_gives_dense_counters_and_correct_heads(
    recorded: list[tuple[Stream, StreamId, Message]], size: int
) -> None:
    rewriter = Rewriter(KEYS, "replay-x", {}, 3)
    messages = [(stream, message) for stream, _, message in recorded]
    entries: list[Entry] = []
    heads: dict[str, Head] = {}
    for at in range(0, len(messages), size):
        batch, newest = rewriter.entries(messages[at : at + size], 1000 + at)
        entries += batch
        heads |= {stream.name: decode_head(head) for stream, head in newest.items()}
    by_stream: dict[str, list[tuple[int, int, Message]]] = {}
    for entry in entries:
        by_stream.setdefault(entry.stream.name, []).append(
            (entry.ms, entry.seq, decode(entry.field, entry.payload))
        )
    for name, found in by_stream.items():
        kind, feed, symbol = name.split(":")
        assert feed == "replay-x"
        originals = [
            message for stream, message in messages if (stream.kind, stream.symbol) == (kind, symbol)
        ]
        assert [seq for _, seq, _ in found] == list(range(1, len(originals) + 1))
        for (_, _, replayed), original in zip(found, originals, strict=True):
            if isinstance(original, Gap):
                assert replayed == original
            else:
                assert isinstance(original, Trade | Quote)
                assert isinstance(replayed, Trade | Quote)
                assert replayed.flags == original.flags | Flag.REPLAYED
                assert (replayed.ts_event, replayed.ts_recv) == (original.ts_event, original.ts_recv)
        head = heads[name]
        gaps = [message for message in originals if isinstance(message, Gap)]
        assert head.id == f"{found[-1][0]}-{found[-1][1]}"
        assert sum(head.gaps.values()) == sum(not gap.repaired for gap in gaps)
        assert head.repaired == sum(gap.repaired for gap in gaps)
        assert head.missing == sum(-2 if gap.repaired else 2 for gap in gaps)
        assert head.epochs == [(3, 1)]


def test_rewriter_continues_from_existing_heads() -> None:
    first = Rewriter(KEYS, "replay-x", {}, 1)
    stream, _, trade = recorded_message("trade", "A", False, False, 1)
    _, heads = first.entries([(stream, trade)], 500)
    second = Rewriter(KEYS, "replay-x", {stream.name: decode_head(head) for stream, head in heads.items()}, 2)
    assert second.newest_ms == 500
    (entry,), after = second.entries([(stream, trade)], 600)
    assert (entry.stream.name, entry.ms, entry.seq) == ("trade:replay-x:A", 600, 2)
    assert [decode_head(head).epochs for head in after.values()] == [[(1, 1), (2, 2)]]
