"""`tickbus signals`: trades and quotes in, signals out, signals and position in one transaction."""

from functools import partial
from pathlib import Path
from typing import Annotated

from services.signals.metrics import expose
from services.signals.service import SignalService
from tickbus.consumer.consumer import ShardConsumer
from tickbus.protocol.names import FEED_KINDS, Keys, StreamId, check_name
from tickbus.protocol.stream_filter import StreamFilter
from tickbus.reader.reads import FROM_START, parse_start
from tickbus.redis.topology import locate
from tickbus.service.consumer_service import running
from tickbus.service.options import MirrorGroups, Option, WriterOptions
from tickbus.service.runner import Service, run

ABOUT = """Watch the ticks for what is unusual: price moves beyond N deviations, volume surges, large trades,
who crosses the spread, spreads, holes. docs/signals.md has the formulas and the parameters.

Streams signal:<feed>:<symbol> get an entry when an episode starts and when it ends, and values at a cadence
where parameters ask for them."""
POSITIONALS = ()


class Options(WriterOptions, frozen=True, kw_only=True):
    feeds: Annotated[tuple[str, ...], Option("feeds to read; default all")] = ()
    parameters: Annotated[
        Path | None,
        Option("TOML file of parameters; read again when it changes, in force for all replicas"),
    ] = None
    from_: Annotated[str, Option("where to start without a committed position: start, now or a time")] = (
        FROM_START
    )
    name: Annotated[
        str,
        Option("service name, for position, state and members; processes with one name share the shards"),
    ] = "signals"
    mirror_groups: MirrorGroups = False


def start(options: Options) -> int:
    begin = parse_start(options.from_, "--from")
    for name in (options.name, *options.feeds):
        check_name(name)
    return run(partial(_run, options, begin), options, "signals")


async def _run(options: Options, begin: "str | StreamId", service: Service) -> None:
    (await locate(options.redis).open_checked()).close()
    consumer = ShardConsumer(
        options.redis, Keys(options.prefix, options.shards), options.name,
        StreamFilter.of(FEED_KINDS, options.feeds), options.lease_ttl, start=begin,
        writes=StreamFilter.of(("signal",), options.feeds),
        window=options.replay_buffer, mirror_groups=options.mirror_groups,
    )  # fmt: skip
    signals = SignalService(consumer, options.parameters)
    await signals.prepare()
    expose(service.meters, signals)
    async with running(service, consumer, options=options):
        await service.until_stopping(signals.run())
