"""What Redis stores for shards that were just taken over: where to continue, and what was written last.

The previous owner is gone, and with it the replay buffer from which it would have resent entries that Redis
may still lose (in a failover, a kill, a flush). So the new owner of a shard takes these over too. No other
process can change any of it: the fences are raised.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tickbus.errors import RedisMisconfigured
from tickbus.protocol.codec import Head, encode, read_bell
from tickbus.protocol.foreign import split
from tickbus.protocol.names import Keys, Stream, StreamId, is_stream
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.redis.link import Connection, Reply, ReplyError
from tickbus.redis.registry import read_heads
from tickbus.redis.resp import pairs
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.replay_buffer import OVERHEAD
from tickbus.writer.transaction import Field, Transaction

_PER_STREAM = 1_000
"""Maximum entries of one stream; older ones are not resent."""
_STREAMS_PER_READ = 200


class Handover(NamedTuple):
    positions: dict[str, StreamId]
    """By stream name."""
    states: dict[int, dict[str, bytes]]
    """Shard -> state by stream name."""
    heads: dict[str, Head]
    """Heads of all streams in these shards, whoever writes them."""
    unreadable: dict[str, str]
    """What some other program wrote in their place: name of the stream -> what is wrong with its position."""
    written: dict[str, list[Reply]]
    """Streams that this service writes -> their entries in the window, as Redis returns them. If the
    service does not declare what it writes: the streams that it rang for in the window."""

    def transaction(
        self, bus_ms: int, fields: Sequence[Field], writer: Callable[[str], StreamWriter]
    ) -> Transaction:
        """Return the one transaction that would have stored all of it. `fields`: the positions and states."""
        transaction = Transaction(bus_ms)
        transaction.fields = list(fields)
        entries: list[Entry] = []
        for name, rows in self.written.items():
            stream = writer(name)
            transaction.heads[stream] = encode(self.heads[name])
            entries += [
                Entry(stream, at.ms, at.seq, field, payload)
                for id, (field, payload) in rows
                for at in [StreamId.parse(id)]
            ]
        transaction.entries = entries
        return transaction


async def read_handover(
    link: Connection, keys: Keys, service: str, shards: Sequence[int], writes: StreamFilter | None,
    window_ms: int, now_ms: int, max_bytes: int,
) -> Handover:  # fmt: skip
    """Return what is stored for these shards.

    `writes`: the streams that this service writes, None if unknown; `window_ms`, `max_bytes`: how far the
    entries reach back and how many bytes of them are read.
    """
    while True:
        positions = await _hashes(link, keys, shards, partial(keys.position, service=service))
        states = await _hashes(link, keys, shards, partial(keys.state, service=service), parts=True)
        heads = await read_heads(link, keys, shards)
        announced = {
            name
            for name in await _announced_streams(link, keys, service, shards, now_ms - window_ms)
            & heads.keys()
            if _writes_stream(name, writes)
        }
        ids = {
            name: StreamId.parse(head.id)
            for name, head in heads.items()
            if name in announced or (writes is not None and _writes_stream(name, writes))
        }
        # while a service catches up, its IDs are old: what counts is when it rang
        recent = sorted(
            (name for name, id in ids.items() if name in announced or id.ms >= now_ms - window_ms),
            key=ids.__getitem__,
            reverse=True,
        )
        entries = await _entries(
            link, keys, {name: max(0, ids[name].ms - window_ms) for name in recent}, max_bytes
        )
        # Redis may lose its newest data, or all, between these queries: each commit moves positions, which
        # reveal it
        if positions == await _hashes(link, keys, shards, partial(keys.position, service=service)):
            good, unreadable = _parse_positions(positions)
            return Handover(
                good,
                {
                    shard: {name.decode(): value for name, value in in_shard.items()}
                    for shard, in_shard in zip(shards, states, strict=True)
                },
                heads,
                unreadable,
                {name: [] for name in ids} | entries,
            )


def _parse_positions(
    positions: Sequence[Mapping[bytes, bytes]],
) -> tuple[dict[str, StreamId], dict[str, str]]:
    """Return the positions by stream name, and what is wrong with the others."""
    good: dict[str, StreamId] = {}
    unreadable: dict[str, str] = {}
    for in_shard in positions:
        for name, id in in_shard.items():
            try:
                good[name.decode()] = StreamId.read(id)
            except ValueError as error:
                unreadable[name.decode()] = str(error)
    return good, unreadable


def _writes_stream(name: str, writes: StreamFilter | None) -> bool:
    return writes is None or writes(Stream.parse(name))


async def _hashes(
    link: Connection, keys: Keys, shards: Sequence[int], key_of: Callable[[int], str], parts: bool = False
) -> list[dict[bytes, bytes]]:
    """Return these hashes by shard, without fields that are no streams of theirs: not ours.

    parts: a field may also be a part of a stream's.
    """
    names = [key_of(shard) for shard in shards]
    replies = await link.ask_each([("HGETALL", name) for name in names])
    for name, flat in zip(names, replies, strict=True):
        if isinstance(flat, ReplyError):
            raise RedisMisconfigured(
                f"{name} is no hash: some other program wrote it;"
                f" fix: redis-cli RENAME '{name}' '{name}:foreign'"
            )
    return [
        {name: value for name, value in pairs(flat) if _is_of_shard(name, keys, shard, parts)}
        for shard, flat in zip(shards, replies, strict=True)
    ]


def _is_of_shard(raw: bytes, keys: Keys, shard: int, parts: bool) -> bool:
    name = raw.decode(errors="replace")
    if parts:
        name = name.partition("#")[0]
    return is_stream(name) and keys.shard(Stream.parse(name).symbol) == shard


async def _announced_streams(
    link: Connection, keys: Keys, service: str, shards: Sequence[int], since_ms: int
) -> set[str]:
    """Return the streams that the bells of this service named since then."""
    replies = await link.ask_each([("XRANGE", keys.bell(shard), since_ms, "+") for shard in shards])
    return {
        name
        for rows in replies
        if not isinstance(rows, ReplyError)
        for _, fields in rows
        if (bell := read_bell(fields)) is not None and bell.writer.rpartition("#")[0] == service
        for name in bell.streams
    }


async def _entries(
    link: Connection, keys: Keys, since: Mapping[str, int], max_bytes: int
) -> dict[str, list[Reply]]:
    """Return entries by stream. `since`: stream, most important first -> ms of the oldest entry to read."""
    names, found, size = list(since), dict[str, list[Reply]](), 0
    for first in range(0, len(names), _STREAMS_PER_READ):
        chunk = names[first : first + _STREAMS_PER_READ]
        replies = await link.ask_each(
            [
                ("XREVRANGE", keys.stream(Stream.parse(name)), "+", since[name], "COUNT", _PER_STREAM)
                for name in chunk
            ]
        )
        ours = [
            [] if isinstance(rows, ReplyError) else split(rows[::-1], 0, Stream.parse(name).kind)[0]
            for name, rows in zip(chunk, replies, strict=True)
        ]
        found |= {
            name: [row for row in rows if len(row[1]) == 2] for name, rows in zip(chunk, ours, strict=True)
        }
        size += sum(len(fields[1]) + OVERHEAD for rows in ours for _, fields in rows)
        if size > max_bytes:
            break
    return found
