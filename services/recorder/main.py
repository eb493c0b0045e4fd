"""`tickbus recorder`: every stream into Parquet files, exactly once."""

import asyncio
from functools import partial

from services.recorder.files import check_writable
from services.recorder.metering import RecorderMeters
from services.recorder.options import Options
from services.recorder.recorder import Recorder
from services.recorder.stores import Stores
from tickbus.consumer import Consumer
from tickbus.consumer_metrics import tell_readiness
from tickbus.errors import ConfigError
from tickbus.lag import LagMeter
from tickbus.names import Keys, StreamId, check_name
from tickbus.reader import parse_start
from tickbus.selection import Selection
from tickbus.service import Service, run
from tickbus.topology import locate

ABOUT = "Write trades, quotes, bars and gaps to Parquet files, exactly once, readable by DuckDB, Polars and pandas."
POSITIONALS = ()

_KINDS = ("trade", "quote", "bar")

__all__ = ["ABOUT", "POSITIONALS", "Options", "start"]


def start(options: Options) -> int:
    for kind in options.kinds:
        if kind not in _KINDS:
            raise ConfigError(f"--kinds {kind}: there are {', '.join(_KINDS)}; gaps come with each")
    if not options.kinds:
        raise ConfigError(f"--kinds: name what to record, out of {', '.join(_KINDS)}")
    for name in (options.name, *options.feeds):
        check_name(name)
    begin = parse_start(options.from_, "--from")
    check_writable(options.data_dir)
    return run(partial(_run, options, begin), options, "recorder")


async def _run(options: Options, begin: "str | StreamId", service: Service) -> None:
    redis = locate(options.redis)
    (await redis.open_checked()).close()
    keys = Keys(options.prefix, options.shards)
    reads = Selection.of(options.kinds, options.feeds)
    stores = Stores(options.data_dir, keys)
    consumer = Consumer(options.redis, keys, options.name, reads, options.lease_ttl, start=begin, recover=stores.recover)
    stores.epochs = consumer.epochs
    recorder = Recorder(consumer, keys, options, stores)
    RecorderMeters(service.meters, consumer, recorder)
    lag = LagMeter(service.meters, options.name, keys, redis.connect, consumer.works, lambda: stores.positions)
    try:
        await consumer.open()
        async with asyncio.TaskGroup() as group:
            readiness = tell_readiness(service, consumer, lambda: "files cannot be written" if recorder.blocked else "")
            others = [group.create_task(work) for work in (lag.run(), readiness)]
            await recorder.run(service.stopping)
            for task in others:
                task.cancel()
    finally:
        await consumer.close()
