"""`tickbus bars`: trade streams in, bar streams out, bars and position in one transaction."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Annotated

import msgspec

from services.bars.builder import Emitted, StreamBars
from tickbus import metrics as m
from tickbus.batch import Batch
from tickbus.consumer import Consumer
from tickbus.consumer_metrics import ConsumerMeters, tell_readiness
from tickbus.errors import ConfigError
from tickbus.gaps import trimmed_gap
from tickbus.lag import LagMeter
from tickbus.messages import Gap, GapKind, StreamKind, Trade
from tickbus.metrics import Meters
from tickbus.names import Keys, Stream, StreamId, check_name
from tickbus.options import Option, WriterOptions
from tickbus.outputs import Output
from tickbus.reader import FROM_START, Read, parse_start
from tickbus.replay_ring import Window
from tickbus.retention import Sweeper, SweepMeters
from tickbus.selection import Selection
from tickbus.service import Service, run
from tickbus.specs import Spec, parse_all
from tickbus.topology import locate
from tickbus.units import MILLISECOND, SECOND, Duration, canonical, canonical_size, in_64_bits
from tickbus.wire import DECODE

log = logging.getLogger("tickbus.bars")

ABOUT = "Build bars from the trades: time bars of any length, tick, volume and value bars, exact, revised when a late trade comes."
POSITIONALS = ()

_COMMIT_SECONDS = 0.25
"""Positions alone are committed this often; bars at once."""


class Options(WriterOptions, frozen=True, kw_only=True):
    specs: Annotated[tuple[str, ...], Option("what to build: time:<n>s|m|h|d, tick:<n>, volume:<n>, value:<n>")] = ("time:1s", "time:1m")
    feeds: Annotated[tuple[str, ...], Option("names of the feeds to read; default all")] = ()
    grace: Annotated[Duration, Option("a time bar closes this long after its end")] = Duration(2 * SECOND)
    horizon: Annotated[Duration, Option("a late trade revises its bar for this long after the close")] = Duration(60 * SECOND)
    from_: Annotated[str, Option("where to begin without a committed position: start, now or a time")] = FROM_START
    name: Annotated[str, Option("name of this service: its position, state and members; processes of one name share the work")] = "bars"


def start(options: Options) -> int:
    specs, begin = parse_all(options.specs), parse_start(options.from_, "--from")
    if not specs:
        raise ConfigError("--specs: name what to build, like time:1s,time:1m")
    for name in (options.name, *options.feeds):
        check_name(name)
    return run(partial(_run, options, specs, begin), options, "bars")


async def _run(options: Options, specs: tuple[Spec, ...], begin: "str | StreamId", service: Service) -> None:
    redis = locate(options.redis)
    (await redis.open_checked()).close()
    keys = Keys(options.prefix, options.shards)
    reads = Selection.of(("trade",), options.feeds)
    window = Window(options.replay_window, options.replay_bytes)
    writes = Selection.of(("bar",), options.feeds, specs=[spec.text for spec in specs])
    consumer = Consumer(options.redis, keys, options.name, reads, options.lease_ttl, start=begin, writes=writes, window=window)
    builder = BarService(consumer, keys, specs, options.grace, options.horizon)
    meters = BarMeters(service.meters, consumer, builder)
    lag = LagMeter(service.meters, options.name, keys, redis.connect, consumer.works, lambda: consumer.positions)
    sweeper = Sweeper(options.name, options, keys, redis.connect, lambda: consumer.outputs.keys)
    SweepMeters(service.meters, sweeper.total)
    try:
        await consumer.open()
        await sweeper.declare()
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(work) for work in (lag.run(), sweeper.run(), tell_readiness(service, consumer))]
            await service.until_stopping(builder.run())
            meters.refresh()
            for task in others:
                task.cancel()
    finally:
        await consumer.close()


class BarService:
    """Feeds each stream's entries to its bars, and commits what they say."""

    def __init__(self, consumer: Consumer, keys: Keys, specs: tuple[Spec, ...], grace: Duration, horizon: Duration) -> None:
        self._consumer = consumer
        self._keys = keys
        self.specs = specs
        self._make = partial(StreamBars, specs=specs, grace=grace, horizon=horizon)
        self._bars: dict[Stream, StreamBars] = {}
        self._by_clock: dict[tuple[int, str], list[Stream]] = {}
        """(shard, feed) -> its streams, which a bus clock concerns."""
        self._moved: set[Stream] = set()
        """Streams whose bars are not as committed."""
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
            # what is given back is committed first: who works it next need not read it again
            if outputs or (self._moved and (batch.lost or time.monotonic() - committed > _COMMIT_SECONDS)):
                await batch.commit(outputs, {stream: self._bars[stream].state() for stream in self._moved})
                self._moved.clear()
                committed = time.monotonic()
            if batch.lost:
                self._leave(batch.lost)

    def _apply(self, batch: Batch) -> list[Output]:
        outputs: list[Output] = []
        for read in batch.reads:
            self._read(read, outputs)
            self._moved.add(read.stream)
        for clock, bus_ms in batch.clocks.items():
            for stream in self._by_clock.get(clock, ()):
                bars = self._bars[stream]
                if (due := bars.closes_at_ms) is not None and due < bus_ms:
                    self._emit(stream, bars.clock(bus_ms), outputs)
        return outputs

    def _leave(self, shards: Collection[int]) -> None:
        """Another replica goes on with these from what is committed."""
        gone = {stream for stream in self._bars if self._keys.shard(stream.symbol) in shards}
        self._bars = {stream: bars for stream, bars in self._bars.items() if stream not in gone}
        self._by_clock = {clock: streams for clock, streams in self._by_clock.items() if clock[0] not in shards}
        self._moved -= gone

    def _read(self, read: Read, outputs: list[Output]) -> None:
        bars = self._bars.get(read.stream) or self._add(read.stream, None)
        if read.lost is not None:
            # what was trimmed before it was read is a hole in the bars, and told in their streams too
            gap = _at_event_time(trimmed_gap(read, self._consumer.service), bars.newest_event, read)
            self._emit(read.stream, bars.apply(StreamId(read.lost.before.ms, read.lost.after.seq), gap), outputs)
            told = msgspec.structs.replace(gap, stream=StreamKind.BAR)
            outputs += [Output(self._stream(read.stream, spec.text), read.lost.before.ms, told) for spec in self.specs]
        self._emit(read.stream, bars.apply_many(self._decoded(read)), outputs)

    def _decoded(self, read: Read) -> list[tuple[StreamId, Trade | Gap]]:
        """The entries of a read; one that no gateway of this version wrote is left out, and marks its bars as a Gap does."""
        entries: list[tuple[StreamId, Trade | Gap]] = []
        for id, (field, payload) in read.entries:
            try:
                entries.append((StreamId.parse(id), _checked(DECODE[field](payload))))
            except (KeyError, ValueError, msgspec.MsgspecError) as error:
                self.unreadable += 1
                log.error("%s %s: an entry that is no Trade or Gap of this version is left out: %s", read.stream.name, id.decode(), error)
                at = StreamId.parse(id)
                unread = Gap(StreamKind.TRADE, self._consumer.service, GapKind.REJECTED, at.ms * MILLISECOND, at.ms * MILLISECOND, count=1)
                entries.append((at, unread))
        return entries

    def _emit(self, stream: Stream, emitted: list[Emitted], outputs: list[Output]) -> None:
        for ms, bar in emitted:
            outputs.append(Output(self._stream(stream, bar.spec), ms, bar))
            self._moved.add(stream)
            self.emitted[bar.spec] += 1
            self.revised[bar.spec] += bar.revision > 0

    @staticmethod
    def _stream(trades: Stream, spec: str) -> Stream:
        return Stream("bar", trades.feed, trades.symbol, spec)

    def _add(self, stream: Stream, state: bytes | None) -> StreamBars:
        bars = self._bars[stream] = self._make(stream.symbol, state=state)
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


