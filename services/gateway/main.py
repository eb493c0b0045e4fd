"""`tickbus gateway`: from options to a running gateway."""

import asyncio
import logging
from functools import partial
from pathlib import Path

from services.gateway.backlog import Backlog, Backlogs
from services.gateway.feeds import feed_class
from services.gateway.feeds.base import FeedSetup
from services.gateway.folders import check_spill_dir
from services.gateway.gateway import Gateway
from services.gateway.hours import Session
from services.gateway.intake import Intake
from services.gateway.metering import GatewayMeters
from services.gateway.options import Options
from services.gateway.outlet import Outlet
from services.gateway.segment import Owner
from services.gateway.sequencer import Sequencer, StreamState
from services.gateway.spill import Budget, Spill
from services.gateway.symbols import SymbolMap, read_symbol_map, read_symbols
from services.gateway.upstream import Upstream
from tickbus.clock import BusClock
from tickbus.errors import ConfigError
from tickbus.lease import Lease
from tickbus.names import Keys, Stream, check_name
from tickbus.publisher import Publisher
from tickbus.registry import check_meta, register_feed, write_delay
from tickbus.replay_ring import Window
from tickbus.retention import Sweeper, SweepMeters
from tickbus.service import Service, run
from tickbus.topology import locate

log = logging.getLogger("tickbus.gateway")

ABOUT = "Hold the one upstream connection that the vendor allows and publish every tick to Redis Streams, exact and in order."
POSITIONALS = ()

__all__ = ["ABOUT", "POSITIONALS", "Options", "start"]


def start(options: Options) -> int:
    setup, name = _setup(options)
    session = Session.parse(options.session) if options.session else None
    return run(partial(_run, options, setup, name, session), options, "gateway")


def _setup(options: Options) -> tuple[FeedSetup, str]:
    """Everything that can be wrong with the options is said before anything is opened."""
    kind = feed_class(options.feed)
    exceptions = {canonical: kind.written(vendor) for canonical, vendor in read_symbol_map(options.symbol_map).items()}
    symbols = SymbolMap(read_symbols(options.symbols), kind.spell, exceptions)
    kinds = tuple(dict.fromkeys(options.kinds))
    if not kinds:
        raise ConfigError("--kinds: name trade, quote or both")
    if options.max_connection_age is not None and not kind.overlaps:
        raise ConfigError(f"--max-connection-age: a connection of feed {options.feed} cannot be replaced without a hole; leave it out")
    if options.json_fields and options.feed != "json":
        raise ConfigError(f"--json-fields: feed {options.feed} has names of its own; leave it out")
    setup = FeedSetup(symbols, kinds, options.url, options.token, options.json_fields)
    kind(setup).url()
    return setup, check_name(options.name or options.feed)


async def _run(options: Options, setup: FeedSetup, name: str, session: Session | None, service: Service) -> None:
    make_feed = partial(feed_class(options.feed), setup)
    feed = make_feed()
    delay = feed.takeover_delay if options.takeover_delay is None else options.takeover_delay
    keys = Keys(options.prefix, options.shards)
    clock = BusClock()
    redis = locate(options.redis)
    (await redis.open_checked()).close()
    streams = [
        StreamState(keys, Stream(kind, name, symbol), feed.sequenced and kind == "trade") for symbol in setup.symbols.vendor for kind in setup.kinds
    ]
    window = Window(options.replay_window, options.replay_bytes)
    publisher = Publisher(redis, keys, name, clock, home=streams[0].shard, window=window)
    backlogs = {lane: Backlog(options.backlog_bytes) for lane in publisher.lanes}
    by_shard = {shard: backlogs[publisher.lane(shard)] for shard in range(keys.shards)}
    backlog = next(iter(backlogs.values())) if len(backlogs) == 1 else Backlogs(by_shard, options.backlog_bytes)
    sequencer = Sequencer(streams, backlog.put, feed.repairable)
    intake = Intake(clock, sequencer, backlog)
    lease = Lease(partial(redis.link, keys.lease(name)), keys, name, options.lease_ttl, publisher.fences.holder)
    budget = Budget(options.spill_bytes)
    resolve = {state.name: state for state in streams}.__getitem__

    def make_outlets() -> list[Outlet]:
        outlets = []
        for lane, waiting in backlogs.items():
            owner = Owner(name, publisher.epoch, publisher.fences.holder, str(lane.held[0]) if len(publisher.lanes) > 1 else "")
            outlets.append(Outlet(lane, waiting, Spill(options.spill_dir, owner, budget, resolve), clock))
        return outlets

    gateway = Gateway(name, keys, clock, lease, publisher, intake, make_outlets)
    upstream = Upstream(
        make_feed, intake, clock, tolerance=options.future_tolerance, most=options.max_frame,
        silence=options.silence, session=session, max_age=options.max_connection_age,
    )  # fmt: skip
    if options.spill_bytes:
        _try_spill_dir(options.spill_dir)
    service.why_not_ready = "waiting for the lease of this feed"
    await service.until_stopping(gateway.open(redis.connect, options.spill_dir))
    if service.stopping.is_set():
        await lease.release()
        return
    sweeper = Sweeper(name, options, keys, redis.connect, lambda: [state.key for state in streams])

    async def register() -> None:
        connection = await redis.connect()
        await check_meta(connection, keys)
        await register_feed(connection, keys, name)
        await write_delay(connection, keys, name, sequencer.delays.legacy)
        connection.close()
        await sweeper.declare()

    SweepMeters(service.meters, sweeper.total)
    GatewayMeters(service.meters, gateway, upstream)
    others = [asyncio.create_task(work) for work in (_tell_readiness(service, gateway, upstream), sweeper.run())]
    try:
        await gateway.run(upstream, service.stopping, options.stop_deadline, delay, register)
    finally:
        for task in others:
            task.cancel()
        await gateway.close()


def _try_spill_dir(folder: Path) -> None:
    """A gateway without a disk is better than none; but its operator should know now."""
    try:
        check_spill_dir(folder)
    except ConfigError as error:
        log.warning("%s; until then ticks that memory has no room for become a Gap", error)


async def _tell_readiness(service: Service, gateway: Gateway, upstream: Upstream) -> None:
    while True:
        service.ready = upstream.up and gateway.publisher.up
        service.why_not_ready = "Redis does not answer" if not gateway.publisher.up else "no subscribed upstream connection"
        await asyncio.sleep(0.2)
