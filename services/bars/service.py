"""Bars of the streams that this replica owns: entries in; bars and state out, committed together."""

import logging
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from functools import partial

import msgspec

from services.bars.builder import Emitted, StreamBars
from services.bars.state import OtherVersion
from tickbus.consumer.batch import Batch
from tickbus.consumer.consumer import ShardConsumer
from tickbus.consumer.outputs import Output
from tickbus.errors import WireError
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.codec import DECODE
from tickbus.protocol.messages import Gap, GapKind, StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId
from tickbus.reader.reads import Read, trimmed_gap
from tickbus.units import MILLISECOND, Duration, canonical, canonical_size, in_64_bits

log = logging.getLogger("tickbus.bars")

_COMMIT_SECONDS = 0.25
"""Positions alone are committed this often; bars immediately."""


class BarService:
    """Feeds each stream's entries to its bars, and commits the bars they emit."""

    def __init__(
        self, consumer: ShardConsumer, specs: tuple[Spec, ...], grace: Duration, horizon: Duration
    ) -> None:
        self._consumer = consumer
        self._keys = consumer.keys
        self.specs = specs
        self._make = partial(StreamBars, specs=specs, grace=grace, horizon=horizon)
        self._bars: dict[Stream, StreamBars] = {}
        self._by_clock: dict[tuple[int, str], list[Stream]] = {}
        """(shard, feed) -> its streams, which share a bus clock."""
        self._dirty: set[Stream] = set()
        """Streams whose bars differ from the committed state."""
        self.emitted: Counter[str] = Counter()
        self.revised: Counter[str] = Counter()
        self.unreadable = 0

    async def run(self) -> None:
        committed = time.monotonic()
        async for batch in self._consumer.batches():
            for states in batch.gained.values():
                for name, state in states.items():
                    self._add(Stream.parse(name), state)
            outputs = self._apply(batch)
            # commit before releasing shards: the next owner need not reread these entries
            if outputs or (self._dirty and (batch.lost or time.monotonic() - committed > _COMMIT_SECONDS)):
                await batch.commit(outputs, {stream: self._bars[stream].state() for stream in self._dirty})
                self._dirty.clear()
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
                bars = self._bars[stream]
                if (due := bars.closes_at_ms) is not None and due < bus_ms:
                    self._emit(stream, bars.clock(bus_ms), outputs)
        return outputs

    def _release(self, shards: Collection[int]) -> None:
        """Forget these shards; another replica continues from their committed state."""
        released = {stream for stream in self._bars if self._keys.shard(stream.symbol) in shards}
        self._bars = {stream: bars for stream, bars in self._bars.items() if stream not in released}
        self._by_clock = {
            clock: streams for clock, streams in self._by_clock.items() if clock[0] not in shards
        }
        self._dirty -= released

    def _read(self, read: Read, outputs: list[Output]) -> None:
        bars = self._bars.get(read.stream) or self._add(read.stream, None)
        if read.lost is not None:
            # entries trimmed before they were read: a hole in the bars, and announced in their streams too
            gap = _at_event_time(trimmed_gap(read, self._consumer.service), bars.newest_event, read)
            self._emit(
                read.stream, bars.apply(StreamId(read.lost.before.ms, read.lost.after.seq), gap), outputs
            )
            announced = msgspec.structs.replace(gap, stream=StreamKind.BAR)
            outputs += [
                Output(self._bar_stream(read.stream, spec.text), read.lost.before.ms, announced)
                for spec in self.specs
            ]
        self._emit(read.stream, bars.apply_many(self._decoded(read)), outputs)

    def _decoded(self, read: Read) -> list[tuple[StreamId, Trade | Gap]]:
        """Return the entries of a read; one that no gateway of this version wrote becomes a Gap."""
        entries: list[tuple[StreamId, Trade | Gap]] = []
        for id, fields in read.entries:
            try:
                field, payload = fields
                entries.append((StreamId.parse(id), _canonical(DECODE[field](payload))))
            except (KeyError, ValueError, msgspec.MsgspecError) as error:
                self.unreadable += 1
                log.error(
                    "%s %s: skipping entry, not a Trade or Gap of this version: %s",
                    read.stream.name,
                    id.decode(),
                    error,
                )
                at = StreamId.parse(id)
                rejected = Gap(
                    StreamKind.TRADE,
                    self._consumer.service,
                    GapKind.REJECTED,
                    at.ms * MILLISECOND,
                    at.ms * MILLISECOND,
                    count=1,
                )
                entries.append((at, rejected))
        return entries

    def _emit(self, stream: Stream, emitted: list[Emitted], outputs: list[Output]) -> None:
        for ms, bar in emitted:
            outputs.append(Output(self._bar_stream(stream, bar.spec), ms, bar))
            self._dirty.add(stream)
            self.emitted[bar.spec] += 1
            self.revised[bar.spec] += bar.revision > 0

    @staticmethod
    def _bar_stream(trades: Stream, spec: str) -> Stream:
        return Stream("bar", trades.feed, trades.symbol, spec)

    def _add(self, stream: Stream, state: bytes | None) -> StreamBars:
        try:
            bars = self._make(stream.symbol, state=state)
        except OtherVersion:
            raise
        except WireError as error:
            log.error(
                "%s: %s: some other program overwrote it; its bars begin anew, the first ones partial",
                stream.name, error,
            )  # fmt: skip
            bars = self._make(stream.symbol, state=None)
        self._bars[stream] = bars
        self._by_clock.setdefault((self._keys.shard(stream.symbol), stream.feed), []).append(stream)
        return bars

    @property
    def open_bars(self) -> int:
        return sum(bars.open_bars for bars in list(self._bars.values()))

    @property
    def ignored(self) -> Counter[str]:
        total: Counter[str] = Counter(unreadable=self.unreadable)
        for bars in list(self._bars.values()):
            total.update(bars.counters)
        return total


def _canonical(message: Trade | Gap) -> Trade | Gap:
    """Return the message in a gateway's canonical form, whoever wrote it: digits without exponent, times in
    64 bits. ValueError if that is impossible.
    """
    if isinstance(message, Gap):
        in_64_bits(message.from_ts)
        in_64_bits(message.to_ts)
        return message
    in_64_bits(message.ts_event)
    price, size = canonical(message.price_text), canonical_size(message.size_text)
    return (
        message
        if (price, size) == (message.price_text, message.size_text)
        else msgspec.structs.replace(message, price_text=price, size_text=size)
    )


def _at_event_time(gap: Gap, newest: int, read: Read) -> Gap:
    """Return the Gap with the range between the trades around it: its IDs carry bus time, another clock."""
    following = (DECODE[b"t"](payload).ts_event for _, (field, payload) in read.entries if field == b"t")
    with suppress(msgspec.MsgspecError):
        if newest and (after := next(following, 0)):
            return msgspec.structs.replace(gap, from_ts=min(newest, after), to_ts=max(newest, after))
    return gap
