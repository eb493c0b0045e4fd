"""What a service processes: `async for batch in bus.consume(...)`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from tickbus.consumer.outputs import Output
from tickbus.errors import WireError
from tickbus.protocol.codec import decode
from tickbus.protocol.messages import Message
from tickbus.protocol.names import StateField, StatePart, Stream, StreamId
from tickbus.reader.reads import Poll, rejected, trimmed_gap


class Committer(Protocol):
    """What a batch needs from its consumer."""

    service: str

    @property
    def epochs(self) -> Mapping[int, int]: ...

    def state(self, stream: Stream) -> bytes | None:
        """As `Batch.state`."""
        ...

    async def commit_batch(
        self,
        number: int,
        epochs: Mapping[int, int],
        outputs: Sequence[Output],
        state: Mapping[StateField, bytes],
    ) -> None:
        """As `Batch.commit`, for batch `number`, under the epochs in which it was delivered."""
        ...


class Batch:
    """Consecutive entries of some streams, all in shards that only this process owns.

    `commit` covers this batch and all before it. Entries that are not committed are read again after a
    crash, by whichever process then owns the shard. If a shard was taken over in the meantime (this process
    stalled for too long), its part of the commit is dropped: the new owner reads the same entries again.

        async for batch in bus.consume("my-app"):
            counts = {}
            for stream, id, message in batch:
                counts[stream] = counts.get(stream, int(batch.state(stream) or 0)) + 1
            await batch.commit(state={stream: str(count).encode() for stream, count in counts.items()})
    """

    def __init__(
        self,
        consumer: Committer,
        number: int,
        poll: Poll,
        gained: Mapping[int, Mapping[str, bytes]],
        lost: frozenset[int],
    ) -> None:
        self.gained = gained
        """Shards that are owned from here on -> their states by stream name. Comes before their entries."""
        self.lost = lost
        """Shards that are no longer owned: none of their entries follow, and the commit of this batch is
        the last that can contain some. A shard may be gained again later."""
        self.reads = poll.reads
        """The entries as they are stored on the bus."""
        self.clocks = poll.clocks
        """(shard, feed) -> bus ms: every older entry of the feed's trade and quote streams is delivered."""
        self._consumer = consumer
        self._number = number
        self._epochs = dict(consumer.epochs)

    def __iter__(self) -> Iterator[tuple[Stream, StreamId, Message]]:
        """Yield each message with its stream and ID, in order per stream, Gaps included.

        A Gap for trimmed entries has the ID after which they are missing. An entry that this version cannot
        read comes as a Gap of kind `rejected`, and is logged.
        """
        for read in self.reads:
            if read.lost is not None:
                yield read.stream, read.lost.after, trimmed_gap(read, self._consumer.service)
            for entry in read.entries:
                try:
                    field, payload = entry[1]
                    message = decode(field, payload)
                except (ValueError, WireError):
                    message = rejected(read, entry, self._consumer.service)
                yield read.stream, StreamId.parse(entry[0]), message

    @property
    def positions(self) -> dict[Stream, StreamId]:
        """The positions of the streams of this batch after it."""
        return {read.stream: read.last for read in self.reads}

    def state(self, stream: Stream) -> bytes | None:
        """Return the last committed state of this stream, by whichever process; None if there is none."""
        return self._consumer.state(stream)

    async def commit(
        self,
        outputs: Sequence[Output] = (),
        state: Mapping[Stream, bytes] | None = None,
        parts: Mapping[StatePart, bytes] | None = None,
    ) -> None:
        """Store outputs, states and the positions of everything delivered so far, in one transaction.

        Returns when that is stored, however long Redis is unavailable. On a cluster it is one transaction per
        shard: a master that is unavailable delays only its own shards, so this returns when the others have
        stored their parts, and nothing more of the delayed shard is delivered until its part is stored too.

        outputs: messages for streams of this service. The symbol of each must belong to a shard that this
            batch could have contained: preferably the symbol that caused it.
        state: any bytes per stream, for `Batch.state` of the next owner; empty bytes delete it.
        parts: of larger states, likewise; in `gained` they stand beside the states, as `<stream>#<part>`.

        Errors: ValueError for an output in a shard that this process does not own; Fenced if another
        program writes the same streams. If cancelled, the commit continues in the background, and the next
        one waits for it.
        """
        fields: dict[StateField, bytes] = dict((state or {}).items())
        fields.update((parts or {}).items())
        await self._consumer.commit_batch(self._number, self._epochs, outputs, fields)
