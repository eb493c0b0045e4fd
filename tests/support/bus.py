"""Subscription streams straight from Redis, for checks."""

from typing import TYPE_CHECKING

from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Gap, Message
from tickbus.protocol.names import Keys, Stream

if TYPE_CHECKING:
    from support.market import Server


def entries_in(
    redis: "Server", kind: str, feed: str, symbol: str, spec: str = ""
) -> list[tuple[str, Message]]:
    """(ID, message) of every entry of a stream, in order."""
    key = Keys().stream(Stream(kind, feed, symbol, spec))
    return [
        (id.decode(), decode(field, payload))
        for id, fields in redis.client.xrange(key)
        for field, payload in fields.items()
    ]


def messages_in(redis: "Server", kind: str, feed: str, symbol: str, spec: str = "") -> list[Message]:
    """All but the Gaps. On the way it is checked that the IDs are as promised."""
    entries = entries_in(redis, kind, feed, symbol, spec)
    parsed = [tuple(map(int, id.split("-"))) for id, _ in entries]
    assert [seq for _, seq in parsed] == list(range(1, len(parsed) + 1)), "counters are dense"
    assert [ms for ms, _ in parsed] == sorted(ms for ms, _ in parsed), "bus time never falls"
    return [message for _, message in entries if not isinstance(message, Gap)]


def gaps_in(redis: "Server", kind: str, feed: str, symbol: str, spec: str = "") -> list[Gap]:
    return [message for _, message in entries_in(redis, kind, feed, symbol, spec) if isinstance(message, Gap)]
