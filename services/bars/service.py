"""Bars of the streams that this replica owns: entries in; bars and state out, committed together."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from services.bars.builder import Emitted, StreamBars
from services.bars.feeds import FeedStreams
from services.bars.state import OtherVersion
from services.bars.watermark import AHEAD_TRADES
from tickbus.consumer.batch import Batch
from tickbus.consumer.consumer import ShardConsumer
from tickbus.consumer.outputs import Output
from tickbus.consumer.stateful import StatefulService, States
from tickbus.consumer.tick_entries import TickEntries, at_event_time
from tickbus.errors import RedisError, WireError
from tickbus.protocol.bar_specs import Spec
from tickbus.protocol.codec import read_head
from tickbus.protocol.messages import StreamKind, Trade
from tickbus.protocol.names import Stream, StreamId, is_stream
from tickbus.reader.reads import Read, trimmed_gap
from tickbus.redis.link import Connection, Reply, ReplyError
from tickbus.redis.resp import Command
from tickbus.units import SECOND, Duration, in_64_bits

log = logging.getLogger("tickbus.bars")

_COMMIT_SECONDS = 0.25
"""Positions alone are committed this often; bars immediately."""
_LOOK_SECONDS = 10.0
"""How often the registry of streams is looked at."""
_TRIES, _RETRY_SECONDS = 5, 0.2


class BarService(StatefulService):
    """Feeds each stream's entries to its bars, and commits the bars they emit."""

    def __init__(
        self,
        consumer: ShardConsumer,
        specs: tuple[Spec, ...],
        grace: Duration,
        horizon: Duration,
        feeds: Collection[str] = (),
    ) -> None:
        """`feeds`: those that the consumer reads; empty means all."""
        super().__init__(consumer, log, _COMMIT_SECONDS)
        self._keys = consumer.keys
        self.feeds = FeedStreams(feeds)
        self._link: Connection | None = None
        self._connecting = asyncio.Lock()
        self.specs = specs
        self._make = partial(StreamBars, specs=specs, grace=grace, horizon=horizon)
        self._bars: dict[Stream, StreamBars] = {}
        self._by_clock: dict[tuple[int, str], list[Stream]] = {}
        """(shard, feed) -> its streams, which share a bus clock."""
        self._ahead: dict[Stream, bool] = {}
        """Streams whose vendor's clock is ahead -> whether that is certain, so that time bars close."""
        self.emitted: Counter[str] = Counter()
        self.revised: Counter[str] = Counter()
        self._entries = TickEntries(consumer.service, log, "its bar gets has_gap")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch_registry())
            await self.process()
            watching.cancel()

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """As in StatefulService. OtherVersion if another version of this program wrote a state."""
        for name, state in fields.items():
            self._restore(Stream.parse(name), state)

    async def meet(self, batch: Batch) -> None:
        """Begin the streams that are new to this service."""
        if any(read.stream not in self._bars for read in batch.reads):
            await self._meet(batch.reads)

    def states(self, streams: Collection[Stream]) -> States:
        """As in StatefulService."""
        return {stream: self._bars[stream].state() for stream in streams}, {}

    def apply(self, batch: Batch) -> list[Output]:
        """As in StatefulService."""
        outputs: list[Output] = []
        for read in batch.reads:
            self._read(read, outputs)
            self.dirty.add(read.stream)
        for clock, bus_ms in batch.clocks.items():
            for stream in self._by_clock.get(clock, ()):
                bars = self._bars[stream]
                if (due := bars.closes_at_ms) is not None and due < bus_ms:
                    self._emit(stream, bars.clock(bus_ms), outputs)
        return outputs

    def release(self, shards: Collection[int]) -> None:
        """As in StatefulService."""
        released = {stream for stream in self._bars if self._keys.shard(stream.symbol) in shards}
        self._bars = {stream: bars for stream, bars in self._bars.items() if stream not in released}
        self._by_clock = {
            clock: streams for clock, streams in self._by_clock.items() if clock[0] not in shards
        }
        self.dirty -= released
        for stream in released:
            self._ahead.pop(stream, None)

    async def _meet(self, reads: Sequence[Read]) -> None:
        """Begin the streams of these reads that are new to this service."""
        new = [read for read in reads if read.stream not in self._bars]
        # elsewhere it does not matter when the stream was subscribed
        at_start = [read.stream for read in new if StreamId.parse(read.entries[0][0]).seq == 1]
        subscribed = await self._subscribed(at_start) if at_start else {}
        for read in new:
            if read.stream not in self._bars:
                self._add(read.stream, subscribed=subscribed.get(read.stream, 0))

    async def _subscribed(self, streams: Sequence[Stream]) -> dict[Stream, int]:
        """Return when the vendor acknowledged the subscriptions of streams, as far as their heads say so."""
        found: dict[Stream, int] = {}
        commands = [("HGET", self._keys.last(self._keys.shard(s.symbol)), s.name) for s in streams]
        values: list[Reply] = [None] * len(streams)
        for attempt in range(_TRIES):
            try:
                values = await self._ask_each(commands)
                break
            except RedisError as error:
                self._disconnect()
                if attempt == _TRIES - 1:
                    log.warning(
                        "%s and %d more: cannot read since when they are subscribed, so their first bars are "
                        "partial: %s", streams[0].name, len(streams) - 1, error,
                    )  # fmt: skip
                await asyncio.sleep(_RETRY_SECONDS)
        for stream, value in zip(streams, values, strict=True):
            try:
                found[stream] = in_64_bits(read_head(stream.name, value).subscribed) if value else 0
            except (WireError, ValueError):
                continue
        return found

    async def _ask_each(self, commands: Sequence[Command]) -> list[Reply]:
        """Return the replies; None instead of an error of Redis: anybody can write keys of a wrong type."""
        async with self._connecting:
            if self._link is None or self._link.closed:
                self._link = await self._consumer.connect()
            link = self._link
        asked = (link.ask(*command) for command in commands)
        replies = await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, ReplyError):
                raise reply
        return [None if isinstance(reply, ReplyError) else reply for reply in replies]

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _watch_registry(self) -> None:
        """Report feeds that have only quotes."""
        try:
            while True:
                try:
                    self._report_feeds(await self._stream_names())
                except RedisError as error:
                    self._disconnect()
                    log.debug("cannot read the registry of streams: %s", error)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._disconnect()

    async def _stream_names(self) -> list[str]:
        commands = [("HKEYS", self._keys.last(shard)) for shard in range(self._keys.shards)]
        replies = await self._ask_each(commands)
        names = [name.decode(errors="replace") for reply in replies for name in reply or ()]
        return [name for name in names if is_stream(name)]

    def _report_feeds(self, names: Iterable[str]) -> None:
        gone, back = self.feeds.look(names)
        for feed in gone:
            log.warning(
                "%s: no bars: its %d streams on the bus are all quotes; to have bars, subscribe its trades "
                "too (gateway --kinds trade,quote)", feed, self.feeds.only_quotes[feed],
            )  # fmt: skip
        for feed in back:
            log.info("%s: trades are on the bus now", feed)

    def _read(self, read: Read, outputs: list[Output]) -> None:
        bars = self._bars[read.stream]
        if read.lost is not None:
            # entries trimmed before they were read: a hole in the bars, and announced in their streams too
            gap = at_event_time(trimmed_gap(read, self._consumer.service), bars.newest_event, read)
            self._emit(
                read.stream, bars.apply(StreamId(read.lost.before.ms, read.lost.after.seq), gap), outputs
            )
            announced = msgspec.structs.replace(gap, stream=StreamKind.BAR)
            outputs += [
                Output(self._bar_stream(read.stream, spec.text), read.lost.before.ms, announced)
                for spec in self.specs
            ]
        entries = self._entries.trades(read)
        self._emit(read.stream, bars.apply_many(entries), outputs)
        if bars.clock_ahead or bars.awaits_clock or read.stream in self._ahead:
            newest = next((trade for _, trade in reversed(entries) if isinstance(trade, Trade)), None)
            self._note_clock(read.stream, bars, newest)

    def _note_clock(self, stream: Stream, bars: StreamBars, newest: Trade | None = None) -> None:
        """Note whether the vendor's clock is ahead, and report it once. `newest`: the trade that shows it."""
        before = self._ahead.pop(stream, None)
        if not (bars.clock_ahead or bars.awaits_clock):
            if before is not None:
                log.info("%s: the vendor's clock is not ahead any more", stream.name)
            return
        self._ahead[stream] = bars.clock_ahead
        if before is None:
            by = f" by {(newest.ts_event - newest.ts_recv) / SECOND:.3f} s" if newest is not None else ""
            log.warning(
                "%s: the vendor's clock is ahead of ours%s: all trades are flagged future_time; after %d of "
                "them time bars close by our clock, with quality clock_ahead; check the clock of the "
                "gateway's host, then the vendor's", stream.name, by, AHEAD_TRADES,
            )  # fmt: skip
        elif bars.clock_ahead and not before:
            log.info("%s: time bars close by our clock now", stream.name)

    @property
    def fault(self) -> str:
        """What keeps all streams from having time bars, for /readyz; empty if nothing does."""
        waiting = [stream for stream, certain in self._ahead.items() if not certain]
        if waiting and not any(bars.has_clock for bars in self._bars.values()):
            return (
                f"no time bars: {waiting[0].name}: the vendor's clock is ahead of ours; they close after "
                f"{AHEAD_TRADES} trades in a row that are flagged future_time"
            )
        return self.feeds.fault

    def report(self) -> list[str]:
        """Return what `tickbus status` shows of this replica: a line per feed whose clock is ahead."""
        by_feed: dict[str, list[str]] = {}
        for stream in self._ahead:
            by_feed.setdefault(stream.feed, []).append(stream.name)
        return [
            f"{feed}: the vendor's clock is ahead of ours, in {len(names)} streams like {names[0]}: "
            "time bars close by our clock, with quality clock_ahead; check the clock of the gateway's "
            "host, then the vendor's"
            for feed, names in by_feed.items()
        ]

    def _emit(self, stream: Stream, emitted: list[Emitted], outputs: list[Output]) -> None:
        for ms, bar in emitted:
            outputs.append(Output(self._bar_stream(stream, bar.spec), ms, bar))
            self.dirty.add(stream)
            self.emitted[bar.spec] += 1
            self.revised[bar.spec] += bar.revision > 0

    @staticmethod
    def _bar_stream(trades: Stream, spec: str) -> Stream:
        return Stream("bar", trades.feed, trades.symbol, spec)

    def _restore(self, stream: Stream, state: bytes) -> None:
        """Continue from the committed state. OtherVersion if another version of this program wrote it."""
        try:
            bars = self._add(stream, state)
        except OtherVersion:
            raise
        except WireError as error:
            log.error("%s: %s; its bars begin anew, the first ones partial", stream.name, error)
            bars = self._add(stream)
        self._note_clock(stream, bars)

    def _add(self, stream: Stream, state: bytes | None = None, subscribed: int = 0) -> StreamBars:
        bars = self._bars[stream] = self._make(stream.symbol, state=state, subscribed=subscribed)
        self._by_clock.setdefault((self._keys.shard(stream.symbol), stream.feed), []).append(stream)
        return bars

    @property
    def open_bars(self) -> int:
        return sum(bars.open_bars for bars in list(self._bars.values()))

    @property
    def ignored(self) -> Counter[str]:
        total: Counter[str] = Counter(unreadable=self._entries.unreadable)
        for bars in list(self._bars.values()):
            total.update(bars.counters)
        return total

    @property
    def clock_ahead(self) -> Counter[str]:
        """Number of streams whose vendor's clock is ahead, by feed; zero for the other feeds."""
        streams = list(self._bars)
        ahead = Counter(stream.feed for stream in self._ahead.copy())
        return Counter({stream.feed: ahead[stream.feed] for stream in streams})
