"""The public face of the library.

    async with tickbus.connect("redis://127.0.0.1:6379/0") as bus:
        async for tick in bus.read("trade", symbols=["BTC-USDT"]):
            print(tick.symbol, tick.price, tick.size)

`with` and `for` instead of `async with` and `async for` do the same in a plain program or a notebook.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from operator import length_hint
from types import TracebackType

import msgspec

from tickbus.batch import Batch
from tickbus.consumer import Consumer
from tickbus.errors import ConfigError
from tickbus.gaps import trimmed_gap
from tickbus.link import Reply
from tickbus.merged import AnyReader, open_reader
from tickbus.messages import Message
from tickbus.names import DEFAULT_PREFIX, DEFAULT_SHARDS, KINDS, Keys, Stream, StreamId, check_name, check_symbol, is_stream
from tickbus.reads import FROM_START, NOW, Read, Start, parse_start
from tickbus.registry import read_heads, read_meta
from tickbus.selection import Selection
from tickbus.specs import parse_all
from tickbus.topology import locate
from tickbus.units import Duration, parse_duration
from tickbus.wire import DECODE, NIL, TICK_FIELD, decode

_EMPTY_SECONDS = 0.2
"""How often an empty bus is looked at for its first writer."""
_DECODED = 32
"""Reads of a round whose messages are decoded together: with many symbols each brings one."""
_HANDED_OVER = 16
"""Rounds between the reading thread and a plain `for` loop."""


def connect(url: str = "redis://127.0.0.1:6379/0", *, prefix: str = DEFAULT_PREFIX) -> "Bus":
    """A bus to read from; connects when it is entered. `url`: any form that tickbus.topology knows."""
    return Bus(url, prefix)


class Bus:
    def __init__(self, url: str, prefix: str = DEFAULT_PREFIX) -> None:
        self._url = url
        self._prefix = prefix
        self._readings: list[Reading] = []
        self._consumings: list[Consuming] = []

    def read(
        self,
        kind: str = "trade",
        *,
        symbols: Collection[str] | None = None,
        feeds: Collection[str] | None = None,
        specs: Collection[str] | None = None,
        start: Start = NOW,
        cursor: Mapping[str, str] | None = None,
        gaps: bool = True,
    ) -> "Reading":
        """Messages of one kind (`trade`, `quote`, `bar`, `signal`), in order per stream, for ever and over reconnects.

        symbols, feeds, specs (of bars, like `time:1m`): which streams; None = all. Streams that appear later are read from their first entry.
        start: "now", "start" (the oldest entry kept), or a time (a number since the epoch, datetime, ISO text; UTC unless it says
        otherwise): where to begin.
        cursor: as from `Reading.cursor`: go on exactly there instead.
        gaps: whether Gap messages are given too: what the gateway told, and what was trimmed before it was read.
        """
        wanted = self._selection((kind,), symbols, feeds, specs)
        reading = Reading(partial(self._reader, wanted), parse_start(start), _positions(kind, cursor or {}), kind, gaps)
        self._readings.append(reading)
        return reading

    def consume(
        self,
        service: str,
        *,
        kind: str | Collection[str] = "trade",
        symbols: Collection[str] | None = None,
        feeds: Collection[str] | None = None,
        specs: Collection[str] | None = None,
        start: Start = FROM_START,
        lease_ttl: str = "3s",
    ) -> "Consuming":
        """Batches of the streams that this process works as one replica of `service`, for ever: tickbus.batch.

        Start the program as often as you like: each process gets whole shards, no symbol is ever worked by two, and when one
        joins, leaves or dies the others take over within `lease_ttl` and a second or two. Positions, states and outputs are
        committed together: `await batch.commit(...)`.
        kind: one or several of `trade`, `quote`, `bar`, `signal`; start: where streams without a committed position begin.
        All replicas of a service read the same.
        """
        check_name(service)
        kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        wanted = self._selection(kinds, symbols, feeds, specs)
        try:
            ttl = parse_duration(lease_ttl)
        except ValueError as error:
            raise ConfigError(f"lease_ttl: {error}") from None
        consuming = Consuming(partial(self._consumer, service, wanted, parse_start(start), ttl))
        self._consumings.append(consuming)
        return consuming

    async def last(self, kind: str = "trade", *, symbols: Collection[str] | None = None) -> dict[Stream, Message]:
        """The newest message of each stream that has one: no replay needed."""
        self._selection((kind,), symbols, None, None)
        link = await locate(self._url).connect()
        try:
            keys = Keys(self._prefix, await read_meta(link, self._prefix) or DEFAULT_SHARDS)
            shards = range(keys.shards) if symbols is None else sorted({keys.shard(symbol) for symbol in symbols})
            heads = {Stream.parse(name): head for name, head in (await read_heads(link, keys, shards)).items()}
        finally:
            link.close()
        found: dict[Stream, Message] = {}
        for stream, head in heads.items():
            if stream.kind == kind and (symbols is None or stream.symbol in symbols) and bytes(head.tick) != bytes(NIL):
                found[stream] = decode(TICK_FIELD[kind], bytes(head.tick))
        return found

    @staticmethod
    def _selection(
        kinds: Collection[str], symbols: Collection[str] | None, feeds: Collection[str] | None, specs: Collection[str] | None
    ) -> Selection:
        for kind in kinds:
            if kind not in KINDS:
                raise ConfigError(f"kind {kind!r}: read one of {', '.join(KINDS)}")
        for name, chosen in (("symbols", symbols), ("feeds", feeds), ("specs", specs)):
            if isinstance(chosen, str):
                raise ConfigError(f"{name}: give a list: {name}=[{chosen!r}]")
            if chosen is not None and not chosen:
                raise ConfigError(f"{name}: name at least one, or leave it out for all")
        for symbol in symbols or ():
            check_symbol(symbol)
        for feed in feeds or ():
            check_name(feed)
        if specs is not None and set(kinds) != {"bar"}:
            raise ConfigError(f"specs: only bars have one; leave it out for {' and '.join(kinds)}")
        return Selection.of(kinds, feeds or (), symbols or (), [spec.text for spec in parse_all(specs or ())])

    async def _consumer(self, service: str, wanted: Selection, start: "str | StreamId", lease_ttl: Duration) -> Consumer:
        link = await locate(self._url).connect()
        try:
            while (number := await read_meta(link, self._prefix)) is None:
                await asyncio.sleep(_EMPTY_SECONDS)
        finally:
            link.close()
        return Consumer(self._url, Keys(self._prefix, number), service, wanted, lease_ttl, start=start)

    async def _reader(self, wanted: Selection, start: "str | StreamId", positions: dict[str, StreamId]) -> AnyReader:
        redis = locate(self._url)  # each time anew: it belongs to the loop that reads
        link = await redis.connect()
        try:
            while (number := await read_meta(link, self._prefix)) is None:
                # nobody has written yet: what comes is all new, so nothing of it may be skipped
                start = FROM_START
                await asyncio.sleep(_EMPTY_SECONDS)
        finally:
            link.close()
        keys = Keys(self._prefix, number)
        shards = {keys.shard(symbol) for symbol in wanted.symbols} or None
        return open_reader(redis, keys, wanted, start, positions, shards, clocks=False)

    async def __aenter__(self) -> "Bus":
        link = await locate(self._url).connect()
        try:
            await read_meta(link, self._prefix)
        finally:
            link.close()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        for consuming in self._consumings:
            await consuming.close()

    def __enter__(self) -> "Bus":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        for reading in self._readings:
            reading.close()


class Reading:
    """An endless iterator over messages, for `async for` or `for`. `cursor` says where it stands; who leaves the loop and iterates again
    goes on there."""

    def __init__(
        self, make_reader: "Callable[[str | StreamId, dict[str, StreamId]], Awaitable[AnyReader]]", start: "str | StreamId",
        positions: dict[str, StreamId], kind: str, gaps: bool,
    ) -> None:  # fmt: skip
        self._make_reader = make_reader
        self._start = start
        self._positions = positions
        self._kind = kind
        self._gaps = gaps
        self._field = TICK_FIELD[kind]
        self._reader: AnyReader | None = None
        self._begun: dict[str, str] = {}
        """Stream name -> ID after which the reading began."""
        self._has_begun = False
        self._reads: list[Read] = []
        """What is given out now; up to `_to` it is given or decoded, and of that `_giving` is left."""
        self._to = 0
        self._giving: Iterator[Message] = iter(())
        self._thread: _Thread | None = None

    @property
    def cursor(self) -> dict[str, str]:
        """Stream name -> ID of the newest message given out. Save it, and `read(..., cursor=...)` goes on right after it."""
        at = dict(self._begun)
        if self._reader is not None:
            at |= {place.stream.name: place.given.decode() for place in self._reader.places if place.given is not None}
        # how much of the list is given out, its iterator knows: nothing is counted per message
        left = length_hint(self._giving)
        newest: dict[str, str] = {}
        for read in reversed(self._reads[: self._to]):
            entries, name = self._entries(read), read.stream.name
            given = len(entries) - left
            if not left:
                newest.setdefault(name, str(read.last))
            elif given > 0:
                newest.setdefault(name, entries[given - 1][0].decode())
            elif given == 0 and read.lost is not None and self._gaps:  # the loss was told: right in front of what follows it
                newest.setdefault(name, str(_in_front_of(read.lost.before)))
            left = max(0, left - len(entries) - self._tells_loss(read))
        return at | newest

    async def __aiter__(self) -> AsyncIterator[Message]:
        async for reads in self._rounds():
            for messages in self._begin(reads):
                for message in messages:
                    yield message

    def __iter__(self) -> Iterator[Message]:
        self._thread = thread = _Thread(self)
        try:
            for reads in thread:
                for messages in self._begin(reads):
                    yield from messages
        finally:
            thread.stop()

    async def entries(self) -> AsyncIterator[tuple[Stream, StreamId, Message]]:
        """The same with stream and ID of each message; a Gap for what was trimmed bears the ID after which it is missing."""
        async for reads in self._rounds():
            for read in reads:
                if read.lost is not None and self._gaps:
                    read.place.given = str(_in_front_of(read.lost.before)).encode()
                    yield read.stream, read.lost.after, trimmed_gap(read, "reader")
                for id, (field, payload) in self._entries(read):
                    message = decode(field, payload)
                    read.place.given = id
                    yield read.stream, StreamId.parse(id), message
                read.place.given = read.entries[-1][0]

    def close(self) -> None:
        if self._thread is not None:
            self._thread.stop()  # its loop closes the reader: a connection belongs to one loop
        elif self._reader is not None:
            self._reader.close()

    async def _rounds(self) -> AsyncIterator[list[Read]]:
        if self._has_begun:  # again: what appeared since is new, and read from its first entry
            self._start, self._positions = FROM_START, _positions(self._kind, self.cursor)
            self._reads, self._to, self._giving = [], 0, iter(())
        self._reader = reader = await self._make_reader(self._start, self._positions)
        try:
            await reader.prepare()
            self._begun, self._has_begun = {name: str(position) for name, position in reader.positions.items()}, True
            async for result in reader.rounds():
                if result.reads:
                    yield result.reads
        finally:
            reader.close()

    def _begin(self, reads: list[Read]) -> Iterator[Iterator[Message]]:
        """A new round: the one before is given out whole. The messages of this one come in parts, each decoded all at once."""
        for read in self._reads:
            read.place.given = read.entries[-1][0]
        self._reads, self._to = reads, 0
        for first in range(0, len(reads), _DECODED):
            messages = self._messages(reads[first : first + _DECODED])
            # only now: the cursor does not pass what could not be decoded
            self._to, self._giving = first + _DECODED, iter(messages)
            yield self._giving

    def _messages(self, reads: list[Read]) -> list[Message]:
        wanted, decode_tick = self._field, DECODE[self._field]
        if any(map(self._tells_loss, reads)):
            return [message for read in reads for message in (*self._loss(read), *self._messages([read._replace(lost=None)]))]
        try:
            return [
                decode_tick(payload) if field == wanted else decode(field, payload) for read in reads for _, (field, payload) in self._entries(read)
            ]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return [decode(field, payload) for read in reads for _, (field, payload) in self._entries(read)]  # WireError: it says of what

    def _entries(self, read: Read) -> list[Reply]:
        return read.entries if self._gaps else [entry for entry in read.entries if entry[1][0] == self._field]

    def _loss(self, read: Read) -> list[Message]:
        return [trimmed_gap(read, "reader")] if self._tells_loss(read) else []

    def _tells_loss(self, read: Read) -> bool:
        return read.lost is not None and self._gaps


def _in_front_of(id: StreamId) -> StreamId:
    return id._replace(seq=id.seq - 1)


def _positions(kind: str, cursor: Mapping[str, str]) -> dict[str, StreamId]:
    """ConfigError if this is no cursor of a reading of that kind."""
    positions = {}
    for name, id in cursor.items():
        try:
            if not is_stream(name) or Stream.parse(name).kind != kind:
                raise ValueError(f"{name!r} is no {kind} stream")
            positions[name] = StreamId.parse(id)
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"cursor: {error}; give what `cursor` of a reading of {kind}s was") from None
    return positions


class Consuming:
    """An endless iterator over batches, for one `async for`. Ending it, or leaving the bus, gives the shards to the other replicas."""

    def __init__(self, make_consumer: Callable[[], Awaitable[Consumer]]) -> None:
        self._make_consumer = make_consumer
        self._consumer: Consumer | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[Batch]:
        self._consumer = consumer = await self._make_consumer()
        try:
            await consumer.open()
            async for batch in consumer.batches():
                yield batch
        finally:
            await self.close()

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._closing = asyncio.create_task(consumer.close())
        if self._closing is not None:  # an iteration that was left open may be closing it already
            await asyncio.shield(self._closing)


class _Thread:
    """A loop of its own for a plain `for`: notebooks run one already in theirs."""

    def __init__(self, reading: Reading) -> None:
        self._queue: queue.Queue[list[Read] | BaseException | None] = queue.Queue(_HANDED_OVER)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._pump(reading)), name="tickbus-reading", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[list[Read]]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    async def _pump(self, reading: Reading) -> None:
        self._pumping = asyncio.create_task(self._put_all(reading))
        self._started.set()
        (ended,) = await asyncio.gather(self._pumping, return_exceptions=True)
        if reading._reader is not None:
            reading._reader.close()
        if isinstance(ended, Exception):  # for the caller's thread to raise
            self._queue.put(ended)

    async def _put_all(self, reading: Reading) -> None:
        async for reads in reading._rounds():
            await asyncio.to_thread(self._queue.put, reads) if self._queue.full() else self._queue.put_nowait(reads)

    def stop(self) -> None:
        self._started.wait()
        with suppress(RuntimeError):  # its loop has ended by itself: an error was handed over
            self._pumping.get_loop().call_soon_threadsafe(self._pumping.cancel)
        while self._thread.is_alive():  # a full queue may hold up its last `put`
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(0.05)
        with suppress(queue.Full):  # whoever waits in the loop, in another thread than this
            self._queue.put_nowait(None)
