"""Recorded messages become entries of a replayed feed."""

from hypothesis import given
from hypothesis import strategies as st

from services.tools.rewriting import Rewriter, steps
from tickbus.protocol.codec import decode, decode_head
from tickbus.protocol.messages import Flag, Gap, GapKind, Message, Quote, Side, StreamKind, Trade
from tickbus.protocol.names import Keys, Stream, StreamId

KEYS = Keys()


def message(
    kind: str, symbol: str, told: bool, repaired: bool, number: int
) -> tuple[Stream, StreamId, Message]:
    stream = Stream(kind, "binance", symbol)
    made: Message
    if told:
        of = StreamKind.TRADE if kind == "trade" else StreamKind.QUOTE
        made = Gap(of, "gateway", GapKind.SEQUENCE, number, number, count=2, repaired=repaired, symbol=symbol)
    elif kind == "trade":
        made = Trade(
            symbol, "1.5", "2", Side.BUY, str(number), number, number + 5, flags=Flag.LATE if repaired else 0
        )
    else:
        made = Quote(symbol, "1", "2", None, None, number, number + 5)
    return stream, StreamId(number, number), made


RECORDED = st.lists(
    st.tuples(st.sampled_from(["trade", "quote"]), st.sampled_from(["A", "B"]), st.booleans(), st.booleans()),
    max_size=40,
).map(lambda rows: [message(*row, number) for number, row in enumerate(rows, 1)])


@given(RECORDED)
def test_steps_hold_everything_once_in_order_and_gaps_with_the_tick_after(
    recorded: list[tuple[Stream, StreamId, Message]],
) -> None:
    found = list(steps(recorded, ("trade", "quote")))
    assert [pair for _, of_step in found for pair in of_step] == [
        (stream, message) for stream, _, message in recorded
    ]
    for due, of_step in found[:-1]:
        *told, (_, tick) = of_step
        assert all(isinstance(gap, Gap) for _, gap in told)
        assert isinstance(tick, Trade | Quote)
        assert due == tick.ts_recv


@given(RECORDED, st.integers(1, 40))
def test_any_batching_gives_dense_counters_and_heads_that_agree_with_a_checker(
    recorded: list[tuple[Stream, StreamId, Message]], size: int
) -> None:
    rewriter = Rewriter(KEYS, "replay-x", {}, 3)
    messages = [(stream, message) for stream, _, message in recorded]
    entries, heads = [], {}
    for at in range(0, len(messages), size):
        more, newest = rewriter.entries(messages[at : at + size], 1000 + at)
        entries += more
        heads |= {stream.name: decode_head(head) for stream, head in newest.items()}
    of_stream: dict[str, list[tuple[int, int, Message]]] = {}
    for entry in entries:
        of_stream.setdefault(entry.stream.name, []).append(
            (entry.ms, entry.seq, decode(entry.field, entry.payload))
        )
    for name, found in of_stream.items():
        kind, feed, symbol = name.split(":")
        assert feed == "replay-x"
        given_ = [made for stream, made in messages if (stream.kind, stream.symbol) == (kind, symbol)]
        assert [seq for _, seq, _ in found] == list(range(1, len(given_) + 1))
        for (_, _, now), was in zip(found, given_, strict=True):
            if isinstance(was, Gap):
                assert now == was
            else:
                assert isinstance(now, Trade | Quote)
                assert now.flags == was.flags | Flag.REPLAYED
                assert (now.ts_event, now.ts_recv) == (was.ts_event, was.ts_recv)
        head = heads[name]
        gaps = [made for made in given_ if isinstance(made, Gap)]
        assert head.id == f"{found[-1][0]}-{found[-1][1]}"
        assert sum(head.gaps.values()) == sum(not gap.repaired for gap in gaps)
        assert head.repaired == sum(gap.repaired for gap in gaps)
        assert head.missing == sum(-2 if gap.repaired else 2 for gap in gaps)
        assert head.epochs == [(3, 1)]


def test_it_goes_on_from_the_heads_it_finds() -> None:
    first = Rewriter(KEYS, "replay-x", {}, 1)
    one = message("trade", "A", False, False, 1)
    _, heads = first.entries([(one[0], one[2])], 500)
    second = Rewriter(KEYS, "replay-x", {stream.name: decode_head(head) for stream, head in heads.items()}, 2)
    assert second.newest_ms == 500
    (entry,), after = second.entries([(one[0], one[2])], 600)
    assert (entry.stream.name, entry.ms, entry.seq) == ("trade:replay-x:A", 600, 2)
    assert [decode_head(head).epochs for head in after.values()] == [[(1, 1), (2, 2)]]
