"""A service's side of the bus: read whole shards, commit position, state and output together.

    consumer = await Consumer.open(..., service="bars", ...)
    async for batch in consumer.batches():
        ...
        await consumer.commit(positions, outputs, state)

Position and state stand in Redis beside the streams, and a commit is one fenced transaction with the outputs: after a crash
anywhere the service goes on as if nothing had happened. A service whose output is elsewhere (the recorder's files) keeps its
position there, and commits it here only to show it.
"""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from tickbus.clock import BusClock
from tickbus.lease import Lease
from tickbus.link import Link
from tickbus.messages import Gap, Message
from tickbus.names import Keys, Stream, StreamId
from tickbus.publisher import Publisher
from tickbus.reader import FROM_START, Reader, Round
from tickbus.registry import check_meta, read_heads
from tickbus.selection import Selection, encode_selection
from tickbus.streams import Entry, StreamWriter
from tickbus.topology import locate
from tickbus.transaction import Field, Transaction
from tickbus.units import Duration
from tickbus.wire import FIELDS, NIL, Head, encode

log = logging.getLogger("tickbus.consumer")


@dataclass(frozen=True)
class Output:
    """A message to add to one of the service's own streams. `ms` comes from what caused it, so that a repeat gives the same ID."""

    stream: Stream
    ms: int
    message: Message


@dataclass
class Committed:
    """What a service has in Redis: read at the start."""

    positions: dict[str, StreamId] = field(default_factory=dict)
    states: dict[str, bytes] = field(default_factory=dict)
    """By stream name."""


class Consumer:
    """One service's reading and committing. It owns all shards: a second one started waits as a standby."""

    def __init__(self, url: str, keys: Keys, service: str, reads: Selection, lease_ttl: Duration, writes: str = "") -> None:
        """`reads`: which streams; `writes`: the kind of its own streams, if it has any."""
        self._link = partial(Link.open, url)
        self._keys = keys
        self.service = service
        self.reads = reads
        self._kind = writes
        self.clock = BusClock()
        self.publisher = Publisher(locate(url), keys, service, self.clock, home=0)
        self.lease = Lease(self._link, keys, service, lease_ttl, self.publisher.fences.holder)
        self.committed = Committed()
        self._outputs: dict[str, StreamWriter] = {}
        self._heads: dict[str, Head] = {}
        self.reader: Reader | None = None
        self.read = 0
        self.commits = 0
        self.lost = 0

    async def open(self) -> None:
        """Become the one that works: lease, fences; then read what was committed before."""
        link = await self._link()
        await check_meta(link, self._keys)
        link.close()  # a standby may wait for days
        await self.lease.acquire(self.publisher.released)
        await self.publisher.take_over()
        link = await self._link()
        shards = range(self._keys.shards)
        positions = await link.ask_all([("HGETALL", self._keys.position(shard, self.service)) for shard in shards])
        states = await link.ask_all([("HGETALL", self._keys.state(shard, self.service)) for shard in shards])
        for flat in positions:
            self.committed.positions |= {name.decode(): StreamId.parse(id) for name, id in _pairs(flat)}
        for flat in states:
            self.committed.states |= {name.decode(): value for name, value in _pairs(flat)}
        heads = await read_heads(link, self._keys, shards)
        self._heads = {name: head for name, head in heads.items() if Stream.parse(name).kind == self._kind}
        self._outputs = {name: StreamWriter(self._keys, Stream.parse(name)) for name in self._heads}
        await link.ask("HSET", self._keys.meta, f"service:{self.service}", encode_selection(self.reads))
        link.close()
        log.info("%s: epoch %d, %d streams with a position", self.service, self.publisher.epoch, len(self.committed.positions))

    async def batches(self, start: "str | StreamId" = FROM_START, positions: Mapping[str, StreamId] | None = None) -> AsyncIterator[Round]:
        """Rounds of reads, for ever. `positions` instead of the committed ones: for a service that keeps its own."""
        given = self.committed.positions if positions is None else positions
        self.reader = Reader(self._link, self._keys, self.reads, start, given)
        async for result in self.reader.rounds():
            for read in result.reads:
                self.read += len(read.entries)
                if read.lost is not None:
                    self.lost += read.lost.count
                    log.error("%s: %d entries of %s were trimmed before they were read", self.service, read.lost.count, read.stream.name)
            yield result

    def epoch_of(self, stream: Stream, seq: int) -> int:
        """The epoch under which an entry was written; 0 if that is no longer known."""
        head = self.reader.heads.get(stream.name) if self.reader is not None else None
        found = 0
        for epoch, first in head.epochs if head is not None else ():
            if first <= seq:
                found = epoch
        return found

    async def commit(self, positions: Mapping[Stream, StreamId], outputs: Sequence[Output] = (), state: Mapping[Stream, bytes] | None = None) -> None:
        """Store outputs, positions and states as one transaction; returns when it is stored. Fenced if another took over."""
        transaction = Transaction(self.clock.now_ms())
        transaction.entries = entries = [self._entry(output) for output in outputs]
        transaction.heads = {entry[0]: self._heads[entry[0].name] for entry in entries}
        for stream, position in positions.items():
            shard = self._keys.shard(stream.symbol)
            transaction.fields.append(Field(shard, self._keys.position(shard, self.service), stream.name, str(position).encode()))
        for stream, value in (state or {}).items():
            shard = self._keys.shard(stream.symbol)
            transaction.fields.append(Field(shard, self._keys.state(shard, self.service), stream.name, value))
        await self.publisher.commit(transaction)
        self.commits += 1
        for stream, position in positions.items():
            self.committed.positions[stream.name] = position

    def _entry(self, output: Output) -> Entry:
        name = output.stream.name
        writer = self._outputs.get(name)
        if writer is None:
            writer = self._outputs[name] = StreamWriter(self._keys, output.stream)
        head = self._heads.get(name, Head("0-0", None, 0, NIL))
        last = StreamId.parse(head.id)
        id = StreamId(max(output.ms, last.ms), last.seq + 1)
        payload = encode(output.message)
        tick, gaps, missing = msgspec.Raw(payload), head.gaps, head.missing
        if isinstance(output.message, Gap):
            kind = output.message.kind.name.lower()
            tick, gaps, missing = head.tick, gaps | {kind: gaps.get(kind, 0) + 1}, missing + (output.message.count or 0)
        # the head is brought up at once, so that the next output of this commit counts on from it
        self._heads[name] = Head(str(id), None, 0, tick, gaps=gaps, missing=missing, epochs=self._epochs(head.epochs, id.seq))
        return writer, id.ms, id.seq, FIELDS[type(output.message)], payload, -1, 0

    def _epochs(self, epochs: list[tuple[int, int]], seq: int) -> list[tuple[int, int]]:
        if not epochs or epochs[-1][0] != self.publisher.epoch:
            epochs = [*epochs, (self.publisher.epoch, seq)][-16:]
        return epochs

    def output_keys(self) -> list[bytes]:
        """Keys of the service's own streams, for the retention sweep: those written since the start, and those found at it."""
        return [writer.key for writer in self._outputs.values()]

    async def close(self) -> None:
        if self.reader is not None:
            self.reader.close()
        await self.publisher.release()
        await self.lease.release()
        self.publisher.close()


def _pairs(flat: list[bytes]) -> "zip[tuple[bytes, bytes]]":
    return zip(flat[::2], flat[1::2], strict=True)
