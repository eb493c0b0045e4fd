"""What is to be sent of one stream, in order, and how far that is done. Pure.

Alerts wait here as far as there is room. Beyond that the stream is paused: the others wait on the bus.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from services.notify.notifications import (
    Notification,
    Summary,
    alert,
    decode_notification,
    trimmed,
)
from services.notify.receiver import Receiver
from tickbus.errors import WireError
from tickbus.protocol.codec import MALFORMED, decode_entry
from tickbus.protocol.messages import Signal, SignalState
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reads import Lost, Read

OVERHEAD = 400
"""Memory of a waiting alert beside its body, bytes."""


@dataclass(slots=True)
class Alert:
    """One entry that waits."""

    id: StreamId
    name: str
    ts_event: int
    notification: Notification


@dataclass(slots=True)
class Fixed:
    """What is no entry and must be the same when it is sent again: it is stored before it is sent."""

    id: StreamId
    notification: Notification
    stored: bool


@dataclass(slots=True)
class Unreadable:
    """An entry that this version cannot read: it may be an alert."""

    id: StreamId
    why: str
    fields: bytes


Item = Alert | Fixed | Summary | Unreadable


class StreamQueue:
    def __init__(self, stream: Stream, receiver: Receiver, source: str) -> None:
        """`source`: the name of the service."""
        self.stream = stream
        self._receiver = receiver
        self._source = source
        self._is_followed = receiver.follows(stream)
        self.items: deque[Item] = deque()
        self.accepted: StreamId | None = None
        """The last entry that was taken; None before the first."""
        self.paused = False
        """Whether what follows `accepted` waits on the bus."""
        self.bytes = 0
        self.skipped: Counter[str] = Counter()
        self._covered = 0
        """The counter up to which a restored notification speaks for the entries."""
        self._astray: StreamId | None = None
        """`accepted` when the last read did not follow it."""

    def restore(self, state: bytes) -> None:
        """Continue with what a former owner had stored and not delivered. WireError if it is unreadable."""
        try:
            notification = decode_notification(state)
            at = notification.at
        except MALFORMED as error:
            raise WireError(f"invalid state: {error}") from None
        self.items.append(Fixed(at, notification, stored=True))
        self._covered = at.seq

    def take(self, read: Read, history: str, now_ms: int, has_room: Callable[[], bool]) -> bool:
        """Take the entries of a read. Return False if it does not continue where this queue is.

        It stops, and is paused, at an alert that finds no room.
        """
        if self.paused:
            return True
        lost, at, first = read.lost, self.accepted, StreamId.parse(read.entries[0][0])
        if at is not None and not (lost is not None and lost.reset) and first.seq > at.seq + 1:
            # a poll that was on its way while the stream was paused; but not twice in a row
            if self._astray != at and (lost is None or lost.after != at):
                self._astray = at
                return False
            lost = Lost(first.seq - 1 - at.seq, at, first)
        self._astray = None
        if lost is not None:
            self._note_loss(lost, history)
        for raw, fields in read.entries:
            id = StreamId.parse(raw)
            if self.accepted is not None and id.seq <= self.accepted.seq:
                continue
            if id.seq > self._covered:
                item = self._item(id, fields, history)
                if isinstance(item, Alert) and self._is_old(item, now_ms):
                    self._fold(item)
                elif item is not None:
                    if self.items and not has_room():
                        self.paused = True
                        return True
                    self._append(item)
            self.accepted = id
        return True

    def _note_loss(self, lost: Lost, history: str) -> None:
        count: int | None = None
        if lost.reset:
            self._covered = 0
            self.accepted = None
        else:
            known = self.accepted.seq if self.accepted is not None else 0
            count = lost.before.seq - 1 - max(lost.after.seq, self._covered, known)
            if count <= 0:
                return
        if not self._is_followed:
            return
        notification = trimmed(history, self.stream, self._source, lost, count)
        self._append(Fixed(notification.at, notification, stored=False))

    def _item(self, id: StreamId, fields: list[bytes], history: str) -> Item | None:
        if not self._is_followed:
            self.skipped["filter"] += 1
            return None
        try:
            message = decode_entry(fields)
        except WireError as error:
            return Unreadable(id, str(error), b" ".join(fields)[:65_536])
        if not isinstance(message, Signal):
            self.skipped["gap"] += 1
        elif self._receiver.wants(message):
            body = alert(history, self.stream, id, message)
            return Alert(id, message.name, message.ts_event, body)
        else:
            is_indicator = message.state is SignalState.INDICATOR
            self.skipped["indicator" if is_indicator else "filter"] += 1
        return None

    def _append(self, item: Item) -> None:
        self.items.append(item)
        self.bytes += _size(item)

    def _is_old(self, item: Alert, now_ms: int) -> bool:
        return now_ms - item.id.ms > self._receiver.max_age_ms

    def _fold(self, item: Alert) -> None:
        last = self.items[-1] if self.items else None
        if not isinstance(last, Summary):
            last = Summary(self.stream, item.id, item.id, item.ts_event, item.ts_event)
            self._append(last)
        last.add(item.id, item.name, item.ts_event)

    def head(self, now_ms: int) -> Item:
        """Return what is next. Alerts that became too old while they waited are one summary."""
        first = self.items[0]
        if isinstance(first, Alert) and self._is_old(first, now_ms):
            self._drop()
            summary = Summary(self.stream, first.id, first.id, first.ts_event, first.ts_event)
            summary.add(first.id, first.name, first.ts_event)
            self.items.appendleft(first := summary)
            self.bytes += _size(summary)
        if isinstance(first, Summary):
            while len(self.items) > 1:
                following = self.items[1]
                if isinstance(following, Alert) and self._is_old(following, now_ms):
                    first.add(following.id, following.name, following.ts_event)
                elif isinstance(following, Summary):
                    first.merge(following)
                else:
                    break
                del self.items[1]
                self.bytes -= _size(following)
        return first

    @property
    def is_open(self) -> bool:
        """Whether what is next is a summary to which further entries may still belong."""
        return len(self.items) == 1 and isinstance(self.items[0], Summary)

    def fix(self, notification: Notification) -> Fixed:
        """Replace the summary that is next by what is sent of it."""
        self._drop()
        fixed = Fixed(notification.at, notification, stored=False)
        self.items.appendleft(fixed)
        self.bytes += _size(fixed)
        return fixed

    def done(self) -> StreamId:
        """What is next is delivered, or a dead letter. Return the position of the stream after it."""
        id = _id(self.items[0])
        self._drop()
        return id if self.items or self.accepted is None else max(id, self.accepted)

    def _drop(self) -> None:
        self.bytes -= _size(self.items.popleft())

    @property
    def oldest_ms(self) -> int | None:
        """Bus time of the oldest entry that waits; None if none does."""
        try:
            first = self.items[0]
        except IndexError:
            return None
        return first.first.ms if isinstance(first, Summary) else _id(first).ms


def _id(item: Item) -> StreamId:
    return item.last if isinstance(item, Summary) else item.id


def _size(item: Item) -> int:
    if isinstance(item, Alert | Fixed):
        return OVERHEAD + len(item.notification.body)
    return OVERHEAD + (len(item.fields) if isinstance(item, Unreadable) else 0)
