"""The gateway's plain integers as metrics."""

from collections import Counter

from services.gateway.gateway import Gateway
from services.gateway.subscriptions.wants import WantBook
from services.gateway.upstream.upstream import Upstream
from tickbus.monitoring import metrics as m
from tickbus.monitoring.meters import Meters
from tickbus.protocol.messages import GapKind
from tickbus.protocol.wants import STATES
from tickbus.redis.link import REFUSALS
from tickbus.units import SECOND

_REASONS = ("closed", "connect", "dead", "refused", "rotate", "silence", "slow_down", "subscribe")
_REJECTS = ("field", "garbage", "oversize", "unknown_symbol")


def expose(meters: Meters, gateway: Gateway, upstream: Upstream, book: WantBook) -> None:
    feed = gateway.name
    meters.follow_each(m.FEED_SUBSCRIPTIONS, gateway.table.counts, STATES, feed)
    meters.follow(m.FEED_WANT_HOLDERS, lambda: book.holders, feed)
    meters.follow(m.FEED_IDLE, lambda: upstream.idle, feed)
    _expose_feed(meters, gateway, upstream)
    _expose_streams(meters, gateway)
    _expose_delivery(meters, gateway)
    _expose_latencies(meters, gateway)


def _expose_feed(meters: Meters, gateway: Gateway, upstream: Upstream) -> None:
    feed, intake, follow = gateway.name, gateway.intake, meters.follow
    follow(m.FEED_FRAMES, lambda: intake.frames, feed)
    follow(m.FEED_BYTES, lambda: upstream.bytes_received, feed)
    follow(m.FEED_IGNORED, lambda: intake.ignored + intake.sequencer.unwanted, feed)
    follow(m.FEED_UNKNOWN, lambda: intake.unknown, feed)
    follow(m.FEED_VENDOR_ERRORS, lambda: intake.vendor_errors, feed)
    follow(m.FEED_BAD_TIMES, lambda: intake.bad_times, feed)
    follow(m.FEED_DUPLICATES, lambda: intake.sequencer.duplicates + intake.duplicates, feed)
    follow(m.FEED_DOUBTFUL_IDS, lambda: intake.sequencer.doubtful, feed)
    follow(m.FEED_HELD, lambda: intake.sequencer.held, feed)
    follow(m.FEED_CONNECTED, lambda: upstream.up, feed)
    meters.follow_each(m.FEED_RECONNECTS, lambda: upstream.reconnects, _REASONS, feed)
    meters.follow_each(m.FEED_REJECTED, lambda: intake.rejected, _REJECTS, feed)
    last_message = meters.gauge(m.FEED_LAST_MESSAGE).labels(feed)
    # absent until there is one
    meters.before_scrape(lambda: last_message.set(intake.last_tick / SECOND) if intake.last_tick else None)


def _expose_streams(meters: Meters, gateway: Gateway) -> None:
    feed, streams, follow = gateway.name, gateway.streams, meters.follow

    def gaps() -> Counter[str]:
        total: Counter[str] = Counter()
        for state in gateway.all_streams():
            if state.counts.by_kind:
                total.update(state.counts.by_kind)
        total["unsubscribed"] += gateway.unsubscribed
        return total

    meters.follow_each(
        m.GAPS, gaps, [kind.name.lower() for kind in GapKind if kind is not GapKind.UNKNOWN], feed
    )
    everything = gateway.all_streams
    follow(m.GAPS_REPAIRED, lambda: sum(state.counts.repaired for state in everything()), feed)
    follow(m.MISSING_TICKS, lambda: sum(state.counts.reported for state in everything()), feed)
    follow(
        m.HOLES_FORGOTTEN,
        lambda: sum(head.forgotten for sender in gateway.senders[:1] for head in sender.heads.values()),
        feed,
    )
    follow(m.FEED_SYMBOLS_WANTED, lambda: len({state.symbol for state in streams}), feed)
    follow(
        m.FEED_SYMBOLS_SILENT,
        lambda: len(
            {state.symbol for state in streams} - {state.symbol for state in streams if state.ticked}
        ),
        feed,
    )


def _expose_delivery(meters: Meters, gateway: Gateway) -> None:
    feed, publisher, follow = gateway.name, gateway.publisher, meters.follow
    meters.follow_each(m.TICKS_PUBLISHED, lambda: gateway.published, ("trade", "quote"), feed)
    follow(m.BACKLOG_TICKS, lambda: gateway.buffered)
    follow(m.BACKLOG_BYTES, lambda: gateway.backlog.bytes)
    follow(m.PUBLISH_RETRIES, lambda: publisher.retries)
    follow(m.RESENT_TICKS, lambda: publisher.resent)
    follow(m.SPILLED_TICKS, lambda: sum(sender.spill.appended for sender in gateway.senders))
    follow(m.SPILL_TICKS, lambda: sum(len(sender.spill) for sender in gateway.senders))
    follow(m.SPILL_BYTES, lambda: sum(sender.spill.bytes for sender in gateway.senders))
    follow(m.REDIS_RECONNECTS, lambda: publisher.reconnects)
    follow(m.REDIS_UP, lambda: publisher.up)
    meters.follow_each(m.REDIS_REFUSES, lambda: {publisher.refusal.partition(" ")[0]: 1}, REFUSALS)
    follow(m.QUARANTINED_KEYS, lambda: len(publisher.quarantined))
    follow(m.HELD_ENTRIES, lambda: sum(len(lane.quarantine) for lane in publisher.lanes))
    follow(m.EPOCH, lambda: publisher.epoch, feed)


def _expose_latencies(meters: Meters, gateway: Gateway) -> None:
    feed, intake = gateway.name, gateway.intake
    publish, batch = meters.histogram(m.PUBLISH), meters.histogram(m.BATCH_TICKS)
    event_to_receive = meters.histogram(m.EVENT_TO_RECEIVE).labels(feed)
    receive_to_publish = meters.histogram(m.RECEIVE_TO_PUBLISH).labels(feed)

    def refresh() -> None:
        for entries, seconds, oldest, newest in gateway.take_batches():
            batch.observe(entries)
            publish.observe(seconds)
            receive_to_publish.observe(oldest / SECOND)
            if entries > 1:
                receive_to_publish.observe(newest / SECOND)
        delays, intake.event_delays = intake.event_delays, []
        for delay in delays:
            event_to_receive.observe(delay / SECOND)

    meters.before_scrape(refresh)
