"""`tickbus bars`: trade streams in, bar streams out, bars and position in one transaction."""

from functools import partial
from typing import Annotated

from services.bars.metrics import expose
from services.bars.service import BarService
from tickbus.consumer.consumer import ShardConsumer
from tickbus.errors import ConfigError
from tickbus.protocol.bar_specs import Spec, parse_all
from tickbus.protocol.names import Keys, StreamId, check_name
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.reads import FROM_START, parse_start
from tickbus.redis.topology import locate
from tickbus.service.consumer_service import running
from tickbus.service.options import MirrorGroups, Option, WriterOptions
from tickbus.service.runner import Service, run
from tickbus.units import SECOND, Duration

ABOUT = "Build exact bars from trades: time of any length, tick, volume, value; late trades revise them."
POSITIONALS = ()


class Options(WriterOptions, frozen=True, kw_only=True):
    specs: Annotated[
        tuple[str, ...], Option("bars to build: time:<n>s|m|h|d, tick:<n>, volume:<n>, value:<n>")
    ] = ("time:1s", "time:1m")
    feeds: Annotated[tuple[str, ...], Option("feeds to read; default all")] = ()
    grace: Annotated[Duration, Option("a time bar closes this long after its end")] = Duration(2 * SECOND)
    horizon: Annotated[Duration, Option("a late trade revises its bar for this long after the close")] = (
        Duration(60 * SECOND)
    )
    from_: Annotated[str, Option("where to start without a committed position: start, now or a time")] = (
        FROM_START
    )
    name: Annotated[
        str,
        Option("service name, for position, state and members; processes with one name share the shards"),
    ] = "bars"
    mirror_groups: MirrorGroups = False


def start(options: Options) -> int:
    specs, begin = parse_all(options.specs), parse_start(options.from_, "--from")
    if not specs:
        raise ConfigError("--specs is empty: expected e.g. time:1s,time:1m")
    for name in (options.name, *options.feeds):
        check_name(name)
    return run(partial(_run, options, specs, begin), options, "bars")


async def _run(options: Options, specs: tuple[Spec, ...], begin: "str | StreamId", service: Service) -> None:
    (await locate(options.redis).open_checked()).close()
    consumer = ShardConsumer(
        options.redis, Keys(options.prefix, options.shards), options.name,
        StreamFilter.of(("trade",), options.feeds), options.lease_ttl, start=begin,
        writes=StreamFilter.of(("bar",), options.feeds, specs=[spec.text for spec in specs]),
        window=options.replay_buffer, mirror_groups=options.mirror_groups,
    )  # fmt: skip
    bars = BarService(consumer, specs, options.grace, options.horizon, options.feeds)
    expose(service.meters, bars)
    async with running(service, consumer, options=options, fault=lambda: bars.fault, report=bars.report):
        await service.until_stopping(bars.run())
