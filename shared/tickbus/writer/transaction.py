"""A transaction as the publisher stores it, and its commands as bytes. Pure.

Entries, heads of their streams, hash fields and rings of the doorbells are one MULTI/EXEC: all or nothing.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from tickbus.protocol.codec import encode, pack_bell, pack_bell_status
from tickbus.protocol.names import Keys
from tickbus.redis.resp import pack, pack_bulk
from tickbus.writer.entry import Entry, StreamWriter

_BELL_LENGTH = 512
"""Approximate rings retained per shard: a reader that misses more scans the shard by `last`."""
_RINGS_PER_TRIM = 32
"""Rings of a shard per trim of its bell: each trim searches for the oldest entries, which costs the server
a tenth of a transaction when many shards ring."""


class Field(NamedTuple):
    """A hash field to set: position or state. An empty value deletes it."""

    shard: int
    key: str
    name: str
    value: bytes


class Transaction:
    """What is stored together: entries in order, the heads of their streams, and hash fields."""

    __slots__ = ("bus_ms", "entries", "feed_up", "fields", "heads", "ring_all")

    def __init__(self, bus_ms: int, feed_up: bool | None = None) -> None:
        self.bus_ms = bus_ms
        """Bus time for the doorbell: no later entry of this writer will be older."""
        self.feed_up = feed_up
        self.entries: Sequence[Entry] = []
        self.heads: dict[StreamWriter, bytes] = {}
        """Packed tickbus.protocol.codec.Head per stream."""
        self.fields: list[Field] = []
        self.ring_all = False
        """Whether to ring every shard of the writer, with or without news: the bus clock."""

    def with_entries(self, entries: Sequence[Entry]) -> "Transaction":
        """Return a copy with these entries instead of its own."""
        other = Transaction(self.bus_ms, self.feed_up)
        other.entries, other.heads, other.fields, other.ring_all = (
            entries,
            self.heads,
            self.fields,
            self.ring_all,
        )
        return other

    def add(self, later: "Transaction") -> None:
        """Merge a later transaction into this one."""
        self.entries = [*self.entries, *later.entries]
        self.heads |= later.heads
        self.fields = list(
            {(field.key, field.name): field for field in (*self.fields, *later.fields)}.values()
        )
        self.bus_ms, self.feed_up, self.ring_all = (
            later.bus_ms,
            later.feed_up,
            self.ring_all or later.ring_all,
        )

    def shards(self) -> set[int]:
        """Return the shards that it writes to, apart from the rings of the bus clock."""
        return (
            {entry.stream.shard for entry in self.entries}
            | {stream.shard for stream in self.heads}
            | {field.shard for field in self.fields}
        )


class Packer:
    """Packs the transactions of one owner into commands."""

    def __init__(self, keys: Keys, shards: Collection[int], owner: str, epochs: Mapping[int, int]) -> None:
        """`epochs`: shard -> the epoch under which the owner writes it now."""
        self._epochs = epochs
        self._writer = cache(lambda epoch: encode(f"{owner}#{epoch}"))
        # packed once, up to where they differ: with many symbols there are nearly as many of these as ticks
        self._hset_last = {shard: pack_bulk("HSET", keys.last(shard)) for shard in shards}
        self._ring = {shard: b"*5\r\n" + pack_bulk("XADD", keys.bell(shard), "*", "d") for shard in shards}
        self._ring_and_trim = {
            shard: b"*8\r\n" + pack_bulk("XADD", keys.bell(shard), "MAXLEN", "~", str(_BELL_LENGTH), "*", "d")
            for shard in shards
        }
        self._bells = dict.fromkeys(shards, 0)

    def pack(
        self, transaction: Transaction, ring: Iterable[int], mute: Container[int] = ()
    ) -> tuple[bytes, int]:
        """Return the packed commands and their number.

        `ring`: the shards whose bells ring for the bus clock. `mute`: those whose bells cannot be rung.
        """
        parts: list[bytes] = []
        append = parts.append
        for entry in transaction.entries:
            seq, payload = entry.seq, entry.payload
            # 15 = 13 digits of ms, a dash, one digit; packing by one format is 3 times faster than
            # pack_command
            size = 15 if seq < 10 else 14 + len(str(seq))
            append(
                b"%b%d\r\n%d-%d\r\n$1\r\n%b\r\n$%d\r\n%b\r\n"
                % (entry.stream.xadd, size, entry.ms, seq, entry.field, len(payload), payload)
            )
        news: dict[int, list[str]] = {shard: [] for shard in ring}
        heads: dict[int, list[bytes]] = {}
        for stream, head in transaction.heads.items():
            shard = stream.shard
            packed = b"%b%d\r\n%b\r\n" % (stream.name_packed, len(head), head)
            if shard in heads:
                heads[shard].append(packed)
                news[shard].append(stream.name)
            else:
                heads[shard] = [packed]
                news[shard] = [stream.name]
        for shard, pairs in heads.items():
            append(b"*%d\r\n%b%b" % (2 + 2 * len(news[shard]), self._hset_last[shard], b"".join(pairs)))
        if transaction.fields:
            parts += pack_fields(transaction.fields)
        status = pack_bell_status(transaction.bus_ms, transaction.feed_up)
        bells, writer, epochs = self._bells, self._writer, self._epochs
        for shard, names in news.items():
            if shard in mute:
                continue
            bells[shard] = counter = bells[shard] + 1
            bell = pack_bell(writer(epochs.get(shard, 0)), counter, status, names)
            # the first ring of a process trims too, however short-lived the process is
            command = self._ring if counter % _RINGS_PER_TRIM != 1 else self._ring_and_trim
            append(b"%b$%d\r\n%b\r\n" % (command[shard], len(bell), bell))
        return b"".join(parts), len(parts)


def pack_fields(fields: Iterable[Field]) -> list[bytes]:
    """Return the commands that set these fields, or delete the empty ones: one per hash."""
    sets: dict[str, list[str | bytes]] = {}
    deleted: dict[str, list[str]] = {}
    for _, key, name, value in fields:
        if value:
            sets.setdefault(key, []).extend((name, value))
        else:
            deleted.setdefault(key, []).append(name)
    return [pack(("HSET", key, *pairs)) for key, pairs in sets.items()] + [
        pack(("HDEL", key, *names)) for key, names in deleted.items()
    ]
