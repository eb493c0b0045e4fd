"""Keys that take no writes because some other program wrote there: kept out of the transactions. Pure.

A stream whose newest entry is not ours takes no entry with a lower ID, and a key of another type takes none
at all. MULTI/EXEC stores the rest of a transaction all the same, so such a key is taken out of the next ones,
what belongs to it is held in memory, and everything else goes on. Once somebody has mended the key, as its
`Fault.remedy` says, all that was held is written, in order.

Meanwhile the bells of a gateway go on, and each of them promises that no entry with an older bus time will
follow. So what was held gets the newest bus time that was announced: it reaches the bus only now.

Whoever writes only streams, a gateway, loses one stream at a time. A service stores positions, state and
outputs of a shard together or not at all, so there it is the whole shard.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from tickbus.protocol.codec import decode_head, encode
from tickbus.protocol.names import START, StreamId
from tickbus.writer.entry import Entry, StreamWriter
from tickbus.writer.replay_buffer import OVERHEAD
from tickbus.writer.transaction import Field, Transaction


class Fault(NamedTuple):
    """A key that another program wrote to."""

    key: str
    why: str
    remedy: str
    """The command that mends it."""
    after: StreamId | None = None
    """Of a stream: the newest of our entries that it has; what was held follows it. None for other keys."""

    def __str__(self) -> str:
        return f"{self.key}: {self.why}; fix: {self.remedy}"


def top_fault(key: str, after: StreamId, foreign: str) -> Fault:
    """Return the fault of a stream that takes no entry right behind `after`. `foreign`: what is there.

    The remedy keeps what is ours: XDEL and XSETID together would, but newer servers refuse that XSETID.
    """
    if after == START:
        return Fault(key, f"{foreign} was not written by this bus", _rename(key), after)
    script = (
        "redis.call('RENAME',KEYS[1],KEYS[2]) "
        "for _,e in ipairs(redis.call('XRANGE',KEYS[2],'-',ARGV[1])) "
        "do redis.call('XADD',KEYS[1],e[1],unpack(e[2])) end"
    )
    remedy = f"redis-cli EVAL \"{script}\" 2 '{key}' '{key}:foreign' {after}"
    return Fault(key, f"{foreign} was not written by this bus", remedy, after)


def type_fault(key: str, what: str, after: StreamId | None = None) -> Fault:
    """Return the fault of a key that is no `what`."""
    return Fault(key, f"is no {what}: some other program wrote it", _rename(key), after)


def _rename(key: str) -> str:
    return f"redis-cli RENAME '{key}' '{key}:foreign'"


Scope = bytes | int
"""What is taken out: a stream, by its key, or all of a shard."""


class Quarantine:
    """What one lane keeps out of its transactions."""

    def __init__(self, whole_shards: bool) -> None:
        """`whole_shards`: whether a faulty stream takes its whole shard with it."""
        self.faults: dict[Scope, Fault] = {}
        self.bells: dict[int, Fault] = {}
        """Shards whose bell cannot be rung: their readers notice, and read by the heads."""
        self.held: dict[Scope, Transaction] = {}
        self.bytes = 0
        """Approximate memory of the entries held."""
        self._whole_shards = whole_shards

    def __bool__(self) -> bool:
        return bool(self.faults or self.bells)

    def __len__(self) -> int:
        """Number of entries held."""
        return sum(len(part.entries) for part in self.held.values())

    @property
    def all(self) -> list[Fault]:
        return [*self.faults.values(), *self.bells.values()]

    @property
    def entries(self) -> list[Entry]:
        """The entries held."""
        return [entry for part in self.held.values() for entry in part.entries]

    def scope(self, stream: StreamWriter) -> Scope:
        """Return what a fault of this stream takes out."""
        return stream.shard if self._whole_shards else stream.key

    def holding(self, stream: StreamWriter) -> Scope | None:
        """Return the scope that takes this stream out; None if none does."""
        if stream.key in self.faults:
            return stream.key
        return stream.shard if stream.shard in self.faults else None

    def add(self, scope: Scope, fault: Fault) -> bool:
        """Add a fault. Return whether it is new, or another one than before."""
        before = self.faults.get(scope)
        self.faults[scope] = fault
        return before != fault

    def take_out(self, transaction: Transaction) -> Transaction:
        """Return what of a transaction may be sent, and hold the rest."""
        if not self.faults:
            return transaction
        entries: list[Entry] = []
        for entry in transaction.entries:
            if (scope := self.holding(entry.stream)) is None:
                entries.append(entry)
            else:
                held = self._held(scope, transaction).entries
                assert isinstance(held, list)
                held.append(entry)
                self.bytes += len(entry.payload) + OVERHEAD
        sent = transaction.with_entries(entries)
        sent.heads = {}
        for stream, head in transaction.heads.items():
            scope = self.holding(stream)
            (sent if scope is None else self._held(scope, transaction)).heads[stream] = head
        sent.fields = []
        for field in transaction.fields:
            if field.shard not in self.faults:
                sent.fields.append(field)
            else:
                held_part = self._held(field.shard, transaction)
                held_part.fields = merge_fields(held_part.fields, (field,))
        return sent

    def _held(self, scope: Scope, of: Transaction) -> Transaction:
        if scope not in self.held:
            self.held[scope] = Transaction(of.bus_ms, of.feed_up)
            self.held[scope].entries = []
        return self.held[scope]

    def lift(
        self, scope: Scope, transaction: Transaction, last: Mapping[bytes, StreamId], announced_ms: int
    ) -> Transaction:
        """The fault is mended: return the transaction with what was held in front of it.

        last: key of a stream -> the newest entry that it has: what is not newer is stored.
        announced_ms: bus time before which no entry may be added any more.
        """
        del self.faults[scope]
        held = self.held.pop(scope, None) or Transaction(transaction.bus_ms)
        self.bytes -= _size(held.entries)
        missing = [entry for entry in held.entries if entry.id > last.get(entry.stream.key, START)]
        entries = [
            entry if scope not in (entry.stream.key, entry.stream.shard) else postponed(entry, announced_ms)
            for entry in (*missing, *transaction.entries)
        ]
        merged = transaction.with_entries(entries)
        merged.heads = {**held.heads, **transaction.heads}
        for stream, entry in {entry.stream: entry for entry in entries}.items():
            if entry.ms <= announced_ms and stream in merged.heads:
                merged.heads[stream] = _with_id(merged.heads[stream], entry.id)
        merged.fields = merge_fields(held.fields, transaction.fields)
        return merged

    def forget(self, shards: Collection[int]) -> int:
        """Another process writes these shards now. Return the number of entries that were held for them."""
        dropped = 0
        for scope in list(self.faults):
            held = self.held.get(scope)
            if scope in shards or (held is not None and held.shards() & frozenset(shards)):
                del self.faults[scope]
                if self.held.pop(scope, None) is not None and held is not None:
                    self.bytes -= _size(held.entries)
                    dropped += len(held.entries)
        for shard in shards:
            self.bells.pop(shard, None)
        return dropped


def postponed(entry: Entry, ms: int) -> Entry:
    """Return the entry with at least this bus time."""
    return entry if entry.ms >= ms else msgspec.structs.replace(entry, ms=ms)


def _with_id(packed: bytes, id: StreamId) -> bytes:
    """Return a head with another ID, if it is that of the same entry."""
    head = decode_head(packed)
    if StreamId.parse(head.id).seq != id.seq:
        return packed
    head.id = str(id)
    return encode(head)


def merge_fields(before: Iterable[Field], after: Iterable[Field]) -> list[Field]:
    """Return the newest value of each field."""
    return list({(field.key, field.name): field for field in (*before, *after)}.values())


def _size(entries: Iterable[Entry]) -> int:
    return sum(len(entry.payload) + OVERHEAD for entry in entries)
