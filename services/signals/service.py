"""Signals of the streams that this replica owns: entries in; signals and state out, committed together."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from services.signals.parameter_store import ParameterStore
from services.signals.parameters import ParameterSet
from services.signals.quotes import QuoteSignals
from services.signals.stream_state import OtherVersion
from services.signals.trades import Emitted, TradeSignals
from tickbus.consumer.batch import Batch
from tickbus.consumer.consumer import ShardConsumer
from tickbus.consumer.outputs import Output
from tickbus.consumer.tick_entries import TickEntries, at_event_time
from tickbus.errors import Fenced, RedisError, WireError
from tickbus.protocol.messages import SignalState, StreamKind
from tickbus.protocol.names import StatePart, Stream, StreamId, stream_of_state
from tickbus.reader.reads import Read, trimmed_gap

log = logging.getLogger("tickbus.signals")

_COMMIT_SECONDS = 0.5
"""Positions alone are committed this often; signals immediately."""
_LAST_COMMIT_SECONDS = 2.0
"""How long the last commit may take."""
_LOOK_SECONDS = 1.0
"""How often the parameters are looked at."""

StreamSignals = TradeSignals | QuoteSignals


class SignalService:
    """Feeds each stream's entries to its signals, and commits what they say."""

    def __init__(self, consumer: ShardConsumer, parameters: Path | None) -> None:
        self._consumer = consumer
        self._keys = consumer.keys
        self._store = ParameterStore(consumer.keys, consumer.service, parameters)
        self._parameters = ParameterSet()
        """Those that all streams have."""
        self._signals: dict[Stream, StreamSignals] = {}
        self._by_clock: dict[tuple[int, str], list[Stream]] = {}
        """(shard, feed) -> its streams, which share a bus clock."""
        self._dirty: set[Stream] = set()
        """Streams whose signals differ from the committed state."""
        self._applied: Batch | None = None
        """The newest batch that is in the signals."""
        self._entries = TickEntries(consumer.service, log, "its signals get has_gap")
        self._ended: Counter[str] = Counter()
        """Ignored entries of streams that were released."""
        self.emitted: Counter[tuple[str, str]] = Counter()
        """By name and state."""
        self.state_bytes = 0
        """Written so far."""

    async def prepare(self) -> None:
        """Find the parameters in force. ConfigError if there are none that can be used."""
        await self._look()
        self._parameters = self._store.current

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch_parameters())
            try:
                await self._take_batches()
            except asyncio.CancelledError:
                await self._commit_last()
                raise
            finally:
                watching.cancel()

    async def _watch_parameters(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._look()
            except RedisError as error:
                log.debug("cannot read the parameters: %s", error)

    async def _look(self) -> None:
        link = await self._consumer.connect()
        try:
            await self._store.look(link)
        finally:
            link.close()

    async def _commit_last(self) -> None:
        """This replica is to end: commit what was applied, so that the next owner need not read it again."""
        if self._applied is None or not self._dirty:
            return
        try:
            async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                await self._commit(self._applied, [])
        except TimeoutError:
            log.info("the last positions are not committed: Redis did not accept them in time")
        except Fenced as error:
            log.info("the last positions are not committed: %s", error)

    async def _commit(self, batch: Batch, outputs: list[Output]) -> None:
        """Commit everything up to this batch. Even if cancelled, it is stored unless Redis is unavailable."""
        dirty, self._dirty = self._dirty, set()
        state: dict[Stream, bytes] = {}
        parts: dict[StatePart, bytes] = {}
        for stream in dirty:
            for name, value in self._signals[stream].state().items():
                self.state_bytes += len(value)
                if name:
                    parts[StatePart(stream, name)] = value
                else:
                    state[stream] = value
        await batch.commit(outputs, state, parts)

    async def _take_batches(self) -> None:
        committed = time.monotonic()
        async for batch in self._consumer.batches():
            for fields in batch.gained.values():
                self._restore(fields)
            if self._store.current is not self._parameters:
                self._parameters = self._store.current
                for signals in self._signals.values():
                    signals.configure(self._parameters)
            outputs = self._apply(batch)
            self._applied = batch
            # commit before releasing shards: the next owner need not reread these entries
            if outputs or (self._dirty and (batch.lost or time.monotonic() - committed > _COMMIT_SECONDS)):
                await self._commit(batch, outputs)
                committed = time.monotonic()
            if batch.lost:
                self._release(batch.lost)

    def _apply(self, batch: Batch) -> list[Output]:
        outputs: list[Output] = []
        for read in batch.reads:
            self._read(read, outputs)
            self._dirty.add(read.stream)
        for clock, bus_ms in batch.clocks.items():
            for stream in self._by_clock.get(clock, ()):
                due = self._signals[stream].due_ms
                if due is not None and due < bus_ms:
                    self._emit(stream, self._signals[stream].clock(bus_ms), outputs)
                    self._dirty.add(stream)
        return outputs

    def _read(self, read: Read, outputs: list[Output]) -> None:
        stream = read.stream
        signals = self._signals.get(stream) or self._add(stream, None)
        if read.lost is not None:
            # entries trimmed before they were read: a hole in the signals, and announced in their stream too
            gap = at_event_time(trimmed_gap(read, self._consumer.service), signals.newest_event, read)
            at = StreamId(read.lost.before.ms, read.lost.after.seq)
            self._emit(stream, signals.apply(at, gap), outputs)
            announced = msgspec.structs.replace(gap, stream=StreamKind.SIGNAL)
            outputs.append(Output(_signal_stream(stream), read.lost.before.ms, announced))
        if isinstance(signals, TradeSignals):
            for at, trade in self._entries.trades(read):
                if found := signals.apply(at, trade):
                    self._emit(stream, found, outputs)
        else:
            for at, quote in self._entries.quotes(read):
                if found := signals.apply(at, quote):
                    self._emit(stream, found, outputs)

    def _emit(self, stream: Stream, emitted: list[Emitted], outputs: list[Output]) -> None:
        for ms, signal in emitted:
            outputs.append(Output(_signal_stream(stream), ms, signal))
            self.emitted[signal.name, SignalState(signal.state).name.lower()] += 1

    def _restore(self, fields: Mapping[str, bytes]) -> None:
        """Continue from the committed state. OtherVersion if another version of this program wrote it."""
        by_stream: dict[Stream, dict[str, bytes]] = {}
        for name, value in fields.items():
            by_stream.setdefault(stream_of_state(name), {})[name.partition("#")[2]] = value
        for stream, stored in by_stream.items():
            if stream.kind not in _SIGNALS:
                continue
            try:
                self._add(stream, stored)
            except OtherVersion:
                raise
            except WireError as error:
                log.error("%s: %s; its signals begin anew, after a warm-up", stream.name, error)
                self._add(stream, None)

    def _add(self, stream: Stream, stored: Mapping[str, bytes] | None) -> StreamSignals:
        made = _SIGNALS[stream.kind](stream.feed, stream.symbol, self._parameters, stored)
        if stream not in self._signals:
            self._by_clock.setdefault((self._keys.shard(stream.symbol), stream.feed), []).append(stream)
        self._signals[stream] = made
        return made

    def _release(self, shards: Collection[int]) -> None:
        """Forget these shards; another replica continues from their committed state."""
        released = {stream for stream in self._signals if self._keys.shard(stream.symbol) in shards}
        for stream in released:
            self._ended.update(self._signals.pop(stream).ignored)
        self._by_clock = {
            clock: streams for clock, streams in self._by_clock.items() if clock[0] not in shards
        }
        self._dirty -= released

    # what it says of itself

    @property
    def episodes(self) -> int:
        """Number of open ones."""
        return sum(signals.episodes for signals in list(self._signals.values()))

    @property
    def ignored(self) -> Counter[str]:
        """Ticks that touched no signal, by reason."""
        total = self._ended.copy()
        total["unreadable"] = self._entries.unreadable
        for signals in list(self._signals.values()):
            total.update(signals.ignored)
        return total

    @property
    def undecided(self) -> dict[str, int]:
        """Evaluations of windows with equal values (`flat`), starts within a cool-down (`suppressed`); of the
        streams that are owned now.
        """
        signals = list(self._signals.values())
        return {
            "flat": sum(one.flat for one in signals), "suppressed": sum(one.suppressed for one in signals),
        }  # fmt: skip

    @property
    def parameters(self) -> int:
        """Number of the parameters in force."""
        return self._parameters.number


_SIGNALS: dict[str, type[TradeSignals] | type[QuoteSignals]] = {"trade": TradeSignals, "quote": QuoteSignals}


def _signal_stream(stream: Stream) -> Stream:
    return Stream("signal", stream.feed, stream.symbol)
