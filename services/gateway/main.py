"""`tickbus gateway`: from options to a running gateway."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from services.gateway.delivery.backlog import Backlog, Backlogs
from services.gateway.delivery.sender import Sender, StreamHead
from services.gateway.gateway import Gateway
from services.gateway.metrics import expose
from services.gateway.options import VENDOR_OPTIONS, GatewayOptions, Options
from services.gateway.sequencing.sequencer import Sequencer
from services.gateway.sequencing.stream_state import SNAPSHOT_SIZE
from services.gateway.spill.dir_lock import check_spill_dir
from services.gateway.spill.segment import Bus, Owner
from services.gateway.spill.spill import Budget, Spill
from services.gateway.standby import Description, StandbyCheck
from services.gateway.subscriptions.keeper import SubscriptionKeeper
from services.gateway.subscriptions.policy import WantsPolicy
from services.gateway.subscriptions.streams import Streams
from services.gateway.subscriptions.table import SubscriptionTable
from services.gateway.subscriptions.wants import WantBook
from services.gateway.upstream.intake import Intake
from services.gateway.upstream.proxy import DIRECT, Proxy, route
from services.gateway.upstream.upstream import Upstream
from services.trading_hours import TradingHours
from services.vendors import get_vendor
from services.vendors.feed import Cap, Feed, FeedSetup
from services.vendors.options import reject_foreign_options, select_vendor_options
from services.vendors.symbols import SymbolMap, read_symbol_map, read_symbols
from tickbus.clock import BusClock
from tickbus.durable import set_umask
from tickbus.errors import ConfigError
from tickbus.monitoring import metrics as m
from tickbus.monitoring.retention_metrics import expose_sweeps
from tickbus.protocol.names import Keys, check_name
from tickbus.redis.registry import check_meta, register_feed, write_delay
from tickbus.redis.topology import Redis, locate
from tickbus.redis.urls import address_of
from tickbus.sanitize import clean
from tickbus.service.runner import Service, run
from tickbus.units import MILLISECOND, parse_time
from tickbus.writer.entry import StreamWriter
from tickbus.writer.lease import Lease
from tickbus.writer.publisher import Publisher
from tickbus.writer.retention import Sweeper, stream_keys

log = logging.getLogger("tickbus.gateway")

_HOME = 0
"""The shard whose fence is watched. Any would do, but it must not change with the symbols."""

ABOUT = (
    "Hold the one upstream connection that the vendor allows and publish every tick to Redis Streams, "
    "exact and in order."
)
POSITIONALS = ()

__all__ = ["ABOUT", "POSITIONALS", "Options", "start"]


def start(options: GatewayOptions) -> int:
    setup, name = _setup(options)
    session = TradingHours.parse(options.session) if options.session else None
    set_umask(options.umask)
    return run(partial(_run, options, setup, name, session), options, "gateway")


def _setup(options: GatewayOptions) -> tuple[FeedSetup, str]:
    """Report everything that can be wrong with the options before anything is opened."""
    kind = get_vendor(options.feed).feed
    exceptions = {
        canonical: kind.canonical_vendor_symbol(vendor)
        for canonical, vendor in read_symbol_map(options.symbol_map).items()
    }
    listed = read_symbols(options.symbols)
    if not listed and not WantsPolicy(options.wants).enabled:
        raise ConfigError(
            "--symbols is missing (also TICKBUS_SYMBOLS), with --wants none: expected the symbols to "
            "subscribe to, e.g. BTC-USDT,ETH-USDT or @file"
        )
    symbols = SymbolMap(listed, kind.to_vendor_symbol, exceptions)
    kinds = tuple(dict.fromkeys(options.kinds))
    if not kinds:
        raise ConfigError("--kinds is empty: expected trade, quote or both")
    if options.max_connection_age is not None and not kind.allows_overlap:
        raise ConfigError(
            f"--max-connection-age: feed {options.feed} cannot replace a connection without a hole; "
            "leave it out"
        )
    reject_foreign_options(options, VENDOR_OPTIONS, options.feed, "--feed")
    setup = FeedSetup(
        symbols,
        kinds,
        options.url,
        options.token,
        select_vendor_options(options, VENDOR_OPTIONS[options.feed]),
        _oldest(options.oldest),
    )
    route(kind(setup).url(), options.proxy)
    return setup, check_name(options.name or options.feed)


def _cap(feed: Feed, options: GatewayOptions) -> Cap | None:
    """Return how much may be subscribed to. ConfigError if the fixed part alone is more."""
    most = options.max_symbols
    if most is None:
        return feed.cap
    if len(feed.setup.fixed) > most:
        raise ConfigError(
            f"too many symbols: {len(feed.setup.fixed)} in --symbols, --max-symbols allows {most}"
        )
    if feed.cap is not None and feed.cap.what == "symbols":
        most = min(most, feed.cap.most)
    return Cap(most, "symbols")


def _oldest(text: str) -> int:
    try:
        oldest = parse_time(text)
    except ValueError as error:
        raise ConfigError(f"--oldest: {error}") from None
    if oldest > time.time_ns():
        raise ConfigError(f"--oldest {text}: expected a time in the past: every earlier tick is flagged")
    return oldest


def _proxy(url: str, options: GatewayOptions) -> Proxy | None:
    """Return the proxy to the vendor. ConfigError if --proxy is invalid."""
    chosen = route(url, options.proxy)
    if chosen.ignored:
        log.warning(
            "proxy %s of the environment is not used: only http://host:port is supported; "
            "connecting directly (--proxy %s says so without this warning)",
            clean(chosen.ignored),
            DIRECT,
        )
    return chosen.proxy


@dataclass
class _Parts:
    """A gateway, not opened yet, and what works beside it."""

    feed: Feed
    gateway: Gateway
    upstream: Upstream
    book: WantBook
    keeper: SubscriptionKeeper


def _wire(
    options: GatewayOptions,
    setup: FeedSetup,
    name: str,
    session: TradingHours | None,
    redis: Redis,
    keys: Keys,
) -> _Parts:
    make_feed = partial(get_vendor(options.feed).feed, setup)
    feed = make_feed()
    clock = BusClock()
    publisher = Publisher(redis, keys, name, clock, home=_HOME, window=options.replay_buffer)
    backlogs = {lane: Backlog(options.backlog_bytes) for lane in publisher.lanes}
    by_shard = {shard: backlogs[publisher.lane(shard)] for shard in range(keys.shards)}
    backlog = (
        next(iter(backlogs.values())) if len(backlogs) == 1 else Backlogs(by_shard, options.backlog_bytes)
    )
    sequencer = Sequencer((), backlog.put, feed.repairable, backlog.reserve)
    intake = Intake(clock, sequencer, backlog)
    table = SubscriptionTable(feed.topics, _cap(feed, options), options.linger // MILLISECOND, clock.now_ms)
    streams = Streams(
        name, keys, setup.symbols, feed.sequenced, getattr(feed, "snapshot_size", SNAPSHOT_SIZE), sequencer,
        publisher, backlog, clock,
    )  # fmt: skip
    lease = Lease(
        partial(redis.link, keys.lease(name)), keys, name, options.lease_ttl, publisher.fences.holder
    )
    budget = Budget(options.spill_bytes)

    def make_senders(heads: Mapping[StreamWriter, StreamHead]) -> list[Sender]:
        senders = []
        for lane, queue in backlogs.items():
            part = str(lane.owned[0]) if len(publisher.lanes) > 1 else ""
            owner = Owner(name, publisher.epoch, publisher.fences.holder, part, gateway.bus)
            spill = Spill(options.spill_dir, owner, budget, streams.by_name.__getitem__)
            senders.append(Sender(lane, queue, spill, clock, heads))
        return senders

    gateway = Gateway(name, keys, clock, lease, publisher, intake, make_senders, streams, table)
    gateway.bus = Bus(address=f"{address_of(options.redis)}, prefix {options.prefix}")
    upstream = Upstream(
        make_feed, intake, clock, tolerance=options.future_tolerance, max_frame=options.max_frame,
        silence=options.silence, session=session, max_age=options.max_connection_age,
        proxy=_proxy(feed.url(), options), target=table,
    )  # fmt: skip
    table.changed, sequencer.forget_quotes = upstream.retarget, upstream.forget_quotes
    book = WantBook(WantsPolicy(options.wants), feed.kinds)
    keeper = SubscriptionKeeper(
        name, keys, table, book, streams, redis.connect, clock.now_ms, intake.stamp,
        lambda: publisher.histories_lost,
    )  # fmt: skip
    return _Parts(feed, gateway, upstream, book, keeper)


async def _run(
    options: GatewayOptions, setup: FeedSetup, name: str, session: TradingHours | None, service: Service
) -> None:
    keys, redis = Keys(options.prefix, options.shards), locate(options.redis)
    (await redis.open_checked()).close()
    # the fixed symbols: others are added while it runs
    description = Description.of(options.feed, setup.kinds, setup.fixed)
    parts = _wire(options, setup, name, session, redis, keys)
    gateway, upstream = parts.gateway, parts.upstream
    if options.spill_bytes:
        _check_spill_dir_early(options.spill_dir)
    check = StandbyCheck(name, keys, gateway.publisher.fences.holder, description, redis.connect)
    service.meters.follow(m.FEED_STANDBY_DIFFERS, lambda: bool(check.differs), name)
    service.why_not_ready = "waiting for the lease of this feed"
    opening = gateway.open(redis.connect, options.spill_dir, parts.keeper.read_wanted)
    await service.until_stopping(_open_checked(opening, check, gateway.lease))
    if service.stopping.is_set():
        await gateway.lease.release()
        return
    sweeper = Sweeper(
        name, options.retention_policy, keys, redis.connect, partial(stream_keys, keys=keys, owner=name)
    )

    async def register() -> None:
        connection = await redis.connect()
        await check_meta(connection, keys)
        await register_feed(connection, keys, name, description.encode())
        await write_delay(connection, keys, name, gateway.sequencer.latency.observed)
        connection.close()
        await sweeper.announce()

    expose_sweeps(service.meters, sweeper)
    expose(service.meters, gateway, upstream, parts.book)
    background = [
        asyncio.create_task(work) for work in (_report_readiness(service, gateway, upstream), sweeper.run())
    ]
    delay = parts.feed.takeover_delay if options.takeover_delay is None else options.takeover_delay
    try:
        await gateway.run(
            upstream, service.stopping, options.stop_deadline, delay, register, parts.keeper.run
        )
    finally:
        for task in background:
            task.cancel()
        await gateway.close()


async def _open_checked(opening: Coroutine[Any, Any, None], check: StandbyCheck, lease: Lease) -> None:
    """Open the gateway; ConfigError if one of the same name runs that it must not stand by for."""
    tasks = [asyncio.create_task(opening), asyncio.create_task(check.run())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    except ConfigError:
        await lease.release()
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_spill_dir_early(folder: Path) -> None:
    """Warn if the folder is unusable: a gateway without a disk is better than none, but say so now."""
    try:
        check_spill_dir(folder)
    except ConfigError as error:
        log.warning("%s; until then ticks that memory has no room for become a Gap", error)


async def _report_readiness(service: Service, gateway: Gateway, upstream: Upstream) -> None:
    while True:
        publisher = gateway.publisher
        faults = [fault.key for fault in publisher.quarantined]
        connected = upstream.up or upstream.idle
        service.ready = connected and publisher.up and not publisher.refusal and not faults
        if publisher.refusal:
            service.why_not_ready = f"Redis refuses writes: {publisher.refusal}"
        elif not publisher.up:
            service.why_not_ready = "Redis is unavailable"
        elif not connected:
            service.why_not_ready = "no subscribed upstream connection"
        elif faults:
            service.why_not_ready = (
                f"some other program wrote to {', '.join(faults[:5])}: see the log or tickbus status"
            )
        await asyncio.sleep(0.2)
