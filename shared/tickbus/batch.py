"""What a service gets to work on: `async for batch in bus.consume(...)`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tickbus.gaps import trimmed_gap
from tickbus.messages import Message
from tickbus.names import Stream, StreamId
from tickbus.outputs import Output
from tickbus.reads import Round
from tickbus.wire import decode

if TYPE_CHECKING:
    from tickbus.consumer import Consumer


class Batch:
    """Consecutive entries of some streams, all of shards that only this process works.

    `commit` covers this batch and all before it. Until then what was read is read again after a crash, by whoever works the
    shard then. If a shard was taken over meanwhile (this process stood still for too long), its part of the commit is dropped:
    the new owner reads the same again.
    """

    def __init__(
        self, consumer: "Consumer", number: int, news: Round, gained: Mapping[int, Mapping[str, bytes]], lost: frozenset[int]
    ) -> None:  # fmt: skip
        self.gained = gained
        """Shards that are worked from here on -> the states in them, by stream name. Comes before any entry of them."""
        self.lost = lost
        """Shards that are worked no more: no entry of them follows, and a commit of this batch is the last that can hold some.
        A shard may be gained again later."""
        self.reads = news.reads
        """The entries as they stand on the bus."""
        self.clocks = news.clocks
        """(shard, feed) -> bus ms: every entry of that feed's trade and quote streams with an older ID has been delivered."""
        self._consumer = consumer
        self._number = number
        self._epochs = dict(consumer.epochs)

    def __iter__(self) -> Iterator[tuple[Stream, StreamId, Message]]:
        """In order per stream, Gaps included. A Gap for what was trimmed bears the ID after which it is missing.

        WireError for an entry of another version.
        """
        for read in self.reads:
            if read.lost is not None:
                yield read.stream, read.lost.after, trimmed_gap(read, self._consumer.service)
            for id, (field, payload) in read.entries:
                yield read.stream, StreamId.parse(id), decode(field, payload)

    @property
    def positions(self) -> dict[Stream, StreamId]:
        """Where the streams of this batch stand after it."""
        return {read.stream: read.last for read in self.reads}

    def state(self, stream: Stream) -> bytes | None:
        """What was committed last as this stream's state, by whichever process."""
        return self._consumer.states.get(stream.name)

    async def commit(self, outputs: Sequence[Output] = (), state: Mapping[Stream, bytes] | None = None) -> None:
        """Store outputs, states and the positions of all that was delivered so far: one transaction, however long Redis is away.

        On a cluster it is one per shard. A master that is away holds up its own shards only: this returns when the others have stored
        their parts, and of the shard that is held nothing more is delivered until its part is stored too.

        An output's symbol must be of a shard that this batch could have held: best the symbol that caused it. An empty state
        is deleted. Cancelled, it goes on by itself, and the next commit waits for it.
        """
        await self._consumer.commit_batch(self._number, self._epochs, outputs, state or {})
