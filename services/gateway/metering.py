"""The gateway's plain integers -> its metrics, at each scrape."""

from services.gateway.gateway import Gateway
from services.gateway.sequencer import StreamState
from services.gateway.upstream import Upstream
from tickbus import metrics as m
from tickbus.messages import GapKind
from tickbus.metrics import Meters
from tickbus.units import SECOND
from tickbus.wire import NIL

_REASONS = ("closed", "connect", "dead", "refused", "rotate", "silence", "slow_down", "subscribe")
_REJECTS = ("field", "garbage", "oversize", "unknown_symbol")


class GatewayMeters:
    """Every label value exists from the start, as 0, so that an alert's `increase()` sees the first event."""

    def __init__(self, meters: Meters, gateway: Gateway, upstream: Upstream) -> None:
        self._gateway = gateway
        self._upstream = upstream
        feed = gateway.name
        total = meters.total
        self._frames = total(m.FEED_FRAMES, feed)
        self._bytes = total(m.FEED_BYTES, feed)
        self._ignored = total(m.FEED_IGNORED, feed)
        self._duplicates = total(m.FEED_DUPLICATES, feed)
        self._repaired = total(m.GAPS_REPAIRED, feed)
        self._missing = total(m.MISSING_TICKS, feed)
        self._retries = total(m.PUBLISH_RETRIES)
        self._resent = total(m.RESENT_TICKS)
        self._spilled = total(m.SPILLED_TICKS)
        self._spill_ticks = meters.gauge(m.SPILL_TICKS)
        self._spill_bytes = meters.gauge(m.SPILL_BYTES)
        self._redis_reconnects = total(m.REDIS_RECONNECTS)
        self._reconnects = {reason: total(m.FEED_RECONNECTS, feed, reason) for reason in _REASONS}
        self._rejected = {reason: total(m.FEED_REJECTED, feed, reason) for reason in _REJECTS}
        self._published = {kind: total(m.TICKS_PUBLISHED, feed, kind) for kind in ("trade", "quote")}
        self._gaps = {kind.name.lower(): total(m.GAPS, feed, kind.name.lower()) for kind in GapKind}
        self._connected = meters.gauge(m.FEED_CONNECTED).labels(feed)
        self._last_message = meters.gauge(m.FEED_LAST_MESSAGE).labels(feed)
        self._wanted = meters.gauge(m.FEED_SYMBOLS_WANTED).labels(feed)
        self._silent = meters.gauge(m.FEED_SYMBOLS_SILENT).labels(feed)
        self._backlog_ticks = meters.gauge(m.BACKLOG_TICKS)
        self._backlog_bytes = meters.gauge(m.BACKLOG_BYTES)
        self._redis_up = meters.gauge(m.REDIS_UP)
        self._epoch = meters.gauge(m.EPOCH).labels(feed)
        self._publish = meters.histogram(m.PUBLISH)
        self._batch = meters.histogram(m.BATCH_TICKS)
        self._event_to_receive = meters.histogram(m.EVENT_TO_RECEIVE).labels(feed)
        self._receive_to_publish = meters.histogram(m.RECEIVE_TO_PUBLISH).labels(feed)
        meters.before_scrape(self.refresh)

    def refresh(self) -> None:
        self._refresh_feed()
        self._refresh_streams()
        self._refresh_redis()
        self._refresh_histograms()

    def _refresh_feed(self) -> None:
        intake, upstream = self._gateway.intake, self._upstream
        current = upstream.current
        self._frames.bring_to(intake.frames)
        self._bytes.bring_to(upstream.bytes_before + (current.socket.bytes_received if current is not None else 0))
        self._ignored.bring_to(intake.ignored + intake.sequencer.unwanted)
        for reason, counter in self._reconnects.items():
            counter.bring_to(upstream.reconnects[reason])
        for reason, counter in self._rejected.items():
            counter.bring_to(intake.rejected[reason])
        self._connected.set(upstream.up)
        if intake.last_tick:
            self._last_message.set(intake.last_tick / SECOND)

    def _refresh_streams(self) -> None:
        streams: list[StreamState] = self._gateway.streams
        self._duplicates.bring_to(self._gateway.sequencer.duplicates)
        for kind, counter in self._gaps.items():
            counter.bring_to(sum(state.gaps.get(kind, 0) for state in streams))
        self._repaired.bring_to(sum(state.repaired for state in streams))
        self._missing.bring_to(sum(state.missing + state.repaired for state in streams))  # each repaired Gap is one of these ticks
        symbols = {state.symbol for state in streams}
        self._wanted.set(len(symbols))
        self._silent.set(len(symbols - {state.symbol for state in streams if state.tick != bytes(NIL)}))
        published = self._gateway.published
        for kind, counter in self._published.items():
            counter.bring_to(published[kind])

    def _refresh_redis(self) -> None:
        gateway = self._gateway
        self._backlog_ticks.set(gateway.held)
        self._backlog_bytes.set(gateway.backlog.bytes)
        self._retries.bring_to(gateway.publisher.retries)
        self._resent.bring_to(gateway.publisher.resent)
        self._spilled.bring_to(sum(outlet.spill.appended for outlet in gateway.outlets))
        self._spill_ticks.set(sum(len(outlet.spill) for outlet in gateway.outlets))
        self._spill_bytes.set(sum(outlet.spill.bytes for outlet in gateway.outlets))
        self._redis_reconnects.bring_to(gateway.publisher.reconnects)
        self._redis_up.set(gateway.publisher.up)
        self._epoch.set(gateway.publisher.epoch)

    def _refresh_histograms(self) -> None:
        for entries, seconds, oldest, newest in self._gateway.take_batches():
            self._batch.observe(entries)
            self._publish.observe(seconds)
            self._receive_to_publish.observe(oldest / SECOND)
            if entries > 1:
                self._receive_to_publish.observe(newest / SECOND)
        delays, self._gateway.intake.event_delays = self._gateway.intake.event_delays, []
        for delay in delays:
            self._event_to_receive.observe(delay / SECOND)
