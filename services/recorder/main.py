"""`tickbus recorder`: every stream into Parquet files, exactly once."""

import asyncio
from functools import partial

from services.recorder.files import check_writable
from services.recorder.metering import RecorderMeters
from services.recorder.options import Options
from services.recorder.recorder import Recorder
from tickbus.consumer import Consumer
from tickbus.errors import ConfigError
from tickbus.lag import LagMeter
from tickbus.link import Link, open_checked
from tickbus.names import Keys, StreamId, check_name
from tickbus.reader import parse_start
from tickbus.selection import Selection
from tickbus.service import Service, run

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
    begin = parse_start(options.from_)
    check_writable(options.data_dir)
    return run(partial(_run, options, begin), options, "recorder")


async def _run(options: Options, begin: "str | StreamId", service: Service) -> None:
    (await open_checked(options.redis)).close()
    keys = Keys(options.prefix, options.shards)
    reads = Selection.of(options.kinds, options.feeds)
    consumer = Consumer(options.redis, keys, options.name, reads, options.lease_ttl)
    service.why_not_ready = "waiting for the lease of this service"
    await service.until_stopping(consumer.open())
    if service.stopping.is_set():
        await consumer.close()
        return
    service.why_not_ready = "looking through the manifests"
    recorder = Recorder(consumer, keys, options)
    try:
        await recorder.recover()
    except OSError as error:
        raise ConfigError(f"--data-dir {options.data_dir}: {error.strerror}; make room, or name another folder") from None
    RecorderMeters(service.meters, consumer, recorder)
    lag = LagMeter(service.meters, options.name, keys, partial(Link.open, options.redis), reads, lambda: recorder.positions)
    try:
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(work) for work in (lag.run(), consumer.lease.keep(), _tell_readiness(service, recorder))]
            await recorder.run(begin, service.stopping)
            for task in others:
                task.cancel()
    finally:
        await consumer.close()


async def _tell_readiness(service: Service, recorder: Recorder) -> None:
    while True:
        service.ready = not recorder.blocked
        service.why_not_ready = "files cannot be written"
        await asyncio.sleep(0.2)
