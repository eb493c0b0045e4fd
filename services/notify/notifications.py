"""What is sent: one JSON object each, under a key that is the same whenever it is sent again. Pure."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tickbus.protocol.json_form import json_object
from tickbus.protocol.messages import Gap, GapKind, Signal, StreamKind
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reads import Lost
from tickbus.units import MILLISECOND, Duration, format_duration, format_time

_encode = msgspec.json.Encoder().encode
_MOST_NAMES = 32
"""Names that a summary counts one by one."""

ALERT, TRIMMED, SUMMARY = "alert", "trimmed", "summary"
KINDS = (ALERT, TRIMMED, SUMMARY)


class Notification(msgspec.Struct, array_like=True, frozen=True):
    """One request's worth. It is stored like this in the state of its stream: new fields only at the end."""

    kind: str
    """ALERT, TRIMMED or SUMMARY."""
    key: str
    """Unique over all streams, histories and buses: what a receiver recognises a repeat by."""
    id: str
    """The newest entry of the stream that it covers."""
    body: bytes

    @property
    def at(self) -> StreamId:
        return StreamId.parse(self.id)


def key_of(history: str, stream: Stream, id: StreamId, kind: str = ALERT) -> str:
    """Return `<history id>:<stream name>:<ID>`, for what is no entry with its kind behind."""
    key = f"{history}:{stream.name}:{id}"
    return key if kind == ALERT else f"{key}:{kind}"


def alert(history: str, stream: Stream, id: StreamId, signal: Signal) -> Notification:
    key = key_of(history, stream, id)
    return Notification(ALERT, key, str(id), _with_key(key, json_object(stream, str(id), signal)))


def trimmed(history: str, stream: Stream, source: str, lost: Lost, count: int | None) -> Notification:
    """Return what says that entries are missing, alerts perhaps among them.

    count: of entries; None after another history began, when nobody knows.
    """
    kind = GapKind.TRIMMED if count is not None else GapKind.RESET
    begin, end = sorted((lost.after.ms, lost.before.ms))
    gap = Gap(
        StreamKind.SIGNAL, source, kind, begin * MILLISECOND, end * MILLISECOND, count=count,
        symbol=stream.symbol,
    )  # fmt: skip
    # the last of those that are missing, by its counter
    id = StreamId(lost.before.ms, lost.before.seq - 1)
    key = key_of(history, stream, id, TRIMMED)
    what = (
        f"{count} entries were removed by retention before they were read"
        if count is not None
        else "Redis lost entries that had been read"
    )
    text = f"{stream.name}: {what}: alerts may be missing"
    body = _with_key(key, json_object(stream, str(id), gap), text)
    return Notification(TRIMMED, key, str(id), body)


@dataclass(slots=True)
class Summary:
    """Alerts that are too old to be sent one by one, as far as they are counted yet."""

    stream: Stream
    first: StreamId
    last: StreamId
    from_ts: int
    to_ts: int
    count: int = 0
    names: Counter[str] = field(default_factory=Counter)

    def add(self, id: StreamId, name: str, ts_event: int) -> None:
        self.count += 1
        self.last = id
        self.from_ts, self.to_ts = min(self.from_ts, ts_event), max(self.to_ts, ts_event)
        self.names[name if name in self.names or len(self.names) < _MOST_NAMES else "others"] += 1

    def merge(self, later: "Summary") -> None:
        self.count += later.count
        self.last = later.last
        self.from_ts, self.to_ts = min(self.from_ts, later.from_ts), max(self.to_ts, later.to_ts)
        self.names += later.names

    def notification(self, history: str, max_age: Duration) -> Notification:
        key = key_of(history, self.stream, self.last, SUMMARY)
        text = (
            f"{self.count} alerts of {self.stream.symbol} from {format_time(self.from_ts)} to "
            f"{format_time(self.to_ts)} are not sent one by one: older than {format_duration(max_age)}"
        )
        body = {
            "key": key,
            "type": SUMMARY,
            "stream": self.stream.name,
            "feed": self.stream.feed,
            "id": str(self.last),
            "symbol": self.stream.symbol,
            "count": self.count,
            "names": dict(self.names),
            "from_id": str(self.first),
            "to_id": str(self.last),
            "from_ts": self.from_ts,
            "to_ts": self.to_ts,
            "message": text,
        }
        return Notification(SUMMARY, key, str(self.last), _encode(body))


def for_people(notification: Notification) -> tuple[str, str]:
    """Return title and text, for receivers that take no JSON."""
    body: dict[str, Any] = msgspec.json.decode(notification.body)
    if notification.kind != ALERT:
        return f"tickbus: {notification.kind} {body['symbol']}", str(body["message"])
    quality = f" ({', '.join(body['quality'])})" if body["quality"] else ""
    numbers = f"{body['value']} {body['unit']}".strip() + f", threshold {body['threshold']}"
    lines = [body["message"], f"{numbers}{quality}", format_time(body["ts_event"]), notification.key]
    return f"{body['name']} {body['state']} {body['symbol']}", "\n".join(filter(None, lines))


def _with_key(key: str, element: bytes, message: str | None = None) -> bytes:
    end = b"}" if message is None else b',"message":%b}' % _encode(message)
    return b'{"key":%b,%b%b' % (_encode(key), element[1:-1], end)


encode_notification = msgspec.msgpack.Encoder().encode
decode_notification = msgspec.msgpack.Decoder(Notification).decode