def _checked(message: Trade | Gap) -> Trade | Gap:
    """As a gateway writes it, whoever did: digits without exponent, times that fit. ValueError if that cannot be."""
    if isinstance(message, Gap):
        in_64_bits(message.from_ts), in_64_bits(message.to_ts)
        return message
    in_64_bits(message.ts_event)
    price, size = canonical(message.price_text), canonical_size(message.size_text)
    return message if (price, size) == (message.price_text, message.size_text) else msgspec.structs.replace(message, price_text=price, size_text=size)


def _at_event_time(gap: Gap, newest: int, read: Read) -> Gap:
    """What was trimmed lies between the trades around it: bus time, which its IDs tell, is another clock than the vendor's."""
    following = (DECODE[b"t"](payload).ts_event for _, (field, payload) in read.entries if field == b"t")
    with suppress(msgspec.MsgspecError):
        if newest and (after := next(following, 0)):
            return msgspec.structs.replace(gap, from_ts=min(newest, after), to_ts=max(newest, after))
    return gap


class BarMeters:
    """The builder's integers -> its metrics, at each scrape."""

    def __init__(self, meters: Meters, consumer: Consumer, builder: BarService) -> None:
        self._builder = builder
        self._emitted = {spec.text: meters.total(m.BARS_EMITTED, spec.text) for spec in builder.specs}
        self._revised = {spec.text: meters.total(m.BARS_REVISED, spec.text) for spec in builder.specs}
        self._ignored = {reason: meters.total(m.BARS_IGNORED, reason) for reason in ("too_late", "off_book", "zero", "cancelled", "unreadable")}
        self._open = meters.gauge(m.BARS_OPEN)
        ConsumerMeters(meters, consumer)
        meters.before_scrape(self.refresh)

    def refresh(self) -> None:
        for spec, total in self._emitted.items():
            total.bring_to(self._builder.emitted[spec])
            self._revised[spec].bring_to(self._builder.revised[spec])
        ignored = self._builder.ignored
        for reason, total in self._ignored.items():
            total.bring_to(ignored[reason])
        self._open.set(self._builder.open_bars)
