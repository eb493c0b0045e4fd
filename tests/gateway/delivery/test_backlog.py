"""The queue in front of Redis: order, and bytes that always add up."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.delivery.backlog import Backlog
from tickbus.protocol.names import Keys, Stream
from tickbus.writer.entry import Entry, StreamWriter

WRITER = StreamWriter(Keys(), Stream("trade", "json", "A"))


def entry(seq: int, size: int = 10) -> Entry:
    return Entry(WRITER, 1_800_000_000_000 + seq, seq, b"t", b"x" * size)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 500)), st.tuples(st.just("take"), st.integers(1, 6))
        ),
        max_size=60,
    )
)
def test_entries_come_out_in_order_and_bytes_return_to_zero(steps: list[tuple[str, int]]) -> None:
    backlog, put, taken = Backlog(1 << 30), 0, []
    for step, number in steps:
        if step == "put":
            put += 1
            backlog.put(entry(put, number))
            backlog.settle()
            assert backlog.bytes > number
        else:
            buffered = backlog.bytes
            batch = backlog.take(number)
            taken += [one.seq for one in batch]
            assert len(batch) <= number and backlog.bytes == buffered  # until it is acknowledged
            assert backlog.oldest_waiting_ms == (
                1_800_000_000_000 + len(taken) + 1 if len(taken) < put else None
            )
            backlog.release()
        assert len(backlog) == put - len(taken)
        assert (backlog.bytes == 0) == (len(backlog) == 0)
    assert taken == list(range(1, len(taken) + 1))


def test_wakeup_is_set_until_everything_is_taken() -> None:
    backlog = Backlog(1 << 20)
    for seq in (1, 2, 3):
        backlog.put(entry(seq))
    backlog.settle()
    for waiting in (True, False):
        assert backlog.wakeup.is_set()
        backlog.take(2)
        backlog.release()
        assert backlog.wakeup.is_set() is waiting


def test_backlog_is_full_until_release() -> None:
    backlog = Backlog(1000)
    for seq in range(1, 10):
        backlog.put(entry(seq))
        backlog.settle()
    assert backlog.full
    backlog.take(1 << 30)
    assert backlog.full
    backlog.release()
    assert not backlog.full


def test_late_tick_and_its_gap_are_never_separated() -> None:
    keys, backlog = Keys(), Backlog(1 << 20)
    one, other = (StreamWriter(keys, Stream("trade", "x", symbol)) for symbol in ("A", "B"))
    for seq, (stream, field) in enumerate(
        [(one, b"t"), (one, b"g"), (one, b"t"), (other, b"g"), (one, b"g"), (one, b"g")], 1
    ):
        backlog.put(Entry(stream, 1, seq, field, b""))
    taken = []
    for limit in (1, 1, 1, 1, 1):
        seen = backlog.oldest(limit)
        batch = backlog.take(limit)
        assert batch == seen
        taken.append([entry.seq for entry in batch])
        backlog.release()
    assert taken == [[1, 2], [3], [4], [5], [6]]
