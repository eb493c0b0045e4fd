"""Streams read straight from Redis, for checks."""

from typing import Any, Literal, Protocol, overload

from support.client import Client
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Bar, Gap, Message, Quote, Trade
from tickbus.protocol.names import DEFAULT_SHARDS, Keys, Stream


class Server(Protocol):
    """A RedisServer or a RedisCluster."""

    @property
    def url(self) -> str: ...
    @property
    def client(self) -> Client: ...


def entries_in(
    redis: Server, kind: str, feed: str, symbol: str, spec: str = "", shards: int = DEFAULT_SHARDS
) -> list[tuple[str, Message]]:
    """Return (ID, message) of every entry of a stream, in order."""
    key = Keys(shards=shards).stream(Stream(kind, feed, symbol, spec))
    return [
        (id.decode(), decode(field, payload))
        for id, fields in redis.client.xrange(key)
        for field, payload in fields.items()
    ]


@overload
def messages_in(redis: Server, kind: Literal["trade"], feed: str, symbol: str) -> list[Trade]: ...
@overload
def messages_in(redis: Server, kind: Literal["quote"], feed: str, symbol: str) -> list[Quote]: ...
@overload
def messages_in(redis: Server, kind: Literal["bar"], feed: str, symbol: str, spec: str) -> list[Bar]: ...
def messages_in(redis: Server, kind: str, feed: str, symbol: str, spec: str = "") -> list[Any]:
    """Return all messages but the Gaps, after checking that the IDs keep their promises."""
    entries = entries_in(redis, kind, feed, symbol, spec)
    parsed = [tuple(map(int, id.split("-"))) for id, _ in entries]
    assert [seq for _, seq in parsed] == list(range(1, len(parsed) + 1)), "counters are not dense"
    assert [ms for ms, _ in parsed] == sorted(ms for ms, _ in parsed), "bus time went backwards"
    return [message for _, message in entries if not isinstance(message, Gap)]


def gaps_in(
    redis: Server, kind: str, feed: str, symbol: str, spec: str = "", shards: int = DEFAULT_SHARDS
) -> list[Gap]:
    entries = entries_in(redis, kind, feed, symbol, spec, shards)
    return [message for _, message in entries if isinstance(message, Gap)]
