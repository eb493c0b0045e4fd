"""Signals of the streams that this replica owns: entries in; signals and state out, committed together."""

import asyncio
import logging
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
from tickbus.consumer.stateful import StatefulService, States
from tickbus.consumer.tick_entries import TickEntries, at_event_time
from tickbus.errors import RedisError, WireError
from tickbus.protocol.messages import SignalState, StreamKind
from tickbus.protocol.names import StatePart, Stream, StreamId, stream_of_state
from tickbus.reader.reads import Read, trimmed_gap

log = logging.getLogger("tickbus.signals")

_COMMIT_SECONDS = 0.5
"""Positions alone are committed this often; signals immediately."""
_LOOK_SECONDS = 1.0
"""How often the parameters are looked at."""

StreamSignals = TradeSignals | QuoteSignals


class SignalService(StatefulService):
    """Feeds each stream's entries to its signals, and commits what they say."""

    def __init__(self, consumer: ShardConsumer, parameters: Path | None) -> None:
        super().__init__(consumer, log, _COMMIT_SECONDS)
        self._keys = consumer.keys
        self._store = ParameterStore(consumer.keys, consumer.service, parameters)
        self._parameters = ParameterSet()
        """Those that all streams have."""
        self._signals: dict[Stream, StreamSignals] = {}
        self._by_clock: dict[tuple[int, str], list[Stream]] = {}
        """(shard, feed) -> its streams, which share a bus clock."""
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
            await self.process()
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

    async def meet(self, batch: Batch) -> None:
        """Take over parameters that changed."""
        if self._store.current is not self._parameters:
            self._parameters = self._store.current
            for signals in self._signals.values():
                signals.configure(self._parameters)

    def states(self, streams: Collection[Stream]) -> States:
        """As in StatefulService."""
        whole: dict[Stream, bytes] = {}
        parts: dict[StatePart, bytes] = {}
        for stream in streams:
            for name, value in self._signals[stream].state().items():
                self.state_bytes += len(value)
                if name:
                    parts[StatePart(stream, name)] = value
                else:
                    whole[stream] = value
        return whole, parts

    def apply(self, batch: Batch) -> list[Output]:
        """As in StatefulService."""
        outputs: list[Output] = []
        for read in batch.reads:
            self._read(read, outputs)
            self.dirty.add(read.stream)
        for clock, bus_ms in batch.clocks.items():
            for stream in self._by_clock.get(clock, ()):
                due = self._signals[stream].due_ms
                if due is not None and due < bus_ms:
                    self._emit(stream, self._signals[stream].clock(bus_ms), outputs)
                    self.dirty.add(stream)
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

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """As in StatefulService. OtherVersion if another version of this program wrote a state."""
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

    def release(self, shards: Collection[int]) -> None:
        """As in StatefulService."""
        released = {stream for stream in self._signals if self._keys.shard(stream.symbol) in shards}
        for stream in released:
            self._ended.update(self._signals.pop(stream).ignored)
        self._by_clock = {
            clock: streams for clock, streams in self._by_clock.items() if clock[0] not in shards
        }
        self.dirty -= released

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
