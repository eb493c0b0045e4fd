"""What `bus.read` and `bus.consume` return: messages, or batches of them, to iterate over."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import length_hint
from typing import Generic, Protocol, TypeVar, cast

from tickbus.consumer.batch import Batch
from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import ConfigError, WireError
from tickbus.protocol.codec import DECODE, MALFORMED, TICK_FIELD, decode
from tickbus.protocol.messages import Flag, Gap, Message, Quote, Trade
from tickbus.protocol.names import Stream, StreamId, is_stream
from tickbus.reader.reads import FROM_START, Cursor, Poll, Read, rejected, trimmed_gap
from tickbus.redis.link import Reply
from tickbus.wants import Want

T_co = TypeVar("T_co", bound=Message, covariant=True)

_DECODED_READS = 32
"""Reads of a poll whose messages are decoded together: with many symbols each read has only one."""
_QUEUED_POLLS = 16
"""Polls queued between the reader thread and a plain `for` loop."""


class PollReader(Protocol):
    """What a subscription reads from: the reader of a bus, or of a relay."""

    @property
    def reconnects(self) -> int: ...

    @property
    def positions(self) -> Mapping[str, StreamId]: ...

    @property
    def cursors(self) -> Sequence[Cursor]: ...

    async def prepare(self) -> None:
        """Connect, so that "now" means the moment of this call."""

    def polls(self) -> AsyncGenerator[Poll, None]:
        """Return polls, until `close`."""
        ...

    def close(self) -> None:
        """End the polls."""


class OpenReader(Protocol):
    """How a subscription gets its reader, at each iteration."""

    async def __call__(self, start: str | StreamId, positions: Mapping[str, StreamId]) -> PollReader:
        """Return a reader that resumes at `positions`, and begins at `start` in other streams."""
        ...


class Subscription(Generic[T_co]):
    """Messages of one kind, in order per stream, forever and over reconnects: for `async for`, or for `for`.

    Leave the loop and iterate again, and it resumes where it stopped; `cursor` says where that is. Its
    resources, above all the connection, are released when the iteration ends, by `close`, and when the bus
    is left.

    An entry that this version cannot read, because a newer one or some other program wrote it, comes as a Gap
    of kind `rejected`, and the first of each stream is logged; entries that are not in the order of their
    stream's counters are some other program's, and are only logged.

    Errors, raised by the iteration: RedisMisconfigured when Redis refuses reads. While Redis is unavailable
    the iteration waits.

        async for tick in bus.read("quote", symbols=["BTC-USDT"], gaps=False):
            print(tick.bid, tick.ask)
    """

    def __init__(
        self,
        open_reader: OpenReader,
        start: str | StreamId,
        positions: Mapping[str, StreamId],
        kind: str,
        gaps: bool,
        late: bool,
        wanting: "Callable[[], Awaitable[Want]] | None" = None,
    ) -> None:
        """wanting: makes what is wanted while it iterates; None: nothing."""
        self._wanting = wanting
        self._open_reader = open_reader
        self._start = start
        self._positions = positions
        self._kind = kind
        self._gaps = gaps
        self._late = late
        self._field = TICK_FIELD[kind]
        self._reader: PollReader | None = None
        self._began: dict[str, str] | None = None
        """Stream name -> ID after which the iteration began; None before it has."""
        self._reads: list[Read] = []
        """The newest poll. Its reads up to `_decoded` are decoded; `_messages` is their undelivered rest."""
        self._rejected = False
        """Whether some entry could not be read."""
        self._decoded = 0
        self._messages: Iterator[Message] = iter(())
        self._thread: _ReaderThread | None = None

    @property
    def cursor(self) -> dict[str, str]:
        """Stream name -> ID of the newest delivered message; `read(..., cursor=...)` resumes right after."""
        positions = dict(self._began or {})
        if self._reader is not None:
            positions |= {
                cursor.stream.name: cursor.delivered.decode()
                for cursor in self._reader.cursors
                if cursor.delivered is not None
            }
        # the iterator knows how much of the list it has delivered: nothing is counted per message
        left = length_hint(self._messages)
        newest: dict[str, str] = {}
        for read in reversed(self._reads[: self._decoded]):
            entries, name = self._entries(read), read.stream.name
            delivered = len(entries) - left
            if not left:
                newest.setdefault(name, str(read.last))
            elif delivered > 0:
                newest.setdefault(name, entries[delivered - 1][0].decode())
            elif delivered == 0 and self._reports_loss(read):
                # the loss is delivered: the position is right before the entry that follows it
                assert read.lost is not None
                newest.setdefault(name, str(_before(read.lost.before)))
            left = max(0, left - len(entries) - self._reports_loss(read))
        return positions | newest

    async def __aiter__(self) -> AsyncGenerator[T_co, None]:
        async for reads in self._polls():
            for messages in self._deliver(reads):
                for message in messages:
                    yield message

    def __iter__(self) -> Iterator[T_co]:
        self._thread = thread = _ReaderThread(self._polls, self._close_reader)
        try:
            for reads in thread:
                for messages in self._deliver(reads):
                    yield from messages
        finally:
            thread.stop()

    async def entries(self) -> AsyncGenerator[tuple[Stream, StreamId, T_co], None]:
        """Iterate over stream, ID and message.

        A Gap for trimmed entries has the ID after which they are missing.
        """
        async for reads in self._polls():
            for read in reads:
                if self._reports_loss(read):
                    assert read.lost is not None
                    read.cursor.delivered = str(_before(read.lost.before)).encode()
                    yield read.stream, read.lost.after, cast(T_co, trimmed_gap(read, "reader"))
                for entry in self._entries(read):
                    message = rejected(read, entry, "reader")
                    id = read.cursor.delivered = entry[0]
                    if (self._late or _is_current(message)) and (self._gaps or not isinstance(message, Gap)):
                        yield read.stream, StreamId.parse(id), cast(T_co, message)
                read.cursor.delivered = read.entries[-1][0]

    def close(self) -> None:
        """End the iteration; may be called from any task or thread."""
        if self._thread is not None:
            self._thread.stop()  # its loop closes the reader: a connection belongs to one loop
        else:
            self._close_reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()

    async def _polls(self) -> AsyncIterator[list[Read]]:
        if self._began is not None:
            # iterated again: streams that have appeared since are new, and read from their first entry
            self._start, self._positions = FROM_START, parse_cursor(self._kind, self.cursor)
            self._reads, self._decoded, self._messages = [], 0, iter(())
        want: Want | None = None
        self._reader = reader = await self._open_reader(self._start, self._positions)
        try:
            await reader.prepare()
            self._began = {name: str(position) for name, position in reader.positions.items()}
            # only now: what comes because of it is read from its first entry
            if self._wanting is not None:
                want = await self._wanting()
                await want.__aenter__()
            async for poll in reader.polls():
                if poll.reads:
                    yield poll.reads
        finally:
            reader.close()
            if want is not None:
                want.stop()

    def _deliver(self, reads: list[Read]) -> Iterator[Iterator[T_co]]:
        """Deliver a new poll; the previous one is then delivered whole.

        Messages come in parts, each decoded at once.
        """
        for read in self._reads:
            read.cursor.delivered = read.entries[-1][0]
        self._reads, self._decoded = reads, 0
        for first in range(0, len(reads), _DECODED_READS):
            messages = self._decode(reads[first : first + _DECODED_READS])
            # only now: the cursor must not pass an entry that could not be decoded
            self._decoded, self._messages = first + _DECODED_READS, iter(messages)
            delivered = self._messages if self._late else filter(_is_current, self._messages)
            if self._rejected and not self._gaps:
                delivered = filter(_is_tick, delivered)
            yield cast(Iterator[T_co], delivered)

    def _decode(self, reads: list[Read]) -> list[Message]:
        wanted, decode_tick = self._field, DECODE[self._field]
        if any(map(self._reports_loss, reads)):
            return [
                message
                for read in reads
                for message in (*self._loss(read), *self._decode([read._replace(lost=None)]))
            ]
        try:
            return [
                decode_tick(payload) if field == wanted else decode(field, payload)
                for read in reads
                for _, (field, payload) in self._entries(read)
            ]
        except (*MALFORMED, WireError):
            self._rejected = True
            return [rejected(read, entry, "reader") for read in reads for entry in self._entries(read)]

    def _entries(self, read: Read) -> list[Reply]:
        return read.entries if self._gaps else [entry for entry in read.entries if entry[1][0] == self._field]

    def _loss(self, read: Read) -> list[Message]:
        return [trimmed_gap(read, "reader")] if self._reports_loss(read) else []

    def _reports_loss(self, read: Read) -> bool:
        return read.lost is not None and self._gaps


def _before(id: StreamId) -> StreamId:
    return id._replace(seq=id.seq - 1)


def _is_tick(message: Message) -> bool:
    return not isinstance(message, Gap)


def _is_current(message: Message) -> bool:
    """Whether this is neither a late tick nor a Gap that reports one as repaired."""
    if isinstance(message, Gap):
        return not message.repaired
    return not (isinstance(message, Trade | Quote) and message.flags & Flag.LATE)


def parse_cursor(kind: str, cursor: Mapping[str, str]) -> dict[str, StreamId]:
    """Return positions by stream name. ConfigError unless it is the cursor of a subscription to that kind."""
    positions = {}
    for name, id in cursor.items():
        try:
            if not is_stream(name) or Stream.parse(name).kind != kind:
                raise ValueError(f"{name!r} is not a {kind} stream")
            positions[name] = StreamId.parse(id)
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"invalid cursor: {error}; expected the `cursor` of a subscription to {kind}s"
            ) from None
    return positions


class Consumer:
    """Batches of the streams that this process owns, forever: for one `async for`. See `Batch`.

    Ending the iteration, or leaving the bus, releases the shards to the other replicas.

        async for batch in bus.consume("my-app"):
            ...
            await batch.commit()
    """

    def __init__(self, open_consumer: Callable[[], Awaitable[ShardConsumer]]) -> None:
        self._open_consumer = open_consumer
        self._shard_consumer: ShardConsumer | None = None
        self._closing: asyncio.Task[None] | None = None

    async def shard_consumer(self) -> ShardConsumer:
        """Return the consumer once the bus has a first writer. It is not a member of the service yet."""
        if self._shard_consumer is None:
            self._shard_consumer = await self._open_consumer()
        return self._shard_consumer

    async def __aiter__(self) -> AsyncIterator[Batch]:
        try:
            consumer = await self.shard_consumer()
            await consumer.open()
            async for batch in consumer.batches():
                yield batch
        finally:
            await self.close()

    async def close(self) -> None:
        """Release the shards. A commit in progress is awaited, briefly."""
        consumer, self._shard_consumer = self._shard_consumer, None
        if consumer is not None:
            self._closing = asyncio.create_task(consumer.close())
        if self._closing is not None:  # an iteration that was left open may be closing it already
            await asyncio.shield(self._closing)


class _ReaderThread:
    """An event loop of its own for a plain `for`: a notebook already runs one in its own thread."""

    def __init__(
        self, polls: Callable[[], AsyncIterator[list[Read]]], close_reader: Callable[[], None]
    ) -> None:
        self._polls = polls
        self._close_reader = close_reader
        self._queue: queue.Queue[list[Read] | BaseException | None] = queue.Queue(_QUEUED_POLLS)
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="tickbus-reader", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[list[Read]]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    async def _run(self) -> None:
        self._reading = asyncio.create_task(self._read())
        self._started.set()
        (ended,) = await asyncio.gather(self._reading, return_exceptions=True)
        self._close_reader()
        if isinstance(ended, Exception):  # for the caller's thread to raise
            self._queue.put(ended)

    async def _read(self) -> None:
        async for reads in self._polls():
            await asyncio.to_thread(self._queue.put, reads) if self._queue.full() else self._queue.put_nowait(
                reads
            )

    def stop(self) -> None:
        self._started.wait()
        with suppress(RuntimeError):  # its loop has already ended: an error was handed over
            self._reading.get_loop().call_soon_threadsafe(self._reading.cancel)
        while self._thread.is_alive():  # a full queue may block its last `put`
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(0.05)
        with suppress(queue.Full):  # wakes a `for` loop that waits in another thread
            self._queue.put_nowait(None)
