"""The queue of a stream: everything once and in order, whatever room there is and whatever reads come."""

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from notify.alerts import FEED, signal

from services.notify.notifications import Summary, encode_notification
from services.notify.receiver import Receiver
from services.notify.stream_queue import Alert, Fixed, StreamQueue
from tickbus.protocol.codec import encode
from tickbus.protocol.messages import SignalState
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reads import Cursor, Lost, Read
from tickbus.units import HOUR, SECOND, Duration

STREAM = Stream("signal", FEED, "A")
MS = 1_795_845_600_000
RECEIVER = Receiver(
    name="ops", url="http://h/", secrets=(b"k",), max_age=Duration(HOUR), retry_for=Duration(HOUR),
    timeout=Duration(SECOND), backoff=Duration(SECOND), backoff_max=Duration(SECOND), concurrency=1,
)  # fmt: skip


def entry(number: int, age_ms: int = 0) -> list[Any]:
    """Every third one is an indicator."""
    state = SignalState.INDICATOR if number % 3 == 0 else None
    return [b"%d-%d" % (MS - age_ms, number), [b"s", encode(signal(number, "A", state))]]


def read(numbers: range, lost: Lost | None = None, age_ms: int = 0) -> Read:
    return Read(STREAM, [entry(number, age_ms) for number in numbers], lost, Cursor(STREAM))


def take(queue: StreamQueue, one: Read, room: bool = True) -> bool:
    return queue.take(one, "era", MS, lambda: room)


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_each_alert_once_and_in_order_however_it_is_read(total: int, seed: int) -> None:
    """A reader that delivers chunks, also stale ones after a pause, and a worker that takes at any time."""
    chance = Random(seed)
    queue, position, sent = StreamQueue(STREAM, RECEIVER, "notify-ops"), 0, list[int]()
    stale: Read | None = None
    while position < total or queue.items or queue.paused:
        step = chance.randint(0, 2)
        if step and queue.items:
            head = queue.head(MS)
            assert isinstance(head, Alert)
            sent.append(head.id.seq)
            assert queue.done().seq >= head.id.seq
        elif queue.paused and not queue.items:
            queue.paused = False
            assert queue.accepted is not None
            position = queue.accepted.seq
            if stale is not None and not take(queue, stale):
                position = queue.accepted.seq
            stale = None
        elif position < total:
            end = chance.randint(position + 1, total)
            room = chance.randint(0, 5)
            chunk = read(range(position + 1, end + 1))
            assert queue.take(chunk, "era", MS, lambda room=room: len(queue.items) < room)  # type: ignore[misc]
            position = end
            if queue.paused and end < total:
                stale = read(range(end + 1, total + 1))
    assert sent == [number for number in range(1, total + 1) if number % 3]
    assert queue.bytes == 0
    assert queue.skipped["indicator"] == total // 3


def test_old_alerts_are_one_summary_also_those_that_aged_while_they_waited() -> None:
    queue = StreamQueue(STREAM, RECEIVER, "notify-ops")
    take(queue, read(range(1, 5), age_ms=2 * 3_600_000), room=False)
    take(queue, read(range(5, 9)))
    assert [type(item) for item in queue.items] == [Summary, Alert, Alert, Alert]
    summary = queue.head(MS + 3_600_001)
    assert isinstance(summary, Summary) and queue.is_open
    assert (summary.count, summary.first.seq, summary.last.seq) == (6, 1, 8)
    queue.fix(summary.notification("era", Duration(HOUR)))
    assert queue.done().seq == 8
    assert queue.bytes == 0


def test_restored_summary_speaks_for_its_entries_and_loss_beyond_it_is_counted() -> None:
    queue = StreamQueue(STREAM, RECEIVER, "notify-ops")
    take(queue, read(range(1, 6), age_ms=2 * 3_600_000))
    summary = queue.head(MS)
    assert isinstance(summary, Summary)
    state = encode_notification(summary.notification("era", Duration(HOUR)))

    same = StreamQueue(STREAM, RECEIVER, "notify-ops")
    same.restore(state)
    take(same, read(range(1, 9), age_ms=0))
    assert [item.id.seq for item in same.items if isinstance(item, Alert | Fixed)] == [5, 7, 8]

    trimmed = StreamQueue(STREAM, RECEIVER, "notify-ops")
    trimmed.restore(state)
    take(trimmed, read(range(8, 9), Lost(7, StreamId(0, 0), StreamId(MS, 8))))
    _, loss, alert = trimmed.items
    assert isinstance(loss, Fixed) and b'"count":2,' in loss.notification.body
    assert isinstance(alert, Alert) and alert.id.seq == 8


def test_unreadable_entry_is_kept_in_its_place() -> None:
    queue = StreamQueue(STREAM, RECEIVER, "notify-ops")
    bad = Read(STREAM, [entry(1), [b"%d-2" % MS, [b"z", b"\xc1"]], entry(4)], None, Cursor(STREAM))
    take(queue, bad)
    assert [type(item).__name__ for item in queue.items] == ["Alert", "Unreadable", "Alert"]


def test_second_read_in_a_row_that_does_not_follow_is_a_loss() -> None:
    queue = StreamQueue(STREAM, RECEIVER, "notify-ops")
    assert take(queue, read(range(1, 3)))
    assert not take(queue, read(range(6, 7)))
    assert take(queue, read(range(7, 9)))
    loss = queue.items[2]
    assert isinstance(loss, Fixed) and b'"count":4,' in loss.notification.body
    assert [item.id.seq for item in list(queue.items)[3:] if isinstance(item, Alert)] == [7, 8]
