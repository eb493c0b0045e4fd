"""What stands in Redis for shards that a replica has just taken over: where to go on, and what was written last.

The replica that wrote it is gone, and with it the replay ring it would have sent from, should Redis lose it still (a failover, a
kill, a flush). So whoever takes a shard takes that over too. Nobody else can change any of it: the fences are raised.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tickbus.link import Connection, Reply
from tickbus.names import Keys, Stream, StreamId
from tickbus.registry import read_heads
from tickbus.replay_ring import OVERHEAD
from tickbus.selection import Selection
from tickbus.streams import Entry, StreamWriter
from tickbus.transaction import Field, Transaction
from tickbus.wire import Head, decode_bell, encode

_PER_STREAM = 1_000
"""Entries of one stream at most; older ones are not sent again."""
_STREAMS_PER_READ = 200


class Handover(NamedTuple):
    positions: dict[str, StreamId]
    """By stream name."""
    states: dict[int, dict[str, bytes]]
    """Shard -> state by stream name."""
    heads: dict[str, Head]
    """Of all streams in these shards, whoever writes them."""
    written: dict[str, list[Reply]]
    """Streams that this service writes -> the entries of the window, as Redis gives them. Of a service that does not say what it
    writes, those streams that it rang for in the window."""

    def transaction(self, bus_ms: int, fields: Sequence[Field], writer: Callable[[str], StreamWriter]) -> Transaction:
        """All of it as one transaction that would have stored it. `fields`: the positions and states."""
        transaction = Transaction(bus_ms)
        transaction.fields = list(fields)
        entries: list[Entry] = []
        for name, rows in self.written.items():
            stream = writer(name)
            transaction.heads[stream] = encode(self.heads[name])
            entries += [(stream, at.ms, at.seq, field, payload, -1, 0) for id, (field, payload) in rows for at in [StreamId.parse(id)]]
        transaction.entries = entries
        return transaction


async def read_handover(
    link: Connection, keys: Keys, service: str, shards: Sequence[int], writes: Selection | None, since_ms: int, most: int
) -> Handover:  # fmt: skip
    """`writes`: the streams that this service writes, None if that is not known; `since_ms`, `most`: of the entries, the oldest and
    the bytes that are wanted."""
    positions = await link.ask_all([("HGETALL", keys.position(shard, service)) for shard in shards])
    states = await link.ask_all([("HGETALL", keys.state(shard, service)) for shard in shards])
    heads = await read_heads(link, keys, shards)
    rung = await _rung(link, keys, service, shards, since_ms) & heads.keys()
    declared = {name: StreamId.parse(head.id).ms for name, head in heads.items() if writes is not None and writes(Stream.parse(name))}
    recent = rung | {name for name, newest in declared.items() if newest >= since_ms}
    # a service that catches up writes entries as old as what it reads: of these, whatever is newest
    since = {name: since_ms if StreamId.parse(heads[name].id).ms >= since_ms else "-" for name in recent}
    return Handover(
        {name.decode(): StreamId.parse(id) for flat in positions for name, id in _pairs(flat)},
        {shard: {name.decode(): value for name, value in _pairs(flat)} for shard, flat in zip(shards, states, strict=True)},
        heads,
        {name: [] for name in declared} | await _entries(link, keys, since, most),
    )


async def _rung(link: Connection, keys: Keys, service: str, shards: Sequence[int], since_ms: int) -> set[str]:
    """Streams that the bells of this service named since then."""
    replies = await link.ask_all([("XRANGE", keys.bell(shard), since_ms, "+") for shard in shards])
    bells = [decode_bell(payload) for rows in replies for _, (_, payload) in rows]
    return {name for bell in bells if bell.writer.rpartition("#")[0] == service for name in bell.streams}


async def _entries(link: Connection, keys: Keys, since: Mapping[str, int | str], most: int) -> dict[str, list[Reply]]:
    names, found, size = list(since), dict[str, list[Reply]](), 0
    for first in range(0, len(names), _STREAMS_PER_READ):
        piece = names[first : first + _STREAMS_PER_READ]
        replies = await link.ask_all([("XREVRANGE", keys.stream(Stream.parse(name)), "+", since[name], "COUNT", _PER_STREAM) for name in piece])
        found |= {name: rows[::-1] for name, rows in zip(piece, replies, strict=True)}
        size += sum(len(payload) + OVERHEAD for rows in replies for _, (_, payload) in rows)
        if size > most:
            break
    return found


def _pairs(flat: list[bytes]) -> "zip[tuple[bytes, bytes]]":
    return zip(flat[::2], flat[1::2], strict=True)
